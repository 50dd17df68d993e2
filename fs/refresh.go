package fs

import (
	"maps"

	"slotfs/meta"
	"slotfs/meta/op"
)

// Refresh makes the mount show what the index has of an object whose record was
// corrected: what is in memory here, and in the kernel, came from the wrong one.
// Content needs nothing of the kind: it is verified before anybody gets it.
func (f *FS) Refresh(id op.ID) {
	in, err := f.slot.Inode(id)
	if err != nil {
		return // removed meanwhile
	}
	if n := f.correct(in, f.slot.Stats().Pos.Seq); n != nil {
		f.tell(func() error { return f.dev.forgetNode(n.nodeid) })
	}
}

// correct gives the node of in what in has, as of the entry applied. It is nil if
// there is none in memory, or if an entry to come changes it, and the index after
// it.
func (f *FS) correct(in *meta.Inode, applied uint64) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.byID[in.ID]
	if n == nil || n.lastSeq > applied {
		return nil
	}
	n.mode, n.uid, n.gid, n.mtime, n.ctime = in.Mode, in.UID, in.GID, in.Mtime, in.Ctime
	n.size, n.target, n.xattr = in.Size, in.Target, maps.Clone(in.Xattr) // in is the index's
	return n
}
