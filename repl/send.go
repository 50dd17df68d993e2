package repl

import (
	"errors"
	"fmt"
	"time"

	"slotfs/meta/oplog"
)

// shipping is the state of sender.run.
type shipping struct {
	w     *oplog.Watcher
	delay *time.Timer
	armed bool  // delay runs
	told  marks // what the replica has been told last
}

// run sends entries and marks until the connection ends.
func (s *sender) run() error {
	log := s.r.Log
	heart := time.NewTicker(max(s.r.Timeout/4, 5*time.Millisecond))
	defer heart.Stop()
	x := &shipping{w: log.Watch(gatherEntries), delay: time.NewTimer(time.Hour)}
	x.delay.Stop()
	defer log.Unwatch(x.w)
	for {
		m := marks{log.Committed.Get(), log.Wanted.Get(), log.Awaited.Get()}
		if did, err := s.due(x, m); err != nil {
			return err
		} else if did {
			x.w.Done(s.next, x.told.wanted, x.told.awaited, !x.armed)
			continue
		}
		var err error
		select {
		case <-x.w.C:
		case <-x.delay.C:
			x.armed = false
			if s.next <= log.Appended.Get() {
				err, x.told = s.ship(m), m
			} else if m.committed > x.told.committed {
				err, x.told = s.mark(m), m
			}
			x.w.Done(s.next, x.told.wanted, x.told.awaited, true)
		case e := <-s.toPrepare:
			err = s.l.numbers(framePrepare, e)
		case <-heart.C:
			err, x.told = s.mark(m), m
			x.w.Done(s.next, x.told.wanted, x.told.awaited, !x.armed)
		case <-s.l.closed:
			return errors.New("closed")
		}
		if err == nil {
			err = log.Appended.Err()
		}
		if err != nil {
			return err
		}
	}
}

// due sends what must go at once, or sees to it that the rest goes before long.
// It returns false if there was nothing to do.
func (s *sender) due(x *shipping, m marks) (did bool, err error) {
	appended := s.r.Log.Appended.Get()
	switch {
	case s.next <= appended && (max(m.wanted, m.awaited) >= s.next || appended-s.next+1 >= gatherEntries):
		err, x.told = s.ship(m), m
	case m.wanted > x.told.wanted || m.awaited > x.told.awaited:
		// Somebody waits for what was sent already.
		err, x.told = s.mark(m), m
	case !x.armed && s.next <= appended:
		x.armed = true
		x.delay.Reset(gather)
	case !x.armed && m.committed > x.told.committed:
		x.armed = true
		x.delay.Reset(markDelay)
	default:
		return false, nil
	}
	return true, err
}

func (s *sender) mark(m marks) error { return s.l.numbers(frameMark, m.committed, m.wanted, m.awaited) }

// ship writes the next entries, as many as fit a frame, and sends them off if
// there are no more.
func (s *sender) ship(m marks) error {
	list, err := s.r.Log.Read(s.next, batchBytes)
	if err != nil {
		// Trimmed or damaged: the replica connects again, and is told to resync.
		s.r.noteDamage(err)
		return fmt.Errorf("read log at seq %d: %w", s.next, err)
	}
	if len(list) > 0 {
		if err := s.l.entries(m, list); err != nil {
			return err
		}
		s.next = list[len(list)-1].Seq + 1
	}
	if s.next <= s.r.Log.Appended.Get() {
		return nil
	}
	return s.l.flush()
}
