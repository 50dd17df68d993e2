package meta

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// The invariants that Check proves, by number:
//
//	I1  Every name of the index is in the tree, and is the object with that id
//	    and type; all names of an id are one physical file.
//	I2  The tree has no other names.
//	I3  Attributes in the tree are those of the index: mode, owner, size, mtime,
//	    number of names, xattrs, target.
//	I4  The content of every file with a checksum matches it (option Content).
//	I5  The index agrees with itself: entries with inodes, number of names and
//	    of directories, sums of directories, the digest of the slot.
//	I6  The log is whole from its first to its last entry: each follows the one
//	    before, by seq, chain and epoch; the index's position is in it.
//	I7  trash/ and stage/ hold only what has lost its name, or waits for one;
//	    everything in quarantine/ has its record.
//	I8  The mark of every object says of its content what the index says.
const (
	InvName       = 1
	InvStray      = 2
	InvAttributes = 3
	InvContent    = 4
	InvIndex      = 5
	InvLog        = 6
	InvAside      = 7
	InvMark       = 8
)

var invariants = [...]string{
	InvName:       "every name of the index is in the tree",
	InvStray:      "the tree has no other names",
	InvAttributes: "attributes are those of the index",
	InvContent:    "content matches its checksum",
	InvIndex:      "the index agrees with itself",
	InvLog:        "the log is whole",
	InvAside:      "trash, stage and quarantine hold only what belongs there",
	InvMark:       "marks agree with the index",
}

// CheckOptions says what Check does.
type CheckOptions struct {
	// Content reads and verifies the content of all files that have a checksum.
	Content bool
	// Repair makes the tree agree with the index wherever they differ, and gets
	// damaged content from another slot; what was repaired is still reported.
	Repair bool
	// Rebuild makes the index anew from tree and log before anything else. Of
	// a slot that was started, only at its next start.
	Rebuild bool
}

// Finding is one violation of an invariant.
type Finding struct {
	Invariant int    `json:"invariant"`
	ID        op.ID  `json:"id,omitempty"`
	Path      string `json:"path,omitempty"` // in the store; or in the data directory, if it begins with a dot
	Text      string `json:"text"`
}

// Describe says in words what the invariant is.
func (f Finding) Describe() string { return invariants[f.Invariant] }

func (f Finding) String() string {
	s := fmt.Sprintf("I%d (%s): ", f.Invariant, f.Describe())
	if f.Path != "" {
		s += strconv.Quote(f.Path) + " "
	}
	if f.ID != 0 {
		s += fmt.Sprintf("(id %d) ", f.ID)
	}
	return s + f.Text
}

// Report is what Check, or Recover, found.
type Report struct {
	Stats    Stats         `json:"stats"`
	Findings []Finding     `json:"findings"`
	Omitted  int           `json:"omitted,omitempty"` // findings beyond maxFindings
	Verified uint64        `json:"verified"`          // files whose content was verified
	Took     time.Duration `json:"took"`

	Recovery *ReconcileReport `json:"recovery,omitempty"` // what Recover or Repair did
	Pending  string           `json:"pending,omitempty"`  // what waits for the next start
}

// Clean reports whether nothing was found.
func (r *Report) Clean() bool { return len(r.Findings) == 0 }

// maxFindings bounds a report; a tree that was emptied has one per file.
const maxFindings = 10_000

func (r *Report) add(inv int, id op.ID, path, format string, args ...any) {
	if len(r.Findings) >= maxFindings {
		r.Omitted++
		return
	}
	r.Findings = append(r.Findings, Finding{Invariant: inv, ID: id, Path: path, Text: fmt.Sprintf(format, args...)})
}

// settleWait bounds settle.
const settleWait = 10 * time.Second

