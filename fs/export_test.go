package fs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/meta"
)

// Hooks are what tests may see of a mount. Set them before it is used.
type Hooks struct {
	Request func(op string)               // at the start of every request
	Wait    func(kind string, seq uint64) // before every wait
}

// SetHooks sets the test seams of f.
func (f *FS) SetHooks(h Hooks) {
	s := &seams{wait: h.Wait}
	if h.Request != nil {
		s.request = func(in *fuse.InHeader) { h.Request(opName(in.Opcode)) }
	}
	f.seams.Store(s)
}

// Table is the number of nodes in memory, and how many of them are volatile.
func (f *FS) Table() (nodes, volatile int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if n.vol != nil {
			volatile++
		}
	}
	return len(f.nodes), volatile
}

// SpillUsed is how many bytes volatile files have in memory.
func (f *FS) SpillUsed() int64 { return f.spill.used.Load() }

// PanicLocked makes the next creation of a file panic with the lock held.
func (f *FS) PanicLocked() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layout = nil
}

// Compare checks memory against the index, with everything applied and nothing
// going on, and says what differs. The rules:
//
//   - a logged inode has the attributes, the content's size, the seal, the
//     extended attributes and the number of names that the index has;
//   - mtime too, but for a directory that a volatile name has touched since;
//   - a loaded directory has exactly the index's entries, and beside them only
//     volatile ones, which lead to inodes in memory;
//   - nothing is laid over content any more;
//   - cookies ascend, and every entry stands at its own.
func (f *FS) Compare() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []string
	for _, n := range f.nodes {
		say := func(format string, args ...any) {
			list = append(list, fmt.Sprintf("node %d (id %d, names %d+%d): ", n.nodeid, n.id, n.nlog, n.nmem)+fmt.Sprintf(format, args...))
		}
		if len(n.pend) > 0 || n.base != nil {
			say("%d changes pending, base %v", len(n.pend), n.base != nil)
		}
		if n.isDir() && n.dir.loaded {
			f.compareDir(n, say)
		}
		if n.nlog > 0 {
			f.compareInode(n, say)
		}
	}
	return list
}

func (f *FS) compareInode(n *node, say func(string, ...any)) {
	if f.byID[n.id] != n {
		say("not found by id")
	}
	in, err := f.slot.Inode(n.id)
	if err != nil {
		say("index: %v", err)
		return
	}
	names, subs := int(in.Nlink), 0
	if n.isDir() {
		names, subs = 1, int(in.Nlink)-2
	}
	size := n.size
	if n.isDir() {
		size = in.Size
	}
	got := fmt.Sprint(n.mode, n.uid, n.gid, n.rdev, size, n.target, n.nlog, n.subs, n.sealed)
	want := fmt.Sprint(in.Mode, in.UID, in.GID, in.Rdev, in.Size, in.Target, names, subs, in.Sealed)
	if got != want {
		say("memory has %s, index %s", got, want)
	}
	if n.mtime != in.Mtime && (!n.isDir() || n.dir.volTime == 0) {
		say("mtime %d in memory, %d in the index", n.mtime, in.Mtime)
	}
	if n.isRegular() && n.changed != in.Changed {
		say("changed at %d in memory, %d in the index", n.changed, in.Changed)
	}
	if !maps.EqualFunc(n.xattr, in.Xattr, bytes.Equal) {
		say("xattrs %q in memory, %q in the index", n.xattr, in.Xattr)
	}
}

func (f *FS) compareDir(n *node, say func(string, ...any)) {
	logged := make(map[string]meta.Child)
	if n.nlog > 0 {
		children, err := f.slot.Children(n.id)
		if err != nil {
			say("children: %v", err)
		}
		for _, c := range children {
			logged[c.Name] = c
		}
	}
	memory, subs := 0, 0
	for name, e := range n.dir.ents {
		c, known := logged[name]
		if e.logged != known || known && (c.ID != e.id || c.Type != e.typ) {
			say("entry %q: id %d type %o in memory, %d %o in the index", name, e.id, e.typ, c.ID, c.Type)
		}
		delete(logged, name)
		if !e.logged {
			memory++
			if e.n == nil || f.nodes[e.n.nodeid] != e.n || e.id != e.n.id {
				say("volatile entry %q leads nowhere", name)
			}
		}
		if e.n != nil && e.n.isDir() || e.typ == 0o040000 {
			subs++
		}
		if i := n.dir.find(e.cookie); i == len(n.dir.order) || n.dir.order[i].e != e {
			say("entry %q is not at its cookie %d", name, e.cookie)
		}
	}
	for name := range logged {
		say("entry %q is only in the index", name)
	}
	if memory != n.dir.nmem || subs != n.subs {
		say("%d volatile entries and %d directories, counted %d and %d", memory, subs, n.dir.nmem, n.subs)
	}
	dead, last := 0, uint64(0)
	for _, p := range n.dir.order {
		if p.e == nil {
			dead++
		}
		if p.cookie <= last {
			say("cookie %d after %d", p.cookie, last)
		}
		last = p.cookie
	}
	if dead != n.dir.dead || dead+len(n.dir.ents) != len(n.dir.order) {
		say("%d places, %d of them dead (counted %d), %d entries", len(n.dir.order), dead, n.dir.dead, len(n.dir.ents))
	}
}

// Aside is aside.
func Aside(f func() error) error { return aside(f) }

// Unprotect takes back what Options.ProtectMountPoint did, so that dir can be
// removed.
func Unprotect(dir string) error {
	err := immutable(dir, false)
	if e := os.Chmod(dir, 0o755); e != nil {
		return fmt.Errorf("unprotect mount point: %w", e)
	}
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
