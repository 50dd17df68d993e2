package oplog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"slotfs/meta/op"
)

// loaded is what the files of a log say.
type loaded struct {
	live   []*segment // ascending
	dead   []*segment // hold nothing that counts; oldest first
	unused []*segment // no batch was ever written to them

	last      op.Pos
	lastTime  int64
	epochs    []EpochStart
	durable   uint64 // entries after it may be in the page cache only
	committed uint64
	torn      *segment // ends in a torn batch; nil: none does
	tornAt    int64
	tornLen   int64
	maxNum    uint64
}

// found is what one segment says.
type found struct {
	*segment
	flaw   flaw
	header batchHeader // of the last good batch
	end    op.Pos      // after it
	time   int64       // of the last entry; 0: not known
	begins []EpochStart
}

func (f *found) read() error {
	var err error
	f.flaw, err = f.scan(func(h *batchHeader, es []*op.Entry) {
		f.header, f.end = *h, h.base
		if h.time > f.time {
			f.time = h.time
		}
		for _, e := range es {
			if _, ok := e.Op.(*op.EpochBegin); ok {
				// The scan reuses its buffer.
				if c, err := op.Decode(bytes.Clone(e.Raw)); err == nil {
					f.begins = append(f.begins, EpochStart{c.Pos(), c.Op.(*op.EpochBegin)})
				}
			}
			f.end, f.time = e.Pos(), max(f.time, e.Time)
		}
	})
	return err
}

// load reads all segments of dir and puts them together. On error everything
// is closed again.
func load(fs fsys, dir string, write bool) (ld *loaded, err error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names) // by number
	ld = &loaded{}
	var all []*found
	defer func() {
		if err != nil {
			for _, f := range all {
				f.f.Close()
			}
		}
	}()
	var spare []*found
	for _, name := range names {
		if _, _, ok := parseSegmentName(name); !ok {
			continue
		}
		s, err := openSegment(fs, dir, name, write)
		if errors.Is(err, os.ErrNotExist) {
			continue // trimmed by the process that has the log open
		}
		if err != nil {
			return nil, err
		}
		f := &found{segment: s}
		all = append(all, f)
		if err := f.read(); err != nil {
			return nil, err
		}
		ld.maxNum = s.num
	}
	used := make([]*found, 0, len(all))
	for _, f := range all {
		if f.segment.end > page {
			used = append(used, f)
		} else {
			spare = append(spare, f)
		}
	}
	live, err := ld.stitch(used)
	if err != nil {
		return nil, err
	}
	return ld, ld.finish(live, spare)
}

// stitch decides which entries of which segment count. Later segments prove
// that what they continue had been durable.
func (ld *loaded) stitch(used []*found) (live []*found, err error) {
	var next *found // the live segment after f
	for _, f := range slices.Backward(used) {
		switch {
		case next == nil:
			if f.flaw.next != 0 {
				return nil, f.damage(f.flaw.next)
			}
		case next.reset, next.restart && f.first() > next.base.Seq:
			ld.dead = append(ld.dead, f.segment)
			next.reset = next.reset || f.reset
			continue
		case f.last < next.base.Seq:
			return nil, f.damage(next.first())
		case f.last > next.base.Seq && !next.restart:
			return nil, &DamageError{Path: next.path, Offset: page, From: next.first(), Next: f.last + 1, Err: errOrder}
		default:
			f.last = next.base.Seq
			pos, err := f.posAt(f.last)
			if err != nil {
				return nil, err
			}
			if pos != next.base {
				return nil, &DamageError{Path: next.path, Offset: page, From: next.first(), Next: next.first() + 1, Err: errOrder}
			}
		}
		next = f
		live = append(live, f)
	}
	slices.Reverse(live)
	slices.Reverse(ld.dead)
	return live, nil
}

var errOrder = errors.New("segments do not continue each other")

func (f *found) damage(next uint64) error {
	return &DamageError{Path: f.path, Offset: f.flaw.off, From: f.last + 1, Next: max(next, f.last+2), Err: f.flaw.err}
}

