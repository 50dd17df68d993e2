package fs

import "slotfs/meta/op"

// Refresh makes the mount show what the index has of an object whose record was
// corrected: what is in memory here, and in the kernel, came from the wrong one.
// Content needs nothing of the kind: it is verified before anybody gets it.
func (f *FS) Refresh(id op.ID) {
	in, err := f.slot.Inode(id)
	if err != nil {
		return // removed meanwhile
	}
	applied := f.slot.Stats().Pos.Seq
	f.mu.Lock()
	n := f.byID[id]
	if n == nil || n.lastSeq > applied {
		f.mu.Unlock()
		return // not in memory; or an entry to come changes it, and the index after it
	}
	n.mode, n.uid, n.gid, n.mtime, n.ctime = in.Mode, in.UID, in.GID, in.Mtime, in.Ctime
	n.size, n.target, n.xattr = in.Size, in.Target, in.Xattr
	nodeid := n.nodeid
	f.mu.Unlock()
	f.telling.Lock()
	defer f.telling.Unlock()
	if f.ended {
		return
	}
	if err := f.dev.forgetNode(nodeid); err != nil {
		f.log.Debug("kernel not told of a correction", keyErr, err)
	}
}
