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

// await waits, without locks. A signal to the caller does not end it: the
// change is logged, so EINTR would be a lie (and Dovecot, which has an alarm
// running around its locks, gives up a mailbox on EINTR).
func (f *FS) await(w wait) error {
	if s := f.seams.Load(); s != nil && s.wait != nil && w.kind != waitNone {
		s.wait(w.kind.String(), w.seq)
	}
	switch w.kind {
	case waitReceived:
		return f.oplog.WaitReceived(f.ctx, w.seq)
	case waitBarrier:
		return f.oplog.Barrier(f.ctx, w.seq)
	}
	return nil
}

// barrier waits until everything that was appended so far is committed.
func (f *FS) barrier() error {
	return f.await(wait{f.oplog.Appended.Get(), waitBarrier})
}

// Fsync is fsync(2) and fdatasync(2). For a volatile file it is a debt, paid by
// the rename or link that takes the file out of its class.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f.enter(&in.InHeader)
	volatile := false
	err := f.once(func() error {
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
		err = f.barrier()
	}
	return f.errno(&in.InHeader, err)
}

// FsyncDir is fsync(2) on a directory.
func (f *FS) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	f.enter(&in.InHeader)
	return f.errno(&in.InHeader, f.barrier())
}
