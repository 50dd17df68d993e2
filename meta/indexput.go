package meta

import (
	"errors"
	"fmt"
	"slices"

	"slotfs/meta/op"
)

// put makes n the inode of its id: the one way to add or change an object.
// Entries of directories, nlink, Entries, Count and Bytes follow (what n says
// of them is ignored). With when != 0, a directory whose entries change by it
// gets that mtime and ctime.
//
// n must not be changed afterwards.
func (x *index) put(n *Inode, when int64) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.putLocked(n, when)
}

func (x *index) putLocked(n *Inode, when int64) error {
	old, err := x.inodeLocked(n.ID)
	if err != nil && !errors.Is(err, ErrNotExist) {
		return err
	}
	n.Entries, n.Count, n.Bytes = op.Digest{}, 0, 0
	if n.IsDir() {
		n.Nlink = 2
		if old != nil {
			n.Nlink, n.Entries, n.Count, n.Bytes = old.Nlink, old.Entries, old.Count, old.Bytes
		}
	} else {
		n.Nlink = uint32(len(n.Names))
	}
	return x.replace(old, n, when)
}

// dropLocked removes id with all its names.
func (x *index) dropLocked(id op.ID, when int64) error {
	old, err := x.inodeLocked(id)
	if err != nil {
		return fmt.Errorf("drop id %d: %w", id, err)
	}
	if old.Count != 0 {
		return fmt.Errorf("%w: directory %d is not empty", errIndex, id)
	}
	return x.replace(old, nil, when)
}

// replace puts n in the place of old; either may be nil, not both.
func (x *index) replace(old, n *Inode, when int64) error {
	e := edit{x: x, when: when}
	id := op.Root
	if old != nil {
		id = old.ID
		d := ownElements(old)
		x.state.Digest.Sub(d)
		x.state.count(old, -1)
	}
	if n != nil {
		id = n.ID
		d := ownElements(n)
		x.state.Digest.Add(d)
		x.state.count(n, +1)
	}
	// Without an error from here on, or the totals would be off: the only ones
	// possible contradict the index, and fault the slot.
	if old != nil {
		for _, at := range old.Names {
			if err := e.leave(old, at, n != nil && slices.Contains(n.Names, at)); err != nil {
				return err
			}
		}
	}
	if n != nil {
		for _, at := range n.Names {
			if err := e.enter(n, at, old != nil && slices.Contains(old.Names, at)); err != nil {
				return err
			}
		}
	}
	x.store(id, n)
	if is := n.lacks(); is != old.lacks() {
		x.storeLack(id, is)
	}
	return e.finish()
}

func (x *index) storeLack(id op.ID, is lack) {
	if _, again := x.active.lacking[id]; !again {
		x.active.records++
		x.active.bytes += 10 + recordCost
	}
	x.active.lacking[id] = is
}

// lack is what a regular file is without, as it is without a checksum.
type lack byte

const (
	lacksNothing lack = iota
	lacksSeal         // a control file that has changed since it was sealed
	lacksSum          // an adopted message that was not read yet: it is unverified
)

// lacks is what n, which may be nil, is without.
func (n *Inode) lacks() lack {
	switch {
	case n == nil || n.Sum != nil || !n.IsRegular():
		return lacksNothing
	case n.Sealed:
		return lacksSum
	}
	return lacksSeal
}

// Unverified reports whether n is an adopted message whose checksum was not taken
// yet.
func (n *Inode) Unverified() bool { return n.lacks() == lacksSum }

// edit collects what one replace does to directories.
type edit struct {
	x    *index
	when int64
	dirs []edited
	room [4]edited // usual number of directories: no allocation
}

// edited is a directory before and after.
type edited struct {
	old, n *Inode
}

// dir returns a directory for changing.
func (e *edit) dir(id op.ID) (*Inode, error) {
	for _, d := range e.dirs {
		if d.n.ID == id {
			return d.n, nil
		}
	}
	old, err := e.x.inodeLocked(id)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", id, err)
	}
	if !old.IsDir() {
		return nil, fmt.Errorf("%w: id %d is not a directory", errIndex, id)
	}
	if e.dirs == nil {
		e.dirs = e.room[:0]
	}
	c := *old // names and attributes stay shared: nobody writes into them
	e.dirs = append(e.dirs, edited{old: old, n: &c})
	return &c, nil
}

