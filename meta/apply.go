package meta

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// change is what one entry did to the index: all that the tree has to know to
// do the same.
type change struct {
	e  *op.Entry
	id op.ID
	// old and n are the inode that the entry is about, before and after. Both
	// are nil if it has no name any more (it was unlinked while open): then
	// only what may be left of it in trash changes.
	old, n *Inode
	// gone is what lost the name that the entry gives away or removes, as it was
	// before; nil if nothing did. last: it was its last name.
	gone *Inode
	last bool
	// differs: of a Checkpoint: our digest at that entry is another one.
	differs bool
}

// apply changes the index by one entry, in the same way on every slot, in
// normal operation and in replay: what comes out depends on the entry and on
// the index alone. An error means that entry and index contradict each other.
func (x *index) apply(e *op.Entry) (change, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	at := x.state.Pos
	if e.Seq != at.Seq+1 || e.Before != at.Chain {
		return change{}, fmt.Errorf("%w: entry %v does not continue %v", errIndex, e.Pos(), at)
	}
	c := change{e: e}
	if err := x.applyOp(&c); err != nil {
		return c, fmt.Errorf("apply entry %d (%T): %w", e.Seq, e.Op, err)
	}
	x.state.Pos, x.state.Time = e.Pos(), e.Time
	x.ring.set(e.Seq, x.state.Digest)
	return c, nil
}

func (x *index) applyOp(c *change) error {
	switch o := c.e.Op.(type) {
	case *op.EpochBegin:
		return x.applyEpochBegin(c)
	case *op.Mkdir:
		n := newInode(c.e, o.Attr, Name{o.Parent, o.Name})
		return x.applyNew(c, n)
	case *op.Create:
		n := newInode(c.e, o.Attr, Name{o.Parent, o.Name})
		n.Target, n.Rdev = o.Target, o.Rdev
		n.Size = int64(len(o.Target))
		n.Changed = c.e.Seq
		return x.applyNew(c, n)
	case *op.Put:
		return x.applyPut(c, o)
	case *op.Chunk:
		return nil // staged content is no part of the index
	case *op.Write:
		return x.applyContent(c, o.ID, func(size int64) int64 { return max(size, o.Off+int64(len(o.Data))) })
	case *op.Truncate:
		return x.applyContent(c, o.ID, func(int64) int64 { return o.Size })
	case *op.Fallocate:
		return x.applyFallocate(c, o)
	case *op.SetAttr:
		return x.applySetAttr(c, o)
	case *op.SetXattr:
		return x.applySetXattr(c, o)
	case *op.Link:
		return x.applyLink(c, o)
	case *op.Rename:
		return x.applyRename(c, o)
	case *op.Unlink:
		c.id = o.ID
		return x.loseName(c, o.ID, Name{o.Parent, o.Name})
	case *op.Seal:
		return x.applySeal(c, o)
	case *op.Checkpoint:
		d, known := x.ring.get(o.At)
		c.differs = known && d != o.Digest
		return nil
	default:
		return fmt.Errorf("%w: unknown operation", errIndex)
	}
}

// rootMode is what the store's first entry gives the root directory.
const rootMode = typeDir | 0o755

func (x *index) applyEpochBegin(c *change) error {
	if c.e.Seq != 1 {
		return nil
	}
	n := &Inode{ID: op.Root, Mode: rootMode, Mtime: c.e.Time, Ctime: c.e.Time}
	c.id, c.n = op.Root, n
	return x.putLocked(n, 0)
}

func newInode(e *op.Entry, a op.Attr, at Name) *Inode {
	n := &Inode{ID: op.ID(e.Seq), Mode: a.Mode, UID: a.UID, GID: a.GID, Mtime: a.Mtime, Ctime: e.Time, Names: []Name{at}}
	if n.Mtime == 0 {
		n.Mtime = e.Time
	}
	if len(a.Xattr) > 0 {
		n.Xattr = make(map[string][]byte, len(a.Xattr))
		for k, v := range a.Xattr {
			n.Xattr[k] = bytes.Clone(v) // v is part of the whole entry, which need not stay
		}
	}
	return n
}

func (x *index) applyNew(c *change, n *Inode) error {
	c.id, c.n = n.ID, n
	return x.putLocked(n, c.e.Time)
}

func (x *index) applyPut(c *change, o *op.Put) error {
	if o.Victim != 0 {
		if err := x.loseName(c, o.Victim, Name{o.Parent, o.Name}); err != nil {
			return err
		}
	}
	if err := x.noteUndeleted(o); err != nil {
		return err
	}
	n := newInode(c.e, o.Attr, Name{o.Parent, o.Name})
	sum := o.Sum
	n.Size, n.Sum, n.Sealed, n.Changed = sum.Size, &sum, o.Sealed, c.e.Seq
	return x.applyNew(c, n)
}

// loseName takes the name at away from id, and id itself with its last name.
func (x *index) loseName(c *change, id op.ID, at Name) error {
	old, err := x.inodeLocked(id)
	if err != nil {
		return fmt.Errorf("id %d: %w", id, err)
	}
	i := slices.Index(old.Names, at)
	if i < 0 {
		return fmt.Errorf("%w: id %d is not %q in directory %d", errIndex, id, at.Name, at.Dir)
	}
	c.gone, c.last = old, len(old.Names) == 1
	if c.last {
		if err := x.noteDeleted(c, old, at); err != nil {
			return err
		}
		return x.dropLocked(id, c.e.Time)
	}
	n := *old
	n.Names = slices.Delete(slices.Clone(old.Names), i, i+1)
	n.Ctime = c.e.Time
	return x.putLocked(&n, c.e.Time)
}

