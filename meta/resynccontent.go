package meta

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Fetched content is made durable, and noted as fetched, when there is this much
// of it: a stop fetches so much again, unless it verifies.
const (
	stagedFiles = 512
	stagedBytes = 32 << 20
)

// syncPath is where the fetched content of id waits.
func (s *Slot) syncPath(id op.ID) string {
	return filepath.Join(s.dir, dirStage, syncPrefix+strconv.FormatUint(uint64(id), 10))
}

// syncID is the id that a file name in stage/ is the fetched content of.
func syncID(name string) (op.ID, bool) {
	rest, ok := strings.CutPrefix(name, syncPrefix)
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(rest, 10, 64)
	return op.ID(id), err == nil
}

// countWanted adds to what the status says is to be fetched.
func (s *Slot) countWanted(ids []op.ID, inodes []*Inode) {
	var bytes uint64
	left := ids // in the order of inodes
	for _, n := range inodes {
		if len(left) > 0 && left[0] == n.ID {
			bytes += uint64(n.Size)
			left = left[1:]
		}
	}
	s.countResync(func(p *ResyncStatus) {
		p.WantFiles += uint64(len(ids))
		p.WantBytes += bytes
	})
}

// recountWanted fills in what the status says is to be fetched.
func (s *Slot) recountWanted() error {
	var files, bytes uint64
	err := s.eachWanted(0, func(id op.ID, how byte) error {
		if how != wantedFetch {
			return nil
		}
		files++
		if n, err := s.ix.inode(id); err == nil {
			bytes += uint64(n.Size)
		}
		return nil
	})
	s.countResync(func(p *ResyncStatus) { p.WantFiles, p.WantBytes = files, bytes })
	return err
}

// ResyncWanted lists files whose content has to be fetched, in order of id, max
// at most; an empty list means that nothing is missing.
func (s *Slot) ResyncWanted(max int) ([]*Inode, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	r, err := s.begun()
	if err != nil {
		return nil, err
	}
	if err := s.flushResync(r); err != nil {
		return nil, err
	}
	if err := s.flushStaged(r); err != nil {
		return nil, err
	}
	list, here, err := s.nextWanted(r.cursor, max)
	if err == nil && len(list) == 0 && r.cursor != 0 { // what failed comes round again
		r.cursor = 0
		var more []op.ID
		list, more, err = s.nextWanted(0, max)
		here = append(here, more...)
	}
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		r.cursor = list[len(list)-1].ID + 1
	}
	return list, s.noLongerWanted(here)
}

// nextWanted lists what is wanted from an id on, and what is wanted no longer.
func (s *Slot) nextWanted(from op.ID, max int) (list []*Inode, here []op.ID, err error) {
	err = s.eachWanted(from, func(id op.ID, how byte) error {
		if how != wantedFetch {
			return nil
		}
		n, err := s.ix.inode(id)
		if errors.Is(err, ErrNotExist) {
			here = append(here, id) // a later target has it no longer
			return nil
		}
		if err != nil {
			return err
		}
		if s.stagedHere(n) { // before a stop
			here = append(here, id)
			return nil
		}
		if list = append(list, n); len(list) >= max {
			return errEnough
		}
		return nil
	})
	return list, here, err
}

func (s *Slot) noLongerWanted(ids []op.ID) error {
	if len(ids) == 0 {
		return nil
	}
	if err := syncTree(s.dir); err != nil {
		return err
	}
	return s.changeWanted(ids, func(w *badger.WriteBatch, key []byte) error { return w.Delete(key) })
}

// flushStaged makes what was fetched durable, and notes that it was.
func (s *Slot) flushStaged(r *resyncing) error {
	if len(r.staged) > 0 {
		if err := r.save(); err != nil { // Ahead
			return err
		}
	}
	if err := s.noLongerWanted(r.staged); err != nil {
		return err
	}
	r.staged, r.bytes = nil, 0
	return nil
}

// ResyncContent takes the content of a file. now is the source's inode of the
// moment when it was read: a control file may have changed since the Snapshot.
// What does not match now's checksum is refused.
func (s *Slot) ResyncContent(now *Inode, content io.Reader) error {
	s.admin.Lock()
	r, err := s.begun()
	s.admin.Unlock()
	if err != nil {
		return err
	}
	// Without the lock: it comes from the network, at its pace. A name of its
	// own, so that nothing half fetched has the right one.
	tmp := fmt.Sprintf("%s-%d.part", filepath.Join(s.dir, dirStage, newPrefix+strings.TrimSuffix(syncPrefix, "-")), now.ID)
	n, err := s.stageContent(tmp, now, content)
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("resync content of id %d: %w", now.ID, err)
	}
	s.admin.Lock()
	defer s.admin.Unlock()
	if again, err := s.begun(); err != nil || again != r {
		os.Remove(tmp)
		return errors.Join(err, errNotResyncing)
	}
	if err := os.Rename(tmp, s.syncPath(now.ID)); err != nil {
		return err
	}
	s.countResync(func(p *ResyncStatus) {
		p.Files++
		p.Bytes += uint64(n)
		p.WantFiles -= min(p.WantFiles, 1)
		p.WantBytes -= min(p.WantBytes, uint64(now.Size))
	})
	r.staged = append(r.staged, now.ID)
	r.Ahead = max(r.Ahead, now.Changed)
	if r.bytes += n; len(r.staged) >= stagedFiles || r.bytes >= stagedBytes {
		return s.flushStaged(r)
	}
	return nil
}

// stageContent writes content to path, and verifies what was written.
func (s *Slot) stageContent(path string, now *Inode, content io.Reader) (int64, error) {
	want, err := s.ix.inode(now.ID)
	if err != nil {
		return 0, err
	}
	if want.Sealed && want.Sum != nil && (now.Sum == nil || !want.Sum.Equal(*now.Sum)) {
		return 0, errors.New("is another message at the source")
	}
	if err := s.Space(now.Size); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := io.Copy(f, content)
	if err != nil {
		return 0, err
	}
	if now.Sum != nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, err
		}
		bad, err := verifyOpen(f, *now.Sum)
		if err = errors.Join(bad, err); err != nil {
			return 0, err
		}
	}
	if err := unix.Fsetxattr(int(f.Fd()), markName, markOf(want).encode(), 0); err != nil {
		return 0, fmt.Errorf("set mark: %w", err)
	}
	return n, nil
}

// ResyncSkip gives up the content of id: the source has it no longer, since an
// entry after the Snapshot removed it. Its file stays empty until that entry
// comes.
func (s *Slot) ResyncSkip(id op.ID) error {
	s.admin.Lock()
	defer s.admin.Unlock()
	if _, err := s.begun(); err != nil {
		return err
	}
	s.countResync(func(p *ResyncStatus) { p.WantFiles -= min(p.WantFiles, 1) })
	return s.setWanted([]op.ID{id}, wantedGone)
}
