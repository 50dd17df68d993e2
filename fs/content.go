package fs

import (
	"fmt"
	"io"
	"math"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Read implements fuse.RawFileSystem.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	f.enter(&in.InHeader)
	if data, ok := f.readVirtual(in.NodeId, int64(in.Offset), len(buf)); ok {
		return fuse.ReadResultData(data), fuse.OK
	}
	if uint64(in.Size) < uint64(len(buf)) {
		buf = buf[:in.Size]
	}
	n, err := f.read(in.NodeId, buf, int64(in.Offset))
	if err != nil {
		return nil, f.errno(&in.InHeader, err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (f *FS) read(nodeid uint64, p []byte, off int64) (int, error) {
	for try := 0; ; try++ {
		var n *node
		var im image
		volatile := false
		err := f.once(func() (err error) {
			if n, err = f.node(nodeid); err != nil {
				return err
			}
			if !n.isRegular() {
				return syscall.EISDIR
			}
			if volatile = n.vol != nil; !volatile {
				im = n.image()
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		if volatile {
			got, again, err := f.readVolatile(n, p, off)
			if again {
				continue
			}
			return got, err
		}
		got, err := f.readImage(&im, p, off)
		im.close()
		if err != nil || try == 3 {
			return got, err
		}
		same := false
		f.once(func() error { same = n.changed == im.changed; return nil })
		if same {
			return got, nil
		}
	}
}

// readVolatile reads from vol; again says that there is none any more.
func (f *FS) readVolatile(n *node, p []byte, off int64) (got int, again bool, err error) {
	if !n.data.TryRLock() {
		f.mayBlock()
		n.data.RLock()
	}
	defer n.data.RUnlock()
	if n.vol == nil {
		return 0, true, nil
	}
	got, err = n.vol.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return got, false, err
}

// edit is one change of content, wherever that is kept.
type edit struct {
	grow  int64                    // bytes that it may add to the disks
	op    func(id op.ID) op.Op     // what is logged
	pend  func(e *op.Entry) change // what is laid over the applied state; seq is filled in
	blob  func(b *blob) error      // the same for a volatile file
	size  func(old int64) int64    // what the size becomes
	strip bool                     // take set-user-id and set-group-id away
	quiet bool                     // pend is not needed: the content stays as it is
}

// edit changes the content of a regular file.
func (f *FS) edit(nodeid uint64, ed edit) (w wait, err error) {
	if e := f.refused.Load(); e != 0 {
		return w, syscall.Errno(e)
	}
	var n *node
	err = f.once(func() (err error) {
		if n, err = f.node(nodeid); err == nil && !n.isRegular() {
			err = syscall.EINVAL
		}
		return err
	})
	if err != nil {
		return w, err
	}
	f.lockData(n)
	defer n.data.Unlock()
	for {
		logged := false
		f.once(func() error { logged = n.nlog > 0; return nil })
		if logged {
			if err = f.admit(ed.grow, ed.grow > 0); err != nil {
				return w, err
			}
			err = f.once(func() error { w, err = f.editLogged(n, &ed); return err })
			if err == errAgain {
				continue
			}
			return w, err
		}
		if n.vol == nil { // its last logged name is gone
			if err = f.detach(n); err == errAgain {
				continue
			} else if err != nil {
				return w, err
			}
		}
		return w, f.editVolatile(n, &ed)
	}
}

// lockData locks n.data exclusively.
func (f *FS) lockData(n *node) {
	if !n.data.TryLock() {
		f.mayBlock()
		n.data.Lock()
	}
}

// editLogged appends the change of a logged file. mu and n.data are held.
func (f *FS) editLogged(n *node, ed *edit) (w wait, err error) {
	if n.nlog == 0 {
		return w, errAgain
	}
	if n.sealed {
		return w, syscall.EPERM // a message is written once
	}
	e, err := f.append(ed.op(n.id), n)
	if err != nil {
		return w, err
	}
	if !ed.quiet {
		c := ed.pend(e)
		c.seq = e.Seq
		n.pend = append(n.pend, c)
	}
	n.size = ed.size(n.size)
	n.mtime, n.ctime, n.changed = e.Time, e.Time, e.Seq
	f.wantSeal(n)
	w.seq = e.Seq
	if f.isControl(n) {
		w.kind = waitReceived
	}
	if ed.strip {
		err = f.strip(n)
	}
	return w, err
}

// editVolatile changes a volatile file. n.data is held.
func (f *FS) editVolatile(n *node, ed *edit) error {
	if err := ed.blob(n.vol); err != nil {
		return err
	}
	return f.once(func() error {
		n.size = n.vol.size
		n.mtime = now()
		n.ctime = n.mtime
		if ed.strip {
			return f.strip(n)
		}
		return nil
	})
}

// isControl reports whether the file n is known under a name of the control
// class: other servers' clients may see what is in it at once. mu is held.
func (f *FS) isControl(n *node) bool {
	for _, e := range n.names {
		if e.logged && f.class(e.dir, e.name) != classMessage {
			return true
		}
	}
	return len(n.names) == 0
}

// detach turns a file that has lost its last logged name into a volatile one:
// what was its content is meta's to free. n.data is held.
func (f *FS) detach(n *node) error {
	var im image
	err := f.once(func() error {
		if n.nlog > 0 || n.vol != nil {
			return errAgain
		}
		im = n.image()
		return nil
	})
	if err != nil {
		return err
	}
	defer im.close()
	f.mayBlock()
	b := f.spill.blob()
	if err := f.copyImage(&im, b); err != nil {
		b.release()
		return fmt.Errorf("copy content of unlinked file: %w", err)
	}
	return f.once(func() error {
		delete(f.byID, n.id)
		n.id, n.sealed, n.vol, n.pend = 0, false, b, nil
		for _, e := range n.names {
			e.id = 0
		}
		if n.base != nil {
			n.base.release()
			n.base = nil
		}
		return nil
	})
}

func (f *FS) copyImage(im *image, b *blob) error {
	if im.size > 0 && im.size <= b.from.perFile {
		if err := b.room(im.size); err != nil {
			return err
		}
	}
	buf := make([]byte, min(im.size, 1<<20))
	for off := int64(0); off < im.size; {
		n, err := f.readImage(im, buf, off)
		if err != nil {
			return err
		}
		if _, err := b.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// startWrite writes; data is the caller's again when it returns. O_APPEND needs
// nothing: the kernel has computed the offset, and it alone changes sizes.
func (f *FS) startWrite(in *fuse.WriteIn, data []byte) (wait, error) {
	f.enter(&in.InHeader)
	off := int64(in.Offset)
	if in.Offset > maxFile || off+int64(len(data)) > maxFile {
		return wait{}, syscall.EFBIG
	}
	end := off + int64(len(data))
	w, err := f.edit(in.NodeId, edit{
		grow:  int64(len(data)),
		op:    func(id op.ID) op.Op { return &op.Write{ID: id, Off: off, Data: data} },
		pend:  func(e *op.Entry) change { return change{off: off, data: e.Op.(*op.Write).Data} },
		blob:  func(b *blob) error { _, err := b.WriteAt(data, off); return err },
		size:  func(old int64) int64 { return max(old, end) },
		strip: in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0,
		quiet: len(data) == 0,
	})
	if err == nil && w.seq != 0 && in.Flags&(unix.O_SYNC|unix.O_DSYNC) != 0 {
		w.kind = waitBarrier
	}
	return w, err
}

// truncate sets the size of a file.
func (f *FS) truncate(nodeid uint64, size int64, strip bool) (wait, error) {
	if size < 0 || size > maxFile {
		return wait{}, syscall.EFBIG
	}
	return f.edit(nodeid, edit{
		op:    func(id op.ID) op.Op { return &op.Truncate{ID: id, Size: size} },
		pend:  func(*op.Entry) change { return change{off: size, n: math.MaxInt64} },
		blob:  func(b *blob) error { return b.truncate(size) },
		size:  func(int64) int64 { return size },
		strip: strip,
	})
}

// Fallocate implements fuse.RawFileSystem for the modes that can be applied
// twice; the ones that move content are refused, as some file systems do.
func (f *FS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	f.enter(&in.InHeader)
	const keep = unix.FALLOC_FL_KEEP_SIZE
	zero := false
	switch in.Mode {
	case 0, keep:
	case unix.FALLOC_FL_PUNCH_HOLE | keep, unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | keep:
		zero = true
	default:
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	if in.Offset > maxFile || in.Length > maxFile || in.Offset+in.Length > maxFile {
		return fuse.Status(syscall.EFBIG)
	}
	off, n := int64(in.Offset), int64(in.Length)
	grow := n
	if in.Mode&unix.FALLOC_FL_PUNCH_HOLE != 0 {
		grow = 0
	}
	size := func(old int64) int64 {
		if in.Mode&keep != 0 {
			return old
		}
		return max(old, off+n)
	}
	if err := f.space(grow); err != nil {
		return f.errno(&in.InHeader, err)
	}
	w, err := f.edit(in.NodeId, edit{
		op:   func(id op.ID) op.Op { return &op.Fallocate{ID: id, Mode: in.Mode, Off: off, Len: n} },
		pend: func(*op.Entry) change { return change{off: off, n: n} },
		blob: func(b *blob) error {
			if zero {
				if err := b.zero(off, n); err != nil {
					return err
				}
			}
			if s := size(b.size); s > b.size {
				return b.truncate(s)
			}
			return nil
		},
		size:  size,
		quiet: !zero,
		// The kernel does not say; only root has CAP_FSETID as a rule.
		strip: in.Uid != 0,
	})
	if err == nil {
		err = f.await(w)
	}
	return f.errno(&in.InHeader, err)
}

// space refuses what would take the last of the disk.
func (f *FS) space(n int64) error {
	if n == 0 {
		return nil
	}
	return f.slot.Space(n)
}
