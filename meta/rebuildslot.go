package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// fileRebuild marks a data directory whose index is being made anew, or is to
// be at the next start.
const fileRebuild = "rebuild.json"

// openIndex opens the index, making it anew if it is damaged or marked so.
func (s *Slot) openIndex() error {
	if err := s.settleIndex(); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(s.dir, fileRebuild)); err == nil {
		return s.rebuild(errors.New("a rebuild was asked for, or interrupted"))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	lost, err := s.indexLost()
	if err != nil {
		return err
	}
	if lost {
		cause := errors.New("the index is gone")
		if _, err := os.Lstat(filepath.Join(s.dir, fileResync)); err == nil {
			return s.restartResync(cause)
		}
		return s.rebuild(cause)
	}
	s.ix, err = openIndex(filepath.Join(s.dir, dirIndex), s.log)
	if err == nil || !damage(err) {
		return err
	}
	if _, e := os.Lstat(filepath.Join(s.dir, fileResync)); e == nil {
		return s.restartResync(err)
	}
	return s.rebuild(err)
}

// restartResync sets a damaged index aside that a resync was filling: what it
// said is asked for again.
func (s *Slot) restartResync(cause error) error {
	if err := s.openResync(); err != nil {
		return err
	}
	s.resync.Phase, s.resync.Restart = phaseCollect, true
	if err := s.resync.save(); err != nil {
		return err
	}
	if err := s.setIndexAside(cause, false); err != nil {
		return fmt.Errorf("set index aside: %w", err)
	}
	var err error
	s.ix, err = openIndex(filepath.Join(s.dir, dirIndex), s.log)
	return err
}

// checkTables verifies badger's tables before badger opens them. It would do
// so, too, but it panics, in goroutines of its own, on lengths that point outside
// of a table and on blocks that cannot be read.
func checkTables(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		return err
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err == nil {
			err = checkTable(b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

// checkTable verifies one. It ends with: index, u32 length of the index,
// checksum, u32 length of the checksum.
func checkTable(b []byte) (err error) {
	end := len(b)
	for _, what := range []string{"checksum", "index"} {
		if end -= 4; end < 0 {
			return fmt.Errorf("%w: too short", errRecord)
		}
		n := int(binary.BigEndian.Uint32(b[end:]))
		if n > end {
			return fmt.Errorf("%w: length of its %s is %d of %d bytes", errRecord, what, n, end)
		}
		end -= n
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errRecord, p)
		}
	}()
	t, err := table.OpenInMemoryTable(b, 1, &table.Options{ChkMode: options.OnBlockRead, Compression: options.None, BlockSize: 4 << 10})
	if err == nil {
		err = t.VerifyChecksum()
	}
	return err
}

// damage reports whether an error of the index is about its content: another
// one than the system's being short of something.
func damage(err error) bool {
	for _, errno := range []error{unix.ENOSPC, unix.EDQUOT, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EACCES, unix.EPERM, unix.EROFS} {
		if errors.Is(err, errno) {
			return false
		}
	}
	return true
}

// indexLost reports whether there is no index although there should be one. Its
// directory alone, or what watches over disk space has there, is none.
func (s *Slot) indexLost() (bool, error) {
	_, err := os.Lstat(filepath.Join(s.dir, dirIndex, badger.ManifestFilename))
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	tree, err := readNames(s.dir, dirTree)
	return len(tree) > 0 || s.Log.First() > 1, err
}

// rebuild sets the index aside and makes a new one. The applier is not
// running. It can be interrupted, and then goes on at the next start.
func (s *Slot) rebuild(cause error) error {
	if err := s.emptyRebuild(); err != nil {
		return err
	}
	marker := filepath.Join(s.dir, fileRebuild)
	_, err := os.Lstat(marker)
	again := err == nil
	if err := writeRecord(marker, map[string]any{"time": time.Now(), "reason": cause.Error()}); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	if s.ix != nil {
		if err := s.ix.close(); err != nil {
			s.log.Warn("close damaged index", keyErr, err)
		}
		s.ix = nil
	}
	if s.tree != nil {
		s.tree.forget()
	}
	begun := time.Now()
	if err := s.setIndexAside(cause, again); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	if s.ix, err = openIndex(filepath.Join(s.dir, dirIndex), s.log); err != nil {
		return err
	}
	if s.tree != nil {
		s.tree.x = s.ix
	}
	last := s.Log.Last().Seq
	if err := newRebuilder(s.dir, s.Log, last, s.noteEvent).run(s.ix); err != nil {
		return err
	}
	// The tree may be behind in all that the log has.
	t := newTrail(s.Log.First()-1, last)
	if err := eachEntry(s.Log, s.Log.First(), last, func(e *op.Entry) error {
		t.add(e)
		if o, ok := e.Op.(*op.EpochBegin); ok {
			return s.SetStore(o.Store)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	v := &recovery{data: s.dir, ix: s.ix, log: s.Log, last: last, committed: last, note: s.noteEvent, hold: s.opt.hold, ahead: s.CompleteFrom()}
	report, err := v.finish(t, true)
	if err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	if err := errors.Join(os.Remove(marker), syncDir(s.dir)); err != nil {
		return fmt.Errorf("rebuild index: %w", err)
	}
	st := s.ix.current()
	s.finding(Event{Kind: EventRecovery, Text: fmt.Sprintf("index made anew in %v (%v): %d objects, %d messages; %s",
		time.Since(begun).Round(time.Millisecond), cause, st.Objects, st.Messages, report.summary())},
		ledger.Entry{Kind: ledger.Index, Source: "tree and log", Outcome: ledger.Repaired})
	return nil
}

// setIndexAside keeps the damaged index in quarantine/, and makes room for a new
// one. What an interrupted rebuild left is not worth keeping.
func (s *Slot) setIndexAside(cause error, again bool) error {
	dir := filepath.Join(s.dir, dirIndex)
	if again {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return os.Mkdir(dir, 0o700)
	}
	if _, err := setAside(s.dir, dirIndex, QuarantineRecord{Reason: "index: " + cause.Error()}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.Join(s.boundAside(), os.Mkdir(dir, 0o700))
}

// unusable reports whether err means that the index has to be made anew.
func unusable(err error) bool {
	var ie *IndexError
	return errors.As(err, &ie) || errors.Is(err, errRecord) || errors.Is(err, errIndex) ||
		errors.Is(err, badger.ErrTruncateNeeded)
}
