package meta

import (
	"bytes"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// memLog is a log in memory.
type memLog struct{ entries []*op.Entry }

func (l *memLog) First() uint64 { return 1 }
func (l *memLog) last() uint64  { return uint64(len(l.entries)) }

func (l *memLog) Read(from uint64, maxBytes int) ([]*op.Entry, error) {
	if from > l.last() {
		return nil, nil
	}
	list := l.entries[from-1:]
	n := 0
	for n < len(list) && (n == 0 || maxBytes > 0) {
		maxBytes -= len(list[n].Raw)
		n++
	}
	return list[:n], nil
}

func (l *memLog) PosAt(seq uint64) (op.Pos, error) {
	if seq == 0 {
		return op.Pos{}, nil
	}
	return l.entries[seq-1].Pos(), nil
}

// world makes random histories: every operation is valid where it stands.
type world struct {
	t    testing.TB
	rnd  *rand.Rand
	log  *memLog
	ix   *index // with every entry applied
	dirs []op.ID
	// names has few choices, so that they are used again and again.
	names []string
	epoch uint64
	time  int64
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 17)), log: &memLog{}, ix: testIndex(t, t.TempDir()),
		dirs: []op.ID{op.Root}, names: []string{"a", "b", "c", "d", "e:2,S"},
		time: 1_700_000_000_000_000_000,
	}
	w.add(&op.EpochBegin{Epoch: 1, Reason: "test"})
	return w
}

func testIndex(t testing.TB, dir string) *index {
	t.Helper()
	x, err := openIndex(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.close() })
	return x
}

func (w *world) add(o op.Op) op.ID {
	w.t.Helper()
	if e, ok := o.(*op.EpochBegin); ok {
		w.epoch = e.Epoch
	}
	var prev op.Pos
	if n := len(w.log.entries); n > 0 {
		prev = w.log.entries[n-1].Pos()
	}
	w.time += int64(1 + w.rnd.IntN(5_000_000_000))
	e := op.NewEntry(prev, w.epoch, w.time, o)
	if _, err := w.ix.apply(e); err != nil {
		w.t.Fatalf("invalid test history: %v", err)
	}
	w.log.entries = append(w.log.entries, e)
	return op.ID(e.Seq)
}

func (w *world) dir() op.ID { return w.dirs[w.rnd.IntN(len(w.dirs))] }

func (w *world) name() string { return w.names[w.rnd.IntN(len(w.names))] }

func (w *world) child(dir op.ID, name string) (Child, bool) {
	c, err := w.ix.child(dir, name)
	return c, err == nil
}

// free finds an unused name somewhere.
func (w *world) free() (op.ID, string, bool) {
	for range 10 {
		dir, name := w.dir(), w.name()
		if _, used := w.child(dir, name); !used {
			return dir, name, true
		}
	}
	return 0, "", false
}

