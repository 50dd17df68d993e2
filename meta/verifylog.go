package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// The log is read again and again while the slot runs, from the disk, slowly. What
// cannot be read is fetched from another slot and put in its place: history that
// a slot which was away may need, and that `slotfs log` and evidence look into.
// Before anything else a checkpoint makes sure that this slot itself needs
// nothing of it any more.

const (
	logVerifyEvery = time.Hour
	logVerifyFirst = time.Minute // after the start
	logVerifyRate  = 16 << 20    // bytes a second
	// mendPatience is how long entries may take to be applied, or to come.
	mendPatience = time.Minute
)

// startLogVerifier runs until the slot's context ends.
func (s *Slot) startLogVerifier() {
	s.work.Go(func() {
		due := time.NewTimer(logVerifyFirst)
		defer due.Stop()
		for {
			select {
			case <-s.ctx.Done():
				return
			case <-due.C:
			case <-s.keeper.log:
			}
			if _, err := s.VerifyLog(s.ctx, logVerifyRate); err != nil && s.ctx.Err() == nil {
				s.log.Warn("verify log", keyErr, err)
			}
			due.Reset(logVerifyEvery)
		}
	})
}

// LogDamaged makes the slot look after its log soon: somebody could not read an
// entry.
func (s *Slot) LogDamaged() {
	select {
	case s.keeper.log <- struct{}{}:
	default: // it is about to
	}
}

// VerifyLog reads the whole log from the disk, rate bytes a second (0: as fast as
// possible), and mends what it can. It returns what it found.
func (s *Slot) VerifyLog(ctx context.Context, rate int64) (found []LogDamage, err error) {
	s.keeper.verifying.Lock()
	defer s.keeper.verifying.Unlock()
	if s.Resyncing() {
		return nil, nil // the log is about to begin anew
	}
	damage, err := s.Log.Verify(ctx, func(n int) error {
		if rate <= 0 {
			return nil
		}
		return sleep(ctx, time.Duration(int64(n)*int64(time.Second)/rate))
	})
	return s.mendAll(ctx, damage), err
}

// mendAll mends what can be mended of what verifying the whole log has found;
// keeper.verifying is held.
func (s *Slot) mendAll(ctx context.Context, damage []*oplog.DamageError) (found []LogDamage) {
	s.keeper.keepKnown(damage)
	for _, d := range damage {
		e := s.mendLog(ctx, d)
		if e != nil {
			s.logUnmended(d, e)
		} else if s.opt.OnMended != nil {
			s.opt.OnMended()
		}
		found = append(found, LogDamage{d, e})
	}
	return found
}

// LogDamage is one place of the log that could not be read.
type LogDamage struct {
	*oplog.DamageError
	Unmended error // why it is as it was; nil: it was mended
}

// Finding is how a check reports it.
func (d LogDamage) Finding() Finding {
	text := d.Error() + "; mended"
	if d.Unmended != nil {
		text = fmt.Sprintf("%v; not mended: %v", d.DamageError, d.Unmended)
	}
	return Finding{Invariant: InvLog, Text: text}
}

// mendLog makes one damaged place whole.
func (s *Slot) mendLog(ctx context.Context, d *oplog.DamageError) error {
	ctx, cancel := context.WithTimeout(ctx, mendPatience)
	defer cancel()
	if d.Next > d.From {
		if err := s.Log.Applied.Wait(ctx, d.Next-1); err != nil {
			return err
		}
		if err := s.checkpointPast(d.Next - 1); err != nil {
			return err
		}
	}
	entries, source, err := s.lostEntries(ctx, d)
	if err != nil {
		return err
	}
	if err := s.Log.Mend(d.Path, entries); err != nil {
		return err
	}
	s.keeper.forget(d)
	s.finding(Event{Kind: EventRepaired, Path: s.inData(d.Path), Text: fmt.Sprintf("%v: mended with entries from %s", d, source)},
		ledger.Entry{Kind: ledger.Log, Outcome: ledger.Repaired, Source: source})
	return nil
}

// checkpointPast makes recovery need no entry up to seq.
func (s *Slot) checkpointPast(seq uint64) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.Resyncing() || s.ix.checkpointed().Pos.Seq >= seq {
		return nil
	}
	if err := errors.Join(s.Faulted(), s.ctx.Err()); err != nil {
		return err
	}
	start := s.pauseApplier()
	defer start()
	return s.checkpoint()
}

// lostEntries finds what d has lost: in memory, or at another slot.
func (s *Slot) lostEntries(ctx context.Context, d *oplog.DamageError) (entries []*op.Entry, source string, err error) {
	next := d.From
	for next < d.Next {
		list, err := s.Log.Read(next, readAhead)
		if err != nil || len(list) == 0 {
			break // not in memory, as expected
		}
		entries, next = append(entries, list...), list[len(list)-1].Seq+1
	}
	if next >= d.Next {
		return entries, "memory", nil
	}
	if s.opt.FetchLog == nil {
		return nil, "", errNobody
	}
	for next < d.Next {
		list, from, err := s.opt.FetchLog(ctx, next, d.Next-1)
		if err != nil {
			return nil, "", fmt.Errorf("fetch entries %d to %d: %w", next, d.Next-1, err)
		}
		if len(list) == 0 {
			return nil, "", fmt.Errorf("fetch entries %d to %d: nobody has them", next, d.Next-1)
		}
		entries, next, source = append(entries, list...), list[len(list)-1].Seq+1, from
	}
	return entries, source, nil
}

// logUnmended reports damage that stays, once.
func (s *Slot) logUnmended(d *oplog.DamageError, why error) {
	if !s.keeper.remember(d) {
		return
	}
	s.finding(Event{Kind: EventDamaged, Path: s.inData(d.Path), Text: fmt.Sprintf(
		"%v; not mended: %v. This slot does not need these entries any more; one that does is resynced", d, why)},
		ledger.Entry{Kind: ledger.Log, Outcome: ledger.Unrepaired})
}

// inData shows a path in the data directory as findings do.
func (s *Slot) inData(path string) string {
	rel, err := filepath.Rel(s.dir, path)
	if err != nil {
		return path
	}
	return "./" + rel
}

// place is where damage was seen.
type place struct {
	path string
	off  int64
}

// remember notes d; false if it is known.
func (k *keeper) remember(d *oplog.DamageError) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := place{d.Path, d.Offset}
	if _, known := k.known[p]; known {
		return false
	}
	k.known[p] = struct{}{}
	return true
}

// keepKnown forgets what is whole again: damaged once more, it is reported once
// more.
func (k *keeper) keepKnown(damage []*oplog.DamageError) {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.known, func(p place, _ struct{}) bool {
		return !slices.ContainsFunc(damage, func(d *oplog.DamageError) bool { return p == place{d.Path, d.Offset} })
	})
}

func (k *keeper) forget(d *oplog.DamageError) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.known, place{d.Path, d.Offset})
}
