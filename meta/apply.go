package meta

import (
	"errors"
	"fmt"
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
	case *op.EpochBegin, *op.Mkdir, *op.Create:
		return x.applyNew(c)
	case *op.Put:
		return x.applyPut(c, o)
	case *op.Chunk:
		return nil // staged content is no part of the index
	case *op.Write, *op.Truncate, *op.Fallocate:
		return x.applyContent(c)
	case *op.SetAttr:
		return x.applyChange(c, o.ID, func(n *Inode) { setAttr(n, o) })
	case *op.SetXattr:
		return x.applyChange(c, o.ID, func(n *Inode) { setXattr(n, o) })
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

// applyNew adds the object that the entry makes, if it makes one.
func (x *index) applyNew(c *change) error {
	n := madeBy(c.e)
	if n == nil {
		return nil
	}
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
	return x.applyNew(c)
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
func (x *index) applyContent(c *change) error {
	if o, ok := c.e.Op.(*op.Fallocate); ok && o.Mode&^fallocModes != 0 {
		return fmt.Errorf("%w: fallocate mode %#x", errIndex, o.Mode)
	}
	n, err := x.begin(c, changedBy(c.e.Op))
	if n == nil {
		return err
	}
	if n.Sealed || !n.IsRegular() {
		return fmt.Errorf("%w: change of the content of id %d, which is no control file", errIndex, n.ID)
	}
	setContent(n, c.e)
	return x.putLocked(n, 0)
}

// Modes of fallocate(2) that may be repeated without harm. The others move
// content, and fs refuses them.
const fallocModes = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE

// applyChange changes attributes.
func (x *index) applyChange(c *change, id op.ID, set func(*Inode)) error {
	n, err := x.begin(c, id)
	if n == nil {
		return err
	}
	set(n)
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
