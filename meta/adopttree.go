package meta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// run goes through the tree.
func (a *adoption) run(ctx context.Context) error {
	tree := filepath.Join(a.data, dirTree)
	var st unix.Stat_t
	if err := unix.Lstat(tree, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: tree, Err: err}
	}
	a.dev = st.Dev
	if err := a.leftBefore(); err != nil {
		return err
	}
	if err := a.count(ctx, tree); err != nil {
		return err
	}
	a.next = op.Root + 1
	if err := a.ix.eachInode(func(n *Inode) error {
		a.next = max(a.next, n.ID+1)
		return ctx.Err()
	}); err != nil {
		return err
	}
	if st.Mode&0o777 == 0o700 && st.Uid == 0 {
		// As slotfs made it; the mail server has to get in.
		if err := os.Chmod(tree, rootMode&0o777); err != nil {
			return err
		}
		if err := unix.Lstat(tree, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: tree, Err: err}
		}
	}
	root, err := a.describe(tree, &st, op.Root)
	if err != nil {
		return err
	}
	delete(root.Xattr, AdoptedXattr)
	if err := a.ix.put(root, 0); err != nil {
		return err
	}
	if err := errors.Join(writeMark(tree, markOf(root)), claimTree(a.data, a.slotID())); err != nil {
		return err
	}
	return a.dir(ctx, tree, op.Root, Plain)
}

func (a *adoption) slotID() op.SlotID {
	id, _ := ReadIdentity(a.data) // was read before
	return id.Slot
}

// count finds out how much there is, for the progress.
func (a *adoption) count(ctx context.Context, tree string) error {
	return filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			a.rep.TotalFiles++
		}
		return errors.Join(err, ctx.Err())
	})
}

// dir adopts what is in a directory, which is in the index.
func (a *adoption) dir(ctx context.Context, path string, id op.ID, kind DirKind) error {
	names, err := readNames(path, "")
	if err != nil {
		return err
	}
	has := make(map[string]bool, len(names))
	for _, name := range names {
		has[name] = true
	}
	if err := a.forgetGone(id, has); err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Lstat(path, &before); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	left := len(a.rep.Left)
	var below []Child
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := a.name(path, Name{Dir: id, Name: name}, kind)
		if err != nil {
			return err
		}
		if c.Type == typeDir {
			below = append(below, c)
		}
	}
	if len(a.rep.Left) > left { // which changed the directory
		if err := setMtime(path, unix.TimespecToNsec(before.Mtim)); err != nil {
			return err
		}
	}
	for _, c := range below {
		k := a.layout.DirKind(c.Name, func(s string) bool { return has[s] })
		if err := a.dir(ctx, filepath.Join(path, c.Name), c.ID, k); err != nil {
			return err
		}
	}
	return nil
}

// forgetGone takes out of the index what an earlier run had found in a directory
// and is not there any more.
func (a *adoption) forgetGone(id op.ID, has map[string]bool) error {
	children, err := a.ix.children(id)
	if err != nil {
		return err
	}
	for _, c := range children {
		if !has[c.Name] {
			return fmt.Errorf("%q in directory %d has gone since the adoption was interrupted: nobody may change the tree meanwhile; remove %s and begin again",
				c.Name, id, filepath.Join(a.data, dirIndex))
		}
	}
	return nil
}

