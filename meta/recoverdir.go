package meta

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// RecoverOptions says what Recover does.
type RecoverOptions struct {
	Options
	// Unlock hands the tree over for use without slotfs. The slot cannot serve
	// again until it was resynced, or its tree adopted as a new store.
	Unlock bool
	// Content verifies all messages, too.
	Content bool
}

// Recover makes the tree of a slot whole after a crash. It needs the data
// directory alone: no configuration, peer or register. Everything in the log is
// applied, known to be committed or not: what was acknowledged just before the
// crash is among it, and the log alone can't tell which part. Should a peer
// have gone on without the rest of it, the slot is resynced when it serves
// again. An interrupted resync is given up: the tree then is what it was
// before, from tree and log.
func Recover(ctx context.Context, dir string, o RecoverOptions) (*Report, error) {
	opt := o.Options
	opt.alone = true
	if opt.Reserve == 0 {
		opt.Reserve = -1 // as much as possible has to work on a full disk
	}
	s, err := Open(dir, opt)
	if err != nil {
		return nil, err
	}
	r, err := s.Check(ctx, CheckOptions{Content: o.Content})
	if err == nil {
		r.Recovery = s.recovered
	}
	if err = errors.Join(err, s.Faulted()); err == nil && o.Unlock {
		err = s.unlock()
	}
	return r, errors.Join(err, s.Close())
}

// unlock writes down that log and index say nothing about the tree from now on.
func (s *Slot) unlock() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, now := s.identity, time.Now().UTC().Truncate(time.Second)
	next.Unlocked = &now
	if err := writeRecord(filepath.Join(s.dir, fileIdentity), next); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	s.identity = next
	if err := os.RemoveAll(filepath.Join(s.dir, dirVolatile)); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// committed is the last entry that recovery makes the slot's state.
func (s *Slot) committed() uint64 {
	if s.opt.alone {
		return math.MaxUint64
	}
	return s.Log.RecoveredCommitted()
}

// giveUpResync goes back to the state before a resync, whose index is worth
// nothing, while the tree is as it was.
func (s *Slot) giveUpResync(r *resyncing) error {
	if err := s.rebuild(errors.New("a resync was given up")); err != nil {
		return err
	}
	names, err := readNames(s.dir, dirStage)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, ok := syncID(name); ok {
			if err := os.Remove(filepath.Join(s.dir, dirStage, name)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(os.Remove(r.file), syncDir(s.dir)); err != nil {
		return err
	}
	s.setResync(nil)
	return nil
}
