package meta

import (
	"context"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Inode returns an object of the applied state; ErrNotExist if it has no name
// there (any more).
func (s *Slot) Inode(id op.ID) (n *Inode, err error) {
	err = s.healed(func() (err error) {
		n, err = s.ix.inode(id)
		if errors.Is(err, ErrNotExist) {
			// Nobody asks for what he has not heard of.
			if bad := s.ix.sure(); bad != nil {
				return bad
			}
		}
		return err
	})
	return n, err
}

// Children lists a directory of the applied state in order of name.
func (s *Slot) Children(dir op.ID) (list []Child, err error) {
	n, err := s.Inode(dir)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, fmt.Errorf("children of id %d: %w", dir, unix.ENOTDIR)
	}
	err = s.healed(func() (err error) {
		if list, err = s.ix.whole(dir); errors.Is(err, ErrNotExist) {
			err = errors.Join(s.ix.sure(), err)
		}
		return err
	})
	return list, err
}

// Unsealed lists the control files of the applied state that have changed since
// they were sealed, ascending.
func (s *Slot) Unsealed() (ids []op.ID, err error) {
	err = s.healed(func() (err error) {
		ids, err = s.ix.lacking(lacksSeal, 0, math.MaxInt)
		return err
	})
	return ids, err
}

// Find returns an object of the applied state, or one that has lost its last name
// and is still in trash; ErrNotExist if there is neither.
func (s *Slot) Find(id op.ID) (n *Inode, err error) {
	err = s.healed(func() (err error) {
		n, err = s.findNow(id)
		return err
	})
	return n, err
}

func (s *Slot) findNow(id op.ID) (*Inode, error) {
	n, err := s.ix.inode(id)
	if !errors.Is(err, ErrNotExist) {
		return n, err
	}
	n, err = s.trash.inode(id)
	if !errors.Is(err, ErrNotExist) {
		return n, err
	}
	// It may have come back, or only now lost its name, between the two.
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	if n, err = s.ix.inode(id); errors.Is(err, ErrNotExist) {
		n, err = s.trash.inode(id)
	}
	return n, err
}

// ReadAt reads content in the applied state into p from off on: fewer bytes than
// asked for only at the end of the file. Content that has a checksum is
// answered from the very bytes that were verified; if they are damaged, they
// are repaired first, and if that is not possible, the error is a *DamagedError.
// Files that were unlinked while open can be read, too.
func (s *Slot) ReadAt(ctx context.Context, id op.ID, p []byte, off int64) (int, error) {
	if ctx.Value(forSlot{}) == nil {
		s.reads.Add(1)
	}
	for try := 0; ; try++ {
		if err := s.usable(); err != nil {
			return 0, fmt.Errorf("read id %d: %w", id, err)
		}
		n, err := s.Find(id)
		if err != nil {
			return 0, err
		}
		if !n.IsRegular() {
			return 0, fmt.Errorf("read id %d: %w", id, unix.EINVAL)
		}
		if off < 0 {
			return 0, fmt.Errorf("read id %d at %d: %w", id, off, unix.EINVAL)
		}
		if off >= n.Size || len(p) == 0 {
			return 0, nil
		}
		var done int
		if n.Sum == nil {
			done, err = s.readPlain(n, p, off)
		} else {
			done, err = s.readVerified(ctx, n, p[:min(int64(len(p)), n.Size-off)], off)
		}
		if errors.Is(err, errChanged) && try < 100 {
			continue
		}
		return done, err
	}
}

// forSlot marks the context of reads that no user waits for.
type forSlot struct{}

// ForSlot is a context for reads for another slot: scrub does not make way for
// them, as it does for users.
func ForSlot(ctx context.Context) context.Context { return context.WithValue(ctx, forSlot{}, true) }

// errChanged: the content changed while it was being read; look again.
var errChanged = errors.New("content changed while it was read")

// errLost: recovery found no copy of a control file's content on this slot, and
// there is no checksum to ask other slots with.
var errLost = errors.New("the content is not on this slot: resync or restore it")

// readPlain reads content without a checksum: that of a control file that has
// changed lately.
func (s *Slot) readPlain(n *Inode, p []byte, off int64) (int, error) {
	h := s.tree.files.get(n.ID)
	if h == nil {
		var err error
		if h, err = s.openStable(n.ID); err != nil {
			return 0, fmt.Errorf("read: %w", err)
		}
	}
	defer h.release()
	if h.lost.Load() {
		err := &DamagedError{ID: n.ID, Path: s.pathOf(n), Err: errLost}
		s.suspect(&judged{n: n, path: err.Path}, err)
		return 0, err
	}
	done, err := readAt(h.fd, p, off)
	if err != nil {
		return done, fmt.Errorf("read id %d: %w", n.ID, err)
	}
	return done, nil
}

