package fs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"slotfs/meta"
	"slotfs/meta/oplog"
)

func TestErrno(t *testing.T) {
	var log bytes.Buffer
	f := &FS{log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})), complaints: map[complaint]time.Time{}}
	wrap := func(err error) error { return fmt.Errorf("somewhere: %w", err) }
	for _, c := range []struct {
		err    error
		want   syscall.Errno
		logged bool
	}{
		{nil, 0, false},
		{syscall.ENOTEMPTY, syscall.ENOTEMPTY, false},
		{wrap(oplog.ErrNotLeading), syscall.EROFS, false},
		{wrap(oplog.ErrNoSpace), syscall.ENOSPC, false},
		{wrap(meta.ErrNoSpace), syscall.ENOSPC, false},
		{wrap(oplog.ErrFaulted), syscall.EIO, false},
		{wrap(meta.ErrFaulted), syscall.EIO, false},
		{&meta.DamagedError{Err: errors.New("x")}, syscall.EIO, false},
		{wrap(context.Canceled), syscall.EIO, false},
		{wrap(syscall.ENOSPC), syscall.ENOSPC, false},
		{errors.New("nobody has thought of it"), syscall.EIO, true},
	} {
		log.Reset()
		if got := f.errno(&fuse.InHeader{Opcode: 16}, c.err); got != fuse.Status(c.want) {
			t.Errorf("%v becomes %v, want %v", c.err, got, c.want)
		}
		if logged := strings.Contains(log.String(), "WRITE"); logged != c.logged {
			t.Errorf("%v: logged %q", c.err, log.String())
		}
	}
}

// A full disk fails every write; that is told once a minute.
func TestComplain(t *testing.T) {
	var log bytes.Buffer
	f := &FS{log: slog.New(slog.NewTextHandler(&log, nil)), complaints: map[complaint]time.Time{}}
	full := fmt.Errorf("write: %w", syscall.ENOSPC)
	for range 100 {
		f.errno(&fuse.InHeader{Opcode: 16}, full)
	}
	f.errno(&fuse.InHeader{Opcode: 16}, fmt.Errorf("write: %w", syscall.EIO))
	f.errno(&fuse.InHeader{Opcode: 35}, full)
	if n := strings.Count(log.String(), "\n"); n != 3 {
		t.Errorf("%d lines, should be 3:\n%s", n, log.String())
	}
	for c := range f.complaints {
		f.complaints[c] = time.Now().Add(-complainEvery)
	}
	f.errno(&fuse.InHeader{Opcode: 16}, full)
	if n := strings.Count(log.String(), "\n"); n != 4 {
		t.Errorf("%d lines a minute later, should be 4", n)
	}
}
