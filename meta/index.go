package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"slotfs/meta/op"
)

// index maps ids to inodes and (directory, name) to ids. badger holds it
// exactly as it was at the last checkpoint; what came later is in memory:
//
//	active   changed since the last freeze
//	frozen   being written to badger by the checkpoint under way, or nil
//	badger   the last checkpoint
//
// looked up in this order. There is one writer at a time (the applier, or
// recovery, or a resync); readers are welcome at any time.
//
// The records of directories and entries follow from the inodes: put and dropLocked
// keep entries, nlink, Entries, Count, Bytes, and the slot's digest right, so
// a caller only says what an inode looks like and which names it has.
type index struct {
	dir  string
	log  *slog.Logger
	db   *badger.DB
	mute *atomic.Bool // db was replaced: what it says is of no interest any more

	// retired are badgers that were replaced while somebody may have been reading
	// from them: they stay open until the index is closed.
	retired []*badger.DB
	swaps   atomic.Uint64 // how often the index was replaced

	verifying sync.Mutex // guards when, and how long the last verify was; before mu
	verified  time.Time
	took      time.Duration

	// mu guards everything below. Inodes are never changed once they are in
	// here, so a reader keeps what it got without the lock.
	mu     sync.RWMutex
	active *delta
	frozen *delta
	state  state // with active
	base   state // of badger
	// clean caches inodes of badger that no delta has. gen counts the times
	// that a frozen delta went away: an inode read from badger may enter clean
	// only if gen is still what it was before the read, or it could be stale.
	clean map[op.ID]*Inode
	gen   uint64
	ring  digestRing
	// now reads badger as it is between two commits; one transaction for all
	// single lookups, since beginning one costs more than the lookup.
	now view
}

// state says what an index is the index of.
type state struct {
	Pos      op.Pos    `json:"pos"`  // the last entry in it
	Time     int64     `json:"time"` // of that entry
	Digest   op.Digest `json:"-"`
	Sum      [2]uint64 `json:"digest"` // Digest, as JSON
	Objects  uint64    `json:"objects"`
	Messages uint64    `json:"messages"` // sealed files
	Bytes    uint64    `json:"bytes"`    // of regular files

	Unverified      uint64 `json:"unverified,omitempty"` // messages without a checksum
	UnverifiedBytes uint64 `json:"unverified_bytes,omitempty"`
}

// count adds n to the totals, or with sign -1 takes it away.
func (st *state) count(n *Inode, sign int64) {
	st.Objects += uint64(sign)
	if n.IsRegular() {
		st.Bytes += uint64(sign * n.Size)
	}
	if n.Sealed {
		st.Messages += uint64(sign)
	}
	if n.lacks() == lacksSum {
		st.Unverified += uint64(sign)
		st.UnverifiedBytes += uint64(sign * n.Size)
	}
}

// delta is a set of changes to the index: nil and ID 0 stand for removal.
type delta struct {
	inodes  map[op.ID]*Inode
	entries map[op.ID]map[string]Child
	subdirs map[op.ID]map[op.ID]bool
	lacking map[op.ID]lack
	deleted map[op.ID]*Deletion
	records int   // upper bound of the records to write
	bytes   int64 // upper bound of their bytes
}

func newDelta() *delta {
	return &delta{
		inodes:  make(map[op.ID]*Inode),
		entries: make(map[op.ID]map[string]Child),
		subdirs: make(map[op.ID]map[op.ID]bool),
		lacking: make(map[op.ID]lack),
		deleted: make(map[op.ID]*Deletion),
	}
}

const (
	memTableSize = 16 << 20
	// A transaction of badger may take 15 % of the memtable, and as many
	// records as skip list nodes (96 bytes) fit in there.
	maxTxnBytes   = memTableSize * 15 / 100
	maxTxnRecords = maxTxnBytes / 96
	recordCost    = 32 // what badger counts for a record besides key and value, generously
	cleanMax      = 16384
)

// errIndex: an entry contradicts the index.
var errIndex = errors.New("entry contradicts the index")

// openIndex opens the index in dir, making an empty one if there is none.
func openIndex(dir string, log *slog.Logger) (*index, error) {
	if err := checkTables(dir); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	x := &index{dir: dir, log: log, active: newDelta(), clean: make(map[op.ID]*Inode)}
	if err := x.openDB(memTableSize); err != nil {
		return nil, err
	}
	var err error
	if x.base, err = x.now.state(); err != nil {
		x.close()
		return nil, fmt.Errorf("read index state: %w", err)
	}
	x.state = x.base
	x.ring.set(x.state.Pos.Seq, x.state.Digest)
	return x, nil
}

