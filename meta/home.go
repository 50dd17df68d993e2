package meta

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fileHome says which file the lock of this data directory was when the slot
// was last opened. A directory that was copied, or restored from a backup file by
// file, has another one: what it holds may be older than what the slot had, and
// nothing inside it can tell. (An image of the whole disk that is put back looks
// the same.)
const fileHome = "home.json"

// home identifies a file for the life of its file system.
type home struct {
	Inode uint64 `json:"inode"`
	Born  int64  `json:"born"` // ns since 1970; 0: the file system does not say
}

func homeOf(f *os.File) (home, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return home{}, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	h := home{Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		h.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return h, nil
}

// openHome looks whether the data directory is where it was; the lock is held.
func (s *Slot) openHome() error {
	var err error
	if s.home, err = homeOf(s.lock); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(s.dir, fileHome))
	if errors.Is(err, fs.ErrNotExist) {
		return s.Settle() // new, or of a version that did not look
	}
	if err != nil {
		return err
	}
	var was home
	s.copied = json.Unmarshal(b, &was) != nil || was != s.home
	return nil
}

// Copied reports whether the data directory was copied here, or restored, since
// Settle was called: what it holds may be old.
func (s *Slot) Copied() bool { return s.copied }

// Settle notes, durably, that this is where the data directory is. Whoever needs
// to know that it was copied has noted it.
func (s *Slot) Settle() error {
	if err := writeRecord(filepath.Join(s.dir, fileHome), s.home); err != nil {
		return fmt.Errorf("write %s: %w", fileHome, err)
	}
	return nil
}
