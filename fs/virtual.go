package fs

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// virtualDir is a directory at the root that is not listed: the state of the
// slot, for those who have only the mount.
const virtualDir = ".slotfs"

// virtual is the directory or a file in it. A file is made anew by every
// lookup, so that size and content agree and nothing is cached.
type virtual struct {
	isDir   bool
	data    []byte
	time    int64
	lookups uint64
}

// virtualFiles are the names in the directory.
func (f *FS) virtualFiles() []string {
	if f.opt.Status == nil {
		return []string{"pos", "digest"}
	}
	return []string{"pos", "digest", "status"}
}

// virtualContent makes a file. It calls others, so mu is not held.
func (f *FS) virtualContent(name string) ([]byte, bool) {
	switch {
	case name == "pos":
		return fmt.Appendf(nil, "%v\n", f.oplog.Last()), true
	case name == "digest":
		seq, digest := f.slot.Digest()
		return fmt.Appendf(nil, "%d %v\n", seq, digest), true
	case name == "status" && f.opt.Status != nil:
		return f.opt.Status(), true
	}
	return nil, false
}

// virtualBase is the nodeid of the virtual directory; those above are its
// files'. Others never get so far.
const virtualBase = 1 << 62

// lookupVirtual answers lookups of and in the virtual directory.
func (f *FS) lookupVirtual(parent uint64, name string, out *fuse.EntryOut) bool {
	if isRoot(parent) && name == virtualDir {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.virt[virtualBase].entry(virtualBase, out)
		return true
	}
	if parent != virtualBase {
		return false
	}
	data, ok := f.virtualContent(name)
	if !ok {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastVirt++
	v := &virtual{data: data, time: now()}
	f.virt[virtualBase+f.lastVirt] = v
	v.entry(virtualBase+f.lastVirt, out)
	return true
}

// entry gives the kernel a reference, without a timeout.
func (v *virtual) entry(nodeid uint64, out *fuse.EntryOut) {
	v.lookups++
	out.NodeId, out.Generation = nodeid, 1
	v.fill(nodeid, &out.Attr)
}

func (v *virtual) fill(nodeid uint64, a *fuse.Attr) {
	a.Ino = volatileIno<<1 | nodeid
	a.Mode, a.Nlink, a.Blksize = syscall.S_IFREG|0o444, 1, 4096
	if v.isDir {
		a.Mode, a.Nlink = syscall.S_IFDIR|0o555, 2
	}
	a.Size = uint64(len(v.data))
	a.Blocks = (a.Size + 511) / 512
	a.Mtime, a.Mtimensec = split(v.time)
	a.Ctime, a.Ctimensec = a.Mtime, a.Mtimensec
	a.Atime, a.Atimensec = a.Mtime, a.Mtimensec
}

// forgetVirtual takes references back; the directory stays. mu is held.
func (f *FS) forgetVirtual(nodeid uint64, v *virtual, nlookup uint64) {
	v.lookups -= min(nlookup, v.lookups)
	if v.lookups == 0 && !v.isDir {
		delete(f.virt, nodeid)
	}
}

func (f *FS) readVirtual(nodeid uint64, off int64, n int) ([]byte, bool) {
	if nodeid < virtualBase {
		return nil, false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.virt[nodeid]
	if v == nil || v.isDir {
		return nil, false
	}
	if off >= int64(len(v.data)) {
		return nil, true
	}
	return v.data[off:min(off+int64(n), int64(len(v.data)))], true
}

// listVirtual lists the directory: names only, attributes are looked up.
func (f *FS) listVirtual(in *fuse.ReadIn, out *fuse.DirEntryList) bool {
	if in.NodeId != virtualBase {
		return false
	}
	plus := in.Opcode == opReadDirPlus
	for i, name := range append([]string{".", ".."}, f.virtualFiles()...) {
		e := fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Off: uint64(i + 1), Ino: volatileIno<<1 | uint64(1000+i)}
		if strings.HasPrefix(name, ".") {
			e.Mode = syscall.S_IFDIR
		}
		if e.Off <= in.Offset {
			continue
		}
		if plus && out.AddDirLookupEntry(e) == nil || !plus && !out.AddDirEntry(e) {
			break
		}
	}
	return true
}
