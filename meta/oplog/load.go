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
	live    []*segment // ascending
	dead    []*segment // hold nothing that counts; oldest first
	unused  []*segment // no batch was ever written to them
	damaged []*segment // end before accepted damage

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
	endPos op.Pos      // after it
	time   int64       // of the last entry; 0: not known
	begins []EpochStart
}

func (f *found) read() error {
	var err error
	f.begins = nil
	f.flaw, err = f.scan(func(h *batchHeader, es []*op.Entry) {
		f.header, f.endPos = *h, h.base
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
			f.endPos, f.time = e.Pos(), max(f.time, e.Time)
		}
	})
	return err
}

// load reads all segments of dir and puts them together. Damage that past
// accepts (nil: none) ends the log's reach back. On error everything is closed
// again.
func load(fs fsys, dir string, write bool, past func(*DamageError) bool) (ld *loaded, err error) {
	ld = &loaded{}
	all, err := readAll(fs, dir, write)
	defer func() {
		if err != nil {
			for _, f := range all {
				f.f.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	var used, spare []*found
	for _, f := range all {
		ld.maxNum = f.num
		if f.segment.end > page || f.flaw.next != 0 {
			used = append(used, f)
		} else {
			spare = append(spare, f)
		}
	}
	live, d := ld.stitch(used)
	for d != nil && past != nil && past(d.DamageError) {
		i := slices.Index(used, d.good)
		for _, f := range used[:i] {
			ld.damaged = append(ld.damaged, f.segment)
		}
		used = used[i:]
		if d.good.start = d.at; d.at > page {
			if err := d.good.read(); err != nil {
				return nil, err
			}
		}
		live, d = ld.stitch(used)
	}
	if d != nil {
		return nil, d.DamageError
	}
	// What cannot be read at the log's end may be there, so it is no torn tail.
	newest := spare
	if len(live) > 0 {
		newest = append(newest, live[len(live)-1])
	}
	for _, f := range newest {
		if errors.Is(f.flaw.err, errRead) {
			return nil, fmt.Errorf("%s at %d: %w", f.path, f.flaw.off, f.flaw.err)
		}
	}
	ld.finish(live, spare)
	return ld, nil
}

// readAll reads all segments of dir, in order. It returns those that it has
// opened, on error too.
func readAll(fs fsys, dir string, write bool) (all []*found, err error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, err
	}
	slices.Sort(names) // by number
	for _, name := range names {
		if _, _, ok := parseSegmentName(name); !ok {
			continue
		}
		s, err := openSegment(fs, dir, name, write)
		if errors.Is(err, os.ErrNotExist) {
			continue // trimmed by the process that has the log open
		}
		if err != nil {
			return all, err
		}
		f := &found{segment: s}
		all = append(all, f)
		// A damaged header does not matter, the name and the batches say it all;
		// but batches of a newer format may look like none.
		if _, _, err := decodeSegmentHeader(s.f); errors.Is(err, ErrVersion) {
			return all, fmt.Errorf("%s: %w", s.path, err)
		}
		if err := f.read(); err != nil {
			return all, err
		}
	}
	return all, nil
}

// damage is a DamageError, and where the log is good again.
type damage struct {
	*DamageError
	good *found
	at   int64
}

// stitch decides which entries of which segment count. Later segments prove
// that what they continue had been durable.
func (ld *loaded) stitch(used []*found) (live []*found, d *damage) {
	ld.dead = nil
	var next *found    // the live segment after f
	var skipped *found // between them, its beginning damaged
	for i, f := range slices.Backward(used) {
		switch {
		case next == nil:
			if f.flaw.next != 0 {
				from := f.last + 1
				if f.end == f.start && i > 0 {
					from = used[i-1].last + 1
				}
				return nil, &damage{f.damaged(from, f.flaw.next), f, f.flaw.nextAt}
			}
		case next.reset, next.restart && f.first() > next.base.Seq, f.end == f.start && i > 0:
			// Cut. Or its beginning is damaged: its neighbours say whether it matters.
			if f.end == f.start {
				skipped = f
			}
			ld.dead = append(ld.dead, f.segment)
			next.reset = next.reset || f.reset
			continue
		case f.last < next.base.Seq && skipped != nil:
			return nil, &damage{skipped.damaged(f.last+1, skipped.flaw.next), skipped, skipped.flaw.nextAt}
		case f.last < next.base.Seq && f.flaw.next != 0:
			return nil, &damage{f.damaged(f.last+1, f.flaw.next), f, f.flaw.nextAt}
		case f.last < next.base.Seq:
			return nil, &damage{f.damaged(f.last+1, next.first()), next, next.start}
		case !f.endAt(next):
			return nil, &damage{&DamageError{Path: next.path, Offset: next.start, From: next.first(), Next: next.first() + 1, Err: errOrder}, next, next.start}
		}
		next, skipped = f, nil
		live = append(live, f)
	}
	slices.Reverse(live)
	slices.Reverse(ld.dead)
	return live, nil
}

var errOrder = errors.New("segments do not continue each other")

// endAt cuts f down to what next continues; false if it does not continue f.
func (f *found) endAt(next *found) bool {
	if f.last > next.base.Seq && !next.restart {
		return false
	}
	f.last = next.base.Seq
	pos, err := f.posAt(f.last)
	return err == nil && pos == next.base
}

func (f *found) damaged(from, next uint64) *DamageError {
	return &DamageError{Path: f.path, Offset: f.flaw.off, From: from, Next: next, Err: f.flaw.err}
}

// finish takes the sum of the live segments.
func (ld *loaded) finish(live, spare []*found) {
	var torn []*found
	for _, f := range live {
		ld.live = append(ld.live, f.segment)
		for _, b := range f.begins {
			if b.Seq <= f.last {
				ld.epochs = append(ld.epochs, b)
			}
		}
		ld.committed = max(ld.committed, f.header.committed)
	}
	if len(live) > 0 {
		newest := live[len(live)-1]
		ld.last, ld.lastTime = newest.endPos, newest.time
		ld.durable = min(newest.header.durable, ld.last.Seq)
		ld.committed = min(ld.committed, ld.last.Seq)
		torn = append(torn, newest)
	}
	for _, f := range spare {
		ld.unused = append(ld.unused, f.segment)
		torn = append(torn, f)
	}
	for _, f := range torn {
		if f.flaw.extent > 0 {
			ld.torn, ld.tornAt, ld.tornLen = f.segment, f.flaw.off, f.flaw.extent
		}
	}
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
	for _, set := range [][]*segment{ld.live, ld.dead, ld.unused, ld.damaged} {
		for _, s := range set {
			s.f.Close()
		}
	}
}

// Scan calls fn for every entry from seq from on (0: from the first one that
// is left) of the log in dir, which it neither changes nor locks. It ends with
// fn's first error, a *TrimmedError, or a *DamageError.
func Scan(dir string, from uint64, fn func(*op.Entry) error) error {
	return scanDir(osFS{}, dir, from, fn)
}

func scanDir(fs fsys, dir string, from uint64, fn func(*op.Entry) error) error {
	ld, err := load(fs, dir, false, nil)
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
	s := &segment{path: path, f: f, start: page}
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
