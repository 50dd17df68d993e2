package meta

import (
	"strings"

	"slotfs/meta/op"
)

// countChanges counts what the branch did to what both histories have.
func (s *Slot) countChanges(b *Branch, t *tail) error {
	c := &b.Changes
	if b.LogFrom == 0 {
		return nil
	}
	return eachEntry(s.Log, b.LogFrom, b.Last.Seq, func(e *op.Entry) error {
		b.notePlaces(t, e.Op)
		switch o := e.Op.(type) {
		case *op.Mkdir:
			c.Mailboxes++
		case *op.Create, *op.Write, *op.Truncate, *op.Fallocate:
			c.Control++
		case *op.Put:
			if !o.Sealed {
				c.Control++
			}
		case *op.Link:
			if uint64(o.ID) <= b.Fork {
				c.Moved++
			}
		case *op.Rename:
			s.countRename(c, b, t, o)
		case *op.Unlink:
			n, err := t.x.inode(o.ID)
			switch {
			case uint64(o.ID) > b.Fork:
			case err == nil && n.IsDir():
				c.Mailboxes++
			case s.isMessage(t.x, o.Parent, o.Name):
				c.Removed++
			default:
				c.Control++
			}
		}
		return nil
	})
}

// notePlaces notes where the directories are that o names.
func (b *Branch) notePlaces(t *tail, o op.Op) {
	var ids []op.ID
	switch o := o.(type) {
	case *op.Mkdir:
		ids = []op.ID{o.Parent}
	case *op.Create:
		ids = []op.ID{o.Parent}
	case *op.Put:
		ids = []op.ID{o.Parent}
	case *op.Link:
		ids = []op.ID{o.Parent}
	case *op.Rename:
		ids = []op.ID{o.OldParent, o.NewParent}
	case *op.Unlink:
		ids = []op.ID{o.Parent}
	}
	for _, id := range ids {
		if _, known := b.Dirs[id]; known || id == op.Root {
			continue
		}
		path, err := t.x.path(id)
		if err != nil {
			continue // it is gone, and cannot be named
		}
		if b.Dirs == nil {
			b.Dirs = map[op.ID]string{}
		}
		b.Dirs[id] = path
	}
}

func (s *Slot) countRename(c *BranchChanges, b *Branch, t *tail, o *op.Rename) {
	n, err := t.x.inode(o.ID)
	switch {
	case uint64(o.ID) > b.Fork:
	case err == nil && n.IsDir():
		c.Mailboxes++
	case SameMessage(o.OldName, o.NewName):
		c.Flags++
	case s.isMessage(t.x, o.OldParent, o.OldName):
		c.Moved++
	default:
		c.Control++
	}
}

// SameMessage reports whether two Maildir names differ in flags only.
func SameMessage(a, b string) bool {
	aBase, _, aFlags := strings.Cut(a, ":2,")
	bBase, _, bFlags := strings.Cut(b, ":2,")
	return aBase == bBase && (aFlags || bFlags)
}

// isMessage guesses whether a name was a message's, by its place.
func (s *Slot) isMessage(x *index, dir op.ID, name string) bool {
	kind := MaildirCur // of a directory that is gone, too
	if d, err := x.inode(dir); err == nil && len(d.Names) > 0 {
		kind = s.Layout.DirKind(d.Names[0].Name, func(string) bool { return true })
	}
	return s.Layout.Class(kind, name) == Message
}
