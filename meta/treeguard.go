package meta

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// The tree's root carries, beside its mark, the id of the slot that it belongs
// to: another disk that is mounted there has another one, and a bare mount
// point has none.
const ownerName = markName + ".slot"

// ErrTreeLost: the tree is not this slot's any more: emptied, removed, or
// another one's. Nothing is served from it, and nothing that is missing in it
// counts as removed.
var ErrTreeLost = errors.New("the tree is lost")

// treeLost says what is wrong.
type treeLost struct{ text string }

func (e *treeLost) Error() string        { return ErrTreeLost.Error() + ": " + e.text }
func (e *treeLost) Is(target error) bool { return target == ErrTreeLost }

// claimTree writes down whose tree this is.
func claimTree(data string, id op.SlotID) error {
	path := filepath.Join(data, dirTree)
	if err := unix.Lsetxattr(path, ownerName, id[:], 0); err != nil {
		return fmt.Errorf("set %s of %s: %w", ownerName, path, err)
	}
	return nil
}

// guardRoot reports whether tree/ is the directory that it was. The error is a
// *treeLost, or the system's.
func (s *Slot) guardRoot() error {
	path := filepath.Join(s.dir, dirTree)
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return &treeLost{path + " is gone"}
	case err != nil:
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	case st.Mode&typeMask != typeDir:
		return &treeLost{path + " is no directory"}
	}
	owner, err := getXattr(func(b []byte) (int, error) { return unix.Lgetxattr(path, ownerName, b) })
	switch {
	case err == nil && !bytes.Equal(owner, s.ID[:]):
		return &treeLost{fmt.Sprintf("%s belongs to slot %x: is the right disk mounted?", path, owner)}
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENODATA):
		return &os.PathError{Op: "lgetxattr", Path: path, Err: err}
	}
	// Made before trees had owners, or not this one: the mark tells.
	if m, err := readMark(path); err != nil && !errors.Is(err, errNoMark) {
		return err
	} else if m.ID != op.Root && (s.Log.Last().Seq > 0 || !s.StoreID().IsZero()) {
		return &treeLost{path + " was emptied, or another disk is mounted there"}
	}
	return nil
}

// guardProbes is how many names are looked for before the tree is taken for
// emptied.
const guardProbes = 64

// guardNames reports whether anything of what v has near the root is in the
// tree. A tree may lack this and that, which check and repair deal with; it
// never lacks all of it unless somebody emptied it.
func (s *Slot) guardNames(v indexView) error {
	root, err := v.inode(op.Root)
	if errors.Is(err, ErrNotExist) || err == nil && root.Count == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	children, err := v.children(op.Root)
	if err != nil {
		return err
	}
	tree := filepath.Join(s.dir, dirTree)
	probes := 0
	for _, c := range children {
		alive, err := probeName(v, tree, c)
		if err != nil || alive {
			return err
		}
		if probes++; probes >= guardProbes {
			break
		}
	}
	return &treeLost{fmt.Sprintf("%s was emptied: nothing of what belongs there is left", tree)}
}

// probeName reports whether c is in dir; of a directory with entries, also one of
// those.
func probeName(v indexView, dir string, c Child) (bool, error) {
	path := filepath.Join(dir, c.Name)
	m, err := readMark(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, errNoMark) || err == nil && m.ID != c.ID {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "lgetxattr", Path: path, Err: err}
	}
	if c.Type != typeDir {
		return true, nil
	}
	names, err := readNames(path, "")
	if err != nil {
		return false, err
	}
	n, err := v.inode(c.ID)
	if err != nil {
		return false, err
	}
	return len(names) > 0 || n.Count == 0, nil
}

// guard looks whether the tree of the running slot is still there. Of the
// keeper.
func (s *Slot) guard() error {
	if err := s.guardData(); err != nil {
		return err
	}
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	if err := s.guardRoot(); err != nil {
		return err
	}
	var now, held unix.Stat_t
	path := filepath.Join(s.dir, dirTree)
	if err := unix.Stat(path, &now); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if err := unix.Fstat(s.tree.root.fd, &held); err != nil {
		return fmt.Errorf("stat the open tree: %w", err)
	}
	if now.Dev != held.Dev || now.Ino != held.Ino {
		return &treeLost{path + " is another directory than it was"}
	}
	err := s.guardNames(s.ix)
	if errors.Is(err, ErrTreeLost) {
		// Or is it the index that is?
		err = cmp.Or(s.ix.verify(), err)
	}
	return err
}

// errDataGone: the data directory as a whole is not there any more.
var errDataGone = errors.New("the data directory is gone: was its disk unmounted?")

// guardData looks whether the data directory is the one that was opened.
func (s *Slot) guardData() error {
	id, err := ReadIdentity(s.dir)
	if err != nil {
		return fmt.Errorf("%w (%w)", errDataGone, err)
	}
	if id.Slot != s.ID {
		return fmt.Errorf("%w (there is another slot's, %s)", errDataGone, id.Slot)
	}
	var now, held unix.Stat_t
	if err := unix.Stat(filepath.Join(s.dir, fileLock), &now); err != nil {
		return fmt.Errorf("%w (%w)", errDataGone, err)
	}
	if err := unix.Fstat(int(s.lock.Fd()), &held); err != nil {
		return fmt.Errorf("stat the open lock: %w", err)
	}
	if now.Dev != held.Dev || now.Ino != held.Ino {
		return errDataGone
	}
	if _, err := os.Lstat(filepath.Join(s.dir, dirLog)); errors.Is(err, os.ErrNotExist) {
		return errors.New("the log's directory was removed")
	}
	return nil
}
