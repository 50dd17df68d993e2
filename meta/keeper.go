package meta

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"slotfs/meta/ledger"
)

// keeper is the goroutine that looks after what nobody reads at the moment: it
// verifies the index and the log again and again, and looks whether the tree is
// still the slot's. Whoever finds the index damaged asks it to make another.
type keeper struct {
	asked chan healing  // buffered: whoever asks must not wait for an answer
	log   chan struct{} // cap 1: the log is to be verified now

	verifying sync.Mutex // one pass over the log at a time

	mu    sync.Mutex
	known map[place]struct{} // damage of the log that was reported
}

// healing is a request to make the index anew.
type healing struct {
	swaps uint64 // index.swaps when the damage was found
	cause error
	done  chan error // buffered; may be nil
}

const (
	// keepEvery is how often the keeper looks whether tree and index are there.
	keepEvery = 2 * time.Second
	// tidyEvery is how often trash is looked through.
	tidyEvery = 10 * time.Second
	// The index is verified at most every verifyMin, and for no more than one part
	// in verifyShare of the time.
	verifyMin   = 10 * time.Second
	verifyShare = 200
	// The same if an object is not found in it: badger takes what it cannot read for
	// absent, so an absence counts only with a verification from about that moment.
	missMin   = 100 * time.Millisecond
	missShare = 2
	// healsMax is how often the index may be made anew in the life of a process: a
	// disk that damages it again and again is of no use.
	healsMax = 8
)

func newKeeper() *keeper {
	return &keeper{asked: make(chan healing, 64), log: make(chan struct{}, 1), known: make(map[place]struct{})}
}

// startKeeper runs until the slot's context ends.
func (s *Slot) startKeeper() {
	s.work.Go(func() {
		tick := time.NewTicker(keepEvery)
		defer tick.Stop()
		tidied := time.Now()
		for {
			select {
			case <-s.ctx.Done():
				s.refuseHeals()
				return
			case h := <-s.keeper.asked:
				h.answer(s.heal(h))
				continue
			case <-tick.C:
			}
			if s.Resyncing() {
				continue
			}
			swaps := s.ix.swaps.Load()
			if err := s.guard(); unusable(err) {
				s.heal(healing{swaps: swaps, cause: err})
				continue
			} else if err != nil {
				s.lose(err)
				continue
			}
			if time.Since(tidied) >= tidyEvery {
				s.tidyTrash()
				tidied = time.Now()
			}
			err := s.ix.there()
			if err == nil {
				err = s.ix.verifyIfDue(verifyMin, verifyShare)
			}
			if err != nil {
				s.heal(healing{swaps: swaps, cause: err})
			}
		}
	})
}

func (h healing) answer(err error) {
	if h.done != nil {
		h.done <- err
	}
}

// refuseHeals answers those who still wait.
func (s *Slot) refuseHeals() {
	for {
		select {
		case h := <-s.keeper.asked:
			h.answer(h.cause)
		default:
			return
		}
	}
}

// askHeal asks for another index and does not wait for it; false if there is
// nobody to make it.
func (s *Slot) askHeal(cause error) bool {
	s.mu.Lock()
	ok := s.started && !s.closed && s.resync == nil
	s.mu.Unlock()
	if !ok {
		return false
	}
	select {
	case s.keeper.asked <- healing{swaps: s.ix.swaps.Load(), cause: cause}:
		return true
	default:
		return false
	}
}

// healed does f, and does it once more with another index if the present one
// turns out to be damaged. The caller holds no lock of the slot.
func (s *Slot) healed(f func() error) error {
	swaps := s.ix.swaps.Load()
	err := f()
	if !unusable(err) {
		return err
	}
	s.mu.Lock()
	ok := s.started && !s.closed && s.resync == nil
	s.mu.Unlock()
	if !ok {
		return err
	}
	done := make(chan error, 1)
	select {
	case s.keeper.asked <- healing{swaps: swaps, cause: err, done: done}:
	case <-s.ctx.Done():
		return err
	}
	select {
	case e := <-done:
		if e != nil {
			return errors.Join(err, e)
		}
		return f()
	case <-s.ctx.Done():
		return err
	}
}

// heal makes the index anew beside the damaged one, from which reads go on to be
// answered, and puts it in its place. The applier stands still meanwhile. Of the
// keeper.
func (s *Slot) heal(h healing) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.ix.swaps.Load() != h.swaps {
		return nil // somebody else had found it
	}
	if err := s.Faulted(); err != nil {
		return err
	}
	if s.Resyncing() || s.ctx.Err() != nil {
		return h.cause
	}
	s.finding(Event{Kind: EventIndex, Text: fmt.Sprintf("the index is damaged and is made anew: %v", h.cause)}, ledger.Entry{Outcome: ledger.Noted})
	var err error
	if h.swaps >= healsMax {
		err = errors.New("it was damaged again and again")
	} else {
		err = s.rebuildOnline(h.cause)
	}
	if err != nil && s.ctx.Err() == nil {
		s.Fault(fmt.Errorf("index damaged (%w), and not made anew: %w", h.cause, err))
	}
	return err
}