// openStable opens a file while index and tree agree.
func (s *Slot) openStable(id op.ID) (*handle, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	n, err := s.ix.inode(id)
	if errors.Is(err, ErrNotExist) {
		return s.tree.trashed(id)
	}
	if err != nil {
		return nil, err
	}
	return s.tree.file(n)
}

// readVerified reads content that has a checksum; p does not reach past its end.
func (s *Slot) readVerified(ctx context.Context, n *Inode, p []byte, off int64) (int, error) {
	if off == 0 && int64(len(p)) == n.Size && n.Size <= op.BlockSize {
		return len(p), s.fillBlock(ctx, n, 0, p) // the usual message: no copy
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		i := int(at / op.BlockSize)
		within := int(at % op.BlockSize)
		length := int(min(op.BlockSize, n.Size-int64(i)*op.BlockSize))
		if within == 0 && len(p)-done >= length {
			if err := s.fillBlock(ctx, n, i, p[done:done+length]); err != nil {
				return done, err
			}
			done += length
			continue
		}
		b, err := s.verified.get(ctx, blockKey{n.ID, n.Changed, i}, func() ([]byte, error) {
			b := make([]byte, length)
			return b, s.fillBlock(ctx, n, i, b)
		})
		if err != nil {
			return done, err
		}
		done += copy(p[done:], b[within:])
	}
	return done, nil
}

// fillBlock reads one whole block into b and verifies it there.
func (s *Slot) fillBlock(ctx context.Context, n *Inode, i int, b []byte) error {
	// First without a lock. Whatever may go wrong by that (the file was just
	// moved, another one has its name) shows in the checksum.
	if fd, ok := s.tree.openQuick(n); ok {
		err := readBlock(fd, n, i, b)
		unix.Close(fd)
		if err == nil {
			return nil
		}
	}
	err := s.readBlockStable(n, i, b)
	if err == nil || errors.Is(err, errChanged) {
		return err
	}
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return err // says nothing about the file
	}
	if err := s.repair(ctx, n.ID, n.Changed, err); err != nil {
		return err
	}
	return s.readBlockStable(n, i, b)
}

// openQuick opens n by its first name, if the directory is open already.
func (t *tree) openQuick(n *Inode) (fd int, ok bool) {
	if len(n.Names) == 0 {
		return -1, false
	}
	at := n.Names[0]
	d := t.root
	if at.Dir != op.Root {
		if d = t.dirs.get(at.Dir); d == nil {
			return -1, false
		}
		defer d.release()
	}
	fd, err := openat(d.fd, at.Name, openRead, 0)
	return fd, err == nil
}

const openRead = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOATIME

// readBlockStable is readBlock of a file opened while index and tree agree. It
// gives errChanged if n's content is no longer what the index has.
func (s *Slot) readBlockStable(n *Inode, i int, b []byte) error {
	fd, err := s.openSame(n)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err = readBlock(fd, n, i, b); err == nil || n.Sealed {
		return err
	}
	// Of a control file: an entry may have changed it meanwhile.
	if now, e := s.Find(n.ID); e == nil && (now.Changed != n.Changed || now.Sum == nil) {
		return errChanged
	}
	return err
}

// openSame opens n if its content is still what n says; the descriptor is the
// caller's.
func (s *Slot) openSame(n *Inode) (int, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	now, err := s.ix.inode(n.ID)
	if errors.Is(err, ErrNotExist) {
		fd, err := openat(s.tree.trash.fd, trashName(n.ID), openRead, 0)
		if err != nil {
			return -1, fmt.Errorf("open id %d in trash: %w", n.ID, err)
		}
		return fd, nil
	}
	if err != nil {
		return -1, err
	}
	if now.Changed != n.Changed || now.Sum == nil {
		return -1, errChanged
	}
	return s.tree.openNamed(now, openRead)
}

// readBlock reads block i of n from fd into b, and verifies it.
func readBlock(fd int, n *Inode, i int, b []byte) error {
	done, err := readAt(fd, b, int64(i)*op.BlockSize)
	if err != nil {
		return fmt.Errorf("read block %d: %w", i, err)
	}
	if done < len(b) {
		return fmt.Errorf("block %d ends after %d of %d bytes", i, done, len(b))
	}
	if !n.Sum.VerifyBlock(i, b) {
		return fmt.Errorf("checksum of block %d differs", i)
	}
	return nil
}

// Lookup finds an object of the applied state by its path from the root.
func (s *Slot) Lookup(path string) (op.ID, error) {
	id := op.Root
	for name := range splitPath(path) {
		c, err := s.ix.child(id, name)
		if err != nil {
			return 0, fmt.Errorf("look up %q: %w", path, err)
		}
		id = c.ID
	}
	return id, nil
}

// Path returns one path of an object of the applied state, from the root.
func (s *Slot) Path(id op.ID) (string, error) { return s.ix.path(id) }
