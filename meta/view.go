package meta

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"slotfs/meta/op"
)

// view reads the index as one transaction of badger sees it: as it was at a
// checkpoint. Not for use by several goroutines at a time.
type view struct{ txn *badger.Txn }

// get returns the value of key, valid as long as the transaction; nil if there
// is none.
func (v view) get(key []byte) (value []byte, err error) {
	defer unreadable(&err)
	item, err := v.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, &IndexError{err}
	}
	if err := item.Value(func(b []byte) error { value = b; return nil }); err != nil {
		return nil, &IndexError{err}
	}
	if value == nil {
		value = []byte{}
	}
	return value, nil
}

// unreadable makes an error of badger's panic over a block that cannot be read.
func unreadable(err *error) {
	if p := recover(); p != nil {
		*err = &IndexError{fmt.Errorf("read: %v", p)}
	}
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
	err = v.each(entryKey(dir, ""), true, func(key, value []byte) error {
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
	err = v.each(prefix, false, func(key, _ []byte) error {
		if len(key) != 8 {
			return errRecord
		}
		list = append(list, op.ID(binary.BigEndian.Uint64(key)))
		return nil
	})
	return list, err
}

// eachInode goes through all inodes in order of id.
func (v view) eachInode(f func(*Inode) error) error {
	return v.each([]byte{prefixInode}, true, func(key, value []byte) error {
		if len(key) != 8 {
			return errRecord
		}
		n, err := decodeInode(op.ID(binary.BigEndian.Uint64(key)), value)
		if err != nil {
			return err
		}
		return f(n)
	})
}

// inodeIDs lists up to limit ids of inodes from…to, ascending.
func (v view) inodeIDs(from, to op.ID, limit int) (list []op.ID, err error) {
	o := badger.DefaultIteratorOptions
	o.Prefix, o.PrefetchValues = []byte{prefixInode}, false
	it := v.txn.NewIterator(o)
	defer it.Close()
	for it.Seek(inodeKey(from)); it.Valid() && len(list) < limit; it.Next() {
		key := it.Item().Key()
		if len(key) != 9 {
			return nil, errRecord
		}
		id := op.ID(binary.BigEndian.Uint64(key[1:]))
		if id > to {
			break
		}
		list = append(list, id)
	}
	return list, nil
}

// lacking lists up to limit ids from `from` on, ascending, of regular files that
// lack this; what is in changed counts for nothing.
func (v view) lacking(what lack, from op.ID, limit int, changed map[op.ID]bool) (list []op.ID, err error) {
	err = v.eachSince([]byte{prefixLack}, lackKey(from), true, func(key, value []byte) error {
		if len(key) != 8 || len(value) > 1 {
			return errRecord
		}
		is := lacksSeal
		if len(value) == 1 {
			is = lack(value[0])
		}
		id := op.ID(binary.BigEndian.Uint64(key))
		if _, known := changed[id]; known || is != what {
			return nil
		}
		if list = append(list, id); len(list) >= limit {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return list, err
}

// errEnough ends each and eachSince where nothing more is wanted.
var errEnough = errors.New("enough")

// each calls f with what follows prefix in every key that starts with it.
// key and value are valid during the call only.
func (v view) each(prefix []byte, values bool, f func(key, value []byte) error) error {
	return v.eachSince(prefix, prefix, values, f)
}

// eachSince is each from the key `from` on.
func (v view) eachSince(prefix, from []byte, values bool, f func(key, value []byte) error) (err error) {
	calling := false // f's panics are its own
	defer func() {
		if calling {
			return
		}
		if p := recover(); p != nil {
			err = &IndexError{fmt.Errorf("read: %v", p)}
		}
	}()
	o := badger.DefaultIteratorOptions
	o.Prefix = prefix
	o.PrefetchValues = values
	it := v.txn.NewIterator(o)
	defer it.Close()
	for it.Seek(from); it.Valid(); it.Next() {
		item := it.Item()
		key := item.Key()[len(prefix):]
		if !values {
			calling = true
			if err := f(key, nil); err != nil {
				return err
			}
			calling = false
			continue
		}
		var called error
		if err := item.Value(func(b []byte) error {
			calling = true
			called = f(key, b)
			calling = false
			return nil
		}); err != nil {
			return &IndexError{err}
		}
		if called != nil {
			return called
		}
	}
	return nil
}
