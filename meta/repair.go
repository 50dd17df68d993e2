package meta

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// errNobody: there is no other slot to fetch from.
var errNobody = errors.New("no other copy is known")

// repair replaces the damaged content of id, as of its change changed, by the
// copy of another slot. cause is what was wrong with it.
//
// The log is not asked, although it may still have the bytes: it is on the same
// disk, and whether it has them is a matter of age.
func (s *Slot) repair(ctx context.Context, id op.ID, changed uint64, cause error) error {
	unlock, err := s.repairs.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	n, err := s.Find(id)
	if err != nil {
		return err
	}
	if n.Changed != changed || n.Sum == nil {
		return errChanged
	}
	if s.intactOnDisk(n) {
		return nil // somebody else has repaired it
	}
	// The index changes before the content does: if it has not, what was read
	// just now was whole.
	if now, err := s.Find(id); err != nil || now.Changed != changed || now.Sum == nil {
		return errors.Join(errChanged, err)
	}
	if s.putInPlace(n) {
		return nil
	}
	path := s.pathOf(n)
	own, err := s.Testify(ctx, id)
	if err != nil {
		return err
	}
	var good Copy
	fetchErr := errors.New("what this slot noted at delivery differs")
	if own.agrees() {
		good, fetchErr = s.fetch(ctx, n)
	}
	j := &judged{n: n, path: path, cause: cause, expected: map[string]string{}, found: map[string]string{}}
	if fetchErr == nil {
		own.sums(j.expected, j.found)
		j.expected[good.From] = checksum(n.Sum)
		return s.putBack(j, good)
	}
	if j, err = s.judge(ctx, n, path, cause); err != nil {
		return err
	}
	switch {
	case !j.verdict.Decided():
		fetchErr = fmt.Errorf("%w; the votes do not decide who is right", fetchErr)
	case j.verdict.Right != said(n.Sum):
		if err := s.correctIndex(j); err != nil {
			fetchErr = errors.Join(fetchErr, err)
			break
		}
		return errChanged // look again
	case !own.agrees():
		if good, fetchErr = s.fetch(ctx, n); fetchErr == nil {
			return s.putBack(j, good)
		}
	}
	bad := &DamagedError{ID: id, Path: path, Err: fmt.Errorf("%w; no good copy: %w", cause, fetchErr)}
	s.suspect(j, bad.Err)
	return bad
}

// putBack replaces damaged content by a good copy.
func (s *Slot) putBack(j *judged, good Copy) error {
	kept, err := s.replace(j.n, good.Data, j.cause)
	if err != nil {
		return fmt.Errorf("replace damaged %s: %w", j.path, err)
	}
	s.mu.Lock()
	delete(s.suspects, j.n.ID)
	s.mu.Unlock()
	text := fmt.Sprintf("damaged content (%v) replaced by the copy of %s; the bad one is %s", j.cause, good.From, kept)
	s.Events.Add(Event{Kind: EventRepaired, ID: j.n.ID, Path: j.path, Text: text})
	s.Record(j.entry(ledger.Repaired, good.From, text, good.Data))
	return nil
}

// suspect reports damage that could not be repaired, once until it is.
func (s *Slot) suspect(j *judged, err error) {
	s.mu.Lock()
	_, again := s.suspects[j.n.ID]
	s.suspects[j.n.ID] = struct{}{}
	s.mu.Unlock()
	if again {
		return
	}
	s.Events.Add(Event{Kind: EventDamaged, ID: j.n.ID, Path: j.path, Text: err.Error()})
	s.recordSoon(j.entry(ledger.Unrepaired, "", err.Error(), nil))
}

// messageIDOf is the Message-ID of a message; of other files none.
func messageIDOf(n *Inode, content []byte) string {
	if !n.Sealed {
		return ""
	}
	return MessageID(content)
}

