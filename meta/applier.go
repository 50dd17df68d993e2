package meta

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// applier is the one goroutine that changes index and tree while the slot runs.
type applier struct {
	mu     sync.Mutex // guards cancel and done
	cancel context.CancelFunc
	done   chan struct{}

	// stopAt is the seq to stop at, for a moment, for a snapshot of exactly that
	// state; 0: go on.
	stopAt atomic.Uint64

	// torn: Close interrupted an entry, which is in the index and not in the
	// tree. Read when the goroutine has ended.
	torn bool

	// Of the goroutine alone.
	checkpointAt time.Time     // when the last one began
	attested     uint64        // seq of the last Checkpoint entry that attest appended
	checkpoints  chan struct{} // closed when the one under way is done; nil: none
}

const (
	batchBytes   = 1 << 20 // of entries in one batch, roughly
	batchEntries = 256

	// applyDelay is how long entries are gathered before they are applied: what
	// is done once a batch, above all the times of directories and control
	// files, is then done less often, and nobody needs them sooner. Who waits
	// for the applier, or much to do, ends it.
	applyDelay = 50 * time.Millisecond
	applyBytes = 4 << 20
)

// startApplier starts the applier, unless it runs.
func (s *Slot) startApplier() {
	a := &s.applier
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	a.cancel, a.done = cancel, make(chan struct{})
	done := a.done
	go func() {
		defer close(done)
		err := s.applyAll(ctx)
		if errors.Is(context.Cause(s.ctx), ErrClosed) && err != nil {
			a.torn = true
			s.log.Warn("closed in the middle of an entry, which the next start applies", keyErr, err)
			return
		}
		if unusable(err) && s.askHeal(err) {
			a.torn = true // until then
			return
		}
		if err != nil {
			s.Fault(err)
		}
	}()
}

// stopApplier stops it after the entry that it is at, and waits for that and
// for a checkpoint under way.
func (s *Slot) stopApplier() {
	a := &s.applier
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.cancel == nil {
		return
	}
	a.cancel()
	<-a.done
	a.cancel, a.done = nil, nil
}

// applyAll applies what is committed, and what will be, until ctx ends.
//
// It never applies an entry that is not durable in this slot's own log, even
// if it is committed (a slot outside the in-sync set may lag): after a crash
// nothing would explain what it did.
func (s *Slot) applyAll(ctx context.Context) error {
	a := &s.applier
	defer func() {
		if a.checkpoints != nil {
			<-a.checkpoints
			a.checkpoints = nil
		}
	}()
	a.checkpointAt = time.Now()
	due := time.NewTimer(s.opt.CheckpointEvery)
	defer due.Stop()
	gather := time.NewTimer(time.Hour)
	gather.Stop()
	defer gather.Stop()
	applied := s.ix.current().Pos.Seq
	s.tree.epoch = s.epochAt(applied)
	for ctx.Err() == nil {
		committed, durable := s.Log.Committed.Changed(), s.Log.Durable.Changed()
		to := min(s.Log.Committed.Get(), s.Log.Durable.Get())
		if to > applied && to-applied < batchEntries/2 && s.Log.Unapplied() < applyBytes {
			s.gather(ctx, gather)
			to = min(s.Log.Committed.Get(), s.Log.Durable.Get())
		}
		if stop := a.stopAt.Load(); stop != 0 {
			to = min(to, max(stop, applied)) // who asked starts it again
		}
		if to > applied {
			next, err := s.applySome(ctx, applied+1, to)
			if err != nil {
				return err
			}
			applied = next
		}
		if err := s.maybeCheckpoint(ctx, due); err != nil {
			return err
		}
		if to > applied {
			continue
		}
		if err := s.Log.Committed.Err(); err != nil {
			return nil // the log stopped, and has said so
		}
		select {
		case <-ctx.Done():
		case <-committed:
		case <-durable:
		case <-due.C:
			due.Reset(s.opt.CheckpointEvery)
			a.checkpointAt = time.Time{}
		case <-a.checkpoints: // nil blocks
			a.checkpoints = nil
		}
	}
	return nil
}

// gather lets entries gather for applyDelay, unless somebody is in a hurry.
func (s *Slot) gather(ctx context.Context, t *time.Timer) {
	t.Reset(applyDelay)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-s.Log.Hurry():
	case <-t.C:
	}
}

// applySome applies one batch of the entries from..to, and returns the last one
// that it applied.
func (s *Slot) applySome(ctx context.Context, from, to uint64) (uint64, error) {
	entries, err := s.Log.Read(from, batchBytes)
	if err != nil {
		return 0, fmt.Errorf("read log at %d: %w", from, err)
	}
	applied := from - 1
	for i, e := range entries {
		if e.Seq > to || i >= batchEntries || ctx.Err() != nil || (i > 0 && s.ix.full()) {
			break
		}
		if err := s.applyEntry(e); err != nil {
			return 0, err
		}
		applied = e.Seq
	}
	s.tree.mu.Lock()
	err = s.tree.setTimes()
	s.tree.mu.Unlock()
	if err != nil {
		return 0, fmt.Errorf("set mtimes after entry %d: %w", applied, err)
	}
	s.Log.SetApplied(applied)
	return applied, nil
}

// applyEntry applies one entry to index and tree.
func (s *Slot) applyEntry(e *op.Entry) error {
	if b, ok := e.Op.(*op.EpochBegin); ok {
		if err := s.SetStore(b.Store); err != nil {
			return fmt.Errorf("apply entry %d: %w", e.Seq, err)
		}
	}
	s.tree.mu.Lock()
	c, err := s.ix.apply(e)
	if err == nil {
		err = s.tree.do(c)
	}
	var lost *Deletion
	if err == nil && c.last && c.gone.IsRegular() {
		lost = s.deletionBy(e, c.gone)
		s.trash.add(c.gone, lost)
	}
	s.tree.mu.Unlock()
	if err != nil {
		return err
	}
	if lost != nil {
		s.countLoss(lost)
	}
	switch o := e.Op.(type) {
	case *op.Put:
		if id := undeleted(o); id != 0 {
			s.trash.forgetRecord(id)
		}
		return s.noteRescued(e)
	case *op.Seal:
		if c.n != nil {
			s.verifySeal(c.n)
		}
	case *op.Checkpoint:
		if c.differs {
			s.finding(Event{Kind: EventDigest, Text: fmt.Sprintf(
				"digest after entry %d differs from the primary's, which is %v: check the slot", o.At, o.Digest)},
				ledger.Entry{Expected: map[string]string{"primary": o.Digest.String()}, Outcome: ledger.Noted})
		}
	}
	return nil
}
