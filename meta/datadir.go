package meta

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Create makes a new slot's data directory, which must not exist or be empty.
// Format and Slot of id are filled in, and Layout with the default.
func Create(dir string, id Identity) (op.SlotID, error) {
	id.Format = Format
	if id.Layout == "" {
		id.Layout = LayoutMaildir
	}
	if _, err := LayoutByName(id.Layout); err != nil {
		return op.SlotID{}, err
	}
	if _, err := rand.Read(id.Slot[:]); err != nil {
		return op.SlotID{}, fmt.Errorf("make slot id: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return op.SlotID{}, fmt.Errorf("make data directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return op.SlotID{}, fmt.Errorf("read data directory: %w", err)
	}
	if len(entries) > 0 {
		return op.SlotID{}, &DataError{
			File: dir, Reason: ErrNotEmpty, Detail: "it holds " + entries[0].Name(),
			Remedy: "name a new or an empty directory",
		}
	}
	for _, name := range append(remade(), dirTree, dirLog) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return op.SlotID{}, fmt.Errorf("make data directory: %w", err)
		}
	}
	if err := claimTree(dir, id.Slot); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EPERM) {
		return op.SlotID{}, err // whoever opens it on such a file system is told why not
	}
	// Last: without it the directory is not a slot's, and may be removed.
	if err := writeRecord(filepath.Join(dir, fileIdentity), id); err != nil {
		return op.SlotID{}, fmt.Errorf("write %s: %w", fileIdentity, err)
	}
	return id.Slot, errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// remade are the directories in a data directory that every start makes if they
// are gone. Without the others there may have been a loss.
func remade() []string {
	return []string{dirIndex, dirTrash, dirStage, dirQuarantine, dirRescue, dirVolatile}
}

// ReadIdentity reads what a data directory says of itself, without locking it.
func ReadIdentity(dir string) (Identity, error) {
	var id Identity
	file := filepath.Join(dir, fileIdentity)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return id, &DataError{File: file, Reason: ErrNotSlot, Detail: "no such file",
			Remedy: "check the path; 'slotfs serve' makes a new slot in an empty directory"}
	}
	if err != nil {
		return id, &DataError{File: file, Reason: err, Remedy: "the daemon must be able to read it"}
	}
	if err := json.Unmarshal(b, &id); err != nil || id.Slot.IsZero() || id.Format < 1 {
		detail := "incomplete"
		if err != nil {
			detail = err.Error()
		}
		return id, &DataError{File: file, Reason: ErrNotSlot, Detail: detail,
			Remedy: "restore the file, or fill an empty directory from the other node"}
	}
	if id.Format > Format {
		return id, &DataError{File: file, Reason: ErrNewerFormat,
			Detail: fmt.Sprintf("format %d, this program knows up to %d", id.Format, Format),
			Remedy: "use the program version that wrote it, or a later one"}
	}
	return id, nil
}

// check refuses an identity that is not what o expects.
func (id Identity) check(file string, o Options) error {
	if o.Store != "" && id.Store != o.Store {
		return &DataError{File: file, Reason: ErrOtherStore, Detail: fmt.Sprintf("it is of %q, the configuration says %q", id.Store, o.Store),
			Remedy: "correct store or data in the configuration"}
	}
	if o.Layout != "" && id.Layout != o.Layout {
		return &DataError{File: file, Reason: ErrLayout, Detail: fmt.Sprintf("it is %q, the configuration says %q", id.Layout, o.Layout),
			Remedy: "correct layout in the configuration: it cannot change"}
	}
	return nil
}

// lockData makes sure that one process at a time uses dir.
func lockData(dir string) (*os.File, error) {
	path := filepath.Join(dir, fileLock)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		var holder [32]byte
		n, _ := f.ReadAt(holder[:], 0)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return nil, &DataError{File: path, Reason: ErrLocked, Detail: "process " + strings.TrimSpace(string(holder[:n])),
			Remedy: "stop that process first"}
	}
	// For people and for the message above; the lock itself is the flock.
	err = errors.Join(f.Truncate(0), writeFirst(int(f.Fd()), []byte(strconv.Itoa(os.Getpid())+"\n")))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return f, nil
}

// emptyDir removes what is in a directory.
func emptyDir(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Dir is the slot's data directory.
func (s *Slot) Dir() string { return s.dir }

// VolatileDir is where fs may put what it holds of volatile files; it is emptied
// by Open.
func (s *Slot) VolatileDir() string { return filepath.Join(s.dir, dirVolatile) }

// StoreID is the id of the store that the slot belongs to; zero until it is
// known.
func (s *Slot) StoreID() StoreID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.identity.ID
}

// SetStore records, durably, the store that a fresh slot belongs to from now
// on. Of a slot that has one already, it must be the same.
func (s *Slot) SetStore(id StoreID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.identity.ID == id {
		return nil
	}
	file := filepath.Join(s.dir, fileIdentity)
	if !s.identity.ID.IsZero() {
		return &DataError{File: file, Reason: ErrOtherStore,
			Detail: fmt.Sprintf("it is of the store with id %v, not %v", s.identity.ID, id),
			Remedy: "two stores have one name: rename one, or start this slot with an empty data directory"}
	}
	next := s.identity
	next.ID = id
	if err := writeRecord(file, next); err != nil {
		return fmt.Errorf("write %s: %w", fileIdentity, err)
	}
	s.identity = next
	return nil
}
