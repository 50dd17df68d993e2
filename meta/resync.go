package meta

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// Resync brings a slot to the state of another one's Snapshot, without its log:
// because the slot is new or was emptied, because the other's log does not
// reach back to what it has, or because it has applied what the store's history
// lacks. Package repl carries questions and answers; what they mean is here.
//
//  1. ResyncBegin writes the marker resync.json. From now on index and tree are
//     of no use until ResyncEnd: the slot applies nothing, and a start does not
//     recover it but waits for the resync to go on. The log's entries that the
//     two histories may not share go to rescue/.
//  2. Directories are compared top-down, the root first: ResyncSame, and where
//     it says no, ResyncDir with the source's inode of the directory, its
//     entries, and the inodes of those that are no directories. The records
//     go into the index as they are, in batches: those of the entries before
//     the one of their directory, so that a directory is the same only when
//     everything in it was written. What loses its name by that stays in the
//     index, and in the tree, until the end.
//  3. Content that is not here is wanted: ResyncWanted lists it, ResyncContent
//     takes it, verified, into stage/sync-ID, ResyncSkip gives it up because
//     the source has it no longer. Content is here if the local index had
//     the id with the same checksum; or, without a checksum, with the same
//     last change, if both histories are one up to that. The list is
//     durable, and written before the index lets the file look complete.
//     Content without a checksum is taken as it is at that time: the entries
//     from the Snapshot on come through the log and are applied over it, with
//     absolute offsets, which ends in the same bytes. Until the last entry that
//     any of it contains is applied (CompleteFrom), the slot is a mixture,
//     and no copy of anything.
//  4. ResyncEnd drops from the index what the root no longer leads to, proves
//     that the digest is the Snapshot's, and only then changes the tree:
//     reconcile, over everything. Files that the source lacks go to trash/ if
//     both histories had them, so that the source must have removed them; to
//     quarantine/ if not, and also if they are more than half of all messages:
//     a member never empties its peer. Then the log begins anew at the
//     Snapshot's entry, and the marker goes.
//
// Before ResyncEnd the tree is untouched: if no source ever comes back, Recover
// and Rebuild still find all the slot had. A stop at any moment loses nothing:
// what was compared and written is the same by digest, what was fetched is in
// stage/ and not wanted any more; once the tree is being changed, the next
// start finishes by itself.
type resyncing struct {
	resyncMarker
	file string

	progress ResyncStatus // under Slot.mu
	pending  []*Inode     // directories whose entries wait to be written
	staged   []op.ID      // fetched, not durable so far
	bytes    int64        // of staged
	unsaved  bool         // see refill.go
	cursor   op.ID        // where ResyncWanted goes on
}

// resyncMarker is the content of resync.json.
type resyncMarker struct {
	Phase   string        `json:"phase"`
	Store   StoreID       `json:"store_id"`
	Target  SnapshotState `json:"target"`
	Common  uint64        `json:"common"` // both histories are one up to this entry
	From    string        `json:"from"`
	Started time.Time     `json:"started"`
	// Local is how many messages the slot had when it began.
	Local uint64 `json:"local_messages"`
	// Distrust: the tree may have changed without slotfs: what it has counts
	// only when verified.
	Distrust bool `json:"distrust,omitempty"`
	// Ahead is the last entry that changed any content that was fetched.
	Ahead uint64 `json:"ahead"`
	// Restart: the index came out wrong; the next ResyncBegin empties it.
	Restart bool `json:"restart,omitempty"`
}

// The phases of a resync.
const (
	phaseCollect = "collect" // index and stage/ change, the tree does not
	phasePlace   = "place"   // the index is right, the tree follows
)

const fileResync = "resync.json"

// ErrResyncing: not possible while a resync is under way, or only then.
var ErrResyncing = errors.New("slot is being resynced")

// errNotResyncing: ResyncBegin has to come first.
var errNotResyncing = errors.New("no resync has begun")

// ResyncError says that a resync cannot end.
type ResyncError struct {
	Wanted  int  // contents still to be fetched
	Restart bool // the index came out wrong: begin again, which starts from nothing
	Err     error
}

func (e *ResyncError) Error() string {
	if e.Wanted > 0 {
		return fmt.Sprintf("resync: %d contents have not been fetched", e.Wanted)
	}
	return "resync: " + e.Err.Error()
}

// Unwrap gives the cause to errors.Is.
func (e *ResyncError) Unwrap() error { return e.Err }

// ResyncTarget says what a slot is to become.
type ResyncTarget struct {
	Store StoreID
	State SnapshotState // of the source's Snapshot
	// Common is the last entry up to which this slot's history and the source's
	// are known to be one; 0 if that is not known.
	Common uint64
	From   string // the source, for people
	// Branch is what is known about what this slot has after Common.
	Branch BranchInfo
}

// ResyncStatus tells how far a resync is.
type ResyncStatus struct {
	Phase     string    `json:"phase"`
	Target    op.Pos    `json:"target"`
	From      string    `json:"from"`
	Started   time.Time `json:"started"`
	Dirs      uint64    `json:"dirs"`  // compared
	Same      uint64    `json:"same"`  // of them with an equal digest
	Files     uint64    `json:"files"` // fetched
	Bytes     uint64    `json:"bytes"`
	WantFiles uint64    `json:"want_files"` // still to be fetched
	WantBytes uint64    `json:"want_bytes"`
}

// Resyncing reports whether a resync has begun and not ended: index and tree
// are then of no use to anybody else.
func (s *Slot) Resyncing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resync != nil
}

