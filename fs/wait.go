package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// wait is what a call has to wait for before it answers. The zero value is
// nothing: the change runs ahead, as far as admit lets it.
type wait struct {
	seq  uint64
	kind waitKind
}

type waitKind uint8

const (
	waitNone     waitKind = iota
	waitReceived          // every in-sync member has it: control files
	waitBarrier           // committed, and all before it
)

func (k waitKind) String() string { return [...]string{"none", "received", "barrier"}[k] }

// after has the log tell c when w, which is not nothing, is over. A signal to
// the caller does not end it: the change is logged, so EINTR would be a lie (and
// Dovecot, which has an alarm running around its locks, gives up a mailbox on
// EINTR).
func (f *FS) after(w wait, c *call) {
	if s := f.seams.Load(); s != nil && s.wait != nil {
		s.wait(w.kind.String(), w.seq)
	}
	if w.kind == waitReceived {
		f.oplog.AfterReceived(w.seq, c)
	} else {
		f.oplog.AfterBarrier(w.seq, c)
	}
}

// await waits, without locks.
func (f *FS) await(w wait) error {
	if s := f.seams.Load(); s != nil && s.wait != nil && w.kind != waitNone {
		s.wait(w.kind.String(), w.seq)
	}
	if w.kind != waitNone {
		f.mayBlock()
	}
	switch w.kind {
	case waitReceived:
		return f.oplog.WaitReceived(f.ctx, w.seq)
	case waitBarrier:
		return f.oplog.Barrier(f.ctx, w.seq)
	}
	return nil
}

// everything is the wait for all that was appended so far to be committed.
func (f *FS) everything() wait { return wait{f.oplog.Appended.Get(), waitBarrier} }

// startFsync is fsync(2) and fdatasync(2) of a file. For a volatile file it is a
// debt, paid by the rename or link that takes the file out of its class.
func (f *FS) startFsync(in *fuse.FsyncIn) (w wait, err error) {
	f.enter(&in.InHeader)
	volatile := false
	err = f.once(func() error {
		n, err := f.node(in.NodeId)
		if err != nil {
			return err
		}
		if n.nlog == 0 && n.dir == nil {
			volatile, n.debt = true, true
		}
		return nil
	})
	if err == nil && !volatile {
		w = f.everything()
	}
	return w, err
}
