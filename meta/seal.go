package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// maxSeal is the largest control file that is sealed, in bytes: sealing reads
// all of it on every slot.
const maxSeal = 256 << 20

// Quiet lists control files without a checksum that have not changed for that
// long, oldest id first, at most max.
func (s *Slot) Quiet(age time.Duration, max int) ([]op.ID, error) {
	ids, err := s.ix.unsealed()
	if err != nil {
		return nil, err
	}
	before := time.Now().Add(-age).UnixNano()
	ids = slices.DeleteFunc(ids, func(id op.ID) bool {
		n, err := s.ix.inode(id)
		return err != nil || n.Sum != nil || n.Ctime > before || n.Size > maxSeal
	})
	return ids[:min(len(ids), max)], nil
}

// SealOf computes the Seal that the primary may append for a control file. It
// is void if the content changes before it is applied, so nobody need wait for
// anything; nil if there is nothing to seal at present.
func (s *Slot) SealOf(ctx context.Context, id op.ID) (*op.Seal, error) {
	h, n, err := s.openUnsealed(id)
	if h == nil {
		return nil, err
	}
	defer h.release()
	sum, err := op.BlockSumReader(ctxReader{ctx, &fdReader{fd: h.fd}})
	if err != nil {
		return nil, fmt.Errorf("seal id %d: %w", id, err)
	}
	now, err := s.ix.inode(id)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// The index changes before the tree does: if it has not, what was read is
	// whole.
	if now.Changed != n.Changed || now.Size != sum.Size {
		return nil, nil
	}
	return &op.Seal{ID: id, Of: n.Changed, Sum: sum}, nil
}

// openUnsealed opens a control file without a checksum while index and tree
// agree; nil if id is none.
func (s *Slot) openUnsealed(id op.ID) (*handle, *Inode, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	n, err := s.ix.inode(id)
	if errors.Is(err, ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if !n.IsRegular() || n.Sealed || n.Sum != nil || n.Size > maxSeal {
		return nil, nil, nil
	}
	h, err := s.tree.file(n)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil, nil // check reports it
	}
	return h, n, err
}

// CheckpointOp is the Checkpoint that the primary may append now.
func (s *Slot) CheckpointOp() *op.Checkpoint {
	st := s.ix.current()
	return &op.Checkpoint{At: st.Pos.Seq, Digest: st.Digest}
}

// ctxReader stops reading when ctx ends.
type ctxReader struct {
	ctx context.Context
	r   *fdReader
}

func (r ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
