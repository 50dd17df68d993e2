package meta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// Kinds of what scrub finds.
const (
	FoundContent    = "content"    // bytes differ from their checksum, or cannot be read
	FoundMissing    = "missing"    // the tree lacks it
	FoundMisplaced  = "misplaced"  // another object has its name
	FoundStray      = "stray"      // no entry of the log explains it
	FoundAttributes = "attributes" // mode, owner, time, size or xattrs differ
	FoundMark       = "mark"       // the attribute with id and checksum is gone or wrong
	FoundIndex      = "index"      // the index cannot be read
	FoundLog        = "log"        // a part of the log cannot be read
)

// ScrubFinding is one thing that scrub found wrong.
type ScrubFinding struct {
	Kind    string `json:"kind"`
	ID      op.ID  `json:"id,omitempty"`
	Path    string `json:"path"`
	Text    string `json:"text"`
	Outcome string `json:"outcome"` // as in the ledger
}

// flaws is what is wrong with one object, as the tree has it.
type flaws struct {
	missing    string // "": it is there
	misplaced  op.ID  // id of what has its name
	wrongType  bool
	mark       string // what is wrong with its mark
	attributes []string
	bad        error // its content
}

func (f *flaws) none() bool {
	return f.missing == "" && f.misplaced == 0 && !f.wrongType && f.mark == "" && len(f.attributes) == 0 && f.bad == nil
}

// kind is the gravest of f.
func (f *flaws) kind() string {
	switch {
	case f.missing != "":
		return FoundMissing
	case f.misplaced != 0 || f.wrongType:
		return FoundMisplaced
	case f.bad != nil:
		return FoundContent
	case f.mark != "":
		return FoundMark
	}
	return FoundAttributes
}

func (f *flaws) String() string {
	var t []string
	if f.missing != "" {
		t = append(t, f.missing)
	}
	if f.misplaced != 0 {
		t = append(t, fmt.Sprintf("what is there carries id %d", f.misplaced))
	}
	if f.wrongType {
		t = append(t, "what is there is of another type")
	}
	if f.bad != nil {
		t = append(t, f.bad.Error())
	}
	if f.mark != "" {
		t = append(t, f.mark)
	}
	return strings.Join(append(t, f.attributes...), "; ")
}

// examined is what examining one object came to.
type examined struct {
	n      *Inode // nil: gone
	flaws  flaws
	medium string // how its bytes were read; "" if there were none to read
	bytes  int64
}

// examine compares an object of the tree with the index, and reads its content
// from the medium.
func (s *Slot) examine(id op.ID, m *mediumReader) (e examined, err error) {
	for range 10 {
		e = examined{}
		if e.n, err = s.ix.inode(id); errors.Is(err, ErrNotExist) {
			return examined{}, nil
		} else if err != nil {
			return e, err
		}
		s.warm(e.n)
		fd, err := s.look(&e)
		if errors.Is(err, errChanged) {
			continue
		}
		if err != nil || fd < 0 {
			return e, err
		}
		e.medium, e.flaws.bad, err = m.verify(fd, e.n.Sum)
		unix.Close(fd)
		if err != nil {
			return e, err
		}
		e.bytes = e.n.Size
		if e.flaws.bad == nil || e.n.Sealed {
			return e, nil
		}
		if now, err := s.ix.inode(id); err != nil || now.Changed != e.n.Changed || now.Sum == nil {
			continue // an entry changed it meanwhile
		}
		return e, nil
	}
	return examined{}, nil // it changes faster than we look; another time
}

// warm makes the kernel read what look needs from the disk, attributes included,
// so that look does not wait for that with the tree locked.
func (s *Slot) warm(n *Inode) {
	if len(n.Names) == 0 {
		return
	}
	at := n.Names[0]
	d := s.tree.root
	if at.Dir != op.Root {
		if d = s.tree.dirs.get(at.Dir); d == nil {
			return
		}
		defer d.release()
	}
	var st unix.Stat_t
	_ = unix.Fstatat(d.fd, at.Name, &st, unix.AT_SYMLINK_NOFOLLOW)
}

