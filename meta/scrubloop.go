package meta

import (
	"context"
	"errors"
	"time"

	"slotfs/meta/op"
)

const (
	// settle is how old an object must be for the continuous scrub: what was just
	// delivered is on its way to the disk, or is being renamed by the server.
	settle = 2 * time.Minute
	// lookEvery is the time between two looks whether something is due.
	lookEvery = 30 * time.Second
	// loopChunk is how many ids the loop takes at a time, before it looks again
	// what is due.
	loopChunk = 8 * scrubBatch
)

// ScrubLoop is the continuous scrub: what was never verified first, the latest
// mail before older mail, then what was verified longest ago, so that
// everything is verified once in a cycle. It ends with ctx, or with the slot.
func (s *Slot) ScrubLoop(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	c := &s.scrub
	for ctx.Err() == nil {
		c.mu.Lock()
		wake, conf := c.wake, c.conf
		idle := c.mem.Paused || c.pass != nil || conf.Cycle <= 0
		c.mu.Unlock()
		wait := lookEvery
		if !idle && !s.adopting.busy.Load() && !s.Resyncing() && s.Faulted() == nil {
			from, to, ok := s.dueForScrub(time.Now(), conf.Cycle)
			if ok {
				err := s.scrubSome(ctx, wake, conf, from, to)
				if err == nil {
					continue
				}
				if ctx.Err() == nil && !errors.Is(err, context.Canceled) {
					s.log.Warn("scrub", keyErr, err)
				}
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-t.C:
		}
		t.Stop()
	}
	if err := c.save(); err != nil && s.Faulted() == nil {
		s.log.Warn("scrub", keyErr, err)
	}
}

// scrubSome goes through a few ids, until wake is closed.
func (s *Slot) scrubSome(ctx context.Context, wake <-chan struct{}, conf ScrubConfig, from, to op.ID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-wake:
			cancel()
		case <-done:
		}
	}()
	p := s.newPass(ScrubOptions{Rate: conf.Rate}, ScrubReport{})
	defer p.readers.close()
	c := &s.scrub
	c.mu.Lock()
	c.loop = p
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.loop = nil
	}()
	if err := p.runIDs(ctx, from, to); err != nil {
		return err
	}
	return s.notePass()
}

// dueForScrub finds the ids to verify next.
func (s *Slot) dueForScrub(now time.Time, cycle time.Duration) (from, to op.ID, ok bool) {
	c := &s.scrub
	last := c.settled(now, op.ID(s.ix.current().Pos.Seq))
	c.mu.Lock()
	gaps := c.mem.Verified.never(last)
	old, some := c.mem.Verified.oldest(last)
	c.mu.Unlock()
	if len(gaps) > 0 {
		g := gaps[len(gaps)-1]
		return g.From, min(g.To, g.From+loopChunk-1), true
	}
	if some && now.Sub(time.Unix(old.At, 0)) >= cycle {
		return old.From, min(old.To, old.From+loopChunk-1), true
	}
	return 0, 0, false
}

// settled is the last id that is old enough: what was applied some time ago, as
// far as this loop has seen.
func (c *scrubber) settled(now time.Time, applied op.ID) op.ID {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.seen); n == 0 || now.Sub(c.seen[n-1].at) >= lookEvery {
		c.seen = append(c.seen, seenAt{now, applied})
	}
	for len(c.seen) > 1 && now.Sub(c.seen[1].at) >= settle {
		c.seen = c.seen[1:]
	}
	if now.Sub(c.seen[0].at) < settle {
		return 0
	}
	return c.seen[0].id
}

// seenAt is the last id there was at a moment.
type seenAt struct {
	at time.Time
	id op.ID
}

// notePass notes that a pass has ended when nothing is left that was verified
// before the one before it ended.
func (s *Slot) notePass() error {
	last := op.ID(s.ix.current().Pos.Seq)
	c := &s.scrub
	c.mu.Lock()
	defer c.mu.Unlock()
	old, ok := c.mem.Verified.oldest(last)
	if !ok {
		return nil
	}
	end := c.mem.Verified[len(c.mem.Verified)-1].To
	if gaps := c.mem.Verified.never(last); len(gaps) > 0 && gaps[0].From <= end {
		return nil // not only what has just come
	}
	began := time.Unix(old.At, 0).UTC()
	if !began.After(c.mem.PassEnded) {
		return nil
	}
	c.mem.PassBegan, c.mem.PassEnded = began, time.Now().UTC()
	return c.saveLocked()
}
