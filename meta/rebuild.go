package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// rebuilder makes an index from what else there is: the tree's names,
// attributes and marks, and the log.
//
// The tree is somewhere between the last checkpoint and the last entry of the
// log, and which entries it has is not known. So nothing is replayed on top of
// it; instead the log has the last word on every name and attribute that it
// mentions, and the tree on all others. That is exact as long as the log
// reaches back to before the last checkpoint, which trimming sees to: every
// entry that could be missing in the tree is in the log, and repeating one
// that is not missing ends, in order, at the same values.
//
// The result is the state at the last entry of the log, also if that was not
// known to be committed: what the tree has of uncommitted entries could not be
// taken out of it. All inodes are in memory meanwhile, about 400 bytes each,
// and all messages are read, as their SHA-256 is nowhere else.
type rebuilder struct {
	data string
	log  positionLog
	last uint64
	note func(kind string, id op.ID, path, text string)

	inodes map[op.ID]*Inode
	found  map[op.ID][]Name // where the tree has each object
	names  map[Name]op.ID   // what the log says last; 0: removed
	time   int64            // of the last entry; 0 if the log is empty
	latest uint64           // entry that the tree knows of

	known func(mark) *op.Sum // the checksum that a mark is a part of, from elsewhere; nil: read the content
	stop  func() error       // asked now and then whether to go on; may be nil
}

func newRebuilder(data string, log positionLog, last uint64, note func(kind string, id op.ID, path, text string)) *rebuilder {
	return &rebuilder{
		data: data, log: log, last: last, note: note,
		inodes: map[op.ID]*Inode{}, found: map[op.ID][]Name{}, names: map[Name]op.ID{},
	}
}

// run fills x, which is empty.
func (b *rebuilder) run(x *index) error {
	if err := b.scanAll(); err != nil {
		return fmt.Errorf("rebuild index: scan: %w", err)
	}
	if b.latest > b.last {
		return &LogLostError{Have: b.last, Need: b.latest}
	}
	if err := eachEntry(b.log, b.log.First(), b.last, b.overlay); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	if err := b.fill(x); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	return nil
}

func (b *rebuilder) scanAll() error {
	tree := filepath.Join(b.data, dirTree)
	var st unix.Stat_t
	if err := unix.Lstat(tree, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: tree, Err: err}
	}
	if b.last > 0 {
		root, err := b.inode(tree, &st, mark{ID: op.Root})
		if err != nil {
			return err
		}
		b.inodes[op.Root] = root
	}
	if err := b.scan(tree, op.Root); err != nil {
		return err
	}
	// What an interrupted recovery put aside, and what may have to come back.
	for _, dir := range []string{dirStage, dirTrash} {
		if err := b.scan(filepath.Join(b.data, dir), 0); err != nil {
			return err
		}
	}
	return nil
}

