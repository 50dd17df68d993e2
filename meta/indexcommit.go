package meta

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// full reports whether the active delta has reached three quarters of what one
// transaction takes: no further entry before a checkpoint has frozen it.
func (x *index) full() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.active.bytes > maxTxnBytes*3/4 || x.active.records > maxTxnRecords*3/4
}

// changed reports whether there is anything that badger does not have.
func (x *index) changed() bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.frozen != nil || x.state.Pos != x.base.Pos || len(x.active.inodes) > 0
}

// freeze starts a checkpoint: what is active now is what commit will write.
// Changes go on in a new delta. The writer calls it.
func (x *index) freeze() (state, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.frozen != nil {
		// Of one that failed, and the index is about to be made anew.
		return state{}, &IndexError{errors.New("a checkpoint is under way")}
	}
	x.frozen, x.active = x.active, newDelta()
	return x.state, nil
}

// commit writes the frozen delta and st, the state that freeze returned, in one
// transaction, and makes them durable.
func (x *index) commit(st state) error {
	x.mu.RLock()
	frozen := x.frozen // maps that nobody writes to any more
	x.mu.RUnlock()
	if err := x.write(frozen, st); err != nil {
		return err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.frozen = nil
	x.base = st
	x.gen++
	x.renew()
	for id, n := range frozen.inodes {
		delete(x.clean, id)
		if n != nil {
			x.keepClean(n, x.gen) // refuses what is active
		}
	}
	return nil
}

// write writes d and st in one transaction. A delta too large for one (after a
// replay of many small entries) is written with a larger memtable.
func (x *index) write(d *delta, st state) error {
	large := d.bytes >= maxTxnBytes || d.records >= maxTxnRecords-1
	if large {
		need := max(d.bytes, int64(d.records+2)*96)
		if err := x.reopen(max(memTableSize, need*100/15*5/4)); err != nil {
			return err
		}
	}
	err := x.db.Update(func(txn *badger.Txn) error {
		if err := d.each(txn.Set, txn.Delete); err != nil {
			return err
		}
		return setState(txn.Set, st)
	})
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := x.db.Sync(); err != nil {
		return fmt.Errorf("sync index: %w", err)
	}
	if large {
		return x.reopen(memTableSize)
	}
	return nil
}

// reopen opens badger with another memtable size. Only while nothing reads.
func (x *index) reopen(memTable int64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.close(); err != nil {
		return err
	}
	return x.openDB(memTable)
}

// flushRaw writes all changes as they come, in as many transactions as needed:
// a crash in between leaves a mixture. For rebuild and resync, which mark the
// slot so that such a mixture is never used. st becomes the index's state.
func (x *index) flushRaw(st state) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.frozen != nil {
		return errors.New("a checkpoint is under way")
	}
	w := x.db.NewWriteBatch()
	defer w.Cancel()
	if err := x.active.each(w.Set, w.Delete); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := setState(w.Set, st); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := x.db.Sync(); err != nil {
		return fmt.Errorf("sync index: %w", err)
	}
	for id, n := range x.active.inodes {
		delete(x.clean, id)
		if n != nil && len(x.clean) < cleanMax {
			x.clean[id] = n
		}
	}
	x.active = newDelta()
	x.gen++
	x.renew()
	x.state, x.base = st, st
	x.ring.set(st.Pos.Seq, st.Digest)
	return nil
}

// clear empties the index, the state included.
func (x *index) clear() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.now.txn.Discard()
	if err := x.db.DropAll(); err != nil {
		return fmt.Errorf("empty index: %w", err)
	}
	x.active, x.frozen = newDelta(), nil
	x.clean = make(map[op.ID]*Inode)
	x.gen++
	x.renew()
	x.state, x.base, x.ring = state{}, state{}, digestRing{}
	return nil
}

func setState(set func(k, v []byte) error, st state) error {
	st.Sum = st.Digest
	v, err := json.Marshal(st)
	if err != nil {
		return err
	}
	return set([]byte(keyState), v)
}

// each writes every change of d.
func (d *delta) each(set func(k, v []byte) error, del func(k []byte) error) error {
	for id, n := range d.inodes {
		var err error
		if n == nil {
			err = del(inodeKey(id))
		} else {
			err = set(inodeKey(id), encodeInode(n))
		}
		if err != nil {
			return err
		}
	}
	for dir, entries := range d.entries {
		for name, c := range entries {
			var err error
			if c.ID == 0 {
				err = del(entryKey(dir, name))
			} else {
				err = set(entryKey(dir, name), encodeChild(c))
			}
			if err != nil {
				return err
			}
		}
	}
	flag := func(key []byte, present bool) error {
		if present {
			return set(key, nil)
		}
		return del(key)
	}
	for dir, subdirs := range d.subdirs {
		for id, present := range subdirs {
			if err := flag(subdirKey(dir, id), present); err != nil {
				return err
			}
		}
	}
	for id, r := range d.deleted {
		var err error
		if r == nil {
			err = del(deletionKey(id))
		} else {
			err = set(deletionKey(id), encodeDeletion(r))
		}
		if err != nil {
			return err
		}
	}
	for id, is := range d.lacking {
		var err error
		switch is {
		case lacksNothing:
			err = del(lackKey(id))
		case lacksSeal:
			err = set(lackKey(id), nil)
		default:
			err = set(lackKey(id), []byte{byte(is)})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// ringSize is how many recent digests are kept for Checkpoint entries.
const ringSize = 4096

// digestRing remembers the slot's digest right after each recent entry.
type digestRing struct {
	at [ringSize]struct {
		seq    uint64
		digest op.Digest
	}
}

func (r *digestRing) set(seq uint64, d op.Digest) {
	p := &r.at[seq%ringSize]
	p.seq, p.digest = seq, d
}

// get finds the digest at seq, if it is recent enough.
func (r *digestRing) get(seq uint64) (op.Digest, bool) {
	p := &r.at[seq%ringSize]
	return p.digest, p.seq == seq
}