// pathOf is a path for people: n may be in trash.
func (s *Slot) pathOf(n *Inode) string {
	if path, err := s.ix.path(n.ID); err == nil {
		return path
	}
	if len(n.Names) > 0 {
		dir, _ := s.ix.path(n.Names[0].Dir)
		return dir + "/" + n.Names[0].Name + " (unlinked)"
	}
	return fmt.Sprintf("id %d", n.ID)
}

// intact verifies all of n's content.
func (s *Slot) intact(n *Inode) bool {
	fd, err := s.openSame(n)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	sum, err := op.BlockSumReader(&fdReader{fd: fd})
	return err == nil && n.Sum.Equal(sum)
}

// intactOnDisk verifies all of n's content as the medium has it, and makes the
// kernel forget what it may have of it: what was read may have been its memory,
// and what is good in memory may be damaged on the disk.
func (s *Slot) intactOnDisk(n *Inode) bool {
	fd, err := s.openSame(n)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, bad, err := newMediumReader().verify(fd, n.Sum)
	if bad != nil || err != nil {
		return false
	}
	m, err := dropPages(fd)
	return err == nil && m != ""
}

// fetch gets n's content from another slot and verifies it.
func (s *Slot) fetch(ctx context.Context, n *Inode) (Copy, error) {
	if s.opt.Fetch == nil {
		return Copy{}, errNobody
	}
	good, err := s.opt.Fetch(ctx, n.ID, *n.Sum)
	if err != nil {
		return Copy{}, fmt.Errorf("fetch: %w", err)
	}
	have := op.BlockSumOf(good.Data)
	if n.Sum.SHA256 != [32]byte{} {
		have = op.SumOf(good.Data)
	}
	if !n.Sum.Equal(have) {
		return Copy{}, errors.New("the fetched copy is damaged, too")
	}
	return good, nil
}

// replace puts data in the place of n's content, under all of its names, with
// n's attributes, and keeps the bad copy in quarantine; it returns where.
func (s *Slot) replace(n *Inode, data []byte, cause error) (kept string, err error) {
	t := s.tree
	fresh := fmt.Sprintf("repair-%d", n.ID)
	fd, err := openat(t.stage.fd, fresh, openFile|unix.O_CREAT|unix.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("stage: %w", err)
	}
	defer unix.Close(fd)
	defer unix.Unlinkat(t.stage.fd, fresh, 0) // gone if all went well
	if err := writeFirst(fd, data); err != nil {
		return "", fmt.Errorf("stage: %w", err)
	}

	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := s.find2(n.ID)
	if err != nil {
		return "", err
	}
	if now.Changed != n.Changed || now.Sum == nil {
		return "", errChanged
	}
	if err := t.dress(fd, now, true); err != nil {
		return "", err
	}
	if err := errors.Join(futimens(fd, now.Mtime), unix.Fsync(fd)); err != nil {
		return "", fmt.Errorf("stage: %w", err)
	}
	names, release, err := t.everyName(now)
	if err != nil {
		return "", err
	}
	defer release()
	if kept, err = s.keepBad(names[0], now, cause); err != nil {
		return "", err
	}
	link := fresh + "-link"
	for i, at := range names {
		from := fresh
		if i < len(names)-1 {
			from = link
			if err := unix.Linkat(t.stage.fd, fresh, t.stage.fd, link, 0); err != nil {
				return "", fmt.Errorf("link: %w", err)
			}
		}
		if err := unix.Renameat(t.stage.fd, from, at.d.fd, at.name); err != nil {
			return "", fmt.Errorf("replace %q: %w", at.name, err)
		}
		if at.d.id != 0 {
			t.late[at.d.id] = struct{}{}
		}
	}
	t.files.forget(n.ID)
	return kept, t.setTimes()
}

// find2 is find for who holds tree.mu.
func (s *Slot) find2(id op.ID) (*Inode, error) {
	n, err := s.ix.inode(id)
	if errors.Is(err, ErrNotExist) {
		return s.trash.inode(id)
	}
	return n, err
}