// leave takes old out of the directory at; with stays, only to change its
// element there.
func (e *edit) leave(old *Inode, at Name, stays bool) error {
	d, err := e.dir(at.Dir)
	if err != nil {
		return err
	}
	d.Entries.Sub(element(at, old))
	if old.IsRegular() {
		d.Bytes -= uint64(old.Size)
	}
	if stays {
		return nil
	}
	d.Count--
	if old.IsDir() {
		d.Nlink--
		e.x.storeSubdir(at.Dir, old.ID, false)
	}
	e.touch(d)
	e.x.storeEntry(at, Child{Name: at.Name})
	return nil
}

// enter is the opposite of leave; with stays, the name was there before.
func (e *edit) enter(n *Inode, at Name, stays bool) error {
	d, err := e.dir(at.Dir)
	if err != nil {
		return err
	}
	d.Entries.Add(element(at, n))
	if n.IsRegular() {
		d.Bytes += uint64(n.Size)
	}
	if stays {
		return nil
	}
	if c, err := e.x.childLocked(at.Dir, at.Name); err == nil {
		return fmt.Errorf("%w: %q in directory %d is id %d already", errIndex, at.Name, at.Dir, c.ID)
	} else if !errors.Is(err, ErrNotExist) {
		return err
	}
	d.Count++
	if n.IsDir() {
		d.Nlink++
		e.x.storeSubdir(at.Dir, n.ID, true)
	}
	e.touch(d)
	e.x.storeEntry(at, Child{Name: at.Name, ID: n.ID, Type: n.Type()})
	return nil
}

func (e *edit) touch(d *Inode) {
	if e.when != 0 {
		d.Mtime, d.Ctime = e.when, e.when
	}
}

// finish stores the directories, and brings the elements of those whose own
// attributes changed up to date in the directories above.
func (e *edit) finish() error {
	for i := 0; i < len(e.dirs); i++ { // dir may append; what it appends needs no further step
		d := e.dirs[i]
		if d.old.Mtime == d.n.Mtime {
			continue
		}
		e.x.state.Digest.Sub(ownElements(d.old))
		e.x.state.Digest.Add(ownElements(d.n))
		for _, at := range d.n.Names {
			above, err := e.dir(at.Dir)
			if err != nil {
				return err
			}
			above.Entries.Sub(element(at, d.old))
			above.Entries.Add(element(at, d.n))
		}
	}
	for _, d := range e.dirs {
		e.x.store(d.n.ID, d.n)
	}
	return nil
}

// store puts an inode, or nil for its removal, into the active delta.
func (x *index) store(id op.ID, n *Inode) {
	before, again := x.active.inodes[id]
	if again {
		x.active.bytes -= cost(before)
	} else {
		x.active.records++
	}
	x.active.bytes += cost(n)
	x.active.inodes[id] = n
	delete(x.clean, id)
}

// cost is an upper bound of what n's record takes in a transaction, in bytes.
func cost(n *Inode) int64 {
	size := 9 + recordCost
	if n == nil {
		return int64(size)
	}
	size += 128 + len(n.Target)
	if n.Sum != nil {
		size += 40 + 8*len(n.Sum.Blocks)
	}
	for k, v := range n.Xattr {
		size += len(k) + len(v) + 12
	}
	for _, at := range n.Names {
		size += len(at.Name) + 16
	}
	return int64(size)
}

func (x *index) storeEntry(at Name, c Child) {
	m := x.active.entries[at.Dir]
	if m == nil {
		m = make(map[string]Child)
		x.active.entries[at.Dir] = m
	}
	if _, again := m[at.Name]; !again {
		x.active.records++
		x.active.bytes += int64(9 + len(at.Name) + 12 + recordCost)
	}
	m[at.Name] = c
}

func (x *index) storeSubdir(dir, id op.ID, present bool) {
	m := x.active.subdirs[dir]
	if m == nil {
		m = make(map[op.ID]bool)
		x.active.subdirs[dir] = m
	}
	if _, again := m[id]; !again {
		x.active.records++
		x.active.bytes += 17 + recordCost
	}
	m[id] = present
}