// finish takes the sum of the live segments.
func (ld *loaded) finish(live, spare []*found) error {
	for _, f := range live {
		ld.live = append(ld.live, f.segment)
		for _, b := range f.begins {
			if b.Seq <= f.last {
				ld.epochs = append(ld.epochs, b)
			}
		}
		ld.committed = max(ld.committed, f.header.committed)
	}
	var newest *found
	if len(live) > 0 {
		newest = live[len(live)-1]
		ld.last, ld.lastTime = newest.end, newest.time
		ld.durable = min(newest.header.durable, ld.last.Seq)
		ld.committed = min(ld.committed, ld.last.Seq)
		ld.torn = newest.segment
		ld.tornAt, ld.tornLen = newest.flaw.off, newest.flaw.extent
	}
	for _, f := range spare {
		ld.unused = append(ld.unused, f.segment)
		if newest != nil && f.num < newest.num {
			continue
		}
		if f.flaw.next != 0 {
			return &DamageError{Path: f.path, Offset: f.flaw.off, From: ld.last.Seq + 1, Next: max(f.flaw.next, ld.last.Seq+2), Err: f.flaw.err}
		}
		if f.flaw.extent > 0 {
			ld.torn, ld.tornAt, ld.tornLen = f.segment, f.flaw.off, f.flaw.extent
		}
	}
	if ld.tornLen == 0 {
		ld.torn = nil
	}
	return nil
}

// posAt returns the point in history at seq, which s holds or starts after.
func (s *segment) posAt(seq uint64) (op.Pos, error) {
	if seq == s.base.Seq {
		return s.base, nil
	}
	var pos op.Pos
	err := s.walk(s.placeOf(seq), seq, seq, func(e *op.Entry, _ int64) bool {
		pos = e.Pos()
		return false
	})
	if err == nil && pos.Seq != seq {
		err = fmt.Errorf("%s: seq %d: %w", s.path, seq, op.ErrCorrupt)
	}
	return pos, err
}

func (ld *loaded) close() {
	for _, set := range [][]*segment{ld.live, ld.dead, ld.unused} {
		for _, s := range set {
			s.f.Close()
		}
	}
}

// Scan calls fn for every entry from seq from on (0: from the first one that
// is left) of the log in dir, which it neither changes nor locks. It ends with
// fn's first error, a *TrimmedError, or a *DamageError.
func Scan(dir string, from uint64, fn func(*op.Entry) error) error {
	ld, err := load(osFS{}, dir, false)
	if err != nil {
		return fmt.Errorf("scan log: %w", err)
	}
	defer ld.close()
	if len(ld.live) == 0 {
		return nil
	}
	first := ld.live[0].first()
	if from == 0 {
		from = first
	}
	if from < first {
		return &TrimmedError{from, first}
	}
	for _, s := range ld.live {
		if s.last < from {
			continue
		}
		var failed error
		err := s.walk(s.placeOf(from), from, s.last, func(e *op.Entry, _ int64) bool {
			failed = fn(e)
			return failed == nil
		})
		if err = errors.Join(failed, err); err != nil {
			return err
		}
		from = s.last + 1
	}
	return nil
}

// ScanFile calls fn for every entry in a rescue file. It ends with fn's first
// error, or an error if the file is not whole.
func ScanFile(path string, fn func(*op.Entry) error) error {
	return scanFile(osFS{}, path, fn)
}

func scanFile(fs fsys, path string, fn func(*op.Entry) error) error {
	f, err := fs.Open(path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	s := &segment{path: path, f: f}
	if s.num, s.id, err = decodeSegmentHeader(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if s.size, err = f.Size(); err != nil {
		return err
	}
	var failed error
	fl, err := s.scan(func(_ *batchHeader, es []*op.Entry) {
		for _, e := range es {
			if failed == nil {
				failed = fn(e)
			}
		}
	})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return err
	case s.end != s.size: // rescue files have no unused rest
		return fmt.Errorf("%s: at %d: %w", path, fl.off, fl.err)
	}
	return nil
}
