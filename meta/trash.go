package meta

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// trash holds what lost its last name: for who has it open, for recovery, which
// may have to go back to an entry before the loss, and for undelete. It is freed
// at the checkpoint after next, or later if there is a record of its deletion
// (deleted.go) and the brake holds it.
type trash struct {
	t *tree

	freeing sync.Mutex // one free at a time; before mu

	mu    sync.Mutex
	now   uint64 // number of checkpoints begun since the start
	held  map[op.ID]trashedFile
	keep  func(op.ID) bool                        // nil: keep nothing longer than that
	holds func(f trashedFile, now time.Time) bool // what has a record; nil: nothing
}

type trashedFile struct {
	n  *Inode // as it was; nil: from before the start, nobody can have it open
	at uint64 // trash.now when it came

	noted bool // there is a record of its deletion, which says:
	time  int64
	user  string
	size  int64
}

// noted is f with what d says.
func (f trashedFile) with(d *Deletion) trashedFile {
	if f.noted = d != nil; f.noted {
		f.time, f.user, f.size = d.Time, d.User, d.Inode.Size
	}
	return f
}

func openTrash(t *tree) (*trash, error) {
	f, err := os.Open(t.path(dirTrash))
	if err != nil {
		return nil, fmt.Errorf("open trash: %w", err)
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("list trash: %w", err)
	}
	r := &trash{t: t, held: make(map[op.ID]trashedFile)}
	for _, name := range names {
		if id, err := strconv.ParseUint(name, 10, 64); err == nil {
			r.held[op.ID(id)] = trashedFile{}
		}
	}
	return r, nil
}

// add notes that n has just been moved to trash; d is the record, nil for none.
func (r *trash) add(n *Inode, d *Deletion) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[n.ID] = trashedFile{n: n, at: r.now}.with(d)
}

// note takes in the records of deletions that the index has, and returns those of
// which nothing is left.
func (r *trash) note(all []*Deletion) (gone []op.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range all {
		if f, ok := r.held[d.Inode.ID]; ok {
			r.held[d.Inode.ID] = f.with(d)
		} else {
			gone = append(gone, d.Inode.ID)
		}
	}
	return gone
}

// forgetRecord: what id was has been undeleted.
func (r *trash) forgetRecord(id op.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.held[id]; ok {
		r.held[id] = f.with(nil)
	}
}

// recorded counts what can be undeleted.
func (r *trash) recorded() (n int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.held {
		if f.noted {
			n++
			bytes += f.size
		}
	}
	return n, bytes
}

// inode returns what is known of a file in trash.
func (r *trash) inode(id op.ID) (*Inode, error) {
	r.mu.Lock()
	f := r.held[id]
	r.mu.Unlock()
	if f.n != nil {
		return f.n, nil
	}
	if f.noted {
		if d, err := r.t.x.deletion(id); err != nil || d != nil {
			return d.inode(), err
		}
	}
	return nil, ErrNotExist
}

// begin counts a checkpoint; what comes later is not in it.
func (r *trash) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now++
}

// free removes what is old enough and not kept.
func (r *trash) free() error {
	return r.remove(func(held map[op.ID]trashedFile) (old []op.ID) {
		now := time.Now()
		for id, f := range held {
			if !f.noted || r.holds == nil || !r.holds(f, now) {
				old = append(old, id)
			}
		}
		return old
	}, func() bool { return false })
}

// makeRoom removes what is only kept to be undeleted, what was removed first
// before the rest, until there is enough room. It returns how much that was.
func (r *trash) makeRoom(enough func() bool) (n int, err error) {
	before, _ := r.recorded()
	err = r.remove(func(held map[op.ID]trashedFile) (old []op.ID) {
		for id, f := range held {
			if f.noted {
				old = append(old, id)
			}
		}
		slices.SortFunc(old, func(a, b op.ID) int { return cmp.Compare(held[a].time, held[b].time) })
		return old
	}, enough)
	after, _ := r.recorded()
	return before - after, err
}

// remove removes what choose names of what recovery does not need any more, and
// nobody has open.
func (r *trash) remove(choose func(map[op.ID]trashedFile) []op.ID, enough func() bool) error {
	r.freeing.Lock()
	defer r.freeing.Unlock()
	r.mu.Lock()
	keep := r.keep
	old := make(map[op.ID]trashedFile)
	for id, f := range r.held {
		if f.at+2 <= r.now {
			old[id] = f
		}
	}
	list := choose(old)
	r.mu.Unlock()
	for i, id := range list {
		if keep != nil && keep(id) {
			continue
		}
		if i%64 == 0 && enough() {
			return nil
		}
		// An id that has a name again came back in recovery.
		r.t.files.forget(id)
		if err := unix.Unlinkat(r.t.trash.fd, trashName(id), 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("free trash %d: %w", id, err)
		}
		if old[id].noted {
			if err := r.t.x.dropDeletion(id); err != nil {
				return fmt.Errorf("free trash %d: %w", id, err)
			}
		}
		r.mu.Lock()
		delete(r.held, id)
		r.mu.Unlock()
	}
	return nil
}

// Keep sets the function that says which unlinked files are still open. It is
// asked, outside locks, before trash is freed.
func (s *Slot) Keep(keep func(id op.ID) bool) {
	s.trash.mu.Lock()
	defer s.trash.mu.Unlock()
	s.trash.keep = keep
}
