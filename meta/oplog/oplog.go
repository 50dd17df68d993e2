package oplog

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"slotfs/meta/op"
)

// Defaults of Options, and fixed limits.
const (
	DefaultSegmentSize    = 64 << 20
	DefaultMaxUncommitted = 64 << 20
	DefaultFlushDelay     = 20 * time.Millisecond

	maxUnreceived    = 256                    // entries that Reserve lets run ahead of receipt
	maxUnreceivedAge = 100 * time.Millisecond // and for how long
	cacheBytes       = 8 << 20                // of recent entries kept in memory for streamers
	entryOverhead    = 256                    // guess of an entry's memory beside Raw, bytes
	batchBytes       = 1 << 20                // of entries in one batch, unless one entry is longer
	firstSegment     = 1 << 20                // the segment that Open makes in the foreground, bytes
	minSegment       = 8 << 20                // the first that is made in the background, bytes
	prepareRetry     = 100 * time.Millisecond // between attempts on a full disk
)

// Errors that callers act on.
var (
	// ErrNotLeading: the log follows (again), so this slot may not append, and
	// what it had appended may never be committed.
	ErrNotLeading = errors.New("not leading")
	// ErrNoSpace: the disk has no room for the next segment. Nothing was lost.
	ErrNoSpace = errors.New("no space for the log")
	// ErrFaulted: a write or fsync of the log failed, so nobody knows what is
	// durable. Only a new start helps.
	ErrFaulted = errors.New("log faulted")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("log closed")
	// ErrSealed: the epoch has been sealed off.
	ErrSealed = errors.New("epoch sealed")
	// ErrEpoch: an entry's epoch does not fit its place.
	ErrEpoch = errors.New("epoch out of order")
	// ErrCut: what was waited for has been cut off the log.
	ErrCut = errors.New("cut off the log")
	// ErrVersion: the log was written by a newer program.
	ErrVersion = errors.New("unknown log version")
)

// ForkError says that entries do not continue this log.
type ForkError struct {
	Have op.Pos // where the log ends
	Got  op.Pos // what the first refused entry continues (Epoch is the entry's own)
}

func (e *ForkError) Error() string {
	return fmt.Sprintf("entry continues %v, log ends at %v", e.Got, e.Have)
}

// TrimmedError says that the log no longer reaches back far enough.
type TrimmedError struct{ Asked, First uint64 }

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("seq %d has been trimmed, the log begins at %d", e.Asked, e.First)
}

// DamageError says that entries which had been durable cannot be read.
type DamageError struct {
	Path   string // of the segment
	Offset int64  // of the first bad batch
	From   uint64 // first entry that is lost; those that had been trimmed may count
	Next   uint64 // first entry after the damage; From if no entry is lost
	Err    error  // what is wrong with it; may be nil
}

func (e *DamageError) Error() string {
	s := fmt.Sprintf("log damaged: %s at %d: seq %d up to %d", e.Path, e.Offset, e.From, e.Next)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DamageError) Unwrap() error { return e.Err }

// Options of a log. The zero value means the defaults.
type Options struct {
	SegmentSize    int64             // bytes; 64 MiB
	MaxUncommitted int64             // unapplied bytes at which Reserve blocks; 64 MiB
	FlushDelay     time.Duration     // how long an entry that nobody waits for stays in memory only; 20 ms
	Logger         *slog.Logger      // nil discards
	Reserve        func(int64) error // asked by Log.Reserve whether the disks have room; nil: always
	OnFault        func(error)       // called once, in its own goroutine; may be nil
	// PastDamage is asked by Open about damage in the middle of the log. If it
	// says yes, because the slot needs no entry before Next, and a peer that does
	// can be resynced, the log begins at Next; segments before that are put
	// aside under another name. nil: no.
	PastDamage func(*DamageError) bool

	fs fsys // nil: the operating system's
}

// EpochStart is where an epoch begins.
type EpochStart struct {
	op.Pos
	Begin *op.EpochBegin
}

// record is an entry in memory.
type record struct {
	e  *op.Entry
	at time.Duration // when it was appended, since Log.start
}

// ack is what a peer said it has.
type ack struct{ received, durable uint64 }

