package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/oplog"
)

// A slot that has lost what it cannot do without (its tree, or entries of its
// log that had been durable) is not given up if there are other slots of its
// store (Options.Refill): it serves nothing, is a member of nothing, and waits
// to be resynced. What it still has counts only when verified. Nothing of it is
// written down before the resync begins: if the right disk is mounted again, the
// next start finds all well.
//
// Unfit says why a slot waits for that.

// unfitness is why.
type unfitness struct{ cause error }

// Unfit says why the slot cannot be used before it was resynced; nil if it can.
func (s *Slot) Unfit() error {
	if u := s.unfit.Load(); u != nil {
		return u.cause
	}
	return nil
}

// needsRefill makes the slot wait for a resync.
func (s *Slot) needsRefill(cause error) {
	s.unfit.Store(&unfitness{cause})
	r := &resyncing{file: filepath.Join(s.dir, fileResync), unsaved: true, resyncMarker: resyncMarker{
		Phase: phaseCollect, Common: math.MaxUint64, Started: time.Now(), Distrust: true,
	}}
	if s.ix != nil {
		r.Local = s.ix.current().Messages
	}
	s.setResync(r)
	s.finding(Event{Kind: EventLost, Text: fmt.Sprintf("%v: the slot serves nothing until another one has refilled it", cause)}, ledger.Entry{Outcome: ledger.Noted})
}

// lose is what the keeper does when it has found that the tree is lost.
func (s *Slot) lose(cause error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.Faulted() != nil || s.Resyncing() || s.ctx.Err() != nil {
		return
	}
	if !errors.Is(cause, ErrTreeLost) || !s.opt.Refill {
		s.Fault(cause)
		return
	}
	s.unfit.Store(&unfitness{cause}) // at once: reads fail from here on
	s.stopApplier()
	s.needsRefill(cause)
	if s.opt.OnUnfit != nil {
		s.opt.OnUnfit(cause)
	}
}

// usable is asked before anything is served.
func (s *Slot) usable() error {
	if u := s.unfit.Load(); u != nil {
		return u.cause
	}
	return nil
}

