package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"slotfs/meta/op"
)

// Listings come without OPENDIR, so the offset alone says where one stands:
// after the entry with that cookie. Cookies grow in the order of arrival and
// are never used again, but by what replaces an entry under its name; so an
// entry that is there throughout is listed once, whatever is made, renamed or
// removed meanwhile. They stay as long as the kernel knows the directory.

// ReadDir implements fuse.RawFileSystem.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.enter(&in.InHeader)
	if f.listVirtual(in, out) {
		return fuse.OK
	}
	return f.errno(&in.InHeader, f.locked(func() error {
		d, err := f.dirNode(in.NodeId)
		if err != nil {
			return err
		}
		if !f.dots(d, in.Offset, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) }) {
			return nil
		}
		for _, e := range d.dir.from(in.Offset, int(in.Size)/24+1) {
			if !out.AddDirEntry(e.show(f)) {
				break
			}
		}
		return nil
	}))
}

// ReadDirPlus implements fuse.RawFileSystem.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	f.enter(&in.InHeader)
	if f.listVirtual(in, out) {
		return fuse.OK
	}
	return f.errno(&in.InHeader, f.locked(func() error {
		d, err := f.dirNode(in.NodeId)
		if err != nil {
			return err
		}
		const least = 128 + 24 + 8 // bytes of an entry with its attributes
		list := d.dir.from(in.Offset, int(in.Size)/least+1)
		// Everything must be in memory before the first one is given out.
		var absent []op.ID
		for _, e := range list {
			if _, err := f.target(e); err != nil {
				absent = append(absent, e.id)
			}
		}
		if len(absent) > 0 {
			return &missing{ids: absent}
		}
		plus := func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil }
		if !f.dots(d, in.Offset, plus) {
			return nil
		}
		for _, e := range list {
			o := out.AddDirLookupEntry(e.show(f))
			if o == nil {
				break
			}
			e.n.entry(o)
		}
		return nil
	}))
}

// dots lists "." and "..", as far as a listing that stands at offset still
// needs them; they give the kernel no reference. mu is held.
func (f *FS) dots(d *node, offset uint64, add func(fuse.DirEntry) bool) bool {
	if offset < 1 && !add(fuse.DirEntry{Name: ".", Mode: syscall.S_IFDIR, Ino: d.ino, Off: 1}) {
		return false
	}
	if offset < 2 && !add(fuse.DirEntry{Name: "..", Mode: syscall.S_IFDIR, Ino: uint64(d.dir.parent), Off: 2}) {
		return false
	}
	return true
}

// show is e as a listing has it. mu is held.
func (e *dirent) show(f *FS) fuse.DirEntry {
	ino := uint64(e.id)
	if e.n != nil {
		ino = e.n.ino
	} else if n := f.byID[e.id]; n != nil {
		ino = n.ino
	}
	return fuse.DirEntry{Name: e.name, Mode: e.typ, Ino: ino, Off: e.cookie}
}
