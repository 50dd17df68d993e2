package oplog

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// writeBlocking is f.WriteAt for a write that takes as long as a disk does. The
// processor that this goroutine has in Go's eyes goes to the others before the
// system call: with an ordinary one they would wait for Go's monitor thread to find
// out that it blocks. The runtime keeps these two functions for such use.
func writeBlocking(f *os.File, p []byte, off int64) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	for len(p) > 0 {
		var n int
		var e syscall.Errno
		if err := c.Control(func(fd uintptr) { n, e = pwriteBlocking(fd, p, off) }); err != nil {
			return err
		}
		switch {
		case e == syscall.EINTR:
			continue
		case e == 0 && n == 0:
			e = syscall.EIO
		}
		if e != 0 {
			return &os.PathError{Op: "write", Path: f.Name(), Err: fmt.Errorf("at %d: %w", off, e)}
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func pwriteBlocking(fd uintptr, p []byte, off int64) (int, syscall.Errno) {
	n, e := blocking(syscall.SYS_PWRITE64, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off))
	return int(n), e
}

// blocking is a system call that blocks. Between the two functions of the runtime
// nothing may grow the stack.
//
//go:nosplit
//go:uintptrescapes
func blocking(trap, a, b, c, d uintptr) (uintptr, syscall.Errno) {
	entersyscallblock()
	r, _, e := syscall.RawSyscall6(trap, a, b, c, d, 0, 0)
	exitsyscall()
	return r, e
}

//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()
