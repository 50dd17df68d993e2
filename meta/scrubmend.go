package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// mend repairs what examine found, and says what came of it.
func (s *Slot) mend(ctx context.Context, e *examined, m *mediumReader) (outcome string, err error) {
	n, f := e.n, &e.flaws
	path := s.pathOf(n)
	if f.misplaced != 0 && f.bad != nil || f.wrongType || f.missing != "" && (!s.hasContent(n) || len(n.Names) > 1 || f.missing == noDirectory) {
		// Told by the id: the object that belongs here is elsewhere, or has to be
		// made.
		if err := s.restore(n, f, true); err != nil {
			return "", err
		}
		if *e, err = s.examine(n.ID, m); err != nil || e.n == nil || e.flaws.none() {
			return ledger.Repaired, err
		}
	}
	if (f.bad != nil || f.missing != "") && s.hasContent(n) {
		cause := f.bad
		if cause == nil {
			cause = errors.New(f.missing)
		}
		switch err := s.repairNow(ctx, n, cause); {
		case errors.As(err, new(*DamagedError)):
			return ledger.Unrepaired, nil
		case err != nil:
			return "", err
		}
		return ledger.Repaired, nil
	}
	if f.missing != "" || f.wrongType {
		return ledger.Unrepaired, nil
	}
	return s.mendAttributes(ctx, n, path, f.String())
}

// repairNow is repair from the scrub's side: it looks again where the content
// changed meanwhile.
func (s *Slot) repairNow(ctx context.Context, n *Inode, cause error) error {
	for range 10 {
		err := s.repair(ctx, n.ID, n.Changed, cause)
		if !errors.Is(err, errChanged) {
			return err
		}
		now, err := s.ix.inode(n.ID)
		if errors.Is(err, ErrNotExist) || err == nil && now.Sum == nil {
			return nil
		}
		if err != nil {
			return err
		}
		n = now
	}
	return nil
}

// restore puts n, and what has its place, where the index wants them. more are
// directories in which they may be.
func (s *Slot) restore(n *Inode, f *flaws, wait bool, more ...op.ID) error {
	dirs := map[op.ID]bool{}
	for _, dir := range more {
		dirs[dir] = true
	}
	for _, at := range n.Names {
		// With those above: the directory itself may be missing.
		for dir := at.Dir; !dirs[dir]; {
			dirs[dir] = true
			if d, err := s.ix.inode(dir); err == nil && len(d.Names) > 0 {
				dir = d.Names[0].Dir
			}
		}
	}
	text := fmt.Sprintf("%s: put where the index has it", f)
	if other, err := s.ix.inode(f.misplaced); err == nil && f.misplaced != 0 {
		for _, at := range other.Names {
			dirs[at.Dir] = true
		}
	}
	path := s.pathOf(n)
	if _, err := s.reconcileDirs(slices.Collect(maps.Keys(dirs)), wait); err != nil {
		return fmt.Errorf("put %s in its place: %w", path, err)
	}
	s.log.Info(text, keyID, uint64(n.ID), keyPath, path)
	return nil
}

// mendStray moves what no entry explains into quarantine. What carries the id
// of an object that the index has, and is not in its place, is put there.
func (s *Slot) mendStray(dir op.ID, name string) (outcome string, err error) {
	known, outcome, err := s.setStrayAside(dir, name)
	if err != nil || known == nil {
		return outcome, err
	}
	f := flaws{missing: fmt.Sprintf("it was found as %q", s.shown(dir, name))}
	if err := s.restore(known, &f, true, dir); err != nil {
		return "", err
	}
	return ledger.Repaired, nil
}

// setStrayAside moves a name that the index does not have into quarantine,
// unless it is that of a known object.
func (s *Slot) setStrayAside(dir op.ID, name string) (known *Inode, outcome string, err error) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	if _, err := s.ix.child(dir, name); !errors.Is(err, ErrNotExist) {
		return nil, ledger.Noted, err // it is explained by now
	}
	if err := s.ix.verify(); err != nil {
		return nil, "", err
	}
	d, err := s.tree.dir(dir, false)
	if err != nil {
		return nil, "", err
	}
	defer d.release()
	path := procPath(d.fd, name)
	m, err := readMark(path)
	if gone(err) {
		return nil, ledger.Noted, nil
	}
	if err == nil {
		if n, err := s.ix.inode(m.ID); err == nil {
			return n, "", nil
		}
	}
	shown := s.shown(dir, name)
	kept, err := setAsideAs(s.dir, path, dirTree+"/"+shown, QuarantineRecord{ID: m.ID, Reason: "no entry of the log explains it"})
	if err != nil {
		return nil, "", fmt.Errorf("set %s aside: %w", shown, err)
	}
	s.tree.late[dir] = struct{}{}
	s.finding(Event{Kind: EventUnexpected, ID: m.ID, Path: shown, Text: "no entry of the log explains it; kept as " + kept},
		ledger.Entry{Kind: ledger.Quarantined, Outcome: ledger.Kept})
	return nil, ledger.Kept, s.tree.setTimes()
}

// reconcileDirs gives the names of directories the objects that the index has
// for them, wherever those are now. Nothing may hold tree.mu.
//
// Without wait it does nothing while a check is under way, which may be what
// waits for us.
func (s *Slot) reconcileDirs(dirs []op.ID, wait bool) (*ReconcileReport, error) {
	if wait {
		s.admin.Lock()
	} else if !s.admin.TryLock() {
		return nil, errBusy
	}
	defer s.admin.Unlock()
	if s.Resyncing() {
		return nil, ErrResyncing
	}
	if err := s.ix.verify(); err != nil { // what it does not have is set aside below
		return nil, err
	}
	defer s.pauseApplier()()
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.forget()
	seq := s.ix.current().Pos.Seq
	r := newReconciler(s.dir, s.ix, s.Log, newTrail(seq, seq))
	for _, dir := range dirs {
		r.t.dirs[dir] = true
	}
	r.tell, r.hold = true, s.opt.hold
	r.note = func(kind string, id op.ID, path, text string) {
		s.noteEvent(kind, id, path, text)
		if kind == EventRepaired {
			s.scrub.alsoMended(ScrubFinding{Kind: FoundMisplaced, ID: id, Path: path, Text: text, Outcome: ledger.Repaired})
		}
	}
	report, err := r.run()
	s.tree.forget()
	if err != nil {
		return nil, err
	}
	return report, s.tree.sync()
}

// errBusy: the slot is being checked.
var errBusy = errors.New("the slot is being checked, or copied")

// putInPlace looks whether what has n's name carries the id of another object of
// the index, and if so, puts both where they belong; true if n's content is
// whole then.
func (s *Slot) putInPlace(n *Inode) bool {
	var f flaws
	s.tree.mu.RLock()
	at, release, err := s.tree.firstName(n)
	if err == nil {
		if m, err := readMark(procPath(at.d.fd, at.name)); err == nil && m.ID != n.ID {
			f.misplaced = m.ID
		}
		release()
	}
	s.tree.mu.RUnlock()
	if f.misplaced == 0 {
		return false
	}
	if _, err := s.ix.inode(f.misplaced); err != nil {
		return false
	}
	if err := s.restore(n, &f, false); err != nil {
		s.log.Warn("put an object in its place", keyID, uint64(n.ID), keyErr, err)
		return false
	}
	return s.intactOnDisk(n)
}
