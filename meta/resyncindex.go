package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// resyncBatch is how many records of a resync are written at a time.
const resyncBatch = 4000

// ResyncSame reports whether a directory and all that is below it are as in the
// source, whose DirDigest is digest.
func (s *Slot) ResyncSame(dir op.ID, digest op.Digest) (bool, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	r, err := s.begun()
	if err != nil {
		return false, err
	}
	have, ok, err := s.ix.digestBelow(dir)
	if err != nil {
		return false, err
	}
	same := ok && have == digest && !r.Distrust
	s.countResync(func(p *ResyncStatus) {
		p.Dirs++
		if same {
			p.Same++
		}
	})
	return same, nil
}

// digestBelow is subtreeDigest of an index that may be a mixture: a directory
// can be missing, or be in two places, or inside itself. Then it is false.
func (x *index) digestBelow(dir op.ID) (d op.Digest, ok bool, err error) {
	seen := map[op.ID]bool{dir: true}
	for todo := []op.ID{dir}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		in, err := x.inode(id)
		if errors.Is(err, ErrNotExist) {
			return d, false, nil
		}
		if err != nil {
			return d, false, err
		}
		d.Add(ownElements(in))
		d.Add(in.Entries)
		subdirs, err := x.subdirs(id)
		if err != nil {
			return d, false, err
		}
		for _, sub := range subdirs {
			if seen[sub] {
				return d, false, nil
			}
			seen[sub] = true
		}
		todo = append(todo, subdirs...)
	}
	return d, true, nil
}

// ResyncDir makes a directory, in the index, what the source has: dir is its
// inode, children its entries, and inodes the inodes of those that are no
// directories. Directories come after the one that they are in.
func (s *Slot) ResyncDir(dir *Inode, children []Child, inodes []*Inode) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	r, err := s.begun()
	if err != nil {
		return err
	}
	if !dir.IsDir() {
		return fmt.Errorf("resync: id %d is no directory", dir.ID)
	}
	wanted, err := s.missingHere(r, inodes)
	if err != nil {
		return err
	}
	// First of all, or a stop would leave files that look complete.
	if err := s.setWanted(wanted, wantedFetch); err != nil {
		return err
	}
	s.countWanted(wanted, inodes)
	if err := s.ix.replaceDir(dir.ID, children, inodes); err != nil {
		return err
	}
	r.pending = append(r.pending, dir)
	if s.ix.waiting() < resyncBatch {
		return nil
	}
	return s.flushResync(r)
}

// flushResync writes the entries that wait, then their directories.
func (s *Slot) flushResync(r *resyncing) error {
	if err := s.ix.flushRaw(state{}); err != nil {
		return err
	}
	for _, dir := range r.pending {
		s.ix.storeRaw(dir)
	}
	r.pending = nil
	return s.ix.flushRaw(state{})
}

// waiting is how many records the active delta has.
func (x *index) waiting() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.active.records
}

// storeRaw puts an inode into the index as it is: what put keeps right is right
// in the source's records.
func (x *index) storeRaw(n *Inode) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.storeRawLocked(n.ID, n)
}

// storeRawLocked is storeRaw for who holds mu; n is nil for removal.
func (x *index) storeRawLocked(id op.ID, n *Inode) {
	x.store(id, n)
	x.storeLack(id, n.lacks())
}

// replaceDir makes the entries of a directory those in children, and stores the
// inodes, as they are. The inode of the directory itself is not touched: it
// must follow when all this was written.
func (x *index) replaceDir(dir op.ID, children []Child, inodes []*Inode) error {
	old, err := x.children(dir)
	if err != nil {
		return err
	}
	subdirs, err := x.subdirs(dir)
	if err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	next := make(map[string]Child, len(children))
	dirs := map[op.ID]bool{}
	for _, c := range children {
		next[c.Name] = c
		if c.Type == typeDir {
			dirs[c.ID] = true
		}
	}
	for _, c := range old {
		if n, ok := next[c.Name]; ok && n == c {
			delete(next, c.Name) // as it is
		} else if !ok {
			x.storeEntry(Name{Dir: dir, Name: c.Name}, Child{Name: c.Name})
		}
	}
	for name, c := range next {
		x.storeEntry(Name{Dir: dir, Name: name}, c)
	}
	for _, id := range subdirs {
		if !dirs[id] {
			x.storeSubdir(dir, id, false)
		}
		delete(dirs, id)
	}
	for id := range dirs {
		x.storeSubdir(dir, id, true)
	}
	for _, n := range inodes {
		x.storeRawLocked(n.ID, n)
	}
	return nil
}