// openDB opens badger within about 25 MB of memory: no compression and
// therefore no block cache (tables are mapped), one table of 16 MB in use and
// one being written.
func (x *index) openDB(memTable int64) error {
	mute := new(atomic.Bool)
	o := badger.DefaultOptions(x.dir).
		WithLogger(badgerLog{x.log, mute}).
		WithMetricsEnabled(false).
		WithSyncWrites(false).
		WithDetectConflicts(false).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		WithChecksumVerificationMode(options.OnBlockRead).
		WithVerifyValueChecksum(true).
		WithMemTableSize(memTable).
		WithNumMemtables(2).
		WithNumCompactors(2).
		WithNumGoroutines(1).
		WithValueLogFileSize(16 << 20).
		WithNumVersionsToKeep(1)
	db, err := badger.Open(o)
	if err != nil {
		return fmt.Errorf("open index: %w", err)
	}
	x.db, x.mute = db, mute
	x.now = view{db.NewTransaction(false)}
	return nil
}

// renew makes what was written to badger visible to lookups; mu is held.
func (x *index) renew() {
	x.now.txn.Discard()
	x.now = view{x.db.NewTransaction(false)}
}

func (x *index) close() error {
	x.now.txn.Discard()
	for _, db := range x.retired {
		closeDB(db) // damaged: whatever it says
	}
	x.retired = nil
	if err := closeDB(x.db); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	return nil
}

// inode finds an inode by id; ErrNotExist if there is none.
func (x *index) inode(id op.ID) (*Inode, error) {
	x.mu.RLock()
	n, known := x.memory(id)
	gen := x.gen
	var err error
	if !known {
		n, err = x.load(id)
	}
	x.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if !known && n != nil {
		x.mu.Lock()
		x.keepClean(n, gen)
		x.mu.Unlock()
	}
	if n == nil {
		return nil, ErrNotExist
	}
	return n, nil
}

// inodeLocked is inode for the writer, who holds mu.
func (x *index) inodeLocked(id op.ID) (*Inode, error) {
	n, known := x.memory(id)
	if !known {
		var err error
		if n, err = x.load(id); err != nil {
			return nil, err
		}
		if n != nil {
			x.keepClean(n, x.gen)
		}
	}
	if n == nil {
		return nil, ErrNotExist
	}
	return n, nil
}

// deltas are what badger does not have, the older one first; mu is held.
func (x *index) deltas() []*delta {
	if x.frozen == nil {
		return []*delta{x.active}
	}
	return []*delta{x.frozen, x.active}
}

// memory answers from what is in memory; mu is held.
func (x *index) memory(id op.ID) (n *Inode, known bool) {
	if n, known = x.active.inodes[id]; known {
		return n, true
	}
	if x.frozen != nil {
		if n, known = x.frozen.inodes[id]; known {
			return n, true
		}
	}
	n, known = x.clean[id]
	return n, known
}

// load reads from badger, nil if it has no such inode; mu is held.
func (x *index) load(id op.ID) (*Inode, error) {
	n, err := x.now.inode(id)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	return n, err
}

// keepClean caches an inode read from badger at generation gen; mu is held.
func (x *index) keepClean(n *Inode, gen uint64) {
	if gen != x.gen {
		return
	}
	if _, known := x.memory(n.ID); known {
		return
	}
	if len(x.clean) >= cleanMax {
		for id := range x.clean { // any: maps iterate in random order
			delete(x.clean, id)
			if len(x.clean) < cleanMax*7/8 {
				break
			}
		}
	}
	x.clean[n.ID] = n
}

// child finds one entry of a directory; ErrNotExist if there is none.
func (x *index) child(dir op.ID, name string) (Child, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.childLocked(dir, name)
}

func (x *index) childLocked(dir op.ID, name string) (Child, error) {
	for _, d := range slices.Backward(x.deltas()) {
		if c, known := d.entries[dir][name]; known {
			if c.ID == 0 {
				return Child{}, ErrNotExist
			}
			return c, nil
		}
	}
	return x.now.child(dir, name)
}

// current is the state with everything applied.
func (x *index) current() state {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.state
}

// checkpointed is the state that badger holds.
func (x *index) checkpointed() state {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.base
}

// badgerLog sends what badger says to slog; its chatter only at debug level.
type badgerLog struct {
	log  *slog.Logger
	mute *atomic.Bool
}

func (l badgerLog) Errorf(f string, a ...any)   { l.say(slog.LevelError, f, a) }
func (l badgerLog) Warningf(f string, a ...any) { l.say(slog.LevelWarn, f, a) }
func (l badgerLog) Infof(f string, a ...any)    { l.say(slog.LevelDebug, f, a) }
func (l badgerLog) Debugf(f string, a ...any)   { l.say(slog.LevelDebug, f, a) }

func (l badgerLog) say(level slog.Level, f string, a []any) {
	if l.mute.Load() {
		level = slog.LevelDebug
	}
	l.log.Log(context.Background(), level, "index: "+strings.TrimSpace(fmt.Sprintf(f, a...)))
}
