package meta

import (
	"bytes"
	"maps"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// What an entry makes of an inode, which is the same where entries are applied to
// an index and where an index is rebuilt from them. An inode's values are
// replaced, not written into: copies share them.

// rootMode is what the store's first entry gives the root directory.
const rootMode = typeDir | 0o755

// madeBy is the object that an entry makes, with its name; nil if it makes none.
func madeBy(e *op.Entry) *Inode {
	switch o := e.Op.(type) {
	case *op.EpochBegin:
		if e.Seq == 1 {
			return &Inode{ID: op.Root, Mode: rootMode, Mtime: e.Time, Ctime: e.Time}
		}
	case *op.Mkdir:
		return newInode(e, o.Attr, Name{o.Parent, o.Name})
	case *op.Create:
		n := newInode(e, o.Attr, Name{o.Parent, o.Name})
		n.Target, n.Rdev, n.Size, n.Changed = o.Target, o.Rdev, int64(len(o.Target)), e.Seq
		return n
	case *op.Put:
		n := newInode(e, o.Attr, Name{o.Parent, o.Name})
		sum := o.Sum
		n.Size, n.Sum, n.Sealed, n.Changed = sum.Size, &sum, o.Sealed, e.Seq
		return n
	}
	return nil
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

// changedBy is the control file whose bytes o changes; 0 if it changes none.
func changedBy(o op.Op) op.ID {
	switch o := o.(type) {
	case *op.Write:
		return o.ID
	case *op.Truncate:
		return o.ID
	case *op.Fallocate:
		return o.ID
	}
	return 0
}

// setContent is what an entry that changes the bytes of a control file makes of it.
func setContent(n *Inode, e *op.Entry) {
	switch o := e.Op.(type) {
	case *op.Write:
		n.Size = max(n.Size, o.Off+int64(len(o.Data)))
	case *op.Truncate:
		n.Size = o.Size
	case *op.Fallocate:
		if o.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
			n.Size = max(n.Size, o.Off+o.Len)
		}
	}
	n.Sum, n.Changed = nil, e.Seq
	n.Mtime, n.Ctime = e.Time, e.Time
}

// setAttr changes what o names.
func setAttr(n *Inode, o *op.SetAttr) {
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
}

func setXattr(n *Inode, o *op.SetXattr) {
	n.Xattr = maps.Clone(n.Xattr)
	if o.Remove {
		delete(n.Xattr, o.Name)
		return
	}
	if n.Xattr == nil {
		n.Xattr = make(map[string][]byte)
	}
	n.Xattr[o.Name] = bytes.Clone(o.Value)
}
