package meta

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// do makes the tree follow what c did to the index. The caller holds t.mu for
// writing since before the index changed. mtimes of directories and of control
// files follow at the end of the batch (setTimes), after everything that could
// disturb them.
//
// What is missing in the tree is reported and passed over: the index is right,
// and check finds and repairs the rest. Other errors fault the slot.
func (t *tree) do(c change) error {
	err := t.doOp(c)
	if errors.Is(err, unix.ENOENT) {
		t.missing(c.id, fmt.Sprintf("entry %d found: %v", c.e.Seq, err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("entry %d (%T) in the tree: %w", c.e.Seq, c.e.Op, err)
	}
	return nil
}

func (t *tree) doOp(c change) error {
	switch o := c.e.Op.(type) {
	case *op.EpochBegin:
		return t.epochBegin(c, o)
	case *op.Mkdir:
		return t.in(o.Parent, func(d *handle) error {
			h, err := t.makeDir(d, o.Name, c.n)
			if err == nil {
				h.release()
			}
			return err
		})
	case *op.Create:
		return t.in(o.Parent, func(d *handle) error { return t.create(d, o.Name, c.n) })
	case *op.Put:
		return t.in(o.Parent, func(d *handle) error { return t.put(d, o, c) })
	case *op.Chunk:
		return t.chunk(c.e.Seq, o)
	case *op.Write:
		return t.content(c, o.ID, func(fd int) error { return writeAt(fd, o.Data, o.Off) })
	case *op.Truncate:
		return t.truncate(c, o)
	case *op.Fallocate:
		return t.content(c, o.ID, func(fd int) error { return fallocate(fd, o) })
	case *op.SetAttr:
		return t.setAttr(c, o)
	case *op.SetXattr:
		return t.setXattr(c, o)
	case *op.Link:
		return t.in(o.Parent, func(d *handle) error { return t.link(d, o, c) })
	case *op.Rename:
		return t.in(o.OldParent, func(from *handle) error {
			return t.in(o.NewParent, func(to *handle) error { return t.rename(from, to, o, c) })
		})
	case *op.Unlink:
		return t.in(o.Parent, func(d *handle) error { return t.loseName(d, o.Name, c) })
	case *op.Seal:
		return t.seal(c)
	default: // a Checkpoint is about the index alone
		return nil
	}
}

// seal writes the mark of an adopted message that has its checksum now. Those of
// control files follow at a checkpoint: they change often.
func (t *tree) seal(c change) error {
	if c.n == nil || !c.n.Sealed {
		return nil
	}
	d, name, err := t.place(c.n)
	if err != nil {
		return err
	}
	defer d.release()
	return t.again(func() error { return writeMark(procPath(d.fd, name), markOf(c.n)) })
}

// in runs f on a directory whose entries f changes.
func (t *tree) in(id op.ID, f func(d *handle) error) error {
	d, err := t.dir(id, true)
	if err != nil {
		return err
	}
	defer d.release()
	t.late[id] = struct{}{}
	return f(d)
}

func (t *tree) epochBegin(c change, b *op.EpochBegin) error {
	if abandons(t.epoch, b) {
		if err := t.clearStage(); err != nil {
			return err
		}
	}
	t.epoch = b
	if c.n == nil {
		return nil
	}
	t.late[op.Root] = struct{}{}
	return t.dress(t.root.fd, c.n, true)
}

// clearStage removes what Chunks have staged; other files in stage are not
// named by a number.
func (t *tree) clearStage() error {
	f, err := os.Open(t.path(dirStage))
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("list stage: %w", err)
	}
	for _, name := range names {
		if !isNumber(name) {
			continue
		}
		if err := unix.Unlinkat(t.stage.fd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("remove stage %s: %w", name, err)
		}
	}
	return nil
}

func isNumber(name string) bool {
	for _, r := range name {
		if r < '0' || r > '9' {
			return false
		}
	}
	return name != ""
}

// inherits is inherits of d.
func (t *tree) inherits(d *handle) (bool, error) {
	n, err := t.x.inode(d.id)
	if err != nil {
		return false, err
	}
	return inherits(n), nil
}

// create makes an empty file, or what else Create makes.
func (t *tree) create(d *handle, name string, n *Inode) error {
	if !n.IsRegular() {
		return t.createSpecial(d, name, n)
	}
	fd, err := t.createFile(d, name, n, openFile)
	if err != nil {
		return err
	}
	t.late[n.ID] = struct{}{}
	t.files.add(n.ID, fd).release() // Writes will follow
	return nil
}

// createFile makes a regular file and gives it all but content and mtime.
func (t *tree) createFile(d *handle, name string, n *Inode, flags int) (fd int, err error) {
	inherits, err := t.inherits(d)
	if err != nil {
		return -1, err
	}
	err = t.makeName(d, name, func() (err error) {
		fd, err = openat(d.fd, name, flags|unix.O_CREAT|unix.O_EXCL, n.Mode&0o777)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("create %q: %w", name, err)
	}
	if err := t.dress(fd, n, inherits); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makeName runs f, which makes name in d. If there is something already, no
// entry explains it: the index has seen to what has a name.
func (t *tree) makeName(d *handle, name string, f func() error) error {
	err := t.again(f)
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := t.displace(d, name); err != nil {
		return err
	}
	return t.again(f)
}

// createSpecial makes a symlink, FIFO, socket or device: things that cannot be
// opened to be dressed.
func (t *tree) createSpecial(d *handle, name string, n *Inode) error {
	err := t.makeName(d, name, func() error {
		if n.Type() == typeSymlink {
			return unix.Symlinkat(n.Target, d.fd, name)
		}
		return unix.Mknodat(d.fd, name, n.Mode&(typeMask|0o777), int(n.Rdev))
	})
	if err != nil {
		return fmt.Errorf("create %q: %w", name, err)
	}
	path := procPath(d.fd, name)
	if err := t.again(func() error { return writeMark(path, markOf(n)) }); err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	if err := unix.Fchownat(d.fd, name, int(n.UID), int(n.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("chown: %w", err)
	}
	for k, v := range n.Xattr {
		if err := t.again(func() error { return unix.Lsetxattr(path, k, v, 0) }); err != nil {
			return fmt.Errorf("set xattr %s: %w", k, err)
		}
	}
	if n.Type() != typeSymlink {
		if _, ours := n.Xattr[aclAccess]; !ours {
			if err := unix.Lremovexattr(path, aclAccess); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("remove inherited %s: %w", aclAccess, err)
			}
		}
		if err := unix.Fchmodat(d.fd, name, n.Mode&permMask, 0); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return utimensat(d.fd, name, n.Mtime)
}

// put publishes a whole file.
func (t *tree) put(d *handle, o *op.Put, c change) error {
	if c.gone != nil {
		if err := t.loseName(d, o.Name, c); err != nil {
			return err
		}
	}
	if o.Stage != 0 {
		return t.putStaged(d, o, c.n)
	}
	fd, err := t.createFile(d, o.Name, c.n, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	first := true
	err = t.again(func() error {
		if first {
			first = false
			return writeFirst(fd, o.Data)
		}
		return writeAt(fd, o.Data, 0)
	})
	if err != nil {
		return fmt.Errorf("write %q: %w", o.Name, err)
	}
	return futimens(fd, c.n.Mtime)
}

// putStaged publishes what Chunks have staged.
func (t *tree) putStaged(d *handle, o *op.Put, n *Inode) error {
	staged := stageName(o.Stage)
	fd, err := openat(t.stage.fd, staged, openFile, 0)
	if err != nil {
		return fmt.Errorf("open stage %s: %w", staged, err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, n.Size); err != nil {
		return fmt.Errorf("truncate stage: %w", err)
	}
	// It was made with mode 0600, by this process's user.
	if err := t.dress(fd, n, true); err != nil {
		return err
	}
	err = t.makeName(d, o.Name, func() error {
		return unix.Renameat2(t.stage.fd, staged, d.fd, o.Name, unix.RENAME_NOREPLACE)
	})
	if err != nil {
		return fmt.Errorf("publish stage as %q: %w", o.Name, err)
	}
	return futimens(fd, n.Mtime)
}

func stageName(stage uint64) string { return trashName(op.ID(stage)) }

// chunk stages a piece of a later Put.
func (t *tree) chunk(seq uint64, o *op.Chunk) error {
	stage, flags := o.Stage, openFile
	if stage == 0 {
		stage, flags = seq, openFile|unix.O_CREAT|unix.O_TRUNC
	}
	var fd int
	err := t.again(func() (err error) {
		fd, err = openat(t.stage.fd, stageName(stage), flags, 0o600)
		return err
	})
	if err != nil {
		return fmt.Errorf("open stage %d: %w", stage, err)
	}
	defer unix.Close(fd)
	if err := t.again(func() error { return writeAt(fd, o.Data, o.Off) }); err != nil {
		return fmt.Errorf("write stage %d: %w", stage, err)
	}
	return nil
}

// content changes a control file, or what is left of it in trash.
func (t *tree) content(c change, id op.ID, f func(fd int) error) error {
	h, err := t.any(c, id)
	if h == nil {
		return err
	}
	defer h.release()
	if c.n != nil {
		t.late[id] = struct{}{}
	}
	if err := t.again(func() error { return f(h.fd) }); err != nil {
		return fmt.Errorf("change content of id %d: %w", id, err)
	}
	return nil
}

func (t *tree) truncate(c change, o *op.Truncate) error {
	err := t.content(c, o.ID, func(fd int) error { return unix.Ftruncate(fd, o.Size) })
	if h := t.files.get(o.ID); h != nil {
		if o.Size == 0 {
			h.lost.Store(false) // from here on it is known again
		}
		h.release()
	}
	return err
}

// any opens the regular file that c is about; nil if it has no name any more
// and has left trash, too.
func (t *tree) any(c change, id op.ID) (*handle, error) {
	if c.n != nil {
		return t.file(c.n)
	}
	h, err := t.trashed(id)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return h, err
}

// fallocate is fallocate(2), also where the file system lacks it.
func fallocate(fd int, o *op.Fallocate) error {
	err := unix.Fallocate(fd, o.Mode, o.Off, o.Len)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	end := o.Off + o.Len
	if o.Mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		zeros := make([]byte, 64<<10)
		for off := o.Off; off < min(end, st.Size); {
			n := min(int64(len(zeros)), min(end, st.Size)-off)
			if err := writeAt(fd, zeros[:n], off); err != nil {
				return err
			}
			off += n
		}
	}
	if o.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 && end > st.Size {
		return unix.Ftruncate(fd, end)
	}
	return nil
}
