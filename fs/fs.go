package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Keys of log attributes.
const (
	keyOp    = "op"
	keyErr   = "err"
	keyMount = "mount"
	keyID    = "id"
	keySeq   = "seq"
)

// Options is how a slot is mounted. The zero value works.
type Options struct {
	// NoXAttr turns extended attributes and ACLs off for the life of the mount.
	// That saves the kernel's question for security.capability before writes.
	NoXAttr bool
	// SealAfter is how long a control file must have been quiet before its
	// content is sealed; 0 means 5 s, less than 0 never.
	SealAfter time.Duration
	// MemoryPerFile and MemoryTotal bound the memory that volatile files take, in
	// bytes; what is more goes to unlinked files. 0 means 256 KiB and 64 MiB.
	MemoryPerFile, MemoryTotal int64
	// ApplyWait is how long Mount waits until everything in the log has been
	// applied; 0 means 60 s.
	ApplyWait time.Duration
	// ProtectMountPoint makes the bare mount point unwritable (mode 0555 and,
	// where the file system can, immutable), so that nothing is delivered into
	// it while the slot is not mounted. It stays so after Unmount.
	ProtectMountPoint bool

	// Status is what .slotfs/status shows; nil: there is no such file.
	Status func() []byte
	// OnPanic is told of a panic in a request, after the slot was faulted.
	OnPanic func(any)
	Logger  *slog.Logger // nil: slog.DiscardHandler
}

func (o Options) withDefaults() Options {
	if o.SealAfter == 0 {
		o.SealAfter = 5 * time.Second
	}
	if o.MemoryPerFile == 0 {
		o.MemoryPerFile = 256 << 10
	}
	if o.MemoryTotal == 0 {
		o.MemoryTotal = 64 << 20
	}
	if o.ApplyWait == 0 {
		o.ApplyWait = 60 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// FS is one mounted slot. See the package comment for the rules.
type FS struct {
	fuse.RawFileSystem // answers ENOSYS to what is not below

	slot   *meta.Slot
	oplog  *oplog.Log
	layout *meta.Layout
	opt    Options
	log    *slog.Logger
	mount  string // absolute path of the mount point
	dev    *device
	proto  *fuse.ProtocolServer // reads what serve.go does not
	spill  spill

	ctx    context.Context // ends when the mount is given up
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // the goroutines of this FS

	telling sync.Mutex // held while the kernel is told something; alone
	ended   bool       // under telling: the mount is being ended

	stats    [opcodes]atomic.Uint64
	doorShut atomic.Bool           // see door.go
	refused  atomic.Int32          // errno for all changes; 0: none
	seams    atomic.Pointer[seams] // set by tests

	complaintMu sync.Mutex
	complaints  map[complaint]time.Time // when each was last told

	// mu guards the namespace, the nodes (except what their own locks guard) and
	// the order of the log: whoever appends holds it. No I/O and no waiting
	// under it.
	mu       sync.Mutex
	nodes    map[uint64]*node
	byID     map[op.ID]*node
	loading  map[op.ID]chan struct{} // inodes that somebody is reading from meta
	lastNode uint64
	lastVol  uint64
	fifo     []unapplied
	dirTimes map[op.ID]int64 // mtimes newer than the log's, of directories not in memory
	dirty    map[op.ID]quiet // control files that want a seal
	virt     map[uint64]*virtual
	lastVirt uint64
}

// unapplied says that n is concerned by an entry that may not be applied yet.
type unapplied struct {
	seq uint64
	n   *node
}

var (
	// errUnmounting ends waits when the mount is given up.
	errUnmounting = errors.New("file system is being unmounted")
	// errAgain makes an operation start over: what it had prepared no longer
	// fits.
	errAgain = errors.New("state changed meanwhile")
)

// maxFile bounds offsets and sizes: what ext4 with blocks of 4 KiB can hold, so
// that apply cannot fail on it.
const maxFile = 1<<44 - 1<<12

const (
	maxName  = 255   // bytes; ext4, XFS
	maxLinks = 65000 // ext4
)

// overhead is what an entry takes beside the bytes of the caller, generously.
const overhead = 512

// enter is the first thing that every request does.
func (f *FS) enter(h *fuse.InHeader) {
	if h.Opcode < opcodes {
		f.stats[h.Opcode].Add(1)
	}
	if s := f.seams.Load(); s != nil && s.request != nil {
		s.request(h)
	}
}

// seams are what a test may put between: request is called at the start of
// every request, wait before every wait.
type seams struct {
	request func(h *fuse.InHeader)
	wait    func(kind string, seq uint64)
}

// panicked is called by go-fuse for a panic in a request. Locks are released
// by then (deferred), but what the request was changing may be half done: so
// the slot stops, and nothing more is appended.
func (f *FS) panicked(v any) fuse.Status {
	f.log.Error("panic in a request", "panic", v, "stack", string(debug.Stack()))
	f.slot.Fault(fmt.Errorf("panic in the file system: %v", v))
	if f.opt.OnPanic != nil {
		f.opt.OnPanic(v)
	}
	return fuse.EIO
}

// Refuse makes all changes from now on fail with errno; 0 admits them again.
// When it returns no call is about to append any more.
func (f *FS) Refuse(errno syscall.Errno) {
	f.refused.Store(int32(errno))
	f.mu.Lock()
	defer f.mu.Unlock()
}

// admit is called without locks by what is going to append n bytes. It blocks
// while too much is unapplied or the replica is too far behind. What does not
// grow anything is not asked for space: its entry comes out of the reserve, or
// nobody could remove mail from a full disk.
func (f *FS) admit(n int64, grows bool) error {
	if e := f.refused.Load(); e != 0 {
		return syscall.Errno(e)
	}
	if !grows {
		return f.reserve(0)
	}
	if err := f.slot.Space(n + overhead); err != nil {
		return err
	}
	return f.reserve(int(n) + overhead)
}

func (f *FS) reserve(n int) error {
	if wait, err := f.oplog.TryReserve(n); !wait {
		return err
	}
	f.mayBlock()
	return f.oplog.Reserve(f.ctx, n)
}

// append adds an entry that concerns the nodes given. mu is held. Nothing in
// memory may be changed before it succeeded.
func (f *FS) append(o op.Op, nodes ...*node) (*op.Entry, error) {
	if e := f.refused.Load(); e != 0 {
		return nil, syscall.Errno(e)
	}
	e, err := f.oplog.Append(o)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n != nil {
			n.lastSeq = e.Seq
			f.fifo = append(f.fifo, unapplied{e.Seq, n})
		}
	}
	return e, nil
}

// now is the time of a change that is not logged.
func now() int64 { return time.Now().UnixNano() }

// missing is returned under mu by what needs something that is not in memory.
type missing struct {
	ids []op.ID // inodes
	dir *node   // or the entries of this directory
}

func (*missing) Error() string { return "not in memory" }

// locked runs body under mu. When body returns a *missing that is loaded,
// without mu, and body starts again; so it must not have changed anything yet.
func (f *FS) locked(body func() error) error {
	for {
		err := f.once(body)
		m, ok := err.(*missing)
		if !ok {
			return err
		}
		f.mayBlock()
		if m.dir != nil {
			if err := f.loadDir(m.dir); err != nil {
				return err
			}
		}
		for _, id := range m.ids {
			if err := f.loadInode(id); err != nil {
				return err
			}
		}
	}
}

func (f *FS) once(body func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return body()
}
