package meta

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"slotfs/meta/op"
)

// Deletion is the record of a message that lost its last name: what undelete
// needs to know. It is kept in the index, written with the entry that removed the
// message and, like all of the index, the same on every slot; for as long as the
// message's bytes are in trash/.
type Deletion struct {
	Inode *Inode // as it was
	Seq   uint64 // of the entry
	Time  int64  // of that entry, ns since 1970
	Path  string // the name that it lost last, from the root
	User  string // UserOf(Path)
}

// UndeletedXattr is the extended attribute of a message that undelete brought
// back; its value is the id that it had. The mount does not show it. The Put that
// carries it makes every slot forget the deletion, so that a message comes back
// once, whoever is primary then.
const UndeletedXattr = markName + ".undeleted"

// deletionVersion is the first byte of a record. The rest is: seq uvarint, time
// varint, path and user each preceded by its length, the inode record.
const deletionVersion = 1

func deletionKey(id op.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixDeleted}, uint64(id))
}

func encodeDeletion(d *Deletion) []byte {
	b := append(make([]byte, 0, 320), deletionVersion)
	b = binary.AppendUvarint(b, d.Seq)
	b = binary.AppendVarint(b, d.Time)
	b = appendString(b, d.Path)
	b = appendString(b, d.User)
	return append(b, encodeInode(d.Inode)...)
}

func decodeDeletion(id op.ID, b []byte) (*Deletion, error) {
	if len(b) == 0 || b[0] != deletionVersion {
		return nil, fmt.Errorf("deletion of %d: version: %w", id, errRecord)
	}
	r := recordReader{b: b[1:]}
	d := &Deletion{Seq: r.uvarint(), Time: r.varint(), Path: r.string(), User: r.string()}
	if r.bad {
		return nil, fmt.Errorf("deletion of %d: %w", id, errRecord)
	}
	var err error
	d.Inode, err = decodeInode(id, r.b)
	return d, err
}

// noteDeleted records, while c is applied, that old loses its last name at; mu is
// held.
func (x *index) noteDeleted(c *change, old *Inode, at Name) error {
	if !old.Sealed {
		return nil
	}
	dir, err := pathOf(at.Dir, x.inodeLocked)
	if err != nil {
		return fmt.Errorf("%w: %w", errIndex, err)
	}
	path := join(dir, at.Name)
	x.storeDeletion(old.ID, &Deletion{Inode: old, Seq: c.e.Seq, Time: c.e.Time, Path: path, User: UserOf(path)})
	return nil
}

// noteUndeleted forgets a deletion that a Put undoes; mu is held.
func (x *index) noteUndeleted(o *op.Put) error {
	id := undeleted(o)
	if id == 0 {
		return nil
	}
	d, err := x.deletionLocked(id)
	if d != nil {
		x.storeDeletion(id, nil)
	}
	return err
}

// storeDeletion changes the active delta; d is nil for removal. mu is held.
func (x *index) storeDeletion(id op.ID, d *Deletion) {
	if _, again := x.active.deleted[id]; !again {
		x.active.records++
		x.active.bytes += 9 + recordCost
	}
	if d != nil {
		x.active.bytes += int64(400 + len(d.Path) + len(d.User) + len(d.Inode.Xattr)*64)
	}
	x.active.deleted[id] = d
}

// dropDeletion forgets one.
func (x *index) dropDeletion(id op.ID) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	d, err := x.deletionLocked(id)
	if d != nil {
		x.storeDeletion(id, nil)
	}
	return err
}

// deletion finds one; nil if there is none.
func (x *index) deletion(id op.ID) (*Deletion, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.deletionLocked(id)
}

func (x *index) deletionLocked(id op.ID) (*Deletion, error) {
	for _, d := range slices.Backward(x.deltas()) {
		if r, known := d.deleted[id]; known {
			return r, nil
		}
	}
	b, err := x.now.get(deletionKey(id))
	if b == nil || err != nil {
		return nil, err
	}
	return decodeDeletion(id, b)
}

// deletions lists all of them, in order of id.
func (x *index) deletions() (all []*Deletion, err error) {
	x.mu.RLock()
	changed := make(map[op.ID]*Deletion)
	for _, d := range x.deltas() {
		maps.Copy(changed, d.deleted)
	}
	v := view{x.db.NewTransaction(false)}
	x.mu.RUnlock()
	defer v.txn.Discard()
	err = v.eachID([]byte{prefixDeleted}, 0, true, func(id op.ID, value []byte) error {
		if _, ok := changed[id]; ok {
			return nil
		}
		d, err := decodeDeletion(id, value)
		all = append(all, d)
		return err
	})
	for _, d := range changed {
		if d != nil {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b *Deletion) int { return cmp.Compare(a.Inode.ID, b.Inode.ID) })
	return all, err
}

// inode is d's; nil if there is no record.
func (d *Deletion) inode() *Inode {
	if d == nil {
		return nil
	}
	return d.Inode
}

// noteTrash makes trash and the records of deletions agree, after one of them was
// read anew.
func (s *Slot) noteTrash() error {
	all, err := s.ix.deletions()
	if err != nil {
		return fmt.Errorf("records of deletions: %w", err)
	}
	for _, id := range s.trash.note(all) {
		if err := s.ix.dropDeletion(id); err != nil {
			return err
		}
	}
	return nil
}

// deletionBy is the record that entry e made of gone; nil if it made none.
func (s *Slot) deletionBy(e *op.Entry, gone *Inode) *Deletion {
	d, err := s.ix.deletion(gone.ID)
	if err != nil || d == nil || d.Seq != e.Seq {
		return nil
	}
	return d
}

// undeleted is the id of the message that o brings back; 0 for none.
func undeleted(o *op.Put) op.ID {
	id, err := strconv.ParseUint(string(o.Attr.Xattr[UndeletedXattr]), 10, 64)
	if err != nil {
		return 0 // none, or not of our making
	}
	return op.ID(id)
}

// Deletions lists the messages whose bytes are still kept though they have no
// name any more, that were removed at since (ns since 1970) or later, in order of
// their removal.
func (s *Slot) Deletions(since int64) ([]*Deletion, error) {
	all, err := s.ix.deletions()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(d *Deletion) bool { return d.Time < since })
	slices.SortFunc(all, func(a, b *Deletion) int { return cmp.Compare(a.Seq, b.Seq) })
	return all, nil
}

// Deletion finds the record of one; ErrNotExist if there is none (any more).
func (s *Slot) Deletion(id op.ID) (*Deletion, error) {
	d, err := s.ix.deletion(id)
	if err == nil && d == nil {
		err = ErrNotExist
	}
	return d, err
}
