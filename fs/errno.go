package fs

import (
	"context"
	"errors"
	"log/slog"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"slotfs/meta"
	"slotfs/meta/oplog"
)

// errnos maps what the packages below report to what the caller of a system
// call gets. The first match wins; a syscall.Errno stands for itself; anything
// else is EIO and an Error in the log, because nobody has thought about it.
var errnos = []struct {
	err   error
	errno syscall.Errno
}{
	{oplog.ErrNotLeading, syscall.EROFS}, // demoted: for a call that waited it means "unknown"
	{oplog.ErrCut, syscall.EROFS},
	{oplog.ErrClosed, syscall.EIO},
	{oplog.ErrNoSpace, syscall.ENOSPC},
	{meta.ErrNoSpace, syscall.ENOSPC},
	{oplog.ErrFaulted, syscall.EIO},
	{meta.ErrFaulted, syscall.EIO},
	{meta.ErrClosed, syscall.EIO},
	{meta.ErrTreeLost, syscall.EIO},
	{errUnmounting, syscall.EIO},
	{context.Canceled, syscall.EIO},
}

// errno is the one place where an error becomes a status.
func (f *FS) errno(h *fuse.InHeader, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if e, ok := err.(syscall.Errno); ok { // by far the most frequent
		return fuse.Status(e)
	}
	for _, m := range errnos {
		if errors.Is(err, m.err) {
			return fuse.Status(m.errno)
		}
	}
	var damaged *meta.DamagedError
	if errors.As(err, &damaged) { // meta has reported it already
		return fuse.EIO
	}
	var e syscall.Errno
	if errors.As(err, &e) {
		f.complain(h, e, err)
		return fuse.Status(e)
	}
	f.log.Error("unexpected error, caller gets EIO", keyOp, opName(h.Opcode), slog.Uint64("node", h.NodeId), keyErr, err)
	return fuse.EIO
}

// complaint is a kind of failure that is told once in complainEvery: a full disk
// fails every write of every delivery.
type complaint struct {
	opcode uint32
	errno  syscall.Errno
}

const complainEvery = time.Minute

// complain tells that a system call on a file below failed.
func (f *FS) complain(h *fuse.InHeader, e syscall.Errno, err error) {
	c, now := complaint{h.Opcode, e}, time.Now()
	f.complaintMu.Lock()
	told := now.Sub(f.complaints[c]) < complainEvery
	if !told {
		f.complaints[c] = now
	}
	f.complaintMu.Unlock()
	if !told {
		f.log.Warn("system call below failed; the next ones like it within a minute are not told", keyOp, opName(h.Opcode), keyErr, err)
	}
}
