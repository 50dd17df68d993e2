package meta

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// attributes is reconcile's last phase: it makes the attributes of everything
// touched right; of directories last, as giving names to objects changes their
// mtimes.
func (r *reconciler) attributes() error {
	ids := maps.Clone(r.t.objects)
	maps.Copy(ids, r.t.dirs)
	if r.full {
		for id := range r.done {
			ids[id] = true
		}
	}
	var dirs []op.ID
	for id := range ids {
		in, err := r.inode(id)
		if err != nil {
			return err
		}
		n := r.done[id]
		if n == nil {
			n = r.at[id]
		}
		if in == nil || n == nil {
			continue
		}
		if in.IsDir() {
			dirs = append(dirs, id)
			continue
		}
		if err := r.setAttributes(n, in); err != nil {
			return err
		}
	}
	slices.Sort(dirs)
	for _, id := range dirs {
		in, err := r.view.inode(id)
		if err != nil {
			return err
		}
		if err := r.setAttributes(r.at[id], in); err != nil {
			return err
		}
	}
	return nil
}

// setAttributes makes n's size, owner, mode, xattrs and mtime what in says.
func (r *reconciler) setAttributes(n *node, in *Inode) error {
	path := n.path()
	diffs, err := differences(path, in)
	if err != nil || len(diffs) == 0 && !r.missing[in.ID] {
		return err
	}
	if err := r.step("attributes", path); err != nil {
		return err
	}
	r.report.Attributes++
	if err := r.setSize(path, in); err != nil {
		return err
	}
	if err := applyAttributes(path, in); err != nil {
		return err
	}
	m := markOf(in)
	if old, err := readMark(path); r.missing[in.ID] || err == nil && old.Lost && !r.good[in.ID] {
		m.Lost = true
	}
	if err := writeMark(path, m); err != nil {
		return err
	}
	return setMtime(path, in.Mtime)
}

// setSize cuts or extends a control file, or one whose content is missing.
// Sealed files have been verified, or stay as they are to be looked at.
func (r *reconciler) setSize(path string, in *Inode) error {
	if !in.IsRegular() || in.Sealed && !r.missing[in.ID] {
		return nil
	}
	if st, err := os.Lstat(path); err != nil || st.Size() == in.Size {
		return err
	}
	return os.Truncate(path, in.Size)
}

// applyAttributes sets owner, mode and the xattrs that the mount shows.
func applyAttributes(path string, in *Inode) error {
	if err := os.Lchown(path, int(in.UID), int(in.GID)); err != nil {
		return err
	}
	if in.Type() != typeSymlink { // a symlink has neither mode nor user xattrs
		if err := unix.Chmod(path, in.Mode&permMask); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	return replaceXattrs(path, in.Xattr)
}

// replaceXattrs makes the xattrs of path that the mount shows those in want.
func replaceXattrs(path string, want map[string][]byte) error {
	have, err := readXattrs(path)
	if err != nil {
		return err
	}
	for name := range have {
		if _, ok := want[name]; !ok {
			if err := unix.Lremovexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) {
				return &os.PathError{Op: "lremovexattr", Path: path, Err: err}
			}
		}
	}
	for name, value := range want {
		if old, ok := have[name]; ok && bytes.Equal(old, value) {
			continue
		}
		if err := unix.Lsetxattr(path, name, value, 0); err != nil {
			return &os.PathError{Op: "lsetxattr", Path: path, Err: err}
		}
	}
	return nil
}

