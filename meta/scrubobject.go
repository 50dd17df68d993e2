package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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
	for range changesMost {
		e, fd, err := s.see(id)
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

// changesMost is how often an object is looked at again because it has changed.
const changesMost = 10

// examineAll is examine of several objects, whose content it reads at the same
// time. Those whose content is not as it should be it examines once more, one by
// one.
func (s *Slot) examineAll(ids []op.ID, m *mediumReader) (all []examined, err error) {
	all = make([]examined, len(ids))
	files := make([]mediumFile, 0, len(ids))
	read := make([]int, 0, len(ids)) // of which object a file is
	defer func() {
		for _, f := range files {
			unix.Close(f.fd)
		}
	}()
	for i, id := range ids {
		e, fd, err := s.see(id)
		if fd >= 0 {
			files, read = append(files, mediumFile{fd: fd, want: e.n.Sum}), append(read, i)
		}
		if err != nil {
			return nil, fmt.Errorf("id %d: %w", id, err)
		}
		all[i] = e
	}
	m.verifyAll(files)
	for k, i := range read {
		if f := &files[k]; f.whole {
			all[i].medium, all[i].bytes, all[i].flaws.bad = f.medium, f.want.Size, nil
		} else if all[i], err = s.examine(ids[i], m); err != nil {
			return nil, fmt.Errorf("id %d: %w", ids[i], err)
		}
	}
	return all, nil
}

// see is examine but for the content, which it opens if there is a checksum of it;
// the descriptor is the caller's, -1 for none. e.n is nil if the object is gone.
func (s *Slot) see(id op.ID) (e examined, fd int, err error) {
	for range changesMost {
		e = examined{}
		if e.n, err = s.ix.inode(id); errors.Is(err, ErrNotExist) {
			return examined{}, -1, nil
		} else if err != nil {
			return e, -1, err
		}
		s.warm(e.n)
		if fd, err = s.look(&e); !errors.Is(err, errChanged) {
			return e, fd, err
		}
	}
	return examined{}, -1, nil
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
func (s *Slot) look(e *examined) (fd int, err error) {
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
			if s.hasContent(n) && f.missing == "" && st.Mode&typeMask == typeRegular {
				if fd, err = openat(at.d.fd, at.name, openRead, 0); err != nil {
					fd, f.bad = -1, fmt.Errorf("open: %w", err)
				}
			}
			s.lookAt(n, at, fd, &st, f)
		case st.Ino != ino:
			f.missing = fmt.Sprintf("%q is not the file that its other names are", at.name)
		}
		release()
	}
	return fd, nil
}

// noDirectory is how flaws say that it is not the object alone that is missing.
const noDirectory = "its directory is not in the tree"

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

// lookAt compares mark and attributes of what is there with n; st are its own, and
// fd is -1 if it is not open. The caller holds tree.mu.
func (s *Slot) lookAt(n *Inode, at physical, fd int, st *unix.Stat_t, f *flaws) {
	var m mark
	var diffs []attributeDiff
	var noMark, err error
	if fd >= 0 {
		m, noMark = readMarkFd(fd)
		var xattrs map[string][]byte
		xattrs, err = readXattrsFd(fd)
		diffs = statDiffs(st, xattrs, n)
	} else {
		path := procPath(at.d.fd, at.name)
		m, noMark = readMark(path)
		diffs, err = attributeDiffs(path, n)
	}
	switch {
	case errors.Is(noMark, errNoMark):
		f.mark = "it does not carry its id"
	case noMark != nil:
		f.mark = noMark.Error()
	case m.ID != n.ID:
		f.misplaced = m.ID
	default:
		f.mark = compareMark(m, n)
	}
	switch {
	case gone(err):
		f.missing = "it is not in the tree"
		return
	case err != nil:
		f.bad = err
		return
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

// shown is the path of a name in a directory.
func (s *Slot) shown(dir op.ID, name string) string {
	path, _ := s.ix.path(dir)
	return filepath.Join(path, name)
}
