package fs

import (
	"maps"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"slotfs/meta"
	"slotfs/meta/op"
)

const (
	classMessage  = meta.Message
	classVolatile = meta.Volatile
)

// class of a regular file called name in d. mu is held.
func (f *FS) class(d *node, name string) meta.Class { return f.layout.Class(d.dir.kind, name) }

func checkName(name string) error {
	if len(name) > maxName {
		return syscall.ENAMETOOLONG
	}
	return nil
}

// Lookup implements fuse.RawFileSystem. A name that does not exist is answered
// with node 0 and a timeout: that, not ENOENT, is what the kernel keeps.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.enter(h)
	if err := checkName(name); err != nil {
		return f.errno(h, err)
	}
	if f.lookupVirtual(h.NodeId, name, out) {
		return fuse.OK
	}
	return f.errno(h, f.locked(func() error {
		if f.virt[h.NodeId] != nil {
			return syscall.ENOENT
		}
		d, err := f.dirNode(h.NodeId)
		if err != nil {
			return err
		}
		if name == ".." { // only NFS export asks
			return syscall.ESTALE
		}
		if h.NodeId == kernelRoot && name == door && !f.doorShut.Load() {
			d.entry(out)
			return nil
		}
		_, n, err := f.child(d, name)
		if err != nil {
			return err
		}
		if n == nil {
			out.SetEntryTimeout(forever)
			return nil
		}
		n.entry(out)
		return nil
	}))
}

// object is what a call wants to be made.
type object struct {
	mode   uint32 // type included
	umask  uint32
	rdev   uint32
	target string
}

// make makes an object called name in the directory parent, and answers it.
func (f *FS) make(h *fuse.InHeader, name string, o object, out *fuse.EntryOut) error {
	if err := checkName(name); err != nil {
		return err
	}
	if isRoot(h.NodeId) && name == virtualDir {
		return syscall.EEXIST
	}
	if e := f.refused.Load(); e != 0 {
		return syscall.Errno(e)
	}
	admitted := false
	for {
		err := f.locked(func() error {
			d, err := f.dirNode(h.NodeId)
			if err != nil {
				return err
			}
			if d.nlog == 0 {
				return syscall.ENOENT // removed
			}
			if d.dir.ents[name] != nil {
				return syscall.EEXIST
			}
			volatile := o.mode&syscall.S_IFMT == syscall.S_IFREG && f.class(d, name) == classVolatile
			if !volatile && !admitted {
				return errAgain
			}
			n, err := f.makeIn(d, h, name, o, volatile)
			if err != nil {
				return err
			}
			n.entry(out)
			return nil
		})
		if err != errAgain {
			return err
		}
		if err := f.admit(int64(len(o.target)), true); err != nil {
			return err
		}
		admitted = true
	}
}

// makeIn is make with everything checked. mu is held.
func (f *FS) makeIn(d *node, h *fuse.InHeader, name string, o object, volatile bool) (*node, error) {
	attr := f.newAttr(d, h, o)
	isDir := o.mode&syscall.S_IFMT == syscall.S_IFDIR
	if isDir && d.subs+2 >= maxLinks {
		return nil, syscall.EMLINK
	}
	var id op.ID
	var t int64
	if !volatile {
		var do op.Op = &op.Create{Parent: d.id, Name: name, Attr: attr, Target: o.target, Rdev: o.rdev}
		if isDir {
			do = &op.Mkdir{Parent: d.id, Name: name, Attr: attr}
		}
		e, err := f.append(do, d)
		if err != nil {
			return nil, err
		}
		id, t = op.ID(e.Seq), e.Time
	} else {
		t = now()
	}
	n := f.newNode(id, attr.Mode)
	n.uid, n.gid, n.rdev, n.target = attr.UID, attr.GID, o.rdev, o.target
	n.xattr = maps.Clone(attr.Xattr)
	n.mtime, n.ctime, n.atime = t, t, t
	n.size = int64(len(o.target))
	switch {
	case volatile:
		n.vol = f.spill.blob()
	case isDir:
		n.dir.fill(n, nil)
		fallthrough
	default:
		n.lastSeq, n.changed = uint64(id), uint64(id)
		f.fifo = append(f.fifo, unapplied{uint64(id), n})
		if n.isRegular() {
			n.base, n.baseSeq = f.spill.blob(), uint64(id)
			f.wantSeal(n)
		}
	}
	d.add(name, n, id, !volatile, 0)
	if isDir {
		n.dir.kind = f.kind(d, name)
		f.rekind(d, name)
	}
	if volatile {
		d.touchVolatile()
	} else {
		d.touch(t)
	}
	return n, nil
}

// newAttr is what a new object gets: the caller's ids, the group of a
// set-group-id directory, the mode that umask or default ACL leave. mu is held.
func (f *FS) newAttr(d *node, h *fuse.InHeader, o object) op.Attr {
	a := op.Attr{Mode: o.mode, UID: h.Uid, GID: h.Gid}
	if d.mode&syscall.S_ISGID != 0 { // inode(7)
		a.GID = d.gid
		if o.mode&syscall.S_IFMT == syscall.S_IFDIR {
			a.Mode |= syscall.S_ISGID
		}
	}
	if o.mode&syscall.S_IFMT != syscall.S_IFLNK {
		a.Mode, a.Xattr = inherit(d.xattr[aclDefault], a.Mode, o.umask, o.mode&syscall.S_IFMT == syscall.S_IFDIR)
	}
	return a
}

