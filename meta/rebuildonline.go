package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// An index that is made anew while the slot runs goes into a directory of its
// own, index.N, and is used from there until the slot is closed: badger goes on
// writing to the path that it was opened with. It counts once it holds
// fileComplete; the next start puts it in the place of index/.
const (
	nextPrefix   = dirIndex + "."
	fileComplete = "complete.json"
)

// rebuildOnline is rebuild while the slot runs, for who holds admin. It returns
// with the applier running.
//
// The tree stands still, at the last entry that was applied or in the middle of
// the next one; so a rebuild up to what is committed, and a reconcile of what
// came after, end at exactly that state. Checksums of contents, which only the
// index has in full, are taken from the damaged one wherever they fit the mark;
// so the messages need not be read.
func (s *Slot) rebuildOnline(cause error) error {
	begun := time.Now()
	s.stopApplier()
	applied := s.Log.Applied.Get()
	marker := filepath.Join(s.dir, fileRebuild)
	if err := writeRecord(marker, map[string]any{"time": begun, "reason": cause.Error()}); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, nextPrefix+strconv.FormatUint(s.ix.swaps.Load()+1, 10))
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	// What watches over disk space looks there, wherever the index is.
	if err := os.MkdirAll(filepath.Join(s.dir, dirIndex), 0o700); err != nil {
		return err
	}
	made, err := openIndex(dir, s.log)
	if err != nil {
		return err
	}
	report, err := s.rebuildInto(made, applied)
	if err != nil {
		made.close()
		return err
	}
	if err := errors.Join(writeRecord(filepath.Join(dir, fileComplete), map[string]any{"time": time.Now()}), syncDir(s.dir),
		os.Remove(marker), syncDir(s.dir)); err != nil {
		return err
	}
	s.applier.torn = false
	s.Log.SetApplied(s.ix.current().Pos.Seq)
	if err := errors.Join(s.trash.rescan(), s.noteTrash()); err != nil {
		return err
	}
	st := s.ix.current()
	s.finding(Event{Kind: EventIndex, Text: fmt.Sprintf("index made anew in %v: %d objects, %d messages; %s",
		time.Since(begun).Round(time.Millisecond), st.Objects, st.Messages, report.summary())}, ledger.Entry{Outcome: ledger.Repaired, Source: "tree and log"})
	if s.Faulted() == nil {
		s.startApplier()
	}
	return nil
}

// rebuildInto fills made, makes the tree agree, and swaps.
func (s *Slot) rebuildInto(made *index, applied uint64) (*ReconcileReport, error) {
	last := max(applied, min(s.Log.Committed.Get(), s.Log.Durable.Get()))
	b := newRebuilder(s.dir, s.Log, last, s.noteEvent)
	b.known, b.stop = s.salvage, s.ctx.Err
	b.time = s.ix.current().Time // if the log is empty, after a resync
	if err := b.run(made); err != nil {
		return nil, err
	}
	// As far as they can be read; the log has those since.
	if kept, err := s.ix.deletions(); err == nil {
		made.mu.Lock()
		for _, d := range kept {
			made.storeDeletion(d.Inode.ID, d)
		}
		made.mu.Unlock()
		if err := made.flushRaw(made.current()); err != nil {
			return nil, err
		}
	}
	t := newTrail(applied, last)
	if err := eachEntry(s.Log, applied+1, last, func(e *op.Entry) error { t.add(e); return nil }); err != nil {
		return nil, err
	}
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.forget()
	v := &recovery{data: s.dir, ix: made, log: s.Log, last: last, committed: last, note: s.noteEvent, hold: s.opt.hold, ahead: s.CompleteFrom()}
	report, err := v.finish(t, false)
	if err != nil {
		return nil, err
	}
	s.tree.forget()
	clear(s.tree.late)
	s.ix.swap(made)
	return report, nil
}

// salvage takes what the damaged index says of an object, if it fits its mark.
func (s *Slot) salvage(m mark) *op.Sum {
	n, err := s.ix.inode(m.ID)
	if err != nil || n.Sum == nil || n.Changed != m.Changed || n.Sealed != m.Sealed || !m.tells(n.Sum) {
		return nil
	}
	return n.Sum
}

// settleIndex puts an index that was made anew while the slot ran in the place of
// the damaged one.
func (s *Slot) settleIndex() error {
	names, err := readNames(s.dir, "")
	if err != nil {
		return err
	}
	var next []int
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, nextPrefix)
		if n, err := strconv.Atoi(rest); ok && err == nil {
			next = append(next, n)
		}
	}
	slices.Sort(next)
	slices.Reverse(next)
	settled := false
	for _, n := range next {
		dir := filepath.Join(s.dir, nextPrefix+strconv.Itoa(n))
		complete := filepath.Join(dir, fileComplete)
		if _, err := os.Lstat(complete); err == nil && !settled {
			settled = true
			if err := s.setIndexAside(errors.New("replaced while the slot ran"), false); err != nil {
				return fmt.Errorf("set index aside: %w", err)
			}
			index := filepath.Join(s.dir, dirIndex)
			if err := errors.Join(os.Remove(index), os.Rename(dir, index), syncDir(s.dir)); err != nil {
				return fmt.Errorf("put the new index in place: %w", err)
			}
			if err := os.Remove(filepath.Join(index, fileComplete)); err != nil {
				return err
			}
			continue
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// keepAside is how many damaged indexes quarantine/ keeps.
const keepAside = 2

// boundAside removes the oldest ones.
func (s *Slot) boundAside() error {
	names, err := readNames(s.dir, dirQuarantine)
	if err != nil {
		return err
	}
	// setAside's names begin with the time.
	old := slices.DeleteFunc(names, func(name string) bool {
		_, what, _ := strings.Cut(name, "-")
		return strings.HasSuffix(name, ".json") || what != dirIndex && !strings.HasPrefix(what, dirIndex+"-")
	})
	for len(old) > keepAside {
		path := filepath.Join(s.dir, dirQuarantine, old[0])
		if err := errors.Join(os.RemoveAll(path), os.Remove(path+".json")); err != nil {
			return err
		}
		old = old[1:]
	}
	return nil
}
