package fs

import (
	"strconv"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Compile-time list of what is implemented; everything else answers ENOSYS,
// which the kernel remembers for the mount: OPEN, OPENDIR and FLUSH (nothing to
// do), ACCESS (default_permissions), COPY_FILE_RANGE and LSEEK (the kernel's own
// fallback is right: copy through the page cache, no holes), STATX, locks (kept
// by the kernel).
var _ fuse.RawFileSystem = (*FS)(nil)

// Opcodes of the FUSE protocol that are named here.
const (
	opLookup      = 1
	opForget      = 2
	opGetAttr     = 3
	opSetAttr     = 4
	opReadlink    = 5
	opUnlink      = 10
	opRename      = 12
	opLink        = 13
	opRead        = 15
	opWrite       = 16
	opFsync       = 20
	opGetXattr    = 22
	opListXattr   = 23
	opReadDir     = 28
	opFsyncDir    = 30
	opCreate      = 35
	opInterrupt   = 36
	opIoctl       = 39
	opPoll        = 40
	opBatchForget = 42
	opReadDirPlus = 44
	opRename2     = 45
	opcodes       = 64
)

var opNames = [opcodes]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
	10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
	18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
	27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 34: "ACCESS", 35: "CREATE", 39: "IOCTL",
	43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK", 47: "COPY_FILE_RANGE", 51: "TMPFILE", 52: "STATX",
}

func opName(opcode uint32) string {
	if opcode < opcodes && opNames[opcode] != "" {
		return opNames[opcode]
	}
	return "OP" + strconv.Itoa(int(opcode))
}

// Stats counts the requests so far by opcode. A forget counts once for each
// node that it names.
func (f *FS) Stats() map[string]uint64 {
	m := make(map[string]uint64)
	for i := range f.stats {
		if n := f.stats[i].Load(); n > 0 {
			m[opName(uint32(i))] = n
		}
	}
	return m
}

// String is the type of the mount: fuse.slotfs.
func (f *FS) String() string { return fsName }

// Open refuses: there is nothing to do at open, and the kernel then sends
// neither OPEN nor RELEASE again.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.ENOSYS
}

// OpenDir refuses like Open; the kernel then caches listings as well.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.ENOSYS
}

// Flush refuses: no error can be pending at close.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.ENOSYS
}

// Release comes for files created before the first OPEN was refused.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.enter(&in.InHeader) }

// ReleaseDir implements fuse.RawFileSystem.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) { f.enter(&in.InHeader) }

// Access refuses: the kernel checks permissions itself.
func (f *FS) Access(_ <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.ENOSYS
}

// Lseek refuses: the kernel then answers SEEK_DATA and SEEK_HOLE as for a file
// without holes.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, _ *fuse.LseekOut) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.ENOSYS
}

// CopyFileRange refuses: the kernel copies through the page cache.
func (f *FS) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	f.enter(&in.InHeader)
	return 0, fuse.ENOSYS
}

// Statx refuses: there is nothing that GETATTR does not have.
func (f *FS) Statx(_ <-chan struct{}, in *fuse.StatxIn, _ *fuse.StatxOut) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.ENOSYS
}

// Ioctl knows none.
func (f *FS) Ioctl(_ <-chan struct{}, in *fuse.IoctlIn, _ []byte, _ *fuse.IoctlOut, _ []byte) fuse.Status {
	f.enter(&in.InHeader)
	return fuse.Status(syscall.ENOTTY)
}

// StatFs shows the file system below the tree.
func (f *FS) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.enter(h)
	var s syscall.Statfs_t
	if err := syscall.Statfs(f.slot.Dir(), &s); err != nil {
		return f.errno(h, err)
	}
	out.FromStatfsT(&s)
	out.NameLen = maxName
	return fuse.OK
}