// Create implements fuse.RawFileSystem. It gives no handle: the kernel sends no
// RELEASE once OPEN was refused, not even for created files.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	f.enter(&in.InHeader)
	o := object{mode: syscall.S_IFREG | in.Mode&0o7777, umask: in.Umask}
	return f.errno(&in.InHeader, f.make(&in.InHeader, name, o, &out.EntryOut))
}

// Tmpfile implements fuse.RawFileSystem for O_TMPFILE: a volatile file without
// a name.
func (f *FS) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	f.enter(&in.InHeader)
	if e := f.refused.Load(); e != 0 {
		return fuse.Status(e)
	}
	return f.errno(&in.InHeader, f.once(func() error {
		d, err := f.node(in.NodeId)
		if err != nil {
			return err
		}
		attr := f.newAttr(d, &in.InHeader, object{mode: syscall.S_IFREG | in.Mode&0o7777, umask: in.Umask})
		n := f.newNode(0, attr.Mode)
		n.uid, n.gid, n.xattr = attr.UID, attr.GID, attr.Xattr
		n.mtime = now()
		n.ctime, n.atime = n.mtime, n.mtime
		n.vol = f.spill.blob()
		n.entry(&out.EntryOut)
		return nil
	}))
}

// Mknod implements fuse.RawFileSystem.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	f.enter(&in.InHeader)
	o := object{mode: in.Mode, umask: in.Umask, rdev: in.Rdev}
	if o.mode&syscall.S_IFMT == 0 {
		o.mode |= syscall.S_IFREG
	}
	return f.errno(&in.InHeader, f.make(&in.InHeader, name, o, out))
}

// Mkdir implements fuse.RawFileSystem.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	f.enter(&in.InHeader)
	o := object{mode: syscall.S_IFDIR | in.Mode&0o7777, umask: in.Umask}
	return f.errno(&in.InHeader, f.make(&in.InHeader, name, o, out))
}

// Symlink implements fuse.RawFileSystem.
func (f *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	f.enter(h)
	if len(target) > 4095 {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	o := object{mode: syscall.S_IFLNK | 0o777, target: target}
	return f.errno(h, f.make(h, name, o, out))
}

// Readlink implements fuse.RawFileSystem.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) (target []byte, _ fuse.Status) {
	f.enter(h)
	err := f.once(func() error {
		n, err := f.node(h.NodeId)
		if err != nil {
			return err
		}
		if n.mode&syscall.S_IFMT != syscall.S_IFLNK {
			return syscall.EINVAL
		}
		target = []byte(n.target)
		return nil
	})
	return target, f.errno(h, err)
}

// Unlink implements fuse.RawFileSystem.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	f.enter(h)
	return f.errno(h, f.remove(h.NodeId, name, false))
}

// Rmdir implements fuse.RawFileSystem.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	f.enter(h)
	return f.errno(h, f.remove(h.NodeId, name, true))
}

// remove takes a name away. The space that comes free is needed most when
// there is none left, so only the log's own room counts.
func (f *FS) remove(parent uint64, name string, isDir bool) error {
	if err := f.admit(0, false); err != nil {
		return err
	}
	return f.locked(func() error {
		d, err := f.dirNode(parent)
		if err != nil {
			return err
		}
		if isRoot(parent) && name == virtualDir {
			return syscall.EPERM
		}
		e, n, err := f.child(d, name)
		if err != nil {
			return err
		}
		switch {
		case n == nil:
			return syscall.ENOENT
		case isDir && !n.isDir():
			return syscall.ENOTDIR
		case !isDir && n.isDir():
			return syscall.EISDIR
		}
		if err := f.empty(n); err != nil {
			return err
		}
		if !e.logged {
			e.drop(true)
			n.ctime = now()
			d.touchVolatile()
			f.release(n)
			return nil
		}
		entry, err := f.append(&op.Unlink{ID: n.id, Parent: d.id, Name: name}, d, n)
		if err != nil {
			return err
		}
		f.lose(e, entry, true)
		d.touch(entry.Time)
		if isDir {
			f.rekind(d, name)
		}
		return nil
	})
}

// empty says why a directory may not go: ENOTEMPTY, or a *missing if that is
// not known. mu is held.
func (f *FS) empty(n *node) error {
	if !n.isDir() {
		return nil
	}
	if !n.dir.loaded {
		return &missing{dir: n}
	}
	if len(n.dir.ents) > 0 {
		return syscall.ENOTEMPTY
	}
	return nil
}

// lose drops a name that entry has taken away. mu is held.
func (f *FS) lose(e *dirent, entry *op.Entry, compact bool) {
	n := e.n
	e.drop(compact)
	n.ctime = max(n.ctime, entry.Time)
	if n.nlog == 0 {
		delete(f.dirty, n.id)
		delete(f.dirTimes, n.id)
	}
}
