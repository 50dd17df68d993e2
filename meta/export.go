package meta

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Content reads an object's content for another slot, verified where it has a
// checksum. Unlike ReadAt it never asks other slots for a good copy: two slots
// with a damaged one would ask each other for ever. A file that changes
// meanwhile makes reading fail; the other slot asks again.
func (s *Slot) Content(ctx context.Context, id op.ID) (io.ReadCloser, error) {
	n, err := s.find(id)
	if err != nil {
		return nil, err
	}
	if !n.IsRegular() {
		return nil, fmt.Errorf("content of id %d: %w", id, unix.EINVAL)
	}
	return &contentReader{ctx: ctx, s: s, n: n}, nil
}

// contentReader is the content of n as it was when the reader was made.
type contentReader struct {
	ctx  context.Context
	s    *Slot
	n    *Inode
	off  int64  // of what comes after rest
	rest []byte // read, verified, not handed out yet
	buf  []byte
}

// Read implements io.Reader.
func (r *contentReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next gets the next block.
func (r *contentReader) next() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	length := min(op.BlockSize, r.n.Size-r.off)
	if length <= 0 {
		return io.EOF
	}
	if int64(len(r.buf)) < length {
		r.buf = make([]byte, length)
	}
	b := r.buf[:length]
	if r.n.Sum != nil {
		if err := r.s.readBlockStable(r.n, int(r.off/op.BlockSize), b); err != nil {
			return fmt.Errorf("content of id %d: %w", r.n.ID, err)
		}
	} else {
		done, err := r.s.readPlain(r.n, b, r.off)
		if err != nil {
			return err
		}
		if done < len(b) {
			return fmt.Errorf("content of id %d: %w", r.n.ID, errChanged)
		}
	}
	r.off += length
	r.rest = b
	return nil
}

// Close implements io.Closer.
func (r *contentReader) Close() error { return nil }
