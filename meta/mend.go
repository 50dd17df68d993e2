package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/meta/vote"
)

// ownName is how this slot calls itself in votes and in the ledger.
const ownName = ""

// ask collects what this slot and all others that can be reached say of id.
func (s *Slot) ask(ctx context.Context, id op.ID) ([]*Testimony, error) {
	own, err := s.Testify(ctx, id)
	if err != nil {
		return nil, err
	}
	own.Node = ownName
	all := []*Testimony{own}
	if s.opt.Ask != nil {
		all = append(all, s.opt.Ask(ctx, id)...)
	}
	return all, nil
}

// judged is what was found out about damage to an object.
type judged struct {
	n        *Inode
	path     string
	cause    error
	all      []*Testimony // this slot's first
	verdict  vote.Verdict
	expected map[string]string // for the ledger
	found    map[string]string
}

// judge finds out who is right about n's content.
func (s *Slot) judge(ctx context.Context, n *Inode, path string, cause error) (*judged, error) {
	all, err := s.ask(ctx, n.ID)
	if err != nil {
		return nil, err
	}
	if own := all[0].Index; own == nil || own.Changed != n.Changed || own.Sum == nil {
		return nil, errChanged
	}
	j := &judged{n: n, path: path, cause: cause, all: all, expected: map[string]string{}, found: map[string]string{}}
	var votes []vote.Vote
	for _, t := range all {
		if t.Index != nil && t.Index.Changed != n.Changed {
			continue // it has another change of it
		}
		votes = append(votes, t.contentVotes()...)
		t.sums(j.expected, j.found)
	}
	j.verdict = vote.Content(votes)
	return j, nil
}

// entry is j for the ledger.
func (j *judged) entry(outcome, source, text string, content []byte) ledger.Entry {
	return ledger.Entry{Kind: ledger.Damaged, Path: j.path, ID: uint64(j.n.ID), MessageID: messageIDOf(j.n, content),
		Expected: j.expected, Found: j.found, Source: source, Outcome: outcome, Text: text}
}

// record is the index record of a slot whose record says what is right; nil if
// there is none. Where only the log or the file's own attribute have it, this
// slot's own record is completed by what is on disk.
func (j *judged) record() *Inode {
	for _, t := range j.all {
		if t.Index != nil && said(t.Index.Sum) == j.verdict.Right {
			return t.Index
		}
	}
	for _, t := range j.all {
		if said(t.Disk) == j.verdict.Right {
			n := j.n.Clone()
			n.Sum, n.Size = t.Disk, t.Disk.Size
			return n
		}
	}
	return nil
}

// correctIndex puts a record of the index right that was outvoted.
func (s *Slot) correctIndex(j *judged) error {
	right := j.record()
	if right == nil {
		return fmt.Errorf("the index record of %s is wrong, and no slot has the right one", j.path)
	}
	fixed := j.n.Clone()
	fixed.Sum, fixed.Size = right.Sum, right.Size
	if err := s.correct(j.n, fixed); err != nil {
		return err
	}
	text := fmt.Sprintf("the index record said %s and was outvoted: corrected to %s", said(j.n.Sum), j.verdict.Right)
	s.Events.Add(Event{Kind: EventRepaired, ID: j.n.ID, Path: j.path, Text: text})
	e := j.entry(ledger.Repaired, "votes", text, nil)
	e.Kind = ledger.Index
	s.Record(e)
	return nil
}

// correct replaces the index record old by n, and puts the sums of the
// directories that it is in right, if they were made with the wrong one.
func (s *Slot) correct(old, n *Inode) error {
	s.tree.mu.Lock() // the applier, too, changes the index only with it
	defer s.tree.mu.Unlock()
	now, err := s.ix.inode(old.ID)
	if err != nil {
		return err
	}
	if now != old && (saidAttributes(now) != saidAttributes(old) || said(now.Sum) != said(old.Sum) || now.Changed != old.Changed) {
		return errChanged
	}
	fixed := now.Clone()
	fixed.Mode, fixed.UID, fixed.GID, fixed.Mtime, fixed.Target, fixed.Xattr = n.Mode, n.UID, n.GID, n.Mtime, n.Target, n.Xattr
	fixed.Sum, fixed.Size = n.Sum, n.Size
	s.ix.storeCorrected(fixed)
	seen := map[op.ID]bool{}
	for _, at := range fixed.Names {
		if seen[at.Dir] {
			continue
		}
		seen[at.Dir] = true
		if err := s.resum(at.Dir); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.sums = nil
	s.mu.Unlock()
	if s.opt.OnCorrected != nil {
		go s.opt.OnCorrected(old.ID)
	}
	return nil
}

// storeCorrected puts n into the index as it is.
func (x *index) storeCorrected(n *Inode) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.store(n.ID, n)
}