// scan goes through a directory of the tree; dir is 0 where names do not count.
func (b *rebuilder) scan(path string, dir op.ID) error {
	if len(path) > pathMax {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		path = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	list, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if b.stop != nil {
		if err := b.stop(); err != nil {
			return err
		}
	}
	for _, d := range list {
		if dir == 0 && (strings.HasPrefix(d.Name(), syncPrefix) || strings.HasPrefix(d.Name(), newPrefix)) {
			continue // fetched from elsewhere, or half made
		}
		at := filepath.Join(path, d.Name())
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: at, Err: err}
		}
		m, err := readMark(at)
		if err != nil && !errors.Is(err, errNoMark) {
			return err
		}
		b.latest = max(b.latest, uint64(m.ID), m.Changed)
		if b.inodes[m.ID] == nil && m.ID != 0 {
			in, err := b.inode(at, &st, m)
			if err != nil {
				return err
			}
			b.inodes[m.ID] = in
		}
		if dir != 0 && m.ID != 0 {
			b.found[m.ID] = append(b.found[m.ID], Name{Dir: dir, Name: d.Name()})
		}
		if st.Mode&typeMask == typeDir {
			if err := b.scan(at, m.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// inode is what path says of itself.
func (b *rebuilder) inode(path string, st *unix.Stat_t, m mark) (*Inode, error) {
	in := &Inode{
		ID: m.ID, Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Mtime: unix.TimespecToNsec(st.Mtim), Ctime: unix.TimespecToNsec(st.Ctim),
		Sealed: m.Sealed, Changed: m.Changed,
	}
	var err error
	if in.Xattr, err = readXattrs(path); err != nil {
		return nil, err
	}
	switch in.Type() {
	case typeRegular:
		in.Size = st.Size
		if m.Sized {
			in.Sum, err = b.sum(path, m)
		}
		if m.Sealed && m.Sized {
			in.Size = m.Size
		}
	case typeSymlink:
		in.Target, err = os.Readlink(path)
		in.Size = int64(len(in.Target))
	case unix.S_IFBLK, unix.S_IFCHR:
		in.Rdev = uint32(st.Rdev)
	}
	return in, err
}

// sum is the checksum that a mark tells of: that of the content, if they agree,
// else one that no content has, so that reading it means repairing it.
func (b *rebuilder) sum(path string, m mark) (*op.Sum, error) {
	if b.known != nil {
		if sum := b.known(m); sum != nil {
			return sum, nil
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var sum op.Sum
	if m.Sealed {
		sum, err = op.SumReader(f)
	} else {
		sum, err = op.BlockSumReader(f)
	}
	if err == nil && m.tells(&sum) {
		return &sum, nil
	}
	if err != nil && !errors.Is(err, unix.EIO) {
		return nil, err
	}
	want := op.Sum{Size: m.Size, Blocks: make([]uint64, (m.Size+op.BlockSize-1)/op.BlockSize)}
	if len(want.Blocks) == 1 {
		want.Blocks[0] = m.XXH
	}
	return &want, nil
}

// overlay lets one entry have its word.
func (b *rebuilder) overlay(e *op.Entry) error {
	b.time = e.Time
	if n := madeBy(e); n != nil {
		b.create(e, n)
		return nil
	}
	switch o := e.Op.(type) {
	case *op.Link:
		b.name(e, Name{o.Parent, o.Name}, o.ID)
	case *op.Unlink:
		b.name(e, Name{o.Parent, o.Name}, 0)
	case *op.Rename:
		from, to := Name{o.OldParent, o.OldName}, Name{o.NewParent, o.NewName}
		b.name(e, to, o.ID)
		if o.Exchange {
			b.name(e, from, o.Victim)
		} else {
			b.name(e, from, 0)
		}
	default:
		b.alter(e)
	}
	return nil
}

// create is a new object; whatever the tree has of it counts for nothing, as
// all that happened to it since is in the log.
func (b *rebuilder) create(e *op.Entry, n *Inode) {
	at := n.Names
	n.Names = nil
	b.inodes[n.ID] = n
	for _, name := range at {
		b.name(e, name, n.ID)
	}
}

func (b *rebuilder) name(e *op.Entry, at Name, id op.ID) {
	b.names[at] = id
	if dir := b.inodes[at.Dir]; dir != nil {
		dir.Mtime, dir.Ctime = e.Time, e.Time
	}
}

// alter lets an entry have its word that changes an object without naming it.
func (b *rebuilder) alter(e *op.Entry) {
	switch o := e.Op.(type) {
	case *op.Write, *op.Truncate, *op.Fallocate:
		if n := b.inodes[changedBy(o)]; n != nil && !n.Sealed {
			setContent(n, e)
		}
	case *op.Seal:
		if n := b.inodes[o.ID]; n != nil && n.Changed == o.Of && n.Size == o.Sum.Size && (!n.Sealed || n.Sum == nil) {
			sum := o.Sum
			n.Sum = &sum
		}
	case *op.SetAttr:
		if n := b.inodes[o.ID]; n != nil {
			setAttr(n, o)
			n.Ctime = e.Time
		}
	case *op.SetXattr:
		if n := b.inodes[o.ID]; n != nil {
			setXattr(n, o)
			n.Ctime = e.Time
		}
	}
}

// fill puts everything that the root leads to into x, directories first.
func (b *rebuilder) fill(x *index) error {
	children := b.settleNames()
	if b.inodes[op.Root] == nil {
		return nil
	}
	if err := x.put(b.inodes[op.Root], 0); err != nil {
		return err
	}
	reached := map[op.ID]bool{op.Root: true}
	var files []op.ID
	for todo := []op.ID{op.Root}; len(todo) > 0; {
		dir := todo[0]
		todo = todo[1:]
		for _, id := range children[dir] {
			n := b.inodes[id]
			if !n.IsDir() {
				files = append(files, id)
				continue
			}
			if reached[id] {
				continue
			}
			reached[id] = true
			todo = append(todo, id)
			if err := b.put(x, n); err != nil {
				return err
			}
		}
	}
	for _, id := range files {
		n := b.inodes[id]
		if reached[id] {
			continue // by another of its names
		}
		reached[id] = true
		n.Names = slices.DeleteFunc(n.Names, func(at Name) bool { return !reached[at.Dir] })
		if err := b.put(x, n); err != nil {
			return err
		}
	}
	pos, err := b.log.PosAt(b.last)
	if err != nil {
		return err
	}
	st := x.current()
	st.Pos, st.Time = pos, b.time
	return x.flushRaw(st)
}

func (b *rebuilder) put(x *index, n *Inode) error {
	if err := x.put(n, 0); err != nil {
		return err
	}
	if x.waiting() < resyncBatch {
		return nil
	}
	return x.flushRaw(x.current())
}

// settleNames decides which names objects have, and returns the entries of each
// directory.
func (b *rebuilder) settleNames() map[op.ID][]op.ID {
	for id, list := range b.found {
		for _, at := range list {
			if _, said := b.names[at]; !said {
				b.names[at] = id
			}
		}
	}
	children := map[op.ID][]op.ID{}
	all := slices.SortedFunc(maps.Keys(b.names), func(p, q Name) int {
		if p.Dir != q.Dir {
			return int(int64(p.Dir) - int64(q.Dir))
		}
		if p.Name < q.Name {
			return -1
		}
		return 1
	})
	for _, at := range all {
		id := b.names[at]
		if id == 0 {
			continue
		}
		n := b.inodes[id]
		switch {
		case n == nil:
			b.note(EventMissing, id, at.Name, "the log names this object, and neither log nor tree have it")
		case n.IsDir() && len(n.Names) > 0:
			b.note(EventUnexpected, id, at.Name, "a second directory with this id")
		default:
			n.Names = append(n.Names, at)
			children[at.Dir] = append(children[at.Dir], id)
		}
	}
	return children
}
