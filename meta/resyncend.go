package meta

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// ResyncEnd makes the index the source's Snapshot, the tree what the index says,
// and the log begin at the Snapshot's entry. The applier runs afterwards, if
// Start was called.
func (s *Slot) ResyncEnd(ctx context.Context) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	r, err := s.begun()
	if err != nil {
		return err
	}
	if err := errors.Join(s.flushResync(r), s.flushStaged(r)); err != nil {
		return err
	}
	wanted := 0
	err = s.eachWanted(0, func(_ op.ID, how byte) error {
		if how == wantedFetch {
			wanted++
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	if wanted > 0 {
		return &ResyncError{Wanted: wanted}
	}
	if err := s.proveIndex(ctx, r); err != nil {
		return err
	}
	r.Phase = phasePlace
	if err := r.save(); err != nil {
		return err
	}
	s.setResync(r)
	return s.finishResync(r)
}

// proveIndex sweeps the index and compares it with the target. From here on it
// has the state of the Snapshot.
func (s *Slot) proveIndex(ctx context.Context, r *resyncing) error {
	sum, reached, err := audit(ctx, s.ix)
	t := r.Target
	if err == nil && (sum.Digest != t.Digest || sum.Objects != t.Objects || sum.Messages != t.Messages || sum.Bytes != t.Bytes) {
		err = fmt.Errorf("%d objects with digest %v, the source has %d with %v", sum.Objects, sum.Digest, t.Objects, t.Digest)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.Restart = true
		return errors.Join(&ResyncError{Restart: true, Err: err}, r.save())
	}
	if err := s.ix.sweep(reached); err != nil {
		return err
	}
	sum.Pos, sum.Time = t.Pos, t.Time
	return s.ix.flushRaw(sum)
}

// audit goes through all that the root leads to, adds it up, and proves that
// the records of the directories agree with it. Objects with several names are
// counted once.
func audit(ctx context.Context, x indexView) (sum state, reached map[op.ID]struct{}, err error) {
	reached = map[op.ID]struct{}{}
	todo := []op.ID{op.Root}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return sum, nil, err
		}
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		subdirs, err := auditDir(x, id, &sum, reached)
		if err != nil {
			return sum, nil, fmt.Errorf("directory %d: %w", id, err)
		}
		todo = append(todo, subdirs...)
	}
	return sum, reached, nil
}

// auditDir adds up one directory and returns its directories.
func auditDir(x indexView, id op.ID, sum *state, reached map[op.ID]struct{}) (subdirs []op.ID, err error) {
	dir, err := x.inode(id)
	if errors.Is(err, ErrNotExist) && id == op.Root {
		return nil, nil // a store without entries
	}
	if err != nil {
		return nil, err
	}
	if _, twice := reached[id]; twice {
		return nil, errors.New("has two names")
	}
	reached[id] = struct{}{}
	sum.Objects++
	sum.Digest.Add(ownElements(dir))
	children, err := x.children(id)
	if err != nil {
		return nil, err
	}
	var entries op.Digest
	var bytes uint64
	for _, c := range children {
		n, err := x.inode(c.ID)
		if err != nil {
			return nil, fmt.Errorf("entry %q, id %d: %w", c.Name, c.ID, err)
		}
		at := Name{Dir: id, Name: c.Name}
		if !slices.Contains(n.Names, at) || n.Type() != c.Type {
			return nil, fmt.Errorf("entry %q: id %d does not have that name or type", c.Name, c.ID)
		}
		entries.Add(element(at, n))
		if n.IsRegular() {
			bytes += uint64(n.Size)
		}
		if n.IsDir() {
			subdirs = append(subdirs, c.ID)
			continue
		}
		if _, again := reached[c.ID]; again {
			continue
		}
		reached[c.ID] = struct{}{}
		sum.Digest.Add(ownElements(n))
		sum.count(n, +1)
	}
	switch {
	case entries != dir.Entries:
		err = fmt.Errorf("digest of its entries is %v, its record says %v", entries, dir.Entries)
	case uint64(len(children)) != dir.Count || bytes != dir.Bytes:
		err = fmt.Errorf("%d entries with %d bytes, its record says %d with %d", len(children), bytes, dir.Count, dir.Bytes)
	case dir.Nlink != uint32(2+len(subdirs)):
		err = fmt.Errorf("%d directories, its record says nlink %d", len(subdirs), dir.Nlink)
	}
	return subdirs, err
}

