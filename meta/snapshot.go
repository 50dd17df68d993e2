package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// Snapshot is the index exactly as it was at one entry, held while another slot
// is resynced from it. Its methods may be called by several goroutines. The
// log from Pos on stays as long as the Snapshot is open.
type Snapshot struct {
	state SnapshotState
	done  func()

	mu      sync.Mutex // badger's transactions are for one goroutine at a time
	txn     *badger.Txn
	digests map[op.ID]op.Digest // subtrees
}

// SnapshotState says what a Snapshot is of.
type SnapshotState struct {
	Pos      op.Pos    `json:"pos"`    // the last entry in it
	Time     int64     `json:"time"`   // of that entry, ns since 1970
	Digest   op.Digest `json:"digest"` // of the whole slot
	Objects  uint64    `json:"objects"`
	Messages uint64    `json:"messages"` // sealed files
	Bytes    uint64    `json:"bytes"`    // of regular files
}

// stageWait is how long Snapshot waits for a moment without staged content.
const stageWait = 5 * time.Second

// Snapshot opens one, of a checkpoint that is made for it. It stops the applier
// for as long as a checkpoint takes, not longer.
//
// Chunks before the Snapshot whose Put comes after it would be missing on the
// other slot, so it is taken when nothing is staged; the chunks and the Put of
// a large message follow each other closely. A stage that stays open was given
// up by whoever began it, and no Put will come.
func (s *Slot) Snapshot(ctx context.Context) (*Snapshot, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	giveUp := time.NewTimer(stageWait)
	defer giveUp.Stop()
	for waited := false; ; {
		if s.Resyncing() {
			return nil, fmt.Errorf("snapshot: %w", ErrResyncing)
		}
		if err := errors.Join(s.Faulted(), ctx.Err()); err != nil {
			return nil, err
		}
		progress := s.Log.Applied.Changed()
		sn, err := s.snapshotNow(waited)
		if sn != nil || err != nil {
			return sn, err
		}
		select {
		case <-progress:
		case <-giveUp.C:
			waited = true
		case <-ctx.Done():
		}
	}
}

// snapshotNow makes a checkpoint and opens it; nil if something is staged,
// unless that does not matter.
func (s *Slot) snapshotNow(anyway bool) (*Snapshot, error) {
	defer s.pauseApplier()()
	names, err := readNames(s.dir, dirStage)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	if !anyway && slices.ContainsFunc(names, isNumber) {
		return nil, nil
	}
	return s.openSnapshot()
}

// ErrPassed: the state asked for was left behind already.
var ErrPassed = errors.New("the slot is past that entry")

// SnapshotAt opens a snapshot of exactly the state after entry seq, waiting for
// it until ctx ends; ErrPassed if that is too late. Two slots with a snapshot
// at the same seq can be compared, whatever goes on meanwhile.
func (s *Slot) SnapshotAt(ctx context.Context, seq uint64) (*Snapshot, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.Resyncing() {
		return nil, fmt.Errorf("snapshot: %w", ErrResyncing)
	}
	a := &s.applier
	a.stopAt.Store(seq)
	err := s.Log.Applied.Wait(ctx, seq)
	start := s.pauseApplier()
	a.stopAt.Store(0)
	defer start()
	if err != nil {
		return nil, fmt.Errorf("snapshot of entry %d: %w", seq, err)
	}
	if at := s.ix.current().Pos.Seq; at != seq {
		return nil, fmt.Errorf("snapshot of entry %d: %w, at %d", seq, ErrPassed, at)
	}
	return s.openSnapshot()
}

// openSnapshot makes a checkpoint and opens it. The applier is not running.
func (s *Slot) openSnapshot() (*Snapshot, error) {
	if err := s.checkpoint(); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	release := s.pinLog(s.ix.checkpointed().Pos.Seq + 1)
	s.ix.mu.RLock()
	txn := s.ix.db.NewTransaction(false)
	s.ix.mu.RUnlock()
	st, err := view{txn}.state()
	if err != nil {
		txn.Discard()
		release()
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	return &Snapshot{
		state: SnapshotState{Pos: st.Pos, Time: st.Time, Digest: st.Digest, Objects: st.Objects, Messages: st.Messages, Bytes: st.Bytes},
		txn:   txn, done: release, digests: map[op.ID]op.Digest{},
	}, nil
}

// pauseApplier stops the applier and returns what starts it again, if it ran.
// The caller holds admin.
func (s *Slot) pauseApplier() (start func()) {
	a := &s.applier
	a.mu.Lock()
	ran := a.cancel != nil
	a.mu.Unlock()
	s.stopApplier()
	return func() {
		if ran && s.Faulted() == nil {
			s.startApplier()
		}
	}
}

// State says what the Snapshot is of, Pos only where it stands.
func (n *Snapshot) State() SnapshotState { return n.state }

// Pos is the last entry in the Snapshot.
func (n *Snapshot) Pos() op.Pos { return n.state.Pos }

// Inode returns an object; ErrNotExist if there is none with that id.
func (n *Snapshot) Inode(id op.ID) (*Inode, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.txn == nil {
		return nil, ErrClosed
	}
	return view{n.txn}.inode(id)
}

// Children lists a directory in order of name.
func (n *Snapshot) Children(dir op.ID) ([]Child, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.txn == nil {
		return nil, ErrClosed
	}
	return view{n.txn}.whole(dir)
}

// DirDigest is the digest of a directory and all that is below it. It looks at
// directories only, and at each of them once in the Snapshot's life.
func (n *Snapshot) DirDigest(dir op.ID) (op.Digest, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.txn == nil {
		return op.Digest{}, ErrClosed
	}
	return subtreeDigest(view{n.txn}, dir, n.digests)
}

// Close lets the log be trimmed again.
func (n *Snapshot) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.txn != nil {
		n.txn.Discard()
		n.done()
		n.txn = nil
	}
}

// dirView is what subtreeDigest needs of an index.
type dirView interface {
	inode(id op.ID) (*Inode, error)
	subdirs(dir op.ID) ([]op.ID, error)
}

// subtreeDigest is the elements of dir itself, of its entries, and the same of
// each directory below. known, if not nil, remembers; what is below dir goes in
// before dir.
func subtreeDigest(v dirView, dir op.ID, known map[op.ID]op.Digest) (op.Digest, error) {
	if d, ok := known[dir]; ok {
		return d, nil
	}
	in, err := v.inode(dir)
	if err != nil {
		return op.Digest{}, fmt.Errorf("digest of directory %d: %w", dir, err)
	}
	subdirs, err := v.subdirs(dir)
	if err != nil {
		return op.Digest{}, fmt.Errorf("digest of directory %d: %w", dir, err)
	}
	d := ownElements(in)
	d.Add(in.Entries)
	for _, sub := range subdirs {
		below, err := subtreeDigest(v, sub, known)
		if err != nil {
			return op.Digest{}, err
		}
		d.Add(below)
	}
	if known != nil {
		known[dir] = d
	}
	return d, nil
}