// some finds a name of an object that want accepts.
func (w *world) some(want func(*Inode) bool) (Name, *Inode) {
	for range 20 {
		dir := w.dir()
		list, err := w.ix.children(dir)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(list) == 0 {
			continue
		}
		c := list[w.rnd.IntN(len(list))]
		in, err := w.ix.inode(c.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		if want(in) {
			return Name{dir, c.Name}, in
		}
	}
	return Name{}, nil
}

func isControl(n *Inode) bool { return n.IsRegular() && !n.Sealed }
func isFile(n *Inode) bool    { return !n.IsDir() }
func isAny(*Inode) bool       { return true }

func (w *world) attr(typ uint32) op.Attr {
	a := op.Attr{Mode: typ | []uint32{0o600, 0o644, 0o640, 0}[w.rnd.IntN(4)], UID: uint32(w.rnd.IntN(3)), GID: uint32(w.rnd.IntN(3))}
	if typ == typeDir {
		a.Mode |= 0o700
	}
	if w.rnd.IntN(3) == 0 {
		a.Mtime = 1_600_000_000_000_000_000 + w.rnd.Int64N(1e12)
	}
	if w.rnd.IntN(6) == 0 && (typ == typeDir || typ == typeRegular) {
		a.Xattr = map[string][]byte{"user.x": w.bytes(8)}
	}
	return a
}

func (w *world) bytes(limit int) []byte {
	b := make([]byte, 1+w.rnd.IntN(limit))
	for i := range b {
		b[i] = byte('A' + w.rnd.IntN(26))
	}
	return b
}

// step adds one random operation, if it finds one.
func (w *world) step() {
	switch r := w.rnd.IntN(100); {
	case r < 8:
		w.mkdir()
	case r < 26:
		w.put(true)
	case r < 32:
		w.put(false)
	case r < 40:
		w.create()
	case r < 58:
		w.change()
	case r < 66:
		w.attrs()
	case r < 72:
		w.link()
	case r < 88:
		w.rename()
	case r < 97:
		w.unlink()
	case r < 99:
		w.seal()
	default:
		w.add(&op.Checkpoint{At: w.log.last(), Digest: w.ix.current().Digest})
	}
}

func (w *world) mkdir() {
	if len(w.dirs) > 12 {
		return
	}
	if dir, name, ok := w.free(); ok {
		w.dirs = append(w.dirs, w.add(&op.Mkdir{Parent: dir, Name: name, Attr: w.attr(typeDir)}))
	}
}

func (w *world) put(sealed bool) {
	dir, name := w.dir(), w.name()
	c, used := w.child(dir, name)
	if used && c.Type == typeDir {
		return
	}
	data := w.bytes(5000)
	o := &op.Put{Parent: dir, Name: name, Attr: w.attr(typeRegular), Sealed: sealed, Sum: op.SumOf(data), Victim: c.ID}
	if w.rnd.IntN(5) == 0 {
		half := len(data) / 2
		first := w.add(&op.Chunk{Data: data[:half]})
		for range w.rnd.IntN(3) {
			w.create()
		}
		w.add(&op.Chunk{Stage: uint64(first), Off: int64(half), Data: data[half:]})
		o.Stage = uint64(first)
		c, _ = w.child(dir, name)
		o.Victim = c.ID
	} else {
		o.Data = data
	}
	w.add(o)
}

func (w *world) create() {
	dir, name, ok := w.free()
	if !ok {
		return
	}
	switch w.rnd.IntN(6) {
	case 0:
		w.add(&op.Create{Parent: dir, Name: name, Attr: op.Attr{Mode: typeSymlink | 0o777}, Target: "to/" + w.name()})
	case 1:
		w.add(&op.Create{Parent: dir, Name: name, Attr: w.attr(unix.S_IFIFO)})
	default:
		w.add(&op.Create{Parent: dir, Name: name, Attr: w.attr(typeRegular)})
	}
}

func (w *world) change() {
	_, in := w.some(isControl)
	if in == nil {
		return
	}
	switch w.rnd.IntN(6) {
	case 0:
		w.add(&op.Truncate{ID: in.ID, Size: w.rnd.Int64N(6000)})
	case 1:
		w.add(&op.Fallocate{ID: in.ID, Mode: []uint32{0, 1, 3, 0x10}[w.rnd.IntN(4)], Off: w.rnd.Int64N(3000), Len: 1 + w.rnd.Int64N(3000)})
	default:
		w.add(&op.Write{ID: in.ID, Off: w.rnd.Int64N(in.Size + 500), Data: w.bytes(2000)})
	}
}

func (w *world) attrs() {
	_, in := w.some(func(n *Inode) bool { return n.Type() != typeSymlink })
	if in == nil {
		return
	}
	if w.rnd.IntN(3) == 0 && (in.IsDir() || in.IsRegular()) {
		w.add(&op.SetXattr{ID: in.ID, Name: "user.y", Value: w.bytes(20), Remove: in.Xattr["user.y"] != nil && w.rnd.IntN(2) == 0})
		return
	}
	w.add(&op.SetAttr{ID: in.ID, Valid: uint32(1 + w.rnd.IntN(15)), Mode: 0o700 | uint32(w.rnd.IntN(0o100)), UID: uint32(w.rnd.IntN(5)), GID: 7, Mtime: 1_500_000_000_000_000_000 + w.rnd.Int64N(1e15)})
}

func (w *world) link() {
	dir, name := w.dir(), w.name()
	_, in := w.some(isFile)
	if in == nil {
		return
	}
	c, used := w.child(dir, name)
	if used && (c.Type == typeDir || c.ID == in.ID) {
		return
	}
	w.add(&op.Link{ID: in.ID, Parent: dir, Name: name, Victim: c.ID})
}

// inside reports whether dir is top or below it.
func (w *world) inside(dir, top op.ID) bool {
	for dir != op.Root {
		if dir == top {
			return true
		}
		in, err := w.ix.inode(dir)
		if err != nil {
			w.t.Fatal(err)
		}
		dir = in.Names[0].Dir
	}
	return dir == top
}

func (w *world) rename() {
	from, in := w.some(isAny)
	if in == nil {
		return
	}
	dir, name := w.dir(), w.name()
	c, used := w.child(dir, name)
	if c.ID == in.ID || in.IsDir() && w.inside(dir, in.ID) {
		return
	}
	o := &op.Rename{ID: in.ID, OldParent: from.Dir, OldName: from.Name, NewParent: dir, NewName: name, Victim: c.ID}
	if !used {
		w.add(o)
		return
	}
	victim, err := w.ix.inode(c.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	if w.rnd.IntN(3) == 0 {
		if victim.IsDir() && w.inside(from.Dir, c.ID) {
			return
		}
		o.Exchange = true
		w.add(o)
		return
	}
	if in.IsDir() != victim.IsDir() || victim.IsDir() && victim.Count > 0 {
		return
	}
	if victim.IsDir() {
		w.forget(c.ID)
	}
	w.add(o)
}

func (w *world) forget(dir op.ID) {
	w.dirs = slices.DeleteFunc(w.dirs, func(id op.ID) bool { return id == dir })
}

func (w *world) unlink() {
	at, in := w.some(func(n *Inode) bool { return !n.IsDir() || n.Count == 0 })
	if in == nil {
		return
	}
	if in.IsDir() {
		w.forget(in.ID)
	}
	w.add(&op.Unlink{ID: in.ID, Parent: at.Dir, Name: at.Name})
}

// seal needs the content, which only a tree has: the one of a file that a
// single entry wrote.
func (w *world) seal() {
	_, in := w.some(func(n *Inode) bool { return isControl(n) && uint64(n.ID) == n.Changed })
	if in == nil {
		return
	}
	if put, ok := w.log.entries[in.ID-1].Op.(*op.Put); ok && put.Stage == 0 {
		w.add(&op.Seal{ID: in.ID, Of: in.Changed, Sum: op.BlockSumOf(put.Data)})
	}
}

// treeState describes everything below a directory, hard links too.
func treeState(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%06o %d:%d", st.Mode, st.Uid, st.Gid)
		m, err := readMark(path)
		fmt.Fprintf(&b, " id %d %v", m.ID, err)
		if m.Sealed {
			fmt.Fprintf(&b, " %+v", m)
		}
		fmt.Fprintf(&b, " mtime %d", unix.TimespecToNsec(st.Mtim))
		xs, err := readXattrs(path)
		fmt.Fprintf(&b, " xattrs %q %v", xs, err)
		switch st.Mode & typeMask {
		case typeRegular:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " size %d nlink %d sum %x", st.Size, st.Nlink, op.BlockSumOf(data).Blocks)
			if len(bytes.Trim(data, "\x00")) == 0 {
				b.WriteString(" zeros")
			}
		case typeSymlink:
			target, err := os.Readlink(path)
			fmt.Fprintf(&b, " -> %s %v", target, err)
		}
		rel, _ := filepath.Rel(dir, path)
		all[rel] = b.String()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// sameState compares two trees.
func sameState(t testing.TB, what string, got, want map[string]string) {
	t.Helper()
	for path, w := range want {
		if g, ok := got[path]; !ok {
			t.Errorf("%s: %s is missing: %s", what, path, w)
		} else if g != w {
			t.Errorf("%s: %s\n got  %s\n want %s", what, path, g, w)
		}
	}
	for path, g := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: %s is too much: %s", what, path, g)
		}
	}
}

func testLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