// sweep removes the records of all that was not reached.
func (x *index) sweep(reached map[op.ID]struct{}) error {
	var gone []*Inode
	err := x.eachInode(func(n *Inode) error {
		if _, ok := reached[n.ID]; !ok {
			gone = append(gone, n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, n := range gone {
		if n.IsDir() {
			if err := x.replaceDir(n.ID, nil, nil); err != nil {
				return err
			}
		}
		x.mu.Lock()
		x.storeRawLocked(n.ID, nil)
		x.mu.Unlock()
		if x.waiting() >= resyncBatch {
			if err := x.flushRaw(state{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// finishResync makes tree and log follow the index. It can be repeated.
func (s *Slot) finishResync(r *resyncing) error {
	pos := r.Target.Pos
	report, gone, err := s.placeAll(r)
	if err != nil {
		return err
	}
	if err := s.beginLogAfter(pos); err != nil {
		return err
	}
	if err := s.changeWanted(gone, func(w *badger.WriteBatch, key []byte) error { return w.Delete(key) }); err != nil {
		return err
	}
	if err := errors.Join(claimTree(s.dir, s.ID), s.resynced(r)); err != nil {
		return err
	}
	if err := os.Remove(r.file); err != nil {
		return err
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	s.setResync(nil)
	s.unfit.Store(nil)
	s.verified.forget()
	if s.trash != nil {
		if err := errors.Join(s.trash.rescan(), s.noteTrash()); err != nil {
			return err
		}
	}
	s.Events.Add(Event{Kind: EventRecovery, Text: fmt.Sprintf("resynced to %v from %s: %s", pos, r.From, report.summary())})
	s.mu.Lock()
	start := s.started
	s.mu.Unlock()
	if start {
		s.startApplier()
	}
	return nil
}

// placeAll makes the tree what the index says, durably. gone is what could not be
// fetched, because the source does not have it any more.
func (s *Slot) placeAll(r *resyncing) (report *ReconcileReport, gone []op.ID, err error) {
	s.tree.forget()
	pos := r.Target.Pos
	t := newTrail(pos.Seq, pos.Seq)
	err = s.eachWanted(0, func(id op.ID, _ byte) error {
		gone = append(gone, id)
		t.lost[id] = true // what is not here now is removed by an entry to come
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	rec := newReconciler(s.dir, s.ix, nil, t)
	rec.full, rec.note, rec.hold = true, s.noteEvent, s.opt.hold
	if rec.fresh, err = freshContent(s.dir); err != nil {
		return nil, nil, err
	}
	rec.vanished = s.vanished(r)
	if report, err = rec.run(); err != nil {
		return nil, nil, fmt.Errorf("resync: %w", err)
	}
	if err := syncTree(s.dir); err != nil {
		return nil, nil, err
	}
	s.tree.forget()
	return report, gone, nil
}

// beginLogAfter makes the log one that begins after pos, if it is not yet, as a
// stop in between leaves it.
func (s *Slot) beginLogAfter(pos op.Pos) error {
	if s.opt.hold != nil {
		if err := s.opt.hold("reset", dirLog); err != nil {
			return err
		}
	}
	if s.Log.Last() != pos || s.Log.First() != pos.Seq+1 {
		if err := s.Log.Reset(pos); err != nil {
			return fmt.Errorf("resync: %w", err)
		}
	}
	s.Log.SetApplied(pos.Seq)
	s.Log.NotBefore(s.ix.current().Time)
	return nil
}

// freshContent lists what was fetched into stage/.
func freshContent(data string) (map[op.ID]string, error) {
	names, err := readNames(data, dirStage)
	if err != nil {
		return nil, err
	}
	fresh := map[op.ID]string{}
	for _, name := range names {
		if id, ok := syncID(name); ok {
			fresh[id] = name
		}
	}
	return fresh, nil
}

// vanished returns what decides about objects of this slot that the source
// lacks: true for trash, false for quarantine.
func (s *Slot) vanished(r *resyncing) func(id op.ID, sealed bool) bool {
	// More than half of what there was: whatever happened to the source, this
	// may be the last copy.
	most := r.Local > 16 && s.ix.current().Messages < r.Local/2
	return func(id op.ID, sealed bool) bool {
		if uint64(id) > r.Common {
			return !sealed // control files are about messages, and of no use alone
		}
		return !most || !sealed
	}
}

// resynced writes down that the tree is the store's again, even if it had been
// unlocked, and from which entry on it is whole.
func (s *Slot) resynced(r *resyncing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.identity
	next.Unlocked = nil
	if next.Ahead = r.Ahead; r.Ahead <= r.Target.Pos.Seq {
		next.Ahead = 0
	}
	if err := writeRecord(filepath.Join(s.dir, fileIdentity), next); err != nil {
		return fmt.Errorf("write %s: %w", fileIdentity, err)
	}
	s.identity = next
	return nil
}

// forget drops everything, for what has an id now may be another object.
func (c *verifiedCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.recent.Front(); e != nil; {
		next := e.Next()
		if v := e.Value.(*verifiedBlock); v.isReady() {
			c.bytes -= int64(len(v.b))
			c.remove(e)
		}
		e = next
	}
}

// rescan finds what came into trash without the applier.
func (r *trash) rescan() error {
	names, err := readNames(r.t.data, dirTrash)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		id, err := strconv.ParseUint(name, 10, 64)
		if _, known := r.held[op.ID(id)]; err == nil && !known {
			r.held[op.ID(id)] = trashedFile{at: r.now}
		}
	}
	return nil
}

func readNames(data, dir string) ([]string, error) {
	d, err := os.Open(filepath.Join(data, dir))
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	slices.Sort(names)
	return names, nil
}