// physical is one name in the tree or in trash.
type physical struct {
	d    *handle
	name string
}

// everyName finds where n is. The caller holds mu.
func (t *tree) everyName(n *Inode) (names []physical, release func(), err error) {
	release = func() {
		for _, at := range names {
			at.d.release()
		}
	}
	if _, err := t.x.inode(n.ID); errors.Is(err, ErrNotExist) {
		return []physical{{t.trash, trashName(n.ID)}}, release, nil
	}
	for _, at := range n.Names {
		d, err := t.dir(at.Dir, true)
		if err != nil {
			release()
			return nil, nil, err
		}
		names = append(names, physical{d, at.Name})
	}
	return names, release, nil
}

// keepBad puts a second name of the damaged file into quarantine, so that its
// own is never missing.
func (s *Slot) keepBad(at physical, n *Inode, cause error) (string, error) {
	bad := fmt.Sprintf("bad-%d", n.ID)
	err := unix.Unlinkat(s.tree.stage.fd, bad, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		err = unix.Linkat(at.d.fd, at.name, s.tree.stage.fd, bad, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		return "nowhere: the file was missing", nil
	}
	if err != nil {
		return "", fmt.Errorf("keep the bad copy: %w", err)
	}
	kept, err := setAside(s.dir, dirStage+"/"+bad, QuarantineRecord{ID: n.ID, Reason: cause.Error(), Want: n.Sum})
	if err != nil {
		return "", fmt.Errorf("keep the bad copy: %w", err)
	}
	return kept, nil
}

// verifySeal compares what a Seal says with this slot's own copy: the one
// moment at which the control files, and the adopted messages, of all slots are
// compared byte by byte.
//
// It goes on beside the applier, one after the other. If that changes the file
// meanwhile, there is nothing to compare any more: repair looks before it acts.
func (s *Slot) verifySeal(n *Inode) {
	if n.Sealed && s.Log.Leading() || !n.Sealed && s.ahead() {
		return // the primary has just read the message
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealed = append(s.sealed, n.ID); len(s.sealed) == 1 {
		s.work.Go(s.verifySealed)
	}
}

// verifySealed does so until nothing waits for it.
func (s *Slot) verifySealed() {
	for more := true; more && s.ctx.Err() == nil; {
		s.mu.Lock()
		id := s.sealed[0]
		s.mu.Unlock()
		n, err := s.ix.inode(id)
		if err == nil && n.Sum != nil && !s.intact(n) && !s.lost(n) && s.ctx.Err() == nil {
			err = s.repair(s.ctx, n.ID, n.Changed, errors.New("content differs from the primary's seal"))
		}
		if err != nil && !errors.Is(err, errChanged) && !errors.Is(err, ErrNotExist) && s.ctx.Err() == nil {
			s.log.Error("verification of a seal", keyID, uint64(id), keyErr, err)
		}
		s.mu.Lock()
		s.sealed = s.sealed[1:]
		more = len(s.sealed) > 0
		s.mu.Unlock()
	}
}

// lost reports whether n is known to be without its content on this slot.
func (s *Slot) lost(n *Inode) bool {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	now, err := s.ix.inode(n.ID)
	if err != nil {
		return false
	}
	h, err := s.tree.file(now)
	if err != nil {
		return false
	}
	defer h.release()
	m, err := readMarkFd(h.fd)
	return err == nil && m.Lost
}

// clearRepairs removes what a stop in the middle of a repair left.
func (t *tree) clearRepairs() error {
	entries, err := os.ReadDir(t.path(dirStage))
	if err != nil {
		return err
	}
	for _, e := range entries {
		var id uint64
		if n, _ := fmt.Sscanf(e.Name(), "repair-%d", &id); n != 1 {
			continue
		}
		if err := unix.Unlinkat(t.stage.fd, e.Name(), 0); err != nil {
			return fmt.Errorf("remove stage/%s: %w", e.Name(), err)
		}
	}
	return nil
}