// Log is one slot's oplog. All methods are safe for concurrent use.
type Log struct {
	// Appended is the last entry, durable or not; Durable the last that is in
	// this slot's log for certain; Received the last that every peer of the
	// in-sync set has in memory (on a replica it stands still); Committed the
	// last that is durable on all of them; Applied the last that is in tree
	// and index.
	Appended, Durable, Received, Committed, Applied *Mark

	// Wanted is the last entry that somebody wants durable, Awaited the last
	// that somebody waits for the receipt of: a streamer sends up to there at
	// once, and passes the first on.
	Wanted, Awaited *Mark

	dir    string
	o      Options
	log    *slog.Logger
	fs     fsys
	start  time.Time // monotonic zero of record.at
	closed chan struct{}
	wg     sync.WaitGroup
	kick   chan struct{} // cap 1: the flusher has work
	prep   chan struct{} // cap 1: the preparer has work
	timer  *time.Timer   // ends FlushDelay

	watchMu  sync.Mutex
	watchers map[*Watcher]struct{}
	watched  atomic.Bool // there are watchers
	stopped  atomic.Bool // the log will not go on

	// flushed is called after each flush; see OnFlush.
	flushed atomic.Pointer[func()]

	// leads mirrors leading for readers without mu.
	leads atomic.Bool

	// token is held (a value in the channel) by whoever writes to segments:
	// the flusher, a Barrier that flushes by itself, Cut, Reset, Close.
	token chan struct{}
	buf   []byte // a batch being assembled; of the holder of token

	// sealMu keeps two Seals apart; it is taken before mu.
	sealMu       sync.Mutex
	sealedOnDisk uint64

	// segMu keeps the files of segments in place while they are read.
	segMu sync.RWMutex

	mu        sync.Mutex // all below
	stirred   bool       // watchers are to be given notice
	err       error      // why the log stopped; nil: it runs
	last      op.Pos
	lastTime  int64
	sealed    uint64
	epochs    []EpochStart
	recovered uint64 // committed mark found by Open

	recs         []record // recent entries, ascending, without gaps, up to last
	recBytes     int64
	unapplied    int64 // bytes of recs not yet applied
	pending      int64 // bytes of recs not yet written
	wanted       uint64
	written      uint64 // what is written and durable
	writtenEpoch uint64 // of the entry at written
	writtenTime  int64
	timerArmed   bool

	leading bool
	peers   []op.SlotID // whose acks count
	next    []op.SlotID // whose acks count too, and alone from epoch nextAt on
	nextAt  uint64      // 0: no change of peers is under way
	begin   uint64      // seq of the EpochBegin of nextAt; 0: not appended yet
	acks    map[op.SlotID]ack
	told    uint64        // committed mark told by the primary
	room    chan struct{} // closed when a blocked Reserve should look again; nil: nobody asked

	segs    []*segment // ascending; the last one is written to
	spare   *segment   // prepared to follow
	nextSeg uint64
	pool    []poolFile // to make segments of
	closing bool
	cursor  cursor
	stuck   bool          // a segment could not be removed
	needed  int64         // least size that the spare must have, bytes
	prepErr error         // of the last attempt; nil: it worked, or is under way
	prepAt  time.Duration // when that was
}

// poolFile is a file of a former segment, all of it written before.
type poolFile struct {
	path string
	size int64
}

// Hurry gives a signal when somebody waits for Applied.
func (l *Log) Hurry() <-chan struct{} { return l.Applied.hurry }

// Unapplied is how many bytes of entries are not applied yet.
func (l *Log) Unapplied() int64 {
	l.mu.Lock()
	defer l.unlock()
	return l.unapplied
}

func (l *Log) active() *segment { return l.segs[len(l.segs)-1] }

func (l *Log) now() time.Duration { return time.Since(l.start) }

// faultLocked stops the log for good.
func (l *Log) faultLocked(cause error) {
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("%w: %w", ErrFaulted, cause)
	l.log.Error("log faulted", "dir", l.dir, "err", cause)
	l.stopLocked()
	if l.o.OnFault != nil {
		go l.o.OnFault(l.err)
	}
}

// Fail stops the log for a reason outside of it: who applies its entries has met
// something that only a new start can judge.
func (l *Log) Fail(cause error) {
	l.mu.Lock()
	defer l.unlock()
	l.faultLocked(cause)
}

// stopLocked makes every wait end with l.err.
func (l *Log) stopLocked() {
	l.stopped.Store(true)
	l.stirred = true
	for _, m := range []*Mark{l.Appended, l.Durable, l.Received, l.Committed, l.Applied, l.Wanted, l.Awaited} {
		m.fail(l.err)
	}
	l.wakeLocked()
}

// wakeLocked lets blocked Reserves look again.
func (l *Log) wakeLocked() {
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}

// unlock gives mu back, and tells the Waiters whose waits ended under it.
func (l *Log) unlock() {
	stirred := l.stirred
	l.stirred = false
	l.mu.Unlock()
	if stirred {
		l.notice()
	}
	l.Received.tell()
	l.Committed.tell()
}

// unlockQuietly is unlock for a caller who may hold what a Waiter needs.
func (l *Log) unlockQuietly() {
	stirred := l.stirred
	l.stirred = false
	l.mu.Unlock()
	if stirred {
		l.notice()
	}
	if l.Received.some.Load() || l.Committed.some.Load() {
		go func() {
			l.Received.tell()
			l.Committed.tell()
		}()
	}
}

// roomLocked returns a channel that closes when something has changed that
// Reserve, or a flusher without room, may be waiting for.
func (l *Log) roomLocked() <-chan struct{} {
	if l.room == nil {
		l.room = make(chan struct{})
	}
	return l.room
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
