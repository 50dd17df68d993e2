package fs

import (
	"encoding/binary"
	"syscall"
)

// Names of extended attributes with a meaning of their own.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capability = "security.capability"
	ownXattr   = "trusted.slotfs" // in the tree: id and checksum; hidden here
)

// An ACL as an extended attribute (linux/posix_acl_xattr.h): version 2 as a
// little-endian u32, then entries of tag u16, permissions u16, id u32.
const (
	aclVersion  = 2
	aclHeader   = 4
	aclEntry    = 8
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// acl is one entry after the other of an ACL in wire form.
type acl []byte

func parseACL(v []byte) (acl, error) {
	if len(v) < aclHeader || (len(v)-aclHeader)%aclEntry != 0 || binary.LittleEndian.Uint32(v) != aclVersion {
		return nil, syscall.EINVAL
	}
	return acl(v[aclHeader:]), nil
}

func (a acl) each(visit func(tag uint16, perm uint32, at int)) {
	for at := 0; at+aclEntry <= len(a); at += aclEntry {
		visit(binary.LittleEndian.Uint16(a[at:]), uint32(binary.LittleEndian.Uint16(a[at+2:])), at)
	}
}

func (a acl) set(at int, perm uint32) { binary.LittleEndian.PutUint16(a[at+2:], uint16(perm)) }

// mode is the permission bits that a stands for. minimal says that the bits
// say all of it, so that no ACL needs to be kept.
func (a acl) mode() (mode uint32, minimal bool) {
	minimal = true
	var group, mask uint32
	masked := false
	a.each(func(tag uint16, perm uint32, _ int) {
		switch tag {
		case aclUserObj:
			mode |= perm << 6
		case aclGroupObj:
			group = perm
		case aclOther:
			mode |= perm
		case aclMask:
			mask, masked, minimal = perm, true, false
		default:
			minimal = false
		}
	})
	if masked {
		group = mask
	}
	return mode | group<<3, minimal
}

// chmodACL is what a chmod to mode makes of an access ACL (acl(5)): the group
// bits are the mask's, if there is one. The value is a new one.
func chmodACL(value []byte, mode uint32) ([]byte, bool) {
	out := append([]byte(nil), value...)
	a, err := parseACL(out)
	if err != nil {
		return nil, false
	}
	masked := false
	a.each(func(tag uint16, _ uint32, _ int) { masked = masked || tag == aclMask })
	a.each(func(tag uint16, _ uint32, at int) {
		switch {
		case tag == aclUserObj:
			a.set(at, mode>>6&7)
		case tag == aclMask, tag == aclGroupObj && !masked:
			a.set(at, mode>>3&7)
		case tag == aclOther:
			a.set(at, mode&7)
		}
	})
	return out, true
}

// inherit is what an object made with mode under umask in a directory gets:
// the directory's default ACL takes the umask's place (acl(5), OBJECT
// CREATION AND DEFAULT ACLs).
func inherit(def []byte, mode, umask uint32, isDir bool) (uint32, map[string][]byte) {
	if def == nil {
		return mode &^ (umask & 0o777), nil
	}
	out := append([]byte(nil), def...)
	a, err := parseACL(out)
	if err != nil {
		return mode &^ (umask & 0o777), nil
	}
	masked := false
	a.each(func(tag uint16, _ uint32, _ int) { masked = masked || tag == aclMask })
	a.each(func(tag uint16, perm uint32, at int) {
		switch {
		case tag == aclUserObj:
			a.set(at, perm&(mode>>6))
		case tag == aclMask, tag == aclGroupObj && !masked:
			a.set(at, perm&(mode>>3))
		case tag == aclOther:
			a.set(at, perm&mode)
		}
	})
	perm, minimal := a.mode()
	xattr := make(map[string][]byte)
	if !minimal {
		xattr[aclAccess] = out
	}
	if isDir {
		xattr[aclDefault] = def
	}
	return mode&^0o777 | perm, xattr
}
