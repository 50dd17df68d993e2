package meta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// checkTree is I1, I2, I3 and I8: directory by directory with the applier
// running, then what was suspicious once more with the applier stopped.
func (s *Slot) checkTree(ctx context.Context, r *Report) error {
	var again []op.ID
	for todo := []op.ID{op.Root}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := ctx.Err(); err != nil {
			return err
		}
		var local Report
		subdirs, err := s.checkDirNow(id, &local)
		if errors.Is(err, ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if !local.Clean() {
			again = append(again, id)
		}
		todo = append(todo, subdirs...)
	}
	if len(again) == 0 {
		return nil
	}
	defer s.pauseApplier()()
	for _, id := range again {
		if _, err := s.checkDirNow(id, r); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

// checkDirNow compares one directory while index and tree agree, mtimes apart.
func (s *Slot) checkDirNow(id op.ID, r *Report) ([]op.ID, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	if s.ix.current().Pos.Seq == 0 {
		return nil, nil
	}
	path, err := s.ix.path(id)
	if err != nil {
		return nil, err
	}
	dir, err := s.ix.inode(id)
	if err != nil {
		return nil, err
	}
	children, err := s.ix.children(id)
	if err != nil {
		return nil, err
	}
	return s.checkDir(dir, path, children, r)
}

func (s *Slot) checkDir(dir *Inode, path string, children []Child, r *Report) (subdirs []op.ID, err error) {
	h, err := s.tree.dir(dir.ID, false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil // reported with the directory above
	}
	if err != nil {
		return nil, err
	}
	defer h.release()
	real := fmt.Sprintf("/proc/self/fd/%d", h.fd) // a path may be too long
	names, err := readNames(real, "")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed while open
	}
	if err != nil {
		return nil, err
	}
	if dir.ID == op.Root {
		if err := s.compareObject(dir, filepath.Join(s.dir, dirTree), path, r); err != nil {
			return nil, err
		}
	}
	known := make(map[string]bool, len(children))
	for _, c := range children {
		known[c.Name] = true
		if c.Type == typeDir {
			subdirs = append(subdirs, c.ID)
		}
		n, err := s.ix.inode(c.ID)
		if err != nil {
			return nil, fmt.Errorf("entry %q of directory %d: %w", c.Name, dir.ID, err)
		}
		if err := s.compareObject(n, filepath.Join(real, c.Name), filepath.Join(path, c.Name), r); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if !known[name] {
			r.add(InvStray, 0, filepath.Join(path, name), "the index does not have it")
		}
	}
	return subdirs, nil
}

// compareObject compares one name.
func (s *Slot) compareObject(n *Inode, real, path string, r *Report) error {
	m, err := readMark(real)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.add(InvName, n.ID, path, "is not in the tree")
		return nil
	case errors.Is(err, errNoMark):
		r.add(InvName, n.ID, path, "the object there has no id")
		return nil
	case err != nil:
		return err
	case m.ID != n.ID:
		r.add(InvName, n.ID, path, "the object there has id %d", m.ID)
		return nil
	}
	diffs, err := attributeDiffs(real, n)
	if errors.Is(err, fs.ErrNotExist) {
		r.add(InvName, n.ID, path, "is not in the tree")
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range diffs {
		r.add(d.inv(), n.ID, path, "%s", d.text)
	}
	if text := compareMark(m, n); text != "" {
		r.add(InvMark, n.ID, path, "%s", text)
	}
	if len(n.Names) > 1 {
		return s.compareLinks(n, real, path, r)
	}
	return nil
}

// compareLinks proves that all names of n are one file: the first one and this.
func (s *Slot) compareLinks(n *Inode, real, path string, r *Report) error {
	dir, err := s.ix.path(n.Names[0].Dir)
	if err != nil {
		return err
	}
	h, err := s.tree.dir(n.Names[0].Dir, false)
	if err != nil {
		return nil // reported there
	}
	defer h.release()
	var here, first unix.Stat_t
	if err := unix.Lstat(real, &here); err != nil {
		return err
	}
	other := filepath.Join(dir, n.Names[0].Name)
	if err := unix.Fstatat(h.fd, n.Names[0].Name, &first, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil // reported there
	}
	if here.Ino != first.Ino {
		r.add(InvName, n.ID, path, "is another file than %q, and should be the same", other)
	}
	return nil
}

// compareMark says what m has otherwise than n, whose id it has. Marks of
// control files are brought up to date at checkpoints.
func compareMark(m mark, n *Inode) string {
	want := markOf(n)
	switch {
	case m.Lost:
		return "the content is not on this slot"
	case m.Sealed != want.Sealed:
		return fmt.Sprintf("sealed is %v, should be %v", m.Sealed, want.Sealed)
	case n.Sealed && m != want:
		return fmt.Sprintf("size %d, checksum %016x, entry %d; should be %d, %016x, %d", m.Size, m.XXH, m.Changed, want.Size, want.XXH, want.Changed)
	case m.Changed > want.Changed:
		return fmt.Sprintf("last changed by entry %d, should be %d", m.Changed, want.Changed)
	case m.Changed == want.Changed && m.Sized && want.Sized && (m.Size != want.Size || m.XXH != want.XXH):
		return fmt.Sprintf("size %d, checksum %016x; should be %d, %016x", m.Size, m.XXH, want.Size, want.XXH)
	}
	return ""
}