// missingHere picks the files whose content is not in the local tree.
func (s *Slot) missingHere(r *resyncing, inodes []*Inode) ([]op.ID, error) {
	var ids []op.ID
	for _, n := range inodes {
		if !n.IsRegular() {
			continue
		}
		have, err := s.ix.inode(n.ID)
		if err != nil && !errors.Is(err, ErrNotExist) {
			return nil, err
		}
		if err != nil && n.Size == 0 {
			continue // made by reconcile
		}
		if err == nil && sameFile(have, n, r.Common) {
			if !r.Distrust || s.verifiedHere(have) {
				continue
			}
		}
		if s.stagedHere(n) {
			continue
		}
		ids = append(ids, n.ID)
	}
	return ids, nil
}

// sameFile reports whether the local have and the source's want have one
// content.
func sameFile(have, want *Inode, common uint64) bool {
	switch {
	case !have.IsRegular() || have.Size != want.Size || have.Sealed != want.Sealed:
		return false
	case have.Sum != nil && want.Sum != nil:
		return have.Sum.Equal(*want.Sum)
	}
	// One entry changed both last, and it is in both histories.
	return have.Changed == want.Changed && have.Changed <= common && uint64(have.ID) <= common
}

// verifiedHere reports whether the tree has n's content where the index has it.
func (s *Slot) verifiedHere(n *Inode) bool {
	if n.Sum == nil {
		return false
	}
	fd, err := s.tree.openNamed(n, openRead)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	bad, err := verifyOpen(f, *n.Sum)
	return err == nil && bad == nil
}

// stagedHere reports whether n's content was fetched before.
func (s *Slot) stagedHere(n *Inode) bool {
	if n.Sum == nil {
		return false
	}
	path := s.syncPath(n.ID)
	m, err := readMark(path)
	if err != nil || m.ID != n.ID {
		return false
	}
	bad, err := verifyFile(path, *n.Sum)
	return err == nil && bad == nil
}

const (
	wantedFetch byte = iota // to be fetched
	wantedGone              // the source has it no longer
)

func wantedKey(id op.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixWanted}, uint64(id))
}

// setWanted notes, durably, that ids are wanted in this way.
func (s *Slot) setWanted(ids []op.ID, how byte) error {
	return s.changeWanted(ids, func(w *badger.WriteBatch, key []byte) error { return w.Set(key, []byte{how}) })
}

func (s *Slot) changeWanted(ids []op.ID, f func(w *badger.WriteBatch, key []byte) error) error {
	if len(ids) == 0 {
		return nil
	}
	w := s.ix.db.NewWriteBatch()
	defer w.Cancel()
	for _, id := range ids {
		if err := f(w, wantedKey(id)); err != nil {
			return fmt.Errorf("write wanted contents: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write wanted contents: %w", err)
	}
	if err := s.ix.db.Sync(); err != nil {
		return fmt.Errorf("write wanted contents: %w", err)
	}
	return nil
}

// eachWanted calls f for what is wanted, in order of id, from one id on.
func (s *Slot) eachWanted(from op.ID, f func(id op.ID, how byte) error) error {
	return s.ix.db.View(func(txn *badger.Txn) error {
		return view{txn}.eachID([]byte{prefixWanted}, from, true, func(id op.ID, value []byte) error {
			if len(value) != 1 {
				return errRecord
			}
			return f(id, value[0])
		})
	})
}