// name adopts one name; its Child is zero if it was left out.
func (a *adoption) name(dir string, at Name, kind DirKind) (c Child, err error) {
	path := filepath.Join(dir, at.Name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return c, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	class := a.layout.Class(kind, at.Name)
	why := ""
	switch typ := st.Mode & typeMask; {
	case st.Dev != a.dev:
		return c, fmt.Errorf("%s is another file system, mounted there: unmount it, or move its files into the tree", path)
	case typ == typeDir, typ == typeSymlink, typ == unix.S_IFIFO:
	case typ != typeRegular:
		why = "a socket or device"
	case class == Volatile:
		why = useless
	}
	if why == "" {
		c, err = a.take(path, &st, at, class)
		if errors.Is(err, unix.EIO) {
			why, err = "cannot be read: "+err.Error(), nil
		}
	}
	if why != "" {
		return Child{}, a.leave(path, why)
	}
	return c, err
}

// take puts one object into the index, unless it is there.
func (a *adoption) take(path string, st *unix.Stat_t, at Name, class Class) (Child, error) {
	c := Child{Name: at.Name, Type: st.Mode & typeMask}
	old, err := a.ix.child(at.Dir, at.Name)
	if err != nil && !errors.Is(err, ErrNotExist) {
		return c, err
	}
	if err == nil && old.Type == c.Type {
		c.ID = old.ID
		if done, err := a.finished(path, st, c.ID, class); err != nil || done {
			return c, err
		}
	} else if linked := a.links[st.Ino]; st.Nlink > 1 && c.Type != typeDir && linked != 0 {
		return a.link(path, at, linked, class, c.Type)
	} else {
		c.ID = a.next
		a.next++
	}
	n, err := a.describe(path, st, c.ID)
	if err != nil {
		return c, err
	}
	n.Names = []Name{at}
	n.Sealed = n.IsRegular() && class == Message
	if err := writeMark(path, markOf(n)); err != nil {
		return c, &os.PathError{Op: "setxattr", Path: path, Err: err}
	}
	if err := a.ix.put(n, 0); err != nil {
		return c, err
	}
	a.tell(n, st)
	if a.ix.waiting() < resyncBatch && time.Since(a.flushed) < adoptFlush {
		return c, nil
	}
	a.flushed = time.Now()
	return c, a.ix.flushRaw(a.ix.current())
}

// adoptFlush is how much work a kill may cost.
const adoptFlush = 5 * time.Second

// finished reports whether an earlier run, or another name, has done all there is
// to do.
func (a *adoption) finished(path string, st *unix.Stat_t, id op.ID, class Class) (bool, error) {
	n, err := a.ix.inode(id)
	if err != nil {
		return false, err
	}
	m, err := readMark(path)
	if err != nil && !errors.Is(err, errNoMark) {
		return false, err
	}
	if m != markOf(n) || unix.TimespecToNsec(st.Mtim) != n.Mtime || n.IsRegular() && (st.Size != n.Size || n.Sealed != (class == Message)) {
		return false, nil
	}
	a.rep.Resumed++
	a.tell(n, st)
	return true, nil
}

// link gives an object that was taken one more name.
func (a *adoption) link(path string, at Name, id op.ID, class Class, typ uint32) (Child, error) {
	old, err := a.ix.inode(id)
	if err != nil {
		return Child{}, err
	}
	if old.IsRegular() && old.Sealed != (class == Message) {
		return Child{}, a.leave(path, "a further name of a file that is kept in another way")
	}
	n := old.Clone()
	n.Names = append(n.Names, at)
	return Child{Name: at.Name, ID: id, Type: typ}, a.ix.put(n, 0)
}

// describe is an object as its file says; names and checksum follow.
func (a *adoption) describe(path string, st *unix.Stat_t, id op.ID) (*Inode, error) {
	n := &Inode{ID: id, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: unix.TimespecToNsec(st.Mtim), Ctime: a.begun.UnixNano()}
	var err error
	if n.Xattr, err = readXattrs(path); err != nil {
		return nil, err
	}
	switch n.Type() {
	case typeRegular:
		n.Size, n.Changed = st.Size, uint64(id)
	case typeSymlink:
		n.Changed = uint64(id)
		n.Target, err = os.Readlink(path)
		n.Size = int64(len(n.Target))
	case unix.S_IFIFO:
		n.Changed = uint64(id)
	}
	return n, err
}

// tell counts an object.
func (a *adoption) tell(n *Inode, st *unix.Stat_t) {
	if st.Nlink > 1 && !n.IsDir() {
		a.links[st.Ino] = n.ID
	}
	switch {
	case n.IsDir():
		a.rep.Dirs++
	case n.Sealed:
		a.rep.Messages++
	default:
		a.rep.Other++
	}
	if n.IsRegular() {
		a.rep.Bytes += uint64(n.Size)
	}
	if a.opt.Progress != nil && time.Since(a.said) > 100*time.Millisecond {
		a.said = time.Now()
		a.opt.Progress(a.rep)
	}
}

// leave moves something out of the tree.
func (a *adoption) leave(path, why string) error {
	rel, err := filepath.Rel(filepath.Join(a.data, dirTree), path)
	if err != nil {
		return err
	}
	to := filepath.Join(a.data, dirLeft, rel)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: path, New: to, Err: err}
	}
	a.rep.Left = append(a.rep.Left, Leftover{rel, why, why == useless})
	return nil
}

// leftBefore lists what an earlier run has left out.
func (a *adoption) leftBefore() error {
	left := filepath.Join(a.data, dirLeft)
	err := filepath.WalkDir(left, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(left, path)
		kind := Plain
		if filepath.Base(filepath.Dir(rel)) == "tmp" {
			kind = MaildirTmp
		}
		a.rep.Left = append(a.rep.Left, Leftover{rel, "by an earlier run", d.Type().IsRegular() && a.layout.Class(kind, d.Name()) == Volatile})
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