// setMtime sets the mtime of path, of a symlink itself.
func setMtime(path string, ns int64) error {
	if err := utimensat(unix.AT_FDCWD, path, ns); err != nil {
		return &os.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}

// differences lists what path has otherwise than in, mark included.
func differences(path string, in *Inode) ([]attributeDiff, error) {
	diffs, err := attributeDiffs(path, in)
	if err != nil {
		return nil, err
	}
	if m, err := readMark(path); err != nil || m != markOf(in) {
		diffs = append(diffs, attributeDiff{text: fmt.Sprintf("%s is %+v (%v)", markName, m, err)})
	}
	return diffs, nil
}

// attributeDiff is one attribute that differs.
type attributeDiff struct {
	text  string
	wrong bool // it is not even that kind of object
}

// inv is the invariant that it breaks.
func (d attributeDiff) inv() int {
	if d.wrong {
		return InvName
	}
	return InvAttributes
}

// attributeDiffs lists what stat and xattrs of path have otherwise than in.
func attributeDiffs(path string, in *Inode) ([]attributeDiff, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	xattrs, err := readXattrs(path)
	if err != nil {
		return nil, err
	}
	diffs := statDiffs(&st, xattrs, in)
	if st.Mode&typeMask == typeSymlink && in.Type() == typeSymlink {
		if have, err := os.Readlink(path); err != nil || have != in.Target {
			diffs = append(diffs, differs("target", have, in.Target))
		}
	}
	return diffs, nil
}

// differs is the attribute called what.
func differs(what string, have, want any) attributeDiff {
	return attributeDiff{text: fmt.Sprintf("%s is %v, should be %v", what, have, want)}
}

// statDiffs lists what st and xattrs are otherwise than in.
func statDiffs(st *unix.Stat_t, xattrs map[string][]byte, in *Inode) (diffs []attributeDiff) {
	add := func(what string, have, want any) { diffs = append(diffs, differs(what, have, want)) }
	if st.Mode&typeMask != in.Type() {
		return []attributeDiff{{text: fmt.Sprintf("type is %o, should be %o", st.Mode&typeMask, in.Type()), wrong: true}}
	}
	if st.Mode&permMask != in.Mode&permMask && in.Type() != typeSymlink {
		add("mode", fmt.Sprintf("%04o", st.Mode&permMask), fmt.Sprintf("%04o", in.Mode&permMask))
	}
	if st.Uid != in.UID || st.Gid != in.GID {
		add("owner", fmt.Sprintf("%d:%d", st.Uid, st.Gid), fmt.Sprintf("%d:%d", in.UID, in.GID))
	}
	if in.IsRegular() && st.Size != in.Size {
		add("size", st.Size, in.Size)
	}
	if have := unix.TimespecToNsec(st.Mtim); have != in.Mtime {
		add("mtime", have, in.Mtime)
	}
	if !in.IsDir() && uint32(st.Nlink) != in.Nlink {
		add("nlink", st.Nlink, in.Nlink)
	}
	for _, name := range slices.Sorted(maps.Keys(xattrs)) {
		if want, ok := in.Xattr[name]; !ok {
			add("xattr "+name, fmt.Sprintf("%q", xattrs[name]), "absent")
		} else if !bytes.Equal(xattrs[name], want) {
			add("xattr "+name, fmt.Sprintf("%q", xattrs[name]), fmt.Sprintf("%q", want))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(in.Xattr)) {
		if _, ok := xattrs[name]; !ok {
			add("xattr "+name, "absent", fmt.Sprintf("%q", in.Xattr[name]))
		}
	}
	return diffs
}

// readXattrs reads the xattrs of path that the mount shows: all but our own,
// and those that the system keeps for itself.
func readXattrs(path string) (map[string][]byte, error) {
	return shownXattrs(path,
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
}

// readXattrsFd is readXattrs of an open file.
func readXattrsFd(fd int) (map[string][]byte, error) {
	return shownXattrs("open file",
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// shownXattrs is readXattrs of what list and get read; of says of what.
func shownXattrs(of string, list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string][]byte, error) {
	names, err := getXattr(list)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		return nil, &os.PathError{Op: "listxattr", Path: of, Err: err}
	}
	var xattrs map[string][]byte
	for name := range strings.SplitSeq(string(names), "\x00") {
		if name == "" || !shownXattr(name) {
			continue
		}
		v, err := getXattr(func(b []byte) (int, error) { return get(name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr", Path: of, Err: err}
		}
		if xattrs == nil {
			xattrs = map[string][]byte{}
		}
		xattrs[name] = v
	}
	return xattrs, nil
}

// shownXattr reports whether the mount keeps xattrs of that name: what
// programs set (user.), ACLs and capabilities. A label of the system that
// slotfs runs on (security.selinux) says nothing about the object.
func shownXattr(name string) bool {
	if name == markName || name == ownerName {
		return false
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "system.posix_acl_") ||
		strings.HasPrefix(name, "trusted.") || name == "security.capability"
}

// getXattr calls get with a buffer that is large enough.
func getXattr(get func([]byte) (int, error)) ([]byte, error) {
	b := make([]byte, 128) // for nearly all that there is
	for {
		n, err := get(b)
		if err == nil {
			return bytes.Clone(b[:n]), nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return nil, err
		}
		if n, err = get(nil); err != nil {
			return nil, err
		}
		b = make([]byte, n+1) // one more: none at all would ask for the size again
	}
}
