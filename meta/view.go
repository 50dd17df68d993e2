package meta

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// view reads the index as one transaction of badger sees it: as it was at a
// checkpoint. Not for use by several goroutines at a time.
type view struct{ txn *badger.Txn }

// get returns the value of key, valid as long as the transaction; nil if there
// is none.
func (v view) get(key []byte) (b []byte, err error) {
	defer func() { unreadable(recover(), &err) }()
	item, err := v.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, &IndexError{err}
	}
	if b, err = valueOf(item); b == nil && err == nil {
		b = []byte{}
	}
	return b, err
}

// unreadable makes an error of what was recovered from badger, which panics over
// a block that it cannot read.
func unreadable(recovered any, err *error) {
	if recovered != nil {
		*err = &IndexError{fmt.Errorf("read: %v", recovered)}
	}
}

// valueOf is an item's value, valid as long as its iterator stays there.
func valueOf(item *badger.Item) (b []byte, err error) {
	if err := item.Value(func(v []byte) error { b = v; return nil }); err != nil {
		return nil, &IndexError{err}
	}
	return b, nil
}

// state is what the transaction sees the index to be the index of.
func (v view) state() (st state, err error) {
	b, err := v.get([]byte(keyState))
	if err != nil || b == nil {
		return st, err
	}
	if err := json.Unmarshal(b, &st); err != nil {
		return st, fmt.Errorf("state: %w: %w", errRecord, err)
	}
	st.Digest = st.Sum
	return st, nil
}

func (v view) inode(id op.ID) (*Inode, error) {
	b, err := v.get(inodeKey(id))
	if err != nil {
		return nil, err
	}
	if b == nil {
		return nil, ErrNotExist
	}
	return decodeInode(id, b)
}

func (v view) child(dir op.ID, name string) (Child, error) {
	b, err := v.get(entryKey(dir, name))
	if err != nil {
		return Child{}, err
	}
	if b == nil {
		return Child{}, ErrNotExist
	}
	return decodeChild(name, b)
}

// children lists a directory in order of name.
func (v view) children(dir op.ID) (list []Child, err error) {
	prefix := entryKey(dir, "")
	err = v.each(prefix, prefix, true, func(key, value []byte) error {
		c, err := decodeChild(string(key), value)
		list = append(list, c)
		return err
	})
	return list, err
}

// whole is children, and notices if badger left something out: its iterators
// end in silence at a block that they cannot read. ErrNotExist with the list if
// badger has no such directory: it was made since the checkpoint, or removed
// before, or its record is in such a block.
func (v view) whole(dir op.ID) ([]Child, error) {
	list, err := v.children(dir)
	if err != nil {
		return nil, err
	}
	n, err := v.inode(dir)
	if err == nil && n.IsDir() && n.Count != uint64(len(list)) {
		err = &IndexError{fmt.Errorf("it lists %d of the %d entries of directory %d", len(list), n.Count, dir)}
	}
	return list, err
}

// subdirs lists the directories in a directory in order of id.
func (v view) subdirs(dir op.ID) ([]op.ID, error) { return v.ids(subdirKey(dir, 0)[:9]) }

// ids lists the ids that keys with this prefix end in, ascending.
func (v view) ids(prefix []byte) (list []op.ID, err error) {
	err = v.eachID(prefix, 0, false, func(id op.ID, _ []byte) error {
		list = append(list, id)
		return nil
	})
	return list, err
}

// eachInode goes through the inodes from one id on, in order of id.
func (v view) eachInode(from op.ID, f func(*Inode) error) error {
	return v.eachID([]byte{prefixInode}, from, true, func(id op.ID, value []byte) error {
		n, err := decodeInode(id, value)
		if err != nil {
			return err
		}
		return f(n)
	})
}

// inodeIDs lists up to limit ids of inodes from…to, ascending.
func (v view) inodeIDs(from, to op.ID, limit int) (list []op.ID, err error) {
	err = v.eachID([]byte{prefixInode}, from, false, func(id op.ID, _ []byte) error {
		if id > to || len(list) >= limit {
			return errEnough
		}
		list = append(list, id)
		return nil
	})
	return list, err
}

// lacking lists up to limit ids from `from` on, ascending, of regular files that
// lack this; what is in changed counts for nothing.
func (v view) lacking(what lack, from op.ID, limit int, changed map[op.ID]bool) (list []op.ID, err error) {
	err = v.eachID([]byte{prefixLack}, from, true, func(id op.ID, value []byte) error {
		if len(value) > 1 {
			return errRecord
		}
		is := lacksSeal
		if len(value) == 1 {
			is = lack(value[0])
		}
		if _, known := changed[id]; known || is != what {
			return nil
		}
		if list = append(list, id); len(list) >= limit {
			return errEnough
		}
		return nil
	})
	return list, err
}

// eachID calls f for every key that is prefix and an id, from one id on.
func (v view) eachID(prefix []byte, from op.ID, values bool, f func(id op.ID, value []byte) error) error {
	start := binary.BigEndian.AppendUint64(slices.Clone(prefix), uint64(from))
	return v.each(prefix, start, values, func(key, value []byte) error {
		if len(key) != 8 {
			return errRecord
		}
		return f(op.ID(binary.BigEndian.Uint64(key)), value)
	})
}

// errEnough, from what goes through records, ends that where nothing more is
// wanted; it is no error.
var errEnough = errors.New("enough")

// each calls f with what follows prefix in every key that starts with it, from
// the key `from` on: the one loop over badger's records. key and value are valid
// during the call only.
func (v view) each(prefix, from []byte, values bool, f func(key, value []byte) error) (err error) {
	calling := false // f's panics are its own
	defer func() {
		if !calling {
			unreadable(recover(), &err)
		}
	}()
	o := badger.DefaultIteratorOptions
	o.Prefix, o.PrefetchValues = prefix, values
	it := v.txn.NewIterator(o)
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		var b []byte
		if values {
			if b, err = valueOf(it.Item()); err != nil {
				return err
			}
		}
		calling = true
		err = f(it.Item().Key()[len(prefix):], b)
		calling = false
		if errors.Is(err, errEnough) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
