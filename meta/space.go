package meta

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// space keeps a slot away from full disks. fs asks it before it appends, so a
// caller gets ENOSPC while everything that was acknowledged still fits. Should
// others fill the disk all the same, there is a ballast to give up: badger maps
// the files that it writes, and would die of SIGBUS.
type space struct {
	dirs    []string // one per file system
	index   string   // directory of the index
	reserve int64    // bytes; less than 0: none
	events  *Events
	full    atomic.Bool // was reported, and is not over

	// mu guards a grant: as long as there is plenty, asking the file systems for
	// every write (some twenty times per delivery) tells nothing new.
	mu      sync.Mutex
	granted int64     // bytes that may be given out without asking
	until   time.Time // the grant ends
}

const (
	minReserve  = 1 << 30
	ballastSize = 64 << 20
	ballastName = "ballast"
	// checkpointNeeds is what badger may write for a checkpoint, compactions
	// included, in bytes.
	checkpointNeeds = 128 << 20
	// openNeeds is what badger may write while it opens: what was in its tables in
	// memory, and its next files.
	openNeeds  = 3 * memTableSize
	spaceRetry = time.Second
	// plenty is how much must be left above the reserve for a grant, of a quarter
	// of that, for so long.
	plenty    = 256 << 20
	grantTime = 100 * time.Millisecond
)

func openSpace(data string, reserve int64, events *Events) (*space, error) {
	s := &space{index: filepath.Join(data, dirIndex), reserve: reserve, events: events}
	seen := make(map[uint64]bool)
	for _, name := range []string{dirTree, dirLog, dirIndex} {
		var st unix.Stat_t
		dir := filepath.Join(data, name)
		if err := unix.Stat(dir, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		if !seen[st.Dev] {
			seen[st.Dev] = true
			s.dirs = append(s.dirs, dir)
		}
	}
	s.makeBallast()
	return s, s.forOpening()
}

// forOpening makes sure that the index can be opened.
func (s *space) forOpening() error {
	left, err := s.room(openNeeds)
	if err != nil {
		return err
	}
	if left < openNeeds {
		return &DataError{File: s.index, Reason: ErrNoSpace, Detail: fmt.Sprintf("%d bytes are free, to open the index needs %d", left, openNeeds),
			Remedy: "make room on this file system, then start again; nothing is lost"}
	}
	return nil
}

// room is how many bytes are left for the index, reserve or not; if they are fewer
// than needs, it gives up the ballast.
func (s *space) room(needs int64) (left int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.index, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: s.index, Err: err}
	}
	left = int64(st.Bfree) * st.Bsize
	if left < needs && os.Remove(filepath.Join(s.index, ballastName)) == nil {
		s.report(fmt.Sprintf("%s: gave up the ballast", s.index))
		left += ballastSize
	}
	return left, nil
}

// free is what is left on the file system of dir above the reserve, in bytes.
func (s *space) free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	reserve := s.reserve
	if reserve == 0 {
		reserve = max(minReserve, int64(st.Blocks)*st.Bsize/50)
	}
	return int64(st.Bavail)*st.Bsize - max(reserve, 0), nil
}

// ask grants n bytes more on every file system, or says ErrNoSpace.
func (s *space) ask(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.granted >= n && time.Now().Before(s.until) {
		s.granted -= n
		return nil
	}
	s.granted = 0
	least := int64(math.MaxInt64)
	for _, dir := range s.dirs {
		free, err := s.free(dir)
		if err != nil {
			return err
		}
		if free < n {
			s.report(fmt.Sprintf("%s: %d bytes above the reserve, %d asked for", dir, free, n))
			return ErrNoSpace
		}
		least = min(least, free-n)
	}
	if least >= plenty {
		s.granted, s.until = least/4, time.Now().Add(grantTime)
	}
	s.over()
	return nil
}

// short reports whether so little is left above the reserve that what can be
// spared should go.
func (s *space) short() bool {
	for _, dir := range s.dirs {
		if free, err := s.free(dir); err == nil && free < plenty/4 {
			return true
		}
	}
	return s.full.Load()
}

// over reports that there is space, if the opposite was reported.
func (s *space) over() {
	if s.full.Load() && s.full.CompareAndSwap(true, false) {
		s.events.Add(Event{Kind: EventSpace, Text: "there is disk space again"})
	}
}

func (s *space) report(text string) {
	if s.full.CompareAndSwap(false, true) {
		s.events.Add(Event{Kind: EventSpace, Text: "disk full: " + text})
	}
}

// forCheckpoint reports whether the index may be written; it may give up the
// ballast for that.
func (s *space) forCheckpoint() bool {
	left, err := s.room(checkpointNeeds)
	if err != nil {
		return false
	}
	if left >= checkpointNeeds+ballastSize {
		s.makeBallast()
		return true
	}
	if left < checkpointNeeds/2 {
		s.report(fmt.Sprintf("%s: %d bytes left, the checkpoint is put off", s.index, left))
		return false
	}
	return true
}

// makeBallast makes the ballast if it is not there and there is room.
func (s *space) makeBallast() {
	path := filepath.Join(s.index, ballastName)
	if _, err := os.Lstat(path); err == nil || s.reserve < 0 {
		return
	}
	if free, err := s.free(s.index); err != nil || free < ballastSize {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if unix.Fallocate(int(f.Fd()), 0, 0, ballastSize) != nil {
		os.Remove(path)
	}
}

// wait is called when a step of an entry that cannot be refused any more found
// the disk full: it reports that and waits a moment.
func (s *space) wait(ctx context.Context, cause error) error {
	if err := os.Remove(filepath.Join(s.index, ballastName)); err == nil {
		s.report("gave up the ballast: " + cause.Error())
		return nil
	}
	s.report("waiting for space to apply entries: " + cause.Error())
	t := time.NewTimer(spaceRetry)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return errors.Join(cause, context.Cause(ctx))
	}
}

// Space asks whether n bytes more may be written: ErrNoSpace if tree, log or
// index would fall below the reserve.
func (s *Slot) Space(n int64) error { return s.space.ask(n) }
