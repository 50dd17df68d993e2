package meta

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// recover brings index and tree to the last entry that is known to be
// committed; Open calls it. It does nothing while a resync is under way: that
// goes on when the peer is there.
func (s *Slot) recover() error {
	if err := s.openResync(); err != nil {
		return err
	}
	s.mu.Lock()
	r := s.resync
	s.mu.Unlock()
	switch {
	case s.gone != nil && r == nil:
		s.needsRefill(s.gone)
		return nil
	case s.gone != nil:
		// It goes on, but nothing counts any more that is not verified.
		s.unfit.Store(&unfitness{s.gone})
		r.Phase, r.Distrust = phaseCollect, true
		return nil
	case r == nil && s.identity.Unlocked != nil:
		s.setResync(&resyncing{file: filepath.Join(s.dir, fileResync), resyncMarker: resyncMarker{
			Phase: phaseCollect, Common: math.MaxUint64, Started: time.Now(), Distrust: true,
			Local: s.ix.current().Messages,
		}})
		return nil
	case r == nil:
	case r.Phase == phasePlace:
		return s.finishResync(r)
	case s.opt.alone:
		return s.giveUpResync(r)
	default:
		return nil
	}
	return s.recoverTo(s.committed())
}

// recoverTo is recover with another end.
func (s *Slot) recoverTo(committed uint64) error {
	v := &recovery{
		data: s.dir, ix: s.ix, log: s.Log, last: s.Log.Last().Seq, committed: committed,
		note: s.noteEvent, hold: s.opt.hold, store: s.SetStore, ahead: s.CompleteFrom(), rescued: s.noteRescued,
		guard: s.guardNames,
	}
	begun := time.Now()
	report, err := v.run()
	err = errors.Join(err, s.rescued.sync())
	if unusable(err) {
		return s.rebuild(err)
	}
	var lost *LogLostError
	if s.opt.alone && errors.As(err, &lost) {
		// Nothing can be proved about what came after the checkpoint; for who
		// only wants the tree, it is as it is.
		s.Events.Add(Event{Kind: EventRecovery, Text: lost.Error()})
		return nil
	}
	if err != nil {
		return fmt.Errorf("recover %s: %w", s.dir, err)
	}
	s.recovered = report
	if text := report.summary(); text != "" {
		s.Events.Add(Event{Kind: EventRecovery, Text: fmt.Sprintf("%s, in %v", text, time.Since(begun).Round(time.Millisecond))})
	}
	return nil
}

// noteEvent is what reconcile reports to.
func (s *Slot) noteEvent(kind string, id op.ID, path, text string) {
	e := ledger.Entry{Outcome: ledger.Noted}
	switch kind {
	case EventRepaired:
		e.Kind, e.Outcome, e.Source = ledger.Damaged, ledger.Repaired, "index and ids"
	case ledger.Quarantined:
		e.Outcome = ledger.Kept
	case EventMissing, EventDamaged:
		e.Outcome = ledger.Unrepaired
	}
	s.finding(Event{Kind: kind, ID: id, Path: path, Text: text}, e)
}

// ErrUnlocked: the data directory was handed over for use without slotfs.
var ErrUnlocked = errors.New("unlocked for use without slotfs")

// checkUnlocked refuses a data directory whose tree others may have changed.
func checkUnlocked(file string, id Identity, o Options) error {
	if id.Unlocked == nil || o.Resync {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(filepath.Dir(file), fileResync)); err == nil {
		return nil // it is being filled again
	}
	return &DataError{File: file, Reason: ErrUnlocked,
		Detail: fmt.Sprintf("by 'slotfs recover --unlock' on %s", id.Unlocked.Format(time.DateTime)),
		Remedy: "its tree may have changed since, unknown to log and index: start with an empty data directory and let the other node fill it, or adopt this tree as a new store"}
}
