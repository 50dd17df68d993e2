package fs

import (
	"sort"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// maxXattr bounds what the extended attributes of one object take in the tree:
// ext4 has one block of 4 KiB for them (names, values and 16 bytes for each,
// padded), and apply must not fail. The rest is for our own.
const maxXattr = 4096 - 36 - 96

// GetXAttr implements fuse.RawFileSystem.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	f.enter(h)
	var size uint32
	err := f.once(func() error {
		if f.virt[h.NodeId] != nil {
			return syscall.ENODATA
		}
		n, err := f.node(h.NodeId)
		if err != nil {
			return err
		}
		v, ok := n.xattr[name]
		if !ok || own(name) {
			return syscall.ENODATA
		}
		size = uint32(len(v))
		if len(v) > len(dest) {
			return syscall.ERANGE
		}
		copy(dest, v)
		return nil
	})
	return size, f.errno(h, err)
}

// ListXAttr implements fuse.RawFileSystem.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	f.enter(h)
	var size uint32
	err := f.once(func() error {
		if f.virt[h.NodeId] != nil {
			return nil
		}
		n, err := f.node(h.NodeId)
		if err != nil {
			return err
		}
		names := make([]string, 0, len(n.xattr))
		for name := range n.xattr {
			if !own(name) {
				names = append(names, name)
				size += uint32(len(name)) + 1
			}
		}
		if int(size) > len(dest) {
			return syscall.ERANGE
		}
		sort.Strings(names)
		for _, name := range names {
			dest = dest[copy(dest, name):]
			dest[0] = 0
			dest = dest[1:]
		}
		return nil
	})
	return size, f.errno(h, err)
}

// SetXAttr implements fuse.RawFileSystem.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	f.enter(&in.InHeader)
	err := f.mayXattr(name)
	if err == nil {
		err = f.admit(int64(len(data)), true)
	}
	if err == nil {
		err = f.once(func() error { return f.setXattr(in, name, data) })
	}
	return f.errno(&in.InHeader, err)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *FS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	f.enter(h)
	err := f.mayXattr(name)
	if err == nil {
		err = f.admit(0, false)
	}
	if err == nil {
		err = f.once(func() error {
			n, err := f.node(h.NodeId)
			if err != nil {
				return err
			}
			if _, ok := n.xattr[name]; !ok {
				return syscall.ENODATA
			}
			return f.putXattr(n, name, nil)
		})
	}
	return f.errno(h, err)
}

// mayXattr refuses names that the tree could not keep, and our own.
func (f *FS) mayXattr(name string) error {
	switch {
	case own(name):
		return syscall.EPERM
	case len(name) > maxName:
		return syscall.ERANGE
	case name == aclAccess, name == aclDefault:
		return nil
	}
	for _, prefix := range []string{"user.", "trusted.", "security."} {
		if name == prefix {
			return syscall.EINVAL
		}
		if strings.HasPrefix(name, prefix) {
			return nil
		}
	}
	return syscall.EOPNOTSUPP
}

// own reports whether an attribute is slotfs's, which the mount does not show.
func own(name string) bool { return name == ownXattr || strings.HasPrefix(name, ownXattr+".") }

func (f *FS) setXattr(in *fuse.SetXAttrIn, name string, data []byte) error {
	n, err := f.node(in.NodeId)
	if err != nil {
		return err
	}
	_, have := n.xattr[name]
	switch {
	case in.Flags&unix.XATTR_CREATE != 0 && have:
		return syscall.EEXIST
	case in.Flags&unix.XATTR_REPLACE != 0 && !have:
		return syscall.ENODATA
	case n.xattrSize(name)+xattrCost(name, data) > maxXattr:
		return syscall.ENOSPC
	}
	if name == aclAccess {
		return f.setACL(n, data, in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0)
	}
	if name == aclDefault && !n.isDir() {
		return syscall.EACCES
	}
	return f.putXattr(n, name, append([]byte{}, data...))
}

// setACL sets an access ACL and the mode that follows from it; an ACL that says
// no more than the mode is not kept. mu is held.
func (f *FS) setACL(n *node, value []byte, killSgid bool) error {
	a, err := parseACL(value)
	if err != nil {
		return err
	}
	perm, minimal := a.mode()
	mode := n.mode&0o7000 | perm
	if killSgid {
		mode &^= syscall.S_ISGID
	}
	// The ACL first: a change of mode then finds the new one and leaves it.
	if !minimal {
		err = f.putXattr(n, aclAccess, append([]byte{}, value...))
	} else if _, ok := n.xattr[aclAccess]; ok {
		err = f.putXattr(n, aclAccess, nil)
	}
	if err == nil && mode != n.mode&0o7777 {
		err = f.change(n, &op.SetAttr{ID: n.id, Valid: op.SetMode, Mode: mode})
	}
	return err
}

// putXattr sets an attribute, or removes it if value is nil. The value is kept.
// mu is held.
func (f *FS) putXattr(n *node, name string, value []byte) error {
	t := now()
	if !n.volatile() {
		e, err := f.append(&op.SetXattr{ID: n.id, Name: name, Value: value, Remove: value == nil}, n)
		if err != nil {
			return err
		}
		t = e.Time
	}
	n.ctime = t
	if value == nil {
		delete(n.xattr, name)
		return nil
	}
	if n.xattr == nil {
		n.xattr = make(map[string][]byte)
	}
	n.xattr[name] = value
	return nil
}

// xattrSize is what n's attributes but one take in the tree.
func (n *node) xattrSize(but string) int {
	sum := 0
	for name, v := range n.xattr {
		if name != but {
			sum += xattrCost(name, v)
		}
	}
	return sum
}

func xattrCost(name string, v []byte) int { return 16 + (len(name)+3)&^3 + (len(v)+3)&^3 }
