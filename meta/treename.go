package meta

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

func (t *tree) path(name string) string { return filepath.Join(t.data, name) }

// loseName takes name away from c.gone: its last name goes to trash, never to
// nothing, since recovery may have to return to an earlier entry.
func (t *tree) loseName(d *handle, name string, c change) error {
	var err error
	switch {
	case c.gone.IsDir():
		err = t.removeDir(d, name, c.gone)
	case c.last && c.gone.IsRegular():
		err = unix.Renameat(d.fd, name, t.trash.fd, trashName(c.gone.ID))
	default:
		err = unix.Unlinkat(d.fd, name, 0)
	}
	if errors.Is(err, unix.ENOENT) {
		t.missing(c.gone.ID, fmt.Sprintf("%q in directory %d, which entry %d removes", name, d.id, c.e.Seq))
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %q (id %d): %w", name, c.gone.ID, err)
	}
	return nil
}

// removeDir removes a directory that the index knows to be empty.
func (t *tree) removeDir(d *handle, name string, n *Inode) error {
	t.dirs.forget(n.ID)
	err := unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return t.displace(d, name)
	}
	return err
}

func (t *tree) link(d *handle, o *op.Link, c change) error {
	if c.gone != nil {
		if err := t.loseName(d, o.Name, c); err != nil {
			return err
		}
	}
	at := c.old.Names[0]
	from, err := t.dir(at.Dir, true)
	if err != nil {
		return err
	}
	defer from.release()
	err = t.makeName(d, o.Name, func() error { return unix.Linkat(from.fd, at.Name, d.fd, o.Name, 0) })
	if err != nil {
		return fmt.Errorf("link %q to %q (id %d): %w", o.Name, at.Name, o.ID, err)
	}
	return nil
}

func (t *tree) rename(from, to *handle, o *op.Rename, c change) error {
	if c.n.IsDir() {
		t.late[c.id] = struct{}{} // its ".." may change
	}
	if o.Exchange {
		if c.gone.IsDir() {
			t.late[c.gone.ID] = struct{}{}
		}
		err := unix.Renameat2(from.fd, o.OldName, to.fd, o.NewName, unix.RENAME_EXCHANGE)
		if err != nil {
			return fmt.Errorf("exchange %q and %q: %w", o.OldName, o.NewName, err)
		}
		return nil
	}
	if c.gone != nil {
		if err := t.loseName(to, o.NewName, c); err != nil {
			return err
		}
	}
	err := t.makeName(to, o.NewName, func() error {
		return unix.Renameat2(from.fd, o.OldName, to.fd, o.NewName, unix.RENAME_NOREPLACE)
	})
	if err != nil {
		return fmt.Errorf("rename %q to %q (id %d): %w", o.OldName, o.NewName, o.ID, err)
	}
	return nil
}

// setAttr changes owner, then mode: chown clears set-id bits that the entry, the
// last word on the mode, may mean to stay.
func (t *tree) setAttr(c change, o *op.SetAttr) error {
	if c.n == nil {
		return t.setAttrTrashed(o)
	}
	if o.Valid&op.SetMtime != 0 && (c.n.IsDir() || c.n.IsRegular()) {
		t.late[o.ID] = struct{}{}
	}
	d, name, err := t.place(c.n)
	if err != nil {
		return err
	}
	defer d.release()
	uid, gid := -1, -1
	if o.Valid&op.SetUID != 0 {
		uid = int(o.UID)
	}
	if o.Valid&op.SetGID != 0 {
		gid = int(o.GID)
	}
	chown := uid >= 0 || gid >= 0
	if chown {
		if err := fchownat(d.fd, name, uid, gid); err != nil {
			return fmt.Errorf("chown id %d: %w", o.ID, err)
		}
	}
	if (chown || o.Valid&op.SetMode != 0) && c.n.Type() != typeSymlink {
		if err := fchmodat(d.fd, name, c.n.Mode&permMask); err != nil {
			return fmt.Errorf("chmod id %d: %w", o.ID, err)
		}
	}
	if o.Valid&op.SetMtime != 0 && !c.n.IsDir() && !c.n.IsRegular() {
		return utimensat(d.fd, name, o.Mtime)
	}
	return nil
}

// setAttrTrashed changes what is left of an unlinked file.
func (t *tree) setAttrTrashed(o *op.SetAttr) error {
	h, err := t.any(change{}, o.ID)
	if h == nil {
		return err
	}
	defer h.release()
	if o.Valid&op.SetMode != 0 {
		return unix.Fchmod(h.fd, o.Mode&permMask)
	}
	return nil
}

// place is where n is found: a directory descriptor and a name in it, or the
// descriptor of n itself, if it is a directory, and "".
func (t *tree) place(n *Inode) (*handle, string, error) {
	if n.IsDir() {
		h, err := t.dir(n.ID, true)
		return h, "", err
	}
	at := n.Names[0]
	h, err := t.dir(at.Dir, true)
	return h, at.Name, err
}

func fchownat(dir int, name string, uid, gid int) error {
	if name == "" {
		return unix.Fchown(dir, uid, gid)
	}
	return unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func fchmodat(dir int, name string, mode uint32) error {
	if name == "" {
		return unix.Fchmod(dir, mode)
	}
	return unix.Fchmodat(dir, name, mode, 0)
}

func (t *tree) setXattr(c change, o *op.SetXattr) error {
	if c.n == nil {
		return nil // what is in trash is only read
	}
	d, name, err := t.place(c.n)
	if err != nil {
		return err
	}
	defer d.release()
	path := procPath(d.fd, name)
	if name == "" {
		path = fmt.Sprintf("/proc/self/fd/%d/.", d.fd)
	}
	err = t.again(func() error {
		if o.Remove {
			return unix.Lremovexattr(path, o.Name)
		}
		return unix.Lsetxattr(path, o.Name, o.Value, 0)
	})
	if errors.Is(err, unix.ENODATA) {
		return nil // removed twice
	}
	if err != nil {
		return fmt.Errorf("xattr %s of id %d: %w", o.Name, o.ID, err)
	}
	return nil
}
