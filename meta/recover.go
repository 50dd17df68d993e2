package meta

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// recovery brings a slot's index and tree, which a stop may have left anywhere
// between the last checkpoint and the last applied entry, to one entry's state:
//
//	log    … C ……………… K ………… last
//	index    C                            exact: one transaction
//	tree     all of C is on disk; of what came later anything may be
//
// The index replays (C, K], which is pure and the same everywhere; reconcile
// then makes the tree agree wherever (C, last] touched it: the entries after K
// may have been applied before the stop, although the log did not get to note
// that they were committed. They come again through the applier.
type recovery struct {
	data      string
	ix        *index
	log       positionLog
	last      uint64                // of the log
	committed uint64                // K, as far as it is known
	ahead     uint64                // Identity.Ahead
	store     func(StoreID) error   // told of the store's id; may be nil
	rescued   func(*op.Entry) error // told of every entry that is replayed; may be nil
	note      func(kind string, id op.ID, path, text string)
	hold      func(step, path string) error
	guard     func(indexView) error // asked before anything is changed; may be nil
}

// positionLog is what recovery needs of the log.
type positionLog interface {
	logReader
	PosAt(seq uint64) (op.Pos, error)
}

// IndexError says that the index cannot be used with this log: it is damaged,
// or its checkpoint is not in the log's history. Rebuild makes a new one.
type IndexError struct{ Err error }

func (e *IndexError) Error() string { return "index unusable: " + e.Err.Error() }

// Unwrap gives the cause to errors.Is.
func (e *IndexError) Unwrap() error { return e.Err }

// LogLostError says that the log ends before what was applied: entries that had
// been durable are gone, with a part or the whole of oplog/. Index and tree
// have what they did, so they are left alone.
type LogLostError struct{ Have, Need uint64 }

func (e *LogLostError) Error() string {
	return fmt.Sprintf("the log ends at entry %d, but entries up to %d were applied: restore %s, or start with an empty data directory and let the other node fill it, or use the tree without slotfs ('slotfs recover --unlock')",
		e.Have, e.Need, dirLog)
}

// run replays, reconciles, makes it durable and writes a checkpoint.
func (v *recovery) run() (*ReconcileReport, error) {
	t, err := v.replay()
	if err != nil {
		return nil, err
	}
	if v.guard != nil && !t.dirs[op.Root] {
		if err := v.guard(v.ix); err != nil {
			return nil, err
		}
	}
	return v.finish(t, false)
}

// replay brings the index from C to K and collects what the log touched.
func (v *recovery) replay() (*trail, error) {
	c := v.ix.checkpointed().Pos
	if err := v.joins(c); err != nil {
		return nil, err
	}
	to := max(c.Seq, min(v.committed, v.last))
	t := newTrail(c.Seq, to)
	err := eachEntry(v.log, c.Seq+1, v.last, func(e *op.Entry) error {
		t.add(e)
		if e.Seq > to {
			return nil
		}
		if o, ok := e.Op.(*op.EpochBegin); ok && v.store != nil {
			if err := v.store(o.Store); err != nil {
				return err
			}
		}
		_, err := v.ix.apply(e)
		if err == nil && v.rescued != nil {
			err = v.rescued(e)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("replay log on index: %w", err)
	}
	return t, nil
}

// joins reports why the log does not continue the index's checkpoint c.
func (v *recovery) joins(c op.Pos) error {
	switch {
	case c.Seq > v.last:
		return &LogLostError{Have: v.last, Need: c.Seq}
	case c.Seq+1 < v.log.First():
		return &IndexError{fmt.Errorf("it is at entry %d, the log begins at %d", c.Seq, v.log.First())}
	}
	have, err := v.log.PosAt(c.Seq)
	if err != nil {
		return fmt.Errorf("position of entry %d in the log: %w", c.Seq, err)
	}
	if have != c {
		return &IndexError{fmt.Errorf("it is at %v, the log has %v there", c, have)}
	}
	return nil
}

// finish makes the tree agree with the index, and both durable.
func (v *recovery) finish(t *trail, full bool) (*ReconcileReport, error) {
	r := newReconciler(v.data, v.ix, v.log, t)
	r.full, r.hold, r.ahead = full, v.hold, t.to < v.ahead
	if v.note != nil {
		r.note = v.note
	}
	report, err := r.run()
	if err != nil {
		return nil, err
	}
	report.LogEntries = int(t.to - t.from)
	if t.from == v.last && !report.changed() && !v.ix.changed() {
		return report, nil // it was closed properly
	}
	if err := syncTree(v.data); err != nil {
		return nil, err
	}
	if v.hold != nil {
		if err := v.hold("checkpoint", v.data); err != nil {
			return nil, err
		}
	}
	if !v.ix.changed() {
		return report, nil
	}
	st, err := v.ix.freeze()
	if err != nil {
		return nil, err
	}
	return report, v.ix.commit(st)
}

// syncTree makes the tree, trash, stage and quarantine durable.
func syncTree(data string) error {
	d, err := os.Open(filepath.Join(data, dirTree))
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		d.Close()
		return fmt.Errorf("syncfs tree: %w", err)
	}
	return d.Close()
}

// changed reports whether anything on disk was.
func (r *ReconcileReport) changed() bool {
	return r.Moved+r.Made+r.Rewritten+r.Trashed+r.Quarantined+r.Missing+r.Attributes > 0
}

// summary says in words what a recovery did; "" if there was nothing to do.
func (r *ReconcileReport) summary() string {
	var parts []string
	for _, c := range []struct {
		n    int
		what string
	}{
		{r.Moved, "moved"}, {r.Made, "made again"}, {r.Rewritten, "rewritten from the log"},
		{r.Trashed, "to trash"}, {r.Quarantined, "to quarantine"}, {r.Missing, "without content"},
	} {
		if c.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", c.n, c.what))
		}
	}
	if len(parts) == 0 && r.LogEntries == 0 {
		return ""
	}
	text := fmt.Sprintf("replayed %d entries", r.LogEntries)
	for _, p := range parts {
		text += ", " + p
	}
	return text
}
