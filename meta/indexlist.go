package meta

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"slotfs/meta/op"
)

// A list of the index is what badger has, with what the deltas say laid over it:
// both are taken at one moment, and read without the lock.

// snapshot is such a pair for one directory.
func (x *index) snapshot(dir op.ID) (v view, entries map[string]Child, subdirs map[op.ID]bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	entries, subdirs = make(map[string]Child), make(map[op.ID]bool)
	for _, d := range x.deltas() {
		maps.Copy(entries, d.entries[dir])
		maps.Copy(subdirs, d.subdirs[dir])
	}
	return view{x.db.NewTransaction(false)}, entries, subdirs
}

// children lists a directory in order of name; empty if there is none.
func (x *index) children(dir op.ID) ([]Child, error) { return x.list(dir, view.children) }

// whole is children of an index that is no mixture: it notices a list that is
// too short. ErrNotExist if the directory should be in badger, and is not.
func (x *index) whole(dir op.ID) ([]Child, error) {
	since := dir > op.ID(x.checkpointed().Pos.Seq) // ids are the seqs of entries
	return x.list(dir, func(v view, dir op.ID) ([]Child, error) {
		list, err := v.whole(dir)
		if since && errors.Is(err, ErrNotExist) {
			err = nil
		}
		return list, err
	})
}

func (x *index) list(dir op.ID, read func(view, op.ID) ([]Child, error)) ([]Child, error) {
	v, entries, _ := x.snapshot(dir)
	defer v.txn.Discard()
	list, err := read(v, dir)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return list, nil
	}
	list = slices.DeleteFunc(list, func(c Child) bool { _, changed := entries[c.Name]; return changed })
	for _, c := range entries {
		if c.ID != 0 {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Child) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// subdirs lists the ids of a directory's directories, ascending, without
// looking at its other entries.
func (x *index) subdirs(dir op.ID) ([]op.ID, error) {
	v, _, changed := x.snapshot(dir)
	defer v.txn.Discard()
	list, err := v.subdirs(dir)
	if err != nil {
		return nil, err
	}
	return amend(list, changed), nil
}

// idsFrom lists up to limit ids of the index from…to, ascending.
func (x *index) idsFrom(from, to op.ID, limit int) ([]op.ID, error) {
	x.mu.RLock()
	changed := make(map[op.ID]bool)
	for _, d := range x.deltas() {
		for id, n := range d.inodes {
			if from <= id && id <= to {
				changed[id] = n != nil
			}
		}
	}
	v := view{x.db.NewTransaction(false)}
	x.mu.RUnlock()
	defer v.txn.Discard()
	ids, err := v.inodeIDs(from, to, limit+len(changed))
	if err != nil {
		return nil, err
	}
	ids = amend(ids, changed)
	return ids[:min(limit, len(ids))], nil
}

// lacking lists up to limit ids from `from` on, ascending, of regular files that
// lack this.
func (x *index) lacking(what lack, from op.ID, limit int) ([]op.ID, error) {
	x.mu.RLock()
	changed := make(map[op.ID]bool)
	for _, d := range x.deltas() {
		for id, is := range d.lacking {
			if id >= from {
				changed[id] = is == what
			}
		}
	}
	v := view{x.db.NewTransaction(false)}
	x.mu.RUnlock()
	defer v.txn.Discard()
	list, err := v.lacking(what, from, limit, changed)
	if err != nil {
		return nil, err
	}
	list = amend(list, changed)
	return list[:min(limit, len(list))], nil
}

// amend adds to, and takes from, ids in order what changed says.
func amend(ids []op.ID, changed map[op.ID]bool) []op.ID {
	ids = slices.DeleteFunc(ids, func(id op.ID) bool { _, ok := changed[id]; return ok })
	for id, present := range changed {
		if present {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// eachInode calls f for every inode in order of id, until f returns an error.
// What changes meanwhile may or may not be seen.
func (x *index) eachInode(f func(*Inode) error) error {
	x.mu.RLock()
	v, changed := view{x.db.NewTransaction(false)}, x.inodesSince(0)
	x.mu.RUnlock()
	defer v.txn.Discard()
	return v.eachAmended(0, changed, f)
}

// inodesSince is what the deltas say about ids from one on; mu is held.
func (x *index) inodesSince(from op.ID) map[op.ID]*Inode {
	changed := make(map[op.ID]*Inode)
	for _, d := range x.deltas() {
		for id, n := range d.inodes {
			if id >= from {
				changed[id] = n
			}
		}
	}
	return changed
}

// eachAmended is eachInode with what changed says laid over it.
func (v view) eachAmended(from op.ID, changed map[op.ID]*Inode, f func(*Inode) error) error {
	ids := slices.Sorted(maps.Keys(changed))
	next := func(before op.ID) error { // changed ones below before
		for len(ids) > 0 && ids[0] < before {
			n := changed[ids[0]]
			ids = ids[1:]
			if n != nil {
				if err := f(n); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err := v.eachInode(from, func(n *Inode) error {
		if err := next(n.ID); err != nil {
			return err
		}
		if _, ok := changed[n.ID]; ok {
			return nil // comes with the changed ones
		}
		return f(n)
	})
	if err != nil {
		return err
	}
	return next(^op.ID(0))
}

// path is where id is, from the root on; mu is not held.
func (x *index) path(id op.ID) (string, error) { return pathOf(id, x.inode) }

// pathOf climbs from id to the root by the first name of each step.
func pathOf(id op.ID, inode func(op.ID) (*Inode, error)) (string, error) {
	var parts []string
	for id != op.Root {
		n, err := inode(id)
		if err != nil {
			return "", err
		}
		if len(n.Names) == 0 || len(parts) > 4096 {
			return "", fmt.Errorf("id %d leads nowhere: %w", id, ErrNotExist)
		}
		parts = append(parts, n.Names[0].Name)
		id = n.Names[0].Dir
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/"), nil
}