// look compares names, type, attributes and mark of e.n, and opens it if it has
// content with a checksum; the descriptor is the caller's, -1 for none.
func (s *Slot) look(e *examined) (int, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	n, err := s.ix.inode(e.n.ID)
	if err != nil {
		return -1, errChanged
	}
	e.n = n
	f := &e.flaws
	fd, ino := -1, uint64(0)
	for i := range max(1, len(n.Names)) {
		at, release, err := s.tree.nameOf(n, i)
		if gone(err) {
			f.missing = noDirectory
			continue
		}
		if err != nil {
			return fd, err
		}
		var st unix.Stat_t
		path := procPath(at.d.fd, at.name)
		switch err := unix.Fstatat(at.d.fd, at.name, &st, unix.AT_SYMLINK_NOFOLLOW); {
		case gone(err):
			f.missing = fmt.Sprintf("%q is not in the tree", at.name)
			if unix.Fstat(at.d.fd, &st) == nil && st.Nlink == 0 {
				f.missing = noDirectory // removed, and still open here
			}
		case err != nil:
			f.bad = fmt.Errorf("stat: %w", err)
		case i == 0 || ino == 0:
			ino = st.Ino
			if err = s.lookAt(n, path, f); err == nil && fd < 0 && s.hasContent(n) && f.kindOfFile() {
				if fd, err = openat(at.d.fd, at.name, openRead, 0); err != nil {
					fd, f.bad, err = -1, fmt.Errorf("open: %w", err), nil
				}
			}
			if err != nil {
				release()
				return fd, err
			}
		case st.Ino != ino:
			f.missing = fmt.Sprintf("%q is not the file that its other names are", at.name)
		}
		release()
	}
	return fd, nil
}

// noDirectory is how flaws say that it is not the object alone that is missing.
const noDirectory = "its directory is not in the tree"

// kindOfFile reports whether what was found can be read as the file.
func (f *flaws) kindOfFile() bool { return f.missing == "" && !f.wrongType }

// hasContent reports whether n's bytes can be held against a checksum.
func (s *Slot) hasContent(n *Inode) bool {
	return n.IsRegular() && n.Sum != nil && (n.Sealed || !s.ahead())
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// nameOf is the i-th name of n. The caller holds mu.
func (t *tree) nameOf(n *Inode, i int) (physical, func(), error) {
	if i == 0 {
		return t.firstName(n)
	}
	d, err := t.dir(n.Names[i].Dir, false)
	if err != nil {
		return physical{}, nil, err
	}
	return physical{d, n.Names[i].Name}, d.release, nil
}

// lookAt compares what is at path with n. The caller holds tree.mu.
func (s *Slot) lookAt(n *Inode, path string, f *flaws) error {
	m, err := readMark(path)
	switch {
	case errors.Is(err, errNoMark):
		f.mark = "it does not carry its id"
	case err != nil:
		f.mark = err.Error()
	case m.ID != n.ID:
		f.misplaced = m.ID
	default:
		f.mark = compareMark(m, n)
	}
	diffs, err := attributeDiffs(path, n)
	if err != nil {
		if gone(err) {
			f.missing = "it is not in the tree"
			return nil
		}
		f.bad = err
		return nil
	}
	_, late := s.tree.late[n.ID]
	for _, d := range diffs {
		switch {
		case d.wrong:
			f.wrongType = true
		case late && strings.HasPrefix(d.text, "mtime "):
		default:
			f.attributes = append(f.attributes, d.text)
		}
	}
	return nil
}

// strays lists the names in a directory that the index does not have.
func (s *Slot) strays(dir op.ID) ([]string, error) {
	list := func() ([]string, error) {
		n, err := s.ix.inode(dir)
		if err != nil {
			return nil, nil // gone
		}
		at, release, err := s.tree.firstName(n)
		if err != nil {
			return nil, nil // reported as missing
		}
		defer release()
		names, err := readNames(procPath(at.d.fd, at.name), "")
		if err != nil {
			return nil, nil // the same
		}
		children, err := s.ix.children(dir)
		if err != nil {
			return nil, err
		}
		known := make(map[string]struct{}, len(children))
		for _, c := range children {
			known[c.Name] = struct{}{}
		}
		return slices.DeleteFunc(names, func(name string) bool { _, ok := known[name]; return ok }), nil
	}
	// First without keeping the applier waiting: a directory may be large.
	found, err := list()
	if err != nil || len(found) == 0 {
		return nil, err
	}
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	return list()
}

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

// shown is the path of a name in a directory.
func (s *Slot) shown(dir op.ID, name string) string {
	path, _ := s.ix.path(dir)
	return filepath.Join(path, name)
}
