package fs

import (
	"math"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"slotfs/meta/op"
)

// forever is how long the kernel may keep names and attributes: all changes
// come through the mount, and a slot that is demoted is unmounted.
const forever = time.Hour

// fill writes n's attributes. mu is held.
func (n *node) fill(a *fuse.Attr) {
	a.Ino = n.ino
	a.Mode = n.mode
	a.Nlink = n.nlink()
	a.Uid, a.Gid = n.uid, n.gid
	a.Rdev = n.rdev
	a.Size = uint64(n.size)
	switch {
	case n.isDir():
		a.Size = 4096
	case n.mode&syscall.S_IFMT == syscall.S_IFLNK:
		a.Size = uint64(len(n.target))
	}
	a.Blocks = (a.Size + 511) / 512
	a.Blksize = 4096
	a.Atime, a.Atimensec = split(n.atime)
	a.Mtime, a.Mtimensec = split(n.mtime)
	a.Ctime, a.Ctimensec = split(n.ctime)
}

// split turns ns since 1970 into what the protocol has: seconds round down,
// also before 1970.
func split(t int64) (sec uint64, nsec uint32) {
	s, ns := t/1e9, t%1e9
	if ns < 0 {
		s, ns = s-1, ns+1e9
	}
	return uint64(s), uint32(ns)
}

// join is the reverse of split. What does not fit (before 1678, after 2261)
// becomes the nearest that does.
func join(sec uint64, nsec uint32) int64 {
	s := int64(sec)
	if s > math.MaxInt64/1_000_000_000-1 {
		return math.MaxInt64
	}
	if s < math.MinInt64/1_000_000_000+1 {
		return math.MinInt64
	}
	return s*1e9 + int64(nsec)
}

// entry answers a request that gives the kernel one more reference to n. mu is
// held.
func (n *node) entry(out *fuse.EntryOut) {
	n.lookups++
	out.NodeId = n.nodeid
	out.Generation = 1
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	n.fill(&out.Attr)
}

// GetAttr implements fuse.RawFileSystem.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.enter(&in.InHeader)
	return f.errno(&in.InHeader, f.once(func() error {
		if v := f.virt[in.NodeId]; v != nil {
			v.fill(in.NodeId, &out.Attr)
			return nil
		}
		n, err := f.node(in.NodeId)
		if err != nil {
			return err
		}
		out.SetTimeout(forever)
		n.fill(&out.Attr)
		return nil
	}))
}

// startSetAttr changes attributes. The kernel has checked permissions.
func (f *FS) startSetAttr(in *fuse.SetAttrIn, out *fuse.AttrOut) (w wait, err error) {
	f.enter(&in.InHeader)
	if in.Valid&fuse.FATTR_SIZE != 0 {
		if in.Size > maxFile {
			return w, syscall.EFBIG
		}
		if w, err = f.truncate(in.NodeId, int64(in.Size), in.Valid&fuse.FATTR_KILL_SUIDGID != 0); err != nil {
			return w, err
		}
	}
	const attrs = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_ATIME | fuse.FATTR_MTIME | fuse.FATTR_KILL_SUIDGID
	if in.Valid&attrs != 0 {
		if err := f.setAttr(in); err != nil {
			return w, err
		}
	}
	err = f.once(func() error {
		n, err := f.node(in.NodeId)
		if err != nil {
			return err
		}
		out.SetTimeout(forever)
		n.fill(&out.Attr)
		return nil
	})
	return w, err
}

func (f *FS) setAttr(in *fuse.SetAttrIn) error {
	const logged = fuse.FATTR_MODE | fuse.FATTR_UID | fuse.FATTR_GID | fuse.FATTR_MTIME
	var err error
	if in.Valid&logged != 0 {
		err = f.admit(0, false)
	} else if e := f.refused.Load(); e != 0 {
		err = syscall.Errno(e)
	}
	if err != nil {
		return err
	}
	return f.once(func() error {
		n, err := f.node(in.NodeId)
		if err != nil {
			return err
		}
		t := now()
		if in.Valid&fuse.FATTR_ATIME != 0 {
			n.atime = t
			if in.Valid&fuse.FATTR_ATIME_NOW == 0 {
				n.atime = join(in.Atime, in.Atimensec)
			}
			n.ctime = max(n.ctime, t)
		}
		o := n.wanted(in, t)
		if o.Valid == 0 {
			return nil
		}
		return f.change(n, o)
	})
}

// wanted is what a SETATTR request asks of the log. mu is held.
func (n *node) wanted(in *fuse.SetAttrIn, t int64) *op.SetAttr {
	o := &op.SetAttr{ID: n.id, Mode: n.mode & 0o7777, UID: n.uid, GID: n.gid, Mtime: n.mtime}
	if in.Valid&fuse.FATTR_UID != 0 {
		o.Valid, o.UID = o.Valid|op.SetUID, in.Uid
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		o.Valid, o.GID = o.Valid|op.SetGID, in.Gid
	}
	if in.Valid&fuse.FATTR_MODE != 0 {
		o.Valid, o.Mode = o.Valid|op.SetMode, in.Mode&0o7777
	} else if o.Valid != 0 && !n.isDir() || in.Valid&(fuse.FATTR_KILL_SUIDGID|fuse.FATTR_SIZE) == fuse.FATTR_KILL_SUIDGID {
		// chown(2): a change of owner takes the privileges away, whoever asks.
		if m := stripped(n.mode) & 0o7777; m != o.Mode {
			o.Valid, o.Mode = o.Valid|op.SetMode, m
		}
	}
	if in.Valid&fuse.FATTR_MTIME != 0 {
		o.Valid, o.Mtime = o.Valid|op.SetMtime, t
		if in.Valid&fuse.FATTR_MTIME_NOW == 0 {
			o.Mtime = join(in.Mtime, in.Mtimensec)
		}
	}
	return o
}

// change carries out an op.SetAttr, and, for a new mode, what follows for the
// ACL. mu is held.
func (f *FS) change(n *node, o *op.SetAttr) error {
	t := now()
	if !n.volatile() {
		e, err := f.append(o, n)
		if err != nil {
			return err
		}
		t = e.Time
	}
	n.ctime = t
	if o.Valid&op.SetUID != 0 {
		n.uid = o.UID
	}
	if o.Valid&op.SetGID != 0 {
		n.gid = o.GID
	}
	if o.Valid&op.SetMtime != 0 {
		n.mtime = o.Mtime
		if n.isDir() {
			n.dir.volTime = 0
		}
	}
	if o.Valid&op.SetMode == 0 {
		return nil
	}
	n.mode = n.mode&syscall.S_IFMT | o.Mode
	if acl, ok := n.xattr[aclAccess]; ok {
		if changed, ok := chmodACL(acl, o.Mode); ok {
			return f.putXattr(n, aclAccess, changed)
		}
	}
	return nil
}

// stripped is mode without what a write or a change of owner takes away:
// set-user-id, and set-group-id if it is not a mark for mandatory locking.
func stripped(mode uint32) uint32 {
	mode &^= syscall.S_ISUID
	if mode&syscall.S_IXGRP != 0 {
		mode &^= syscall.S_ISGID
	}
	return mode
}

// strip takes the privileges of a file away whose content is being changed. mu
// is held.
func (f *FS) strip(n *node) error {
	if _, ok := n.xattr[capability]; ok {
		if err := f.putXattr(n, capability, nil); err != nil {
			return err
		}
	}
	if m := stripped(n.mode); m != n.mode {
		return f.change(n, &op.SetAttr{ID: n.id, Valid: op.SetMode, Mode: m & 0o7777})
	}
	return nil
}