// resum makes the digest and the bytes of a directory what its entries come to,
// and the slot's totals with them. The caller holds tree.mu.
func (s *Slot) resum(dir op.ID) error {
	children, err := s.ix.children(dir)
	if err != nil {
		return err
	}
	var sum op.Digest
	var bytes uint64
	for _, c := range children {
		n, err := s.ix.inode(c.ID)
		if err != nil {
			return fmt.Errorf("entry %q of directory %d: %w", c.Name, dir, err)
		}
		sum.Add(element(Name{Dir: dir, Name: c.Name}, n))
		if n.IsRegular() {
			bytes += uint64(n.Size)
		}
	}
	x := s.ix
	x.mu.Lock()
	defer x.mu.Unlock()
	d, err := x.inodeLocked(dir)
	if err != nil || d.Entries == sum && d.Bytes == bytes {
		return err
	}
	fixed := *d
	fixed.Entries, fixed.Bytes = sum, bytes
	x.state.Digest.Sub(d.Entries)
	x.state.Digest.Add(sum)
	x.state.Bytes += bytes - d.Bytes
	x.store(dir, &fixed)
	return nil
}

// mendAttributes makes attributes of n that differ between index and tree what
// most say they are. text is what was found.
func (s *Slot) mendAttributes(ctx context.Context, n *Inode, path, text string) (outcome string, err error) {
	unlock, err := s.repairs.lock(ctx, n.ID)
	if err != nil {
		return "", err
	}
	defer unlock()
	all, err := s.ask(ctx, n.ID)
	if err != nil {
		return "", err
	}
	own := all[0]
	if own.Index == nil || own.Tree == nil {
		return "", errChanged
	}
	e := ledger.Entry{Kind: ledger.Damaged, Path: path, ID: uint64(n.ID), Text: text,
		Expected: map[string]string{}, Found: map[string]string{}}
	var votes []vote.Vote
	for _, t := range all {
		if t.Index == nil || t.Index.Changed != own.Index.Changed {
			continue
		}
		for _, v := range t.attributeVotes() {
			if v.Says == "" {
				continue
			}
			votes = append(votes, v)
			m := e.Expected
			if v.Witness == vote.Tree {
				m = e.Found
			}
			m[v.Name()] = v.Says
		}
	}
	v := vote.Attributes(votes)
	switch i := slices.IndexFunc(all, func(t *Testimony) bool { return saidAttributes(t.Index) == v.Right }); {
	case !v.Decided() || i < 0:
		e.Outcome = ledger.Unrepaired
		e.Text += "; the votes do not decide who is right: nothing was changed"
	case i > 0:
		if err := s.correct(own.Index, all[i].Index); err != nil {
			return "", err
		}
		e.Kind, e.Outcome, e.Source = ledger.Index, ledger.Repaired, all[i].Node
		e.Text += "; the index record was outvoted and corrected"
		fallthrough // the tree may be wrong, too
	default:
		if err := s.redress(own.Index.ID); err != nil {
			return "", err
		}
		e.Outcome = ledger.Repaired
		if e.Source == "" {
			e.Source = "index"
		}
	}
	kind := EventRepaired
	if e.Outcome != ledger.Repaired {
		kind = EventDamaged
	}
	s.Events.Add(Event{Kind: kind, ID: n.ID, Path: path, Text: e.Text})
	s.Record(e)
	return e.Outcome, nil
}

// redress gives an object of the tree the attributes and the mark that the
// index has.
func (s *Slot) redress(id op.ID) error {
	t := s.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := s.ix.inode(id)
	if err != nil {
		return err
	}
	at, release, err := t.firstName(n)
	if err != nil {
		return err
	}
	defer release()
	path := procPath(at.d.fd, at.name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %q: %w", at.name, err)
	}
	if st.Mode&typeMask != n.Type() {
		return fmt.Errorf("%q is of another type", at.name)
	}
	lost := false
	if m, err := readMark(path); err == nil && m.ID == n.ID {
		lost = m.Lost
	}
	if err := applyAttributes(path, n); err != nil {
		return err
	}
	m := markOf(n)
	m.Lost = lost
	if err := writeMark(path, m); err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	if _, late := t.late[id]; late {
		return nil // its time is set with the rest of the batch
	}
	return errors.Join(setMtime(path, n.Mtime), t.setTimes())
}