// ResyncStatus returns how far the resync is; false if there is none.
func (s *Slot) ResyncStatus() (ResyncStatus, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resync == nil {
		return ResyncStatus{}, false
	}
	return s.resync.progress, true
}

// count changes the progress.
func (s *Slot) countResync(f func(p *ResyncStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resync != nil {
		f(&s.resync.progress)
	}
}

// CompleteFrom is the entry from which on the slot's tree is a state of the
// store: before it is applied, control files fetched by a resync may be ahead
// of the index. Don't count a slot as in sync, nor promote it, before.
func (s *Slot) CompleteFrom() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity.Ahead
}

// ahead reports whether control files may be ahead of the index.
func (s *Slot) ahead() bool { return s.ix.current().Pos.Seq < s.CompleteFrom() }

// openResync reads the marker, if there is one.
func (s *Slot) openResync() error {
	file := filepath.Join(s.dir, fileResync)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", fileResync, err)
	}
	r := &resyncing{file: file}
	if err := json.Unmarshal(b, &r.resyncMarker); err != nil {
		// Written whole or not at all; whatever it says, index and tree are
		// not to be trusted.
		s.log.Warn("unreadable resync marker: the resync starts over", keyErr, err)
		r.resyncMarker = resyncMarker{Phase: phaseCollect, Started: time.Now(), Distrust: true, Restart: true}
	}
	s.setResync(r)
	return nil
}

// setResync makes r, or nil for none, the resync under way.
func (s *Slot) setResync(r *resyncing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resync = r
	if r != nil {
		r.progress.Phase, r.progress.Target = r.Phase, r.Target.Pos
		r.progress.From, r.progress.Started = r.From, r.Started
	}
}

func (r *resyncing) save() error {
	if err := writeRecord(r.file, &r.resyncMarker); err != nil {
		return fmt.Errorf("write %s: %w", fileResync, err)
	}
	return nil
}

// begun returns the resync under way; the caller holds admin.
func (s *Slot) begun() (*resyncing, error) {
	if err := s.Faulted(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resync == nil || s.resync.Phase != phaseCollect {
		return nil, errNotResyncing
	}
	return s.resync, nil
}

// ResyncBegin begins a resync, or goes on with the one that was interrupted, if
// it was of the same store; the target may be a later one. It stops the
// applier.
func (s *Slot) ResyncBegin(t ResyncTarget) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if err := s.Faulted(); err != nil {
		return err
	}
	if err := s.SetStore(t.Store); err != nil {
		return err
	}
	s.stopApplier()
	s.mu.Lock()
	r := s.resync
	s.mu.Unlock()
	if r == nil {
		var err error
		if r, err = s.firstResync(t); err != nil {
			return err
		}
	}
	if s.Unfit() != nil || r.unsaved {
		kept := t
		kept.Common = min(r.Common, t.Common)
		if err := s.prepareRefill(r, kept); err != nil {
			return err
		}
	}
	if r.Store != t.Store && !r.Store.IsZero() {
		return fmt.Errorf("resync of store %v cannot go on with store %v: %w", r.Store, t.Store, ErrOtherStore)
	}
	r.Store, r.Target, r.From = t.Store, t.State, t.From
	r.Common = min(r.Common, t.Common)
	r.Phase = phaseCollect
	if r.Restart {
		if err := s.ix.clear(); err != nil {
			return err
		}
		r.Restart, r.Distrust = false, true
	}
	if err := r.save(); err != nil {
		return err
	}
	r.pending, r.staged, r.bytes, r.cursor = nil, nil, 0, 0
	s.setResync(r)
	return s.recountWanted()
}

// SetBranchAside keeps what is after info.Fork, and says so. If what is known of
// the branch cannot be written down, its log is kept alone.
func (s *Slot) SetBranchAside(info BranchInfo) error {
	b, err := s.KeepBranch(s.ctx, info)
	if err != nil {
		name, e := s.Log.Rescue(max(info.Fork, s.Log.First()-1), filepath.Join(s.dir, dirRescue))
		if e != nil {
			return errors.Join(err, e)
		}
		s.finding(Event{Kind: EventRecovery, Text: fmt.Sprintf("entries after %d that %s does not have are kept as %s/%s, without a list of their messages: %v", info.Fork, info.From, dirRescue, name, err)},
			ledger.Entry{Kind: ledger.Rescue, Path: "./" + dirRescue + "/" + name, Source: info.From, Outcome: ledger.Kept})
		return nil
	}
	s.finding(Event{Kind: EventRecovery, Text: b.Text()}, ledger.Entry{Kind: ledger.Rescue, Path: "./" + dirRescue + "/" + b.Name, Source: info.From, Outcome: ledger.Kept})
	return nil
}

// firstResync prepares a slot whose index and tree are whole.
func (s *Slot) firstResync(t ResyncTarget) (*resyncing, error) {
	if err := s.checkpoint(); err != nil {
		return nil, err
	}
	r := &resyncing{file: filepath.Join(s.dir, fileResync)}
	st := s.ix.current()
	r.Started, r.Common, r.Local = time.Now(), t.Common, st.Messages
	s.mu.Lock()
	r.Distrust = s.identity.Unlocked != nil
	s.mu.Unlock()
	return r, s.rescueBeyond(t)
}

// rescueBeyond keeps what this slot has and the source may not have.
func (s *Slot) rescueBeyond(t ResyncTarget) error {
	if s.Log.Last().Seq <= t.Common {
		return nil
	}
	info := t.Branch
	if info.From == "" || info.Fork > t.Common {
		info.Fork, info.From = t.Common, t.From
	}
	if err := s.SetBranchAside(info); err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	return nil
}