// prepareRefill is the part of ResyncBegin that such a slot needs: what its log
// has that the source may lack is kept, and there is a tree to be filled.
func (s *Slot) prepareRefill(r *resyncing, t ResyncTarget) error {
	path := filepath.Join(s.dir, dirTree)
	err := os.Mkdir(path, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("resync: %w", err)
	}
	owner, err := getXattr(func(b []byte) (int, error) { return unix.Lgetxattr(path, ownerName, b) })
	if err == nil && len(owner) > 0 && string(owner) != string(s.ID[:]) {
		return &treeLost{fmt.Sprintf("%s belongs to slot %x: it is not overwritten; mount the right disk, or empty it", path, owner)}
	}
	if err := s.reopenTree(); err != nil {
		return err
	}
	if r.unsaved {
		if err := s.rescueBeyond(t); err != nil {
			return err
		}
		if err := os.Remove(filepath.Join(s.dir, fileRebuild)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	r.unsaved = false
	return claimTree(s.dir, s.ID)
}

// reopenTree makes the descriptors of the tree's directories those of the paths.
func (s *Slot) reopenTree() error {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.forget()
	clear(s.tree.late)
	for name, h := range s.tree.bases() {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		fd, err := unix.Open(path, openDir, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		// The number stays: others may be using it at this moment.
		err = unix.Dup3(fd, h.fd, unix.O_CLOEXEC)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("reopen %s: %w", path, err)
		}
	}
	return nil
}

// bases are the directories that the tree has open for good.
func (t *tree) bases() map[string]*handle {
	return map[string]*handle{dirTree: t.root, dirTrash: t.trash, dirStage: t.stage, dirQuarantine: t.quarantine}
}

// openLog opens the log. One that is damaged where recovery needs it is set
// aside if there are other slots: this one is then refilled.
func (s *Slot) openLog() error {
	lo := s.opt.Log
	lo.Logger, lo.Reserve = s.log, s.Space
	lo.OnFault = func(err error) { s.Fault(fmt.Errorf("log: %w", err)) }
	lo.PastDamage = s.pastDamage
	dir := filepath.Join(s.dir, dirLog)
	var err error
	if s.Log, err = oplog.Open(dir, lo); err == nil {
		return nil
	}
	var damage *oplog.DamageError
	if !errors.As(err, &damage) || !s.mayRefill() || s.opt.Alone {
		return fmt.Errorf("open log: %w", err)
	}
	cause := err
	if err := s.setLogAside(cause); err != nil {
		return errors.Join(cause, err)
	}
	if s.Log, err = oplog.Open(dir, lo); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	s.gone = cause
	return nil
}

// mayRefill is whether another slot may have what this one has lost.
func (s *Slot) mayRefill() bool { return s.opt.Refill && !s.opt.alone && !s.StoreID().IsZero() }

// setLogAside keeps a damaged log in quarantine/. What it had sealed stays sealed.
func (s *Slot) setLogAside(cause error) error {
	dir := filepath.Join(s.dir, dirLog)
	sealed, err := os.ReadFile(filepath.Join(dir, fileSealed))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	kept, err := setAside(s.dir, dirLog, QuarantineRecord{Reason: "log: " + cause.Error()})
	if err != nil {
		return fmt.Errorf("set the log aside: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if len(sealed) > 0 {
		if err := writeFileSync(filepath.Join(dir, fileSealed), sealed); err != nil {
			return err
		}
	}
	s.finding(Event{Kind: EventLost, Path: kept, Text: fmt.Sprintf("%v; the log is kept as %s", cause, kept)}, ledger.Entry{Kind: ledger.Log, Outcome: ledger.Kept})
	return errors.Join(syncDir(dir), syncDir(s.dir))
}

// fileSealed is a file of the log that outlives it.
const fileSealed = "sealed"

// writeFileSync writes a small file durably.
func writeFileSync(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// judgeTree says what is to be done about a tree that is not the slot's: nothing
// if the tree is no evidence anyway, refill it if there are others, else refuse
// to open: the operator may only have forgotten to mount something.
func (s *Slot) judgeTree(err error) (lost, failed error) {
	switch {
	case err == nil:
		return nil, nil
	case !errors.Is(err, ErrTreeLost):
		return nil, err
	case s.identity.Unlocked != nil && s.opt.Resync:
		return nil, nil
	case s.mayRefill():
		return err, nil
	}
	return nil, &DataError{File: filepath.Join(s.dir, dirTree), Reason: err,
		Remedy: "mount the right disk; if the tree is really gone, start with an empty data directory and let the other node fill it, or restore a backup"}
}

// judgeLoss is judgeTree for what recovery found, a log that is too short
// included.
func (s *Slot) judgeLoss(err error) (lost, failed error) {
	var gone *LogLostError
	if !errors.As(err, &gone) {
		return s.judgeTree(err)
	}
	if s.mayRefill() && !s.opt.Alone {
		return err, nil
	}
	return nil, err
}

// openIndexAnyway opens the index as far as it is of use for a resync, which
// makes it right.
func (s *Slot) openIndexAnyway() error {
	dir := filepath.Join(s.dir, dirIndex)
	if s.ix != nil { // a rebuild that failed
		s.ix.close()
		s.ix = nil
	}
	if err := s.settleIndex(); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(s.dir, fileRebuild))
	if err == nil {
		err = errors.New("an unfinished rebuild")
	} else if s.ix, err = openIndex(dir, s.log); err == nil {
		return nil
	}
	if !damage(err) {
		return err
	}
	if err := s.setIndexAside(err, false); err != nil {
		return fmt.Errorf("set index aside: %w", err)
	}
	s.ix, err = openIndex(dir, s.log)
	return err
}

// emptyRebuild reports whether nothing is left to rebuild an index from: neither
// names in the tree, nor a log from the beginning on.
func (s *Slot) emptyRebuild() error {
	names, err := readNames(s.dir, dirTree)
	if err != nil || len(names) > 0 || s.Log.First() == 1 {
		return err
	}
	return &treeLost{fmt.Sprintf("%s is empty, there is no index, and the log begins at entry %d", filepath.Join(s.dir, dirTree), s.Log.First())}
}