// settle waits until what is committed now is applied, so that what was
// acknowledged before the question is in the answer. A slot that cannot apply
// answers for what it has.
func (s *Slot) settle(ctx context.Context) {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	if !started {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	_ = s.Log.Applied.Wait(ctx, s.Log.Committed.Get())
}

// Check proves the invariants listed above on a slot, also while it runs: what
// differs because an entry is just being applied is looked at again with the
// applier stopped. It changes nothing, unless told to.
func (s *Slot) Check(ctx context.Context, o CheckOptions) (*Report, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.Resyncing() {
		return nil, fmt.Errorf("check: %w", ErrResyncing)
	}
	s.settle(ctx)
	begun := time.Now()
	r := &Report{}
	if o.Rebuild {
		if err := s.askRebuild(r); err != nil {
			return nil, err
		}
	}
	for _, step := range []func(context.Context, *Report) error{s.checkIndex, s.checkTree, s.checkLog, s.checkAside} {
		if err := step(ctx, r); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	if o.Repair && !r.Clean() {
		var err error
		if r.Recovery, err = s.repairTree(); err != nil {
			return nil, fmt.Errorf("repair: %w", err)
		}
	}
	if o.Content {
		if err := s.checkContent(ctx, r, o.Repair); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	r.Stats, r.Took = s.Stats(), time.Since(begun)
	return r, nil
}

// askRebuild rebuilds now, or notes that the next start has to.
func (s *Slot) askRebuild(r *Report) error {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	cause := errors.New("asked for by an operator")
	if !started {
		return s.rebuild(cause)
	}
	r.Pending = "the index will be made anew at the next start of this slot"
	return writeRecord(filepath.Join(s.dir, fileRebuild), map[string]any{"time": time.Now(), "reason": cause.Error()})
}

// repairTree reconciles everything with the index.
func (s *Slot) repairTree() (*ReconcileReport, error) {
	start := s.pauseApplier()
	defer start()
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.forget()
	seq := s.ix.current().Pos.Seq
	r := newReconciler(s.dir, s.ix, s.Log, newTrail(seq, seq))
	r.full, r.note, r.hold = true, s.noteEvent, s.opt.hold
	report, err := r.run()
	if err != nil {
		return nil, err
	}
	s.tree.forget()
	return report, syncTree(s.dir)
}

// checkIndex is I5, on the state of a checkpoint.
func (s *Slot) checkIndex(ctx context.Context, r *Report) error {
	start := s.pauseApplier()
	err := s.checkpoint()
	start()
	if err != nil {
		return err
	}
	s.ix.mu.RLock()
	v := view{s.ix.db.NewTransaction(false)}
	s.ix.mu.RUnlock()
	defer v.txn.Discard()
	st, err := v.state()
	if err != nil {
		return err
	}
	sum, reached, err := audit(ctx, v)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.add(InvIndex, 0, "", "%v", err)
		return nil
	}
	if sum.Digest != st.Digest || sum.Objects != st.Objects || sum.Messages != st.Messages || sum.Bytes != st.Bytes {
		r.add(InvIndex, 0, "", "%d objects, %d messages, %d bytes with digest %v, but its totals say %d, %d, %d, %v",
			sum.Objects, sum.Messages, sum.Bytes, sum.Digest, st.Objects, st.Messages, st.Bytes, st.Digest)
	}
	err = v.eachInode(0, func(n *Inode) error {
		if _, ok := reached[n.ID]; !ok {
			r.add(InvIndex, n.ID, "", "no name leads to it")
		} else if !n.IsDir() && int(n.Nlink) != len(n.Names) {
			r.add(InvIndex, n.ID, "", "nlink %d with %d names", n.Nlink, len(n.Names))
		}
		for _, at := range n.Names {
			if c, err := v.child(at.Dir, at.Name); err != nil || c.ID != n.ID {
				r.add(InvIndex, n.ID, "", "name %q in directory %d is not an entry there", at.Name, at.Dir)
			}
		}
		return ctx.Err()
	})
	if errors.Is(err, errRecord) || errors.Is(err, badger.ErrKeyNotFound) {
		r.add(InvIndex, 0, "", "%v", err)
		return nil
	}
	return err
}
