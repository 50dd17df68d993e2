package meta

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// trash holds what lost its last name: for who has it open, for recovery, which
// may have to go back to an entry before the loss, and for undeleting. It is
// freed at the checkpoint after next.
type trash struct {
	t *tree

	mu   sync.Mutex
	now  uint64 // number of checkpoints begun since the start
	held map[op.ID]trashedFile
	keep func(op.ID) bool // nil: keep nothing longer than that
}

type trashedFile struct {
	n  *Inode // as it was; nil: from before the start, nobody can have it open
	at uint64 // trash.now when it came
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

// add notes that n has just been moved to trash.
func (r *trash) add(n *Inode) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[n.ID] = trashedFile{n: n, at: r.now}
}

// inode returns what is known of a file in trash.
func (r *trash) inode(id op.ID) (*Inode, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.held[id]
	if f.n == nil {
		return nil, ErrNotExist
	}
	return f.n, nil
}

// begin counts a checkpoint; what comes later is not in it.
func (r *trash) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now++
}

// free removes, when a checkpoint is done, what is old enough and not kept.
func (r *trash) free() error {
	r.mu.Lock()
	keep := r.keep
	var old []op.ID
	for id, f := range r.held {
		if f.at+2 <= r.now {
			old = append(old, id)
		}
	}
	r.mu.Unlock()
	for _, id := range old {
		if keep != nil && keep(id) {
			continue
		}
		// An id that has a name again came back in recovery.
		r.t.files.forget(id)
		if err := unix.Unlinkat(r.t.trash.fd, trashName(id), 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("free trash %d: %w", id, err)
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