// begin notes id's inode in c and makes a copy to change, nil if id has no name
// any more. The copy shares what it points to: replace, don't write into it.
func (x *index) begin(c *change, id op.ID) (*Inode, error) {
	c.id = id
	old, err := x.inodeLocked(id)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	n := *old
	n.Ctime = c.e.Time
	c.old, c.n = old, &n
	return &n, nil
}

// applyContent changes the content of a control file.
func (x *index) applyContent(c *change, id op.ID, size func(int64) int64) error {
	n, err := x.begin(c, id)
	if n == nil {
		return err
	}
	if n.Sealed || !n.IsRegular() {
		return fmt.Errorf("%w: change of the content of id %d, which is no control file", errIndex, id)
	}
	n.Size = size(n.Size)
	n.Mtime = c.e.Time
	n.Sum = nil
	n.Changed = c.e.Seq
	return x.putLocked(n, 0)
}

// Modes of fallocate(2) that may be repeated without harm. The others move
// content, and fs refuses them.
const fallocModes = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE

func (x *index) applyFallocate(c *change, o *op.Fallocate) error {
	if o.Mode&^fallocModes != 0 {
		return fmt.Errorf("%w: fallocate mode %#x", errIndex, o.Mode)
	}
	return x.applyContent(c, o.ID, func(size int64) int64 {
		if o.Mode&unix.FALLOC_FL_KEEP_SIZE != 0 {
			return size
		}
		return max(size, o.Off+o.Len)
	})
}

func (x *index) applySetAttr(c *change, o *op.SetAttr) error {
	n, err := x.begin(c, o.ID)
	if n == nil {
		return err
	}
	if o.Valid&op.SetMode != 0 {
		n.Mode = n.Type() | o.Mode&permMask
	}
	if o.Valid&op.SetUID != 0 {
		n.UID = o.UID
	}
	if o.Valid&op.SetGID != 0 {
		n.GID = o.GID
	}
	if o.Valid&op.SetMtime != 0 {
		n.Mtime = o.Mtime
	}
	return x.putLocked(n, 0)
}

func (x *index) applySetXattr(c *change, o *op.SetXattr) error {
	n, err := x.begin(c, o.ID)
	if n == nil {
		return err
	}
	n.Xattr = maps.Clone(n.Xattr)
	if o.Remove {
		delete(n.Xattr, o.Name)
	} else {
		if n.Xattr == nil {
			n.Xattr = make(map[string][]byte)
		}
		n.Xattr[o.Name] = bytes.Clone(o.Value)
	}
	return x.putLocked(n, 0)
}

func (x *index) applyLink(c *change, o *op.Link) error {
	at := Name{o.Parent, o.Name}
	if o.Victim != 0 {
		if err := x.loseName(c, o.Victim, at); err != nil {
			return err
		}
	}
	n, err := x.begin(c, o.ID)
	if err != nil {
		return err
	}
	if n == nil {
		return fmt.Errorf("%w: link to id %d, which has no name", errIndex, o.ID)
	}
	n.Names = append(slices.Clone(n.Names), at)
	return x.putLocked(n, c.e.Time)
}

func (x *index) applyRename(c *change, o *op.Rename) error {
	from, to := Name{o.OldParent, o.OldName}, Name{o.NewParent, o.NewName}
	if o.Victim != 0 && !o.Exchange {
		if err := x.loseName(c, o.Victim, to); err != nil {
			return err
		}
	}
	n, err := x.begin(c, o.ID)
	if err != nil {
		return err
	}
	if n == nil || !slices.Contains(n.Names, from) {
		return fmt.Errorf("%w: id %d is not %q in directory %d", errIndex, o.ID, from.Name, from.Dir)
	}
	if !o.Exchange {
		n.Names = renamed(n.Names, from, to)
		return x.putLocked(n, c.e.Time)
	}
	// The other one steps aside for a moment: a name belongs to one object.
	other, err := x.inodeLocked(o.Victim)
	if err != nil {
		return fmt.Errorf("id %d: %w", o.Victim, err)
	}
	i := slices.Index(other.Names, to)
	if i < 0 {
		return fmt.Errorf("%w: id %d is not %q in directory %d", errIndex, o.Victim, to.Name, to.Dir)
	}
	c.gone = other
	aside, back := *other, *other
	aside.Names = slices.Delete(slices.Clone(other.Names), i, i+1)
	back.Names = renamed(other.Names, to, from)
	back.Ctime = c.e.Time
	n.Names = renamed(n.Names, from, to)
	return errors.Join(x.putLocked(&aside, c.e.Time), x.putLocked(n, c.e.Time), x.putLocked(&back, c.e.Time))
}

// renamed is names with from, in its place, as to.
func renamed(names []Name, from, to Name) []Name {
	names = slices.Clone(names)
	names[slices.Index(names, from)] = to
	return names
}

func (x *index) applySeal(c *change, o *op.Seal) error {
	n, err := x.begin(c, o.ID)
	if n == nil {
		return err
	}
	if n.Changed != o.Of || n.Size != o.Sum.Size || n.Sealed && n.Sum != nil {
		c.old, c.n = nil, nil
		return nil // changed meanwhile: void
	}
	n.Ctime = c.old.Ctime
	sum := o.Sum
	n.Sum = &sum
	return x.putLocked(n, 0)
}
