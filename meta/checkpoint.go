package meta

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// maybeCheckpoint begins a checkpoint when one is due: CheckpointEvery after
// the last one if anything changed, or when the delta is full, in which case it
// waits for the one before. A checkpoint goes on beside the applier:
//
//	freeze       the index at C; the tree has C, times included
//	sync         the tree: C and perhaps more is on disk
//	commit       the index: C, in one transaction
//	then only    trash and log that C no longer needs
//
// So recovery starts from exactly C, whatever is on disk beyond.
func (s *Slot) maybeCheckpoint(ctx context.Context, due *time.Timer) error {
	a := &s.applier
	full := s.ix.full()
	if !full && time.Since(a.checkpointAt) < s.opt.CheckpointEvery || !s.ix.changed() {
		return nil
	}
	if a.checkpoints != nil {
		if !full {
			return nil
		}
		select {
		case <-a.checkpoints:
			a.checkpoints = nil
		case <-ctx.Done():
			return nil
		}
	}
	for !s.space.forCheckpoint() {
		if !full {
			return nil
		}
		if err := s.space.wait(ctx, oplog.ErrNoSpace); err != nil {
			return nil // ctx has ended
		}
	}
	a.checkpointAt = time.Now()
	st, err := s.freeze()
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	s.attest(st)
	done := make(chan struct{})
	a.checkpoints = done
	go func() {
		defer close(done)
		err := s.finishCheckpoint(st)
		if err != nil {
			if gone := s.ix.verify(); gone != nil {
				err = gone // that is why
			}
		}
		if unusable(err) && s.askHeal(err) {
			return // and frozen stays until then
		}
		if err != nil {
			s.Fault(fmt.Errorf("checkpoint: %w", err))
		}
	}()
	due.Reset(s.opt.CheckpointEvery)
	return nil
}

// attest appends, while this slot is the primary, a Checkpoint entry with its
// digest at st, which every slot compares with its own. Only what others have
// changed since the last one is worth another.
func (s *Slot) attest(st state) {
	a := &s.applier
	if !s.Log.Leading() || st.Pos.Seq <= a.attested {
		return
	}
	epochs := s.Log.Epochs()
	if len(epochs) == 0 || epochs[len(epochs)-1].Begin.Primary != s.ID {
		return // it leads, but its epoch has not begun
	}
	e, err := s.Log.Append(&op.Checkpoint{At: st.Pos.Seq, Digest: st.Digest})
	if err != nil {
		return // no longer leading, or the log stopped and has said so
	}
	a.attested = e.Seq
}

// checkpoint writes one and returns when it is done. The applier is not
// running.
func (s *Slot) checkpoint() error {
	if !s.ix.changed() {
		return nil
	}
	st, err := s.freeze()
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if err := s.finishCheckpoint(st); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// freeze begins a checkpoint.
func (s *Slot) freeze() (state, error) {
	st, err := s.ix.freeze()
	if err == nil && s.trash != nil {
		s.trash.begin()
	}
	return st, err
}

// finishCheckpoint makes tree and index durable at st.
func (s *Slot) finishCheckpoint(st state) error {
	if err := s.markControl(); err != nil {
		return err
	}
	if err := s.tree.sync(); err != nil {
		return err
	}
	if err := s.rescued.sync(); err != nil {
		return err
	}
	if err := s.ix.commit(st); err != nil {
		return err
	}
	if s.trash != nil {
		if err := s.trash.free(); err != nil {
			return err
		}
	}
	return s.trimLog(st.Pos.Seq)
}

// markControl brings the marks of control files up to the state that is being
// written to the index.
func (s *Slot) markControl() error {
	s.ix.mu.RLock()
	frozen := s.ix.frozen // maps that nobody writes to any more
	s.ix.mu.RUnlock()
	for id, n := range frozen.inodes {
		if n == nil || n.Sealed || !n.IsRegular() {
			continue
		}
		if err := s.markOne(id, markOf(n)); err != nil {
			return fmt.Errorf("mark id %d: %w", id, err)
		}
	}
	return nil
}

func (s *Slot) markOne(id op.ID, m mark) error {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	now, err := s.ix.inode(id)
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	h, err := s.tree.file(now)
	if errors.Is(err, unix.ENOENT) {
		return nil // reported when it was missed
	}
	if err != nil {
		return err
	}
	defer h.release()
	m.Lost = h.lost.Load()
	return s.tree.again(func() error { return unix.Fsetxattr(h.fd, markName, m.encode(), 0) })
}

// trimLog gives up log that nobody needs. Recovery needs what follows c, a
// Snapshot what follows its own; beyond LogMax, nothing else counts; up to
// LogMax, log stays for slots that were away, and for people who ask what
// happened.
func (s *Slot) trimLog(c uint64) error {
	before := c + 1
	s.mu.Lock()
	for p := range s.pins {
		before = min(before, p.from)
	}
	retain := s.retain
	s.mu.Unlock()
	size := s.Log.Size()
	if size <= s.opt.LogMax {
		return nil
	}
	if retain != nil && size <= 2*s.opt.LogMax {
		before = min(before, retain())
	}
	// Seqs are spread over the log unevenly, but trimming goes by whole
	// segments and comes round again at the next checkpoint.
	first := s.Log.First()
	if before <= first {
		return nil
	}
	share := float64(size-s.opt.LogMax) / float64(size)
	last := s.Log.Last().Seq
	before = min(before, first+uint64(float64(last-first+1)*share)+1)
	if err := s.Log.Trim(before); err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	return nil
}

// pin keeps the log from an entry on.
type pin struct{ from uint64 }

// pinLog keeps the log from seq on until release is called.
func (s *Slot) pinLog(seq uint64) (release func()) {
	p := &pin{from: seq}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[p] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.pins, p)
	}
}

// Retain sets the function that says from which entry on a slot that follows
// still needs the log. It counts until the log is twice as long as LogMax.
func (s *Slot) Retain(from func() uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retain = from
}
