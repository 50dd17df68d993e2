package oplog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"slotfs/meta/op"
)

// Open opens the log in dir, which it makes if it does not exist. The log
// follows until Lead. Entries that a crash left in doubt are durable when Open
// returns; a torn tail has been cut. The error is a *DamageError if entries
// that had been durable are not readable.
//
// Open reads the whole log. The caller sees to it that nobody else has it
// open.
func Open(dir string, o Options) (*Log, error) {
	if o.SegmentSize == 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.MaxUncommitted == 0 {
		o.MaxUncommitted = DefaultMaxUncommitted
	}
	if o.FlushDelay == 0 {
		o.FlushDelay = DefaultFlushDelay
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.fs == nil {
		o.fs = osFS{}
	}
	o.SegmentSize = roundUp(o.SegmentSize)
	if err := makeDir(o.fs, dir); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &Log{
		Appended: new(Mark), Durable: new(Mark), Received: new(Mark), Committed: new(Mark), Applied: new(Mark),
		Wanted: new(Mark), Awaited: new(Mark), watchers: make(map[*Watcher]struct{}),
		dir: dir, o: o, log: o.Logger, fs: o.fs, start: time.Now(),
		closed: make(chan struct{}),
		kick:   make(chan struct{}, 1),
		prep:   make(chan struct{}, 1),
		token:  make(chan struct{}, 1),
	}
	l.o.OnFault = nil // a failed Open says so itself
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l.o.OnFault = o.OnFault
	l.Applied.hurry = make(chan struct{}, 1)
	l.timer = time.AfterFunc(time.Hour, l.delayed)
	l.timer.Stop()
	l.wg.Add(2)
	go l.flushLoop()
	go l.prepareLoop()
	signal(l.prep)
	return l, nil
}

// makeDir makes dir, durably, unless it exists.
func makeDir(fs fsys, dir string) error {
	_, err := os.Stat(dir)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return fs.SyncDir(filepath.Dir(dir))
}

func (l *Log) open() error {
	var err error
	if past := l.o.PastDamage; past != nil {
		l.o.PastDamage = func(d *DamageError) bool {
			ok := past(d)
			l.log.Error("log damaged", "path", d.Path, "offset", d.Offset, "from", d.From, "next", d.Next, "given_up", ok, "err", d.Err)
			return ok
		}
	}
	if l.sealed, err = readSeal(l.fs, l.dir); err != nil {
		return err
	}
	l.sealedOnDisk = l.sealed
	if err := l.sweep(); err != nil {
		return err
	}
	ld, err := load(l.fs, l.dir, true, l.o.PastDamage)
	if err != nil {
		return err
	}
	if err := l.adopt(ld); err != nil {
		ld.close()
		if s := l.spare; s != nil {
			s.f.Close()
		}
		return err
	}
	return nil
}

// sweep removes what an earlier process left half done or kept for this start.
func (l *Log) sweep() error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".torn") || strings.HasSuffix(name, ".pool") {
			l.remove(filepath.Join(l.dir, name))
		}
	}
	return nil
}

// adopt makes what was loaded the state of the log. Everything that may be in
// the page cache only goes into a new segment first: after a failed fsync the
// kernel calls pages clean that never reached the disk, so that another fsync
// of the old file would prove nothing.
func (l *Log) adopt(ld *loaded) error {
	if ld.torn != nil {
		l.keepTorn(ld)
	}
	base, tail, err := ld.tail()
	if err != nil {
		return err
	}
	if err := l.putAside(ld); err != nil {
		return err
	}
	l.nextSeg = ld.maxNum + 1
	segs, dead := retain(ld.live, base.Seq)
	h := batchHeader{restart: true, reset: len(segs) == 0, durable: base.Seq, committed: min(ld.committed, base.Seq), base: base}
	if len(tail) == 0 {
		h.time = ld.lastTime // else the tail has later ones
	}
	s, err := l.startAfter(segs, &h, tail)
	if err != nil {
		return err
	}
	l.spare = s // so that open closes it on failure
	l.retire(append(ld.dead, dead...))
	ld.dead = nil
	if n := len(segs); n > 0 {
		if err := shrink(segs[n-1]); err != nil {
			l.log.Warn("cannot shrink a segment", "path", segs[n-1].path, "err", err)
		}
	}
	for _, p := range l.pool {
		l.remove(p.path)
	}
	l.pool = nil
	l.spare = nil
	for _, s := range segs {
		s.last = min(s.last, base.Seq)
	}
	l.segs = append(segs, s)
	l.takeOver(ld)
	return nil
}

// tail is what the log has after its durable mark, which is base.
func (ld *loaded) tail() (base op.Pos, tail []*op.Entry, err error) {
	if len(ld.live) == 0 {
		return base, nil, nil
	}
	newest := ld.live[len(ld.live)-1]
	if ld.durable < newest.base.Seq {
		return base, nil, fmt.Errorf("%s: durable mark %d before its start: %w", newest.path, ld.durable, op.ErrCorrupt)
	}
	if base, err = newest.posAt(ld.durable); err != nil {
		return base, nil, err
	}
	err = newest.walk(newest.placeOf(base.Seq+1), base.Seq+1, ld.last.Seq, func(e *op.Entry, _ int64) bool {
		tail = append(tail, e)
		return true
	})
	return base, tail, err
}

// putAside renames damaged segments, so that a later start does not meet them, and
// keeps unused ones for what comes.
func (l *Log) putAside(ld *loaded) error {
	for _, s := range ld.damaged {
		s.f.Close()
		if err := l.fs.Rename(s.path, s.path+".damaged"); err != nil {
			return fmt.Errorf("put a damaged segment aside: %w", err)
		}
		l.log.Error("put a damaged segment of the log aside", "path", s.path+".damaged")
	}
	ld.damaged = nil
	for _, s := range ld.unused {
		s.f.Close()
		l.pool = append(l.pool, poolFile{s.path, s.size})
	}
	ld.unused = nil
	return nil
}

// startAfter is startSegment for one that follows segs.
func (l *Log) startAfter(segs []*segment, h *batchHeader, tail []*op.Entry) (*segment, error) {
	s, err := l.startSegment(h, tail, firstSegment)
	if errors.Is(err, ErrNoSpace) && len(segs) > 0 {
		// The unused rest of the segment so far is room enough.
		if err = shrink(segs[len(segs)-1]); err == nil {
			s, err = l.startSegment(h, tail, 0)
		}
	}
	return s, err
}

// takeOver sets positions and marks to what was loaded.
func (l *Log) takeOver(ld *loaded) {
	l.last, l.lastTime = ld.last, ld.lastTime
	l.written, l.writtenEpoch, l.writtenTime = ld.last.Seq, ld.last.Epoch, ld.lastTime
	l.wanted = l.written
	l.epochs = ld.epochs
	l.recovered = ld.committed
	l.told = ld.committed
	for _, m := range []*Mark{l.Appended, l.Durable} {
		m.advance(l.last.Seq)
	}
	l.Committed.advance(l.recovered)
	l.Received.advance(l.recovered)
}

// startSegment makes a segment whose first batch, durable on return, replaces
// everything that earlier segments hold after h.base. It has room for that and
// at least size bytes.
func (l *Log) startSegment(h *batchHeader, tail []*op.Entry, size int64) (*segment, error) {
	h.first, h.count, h.bytes, h.chain = h.base.Seq+1, uint32(len(tail)), 0, h.base.Chain
	for _, e := range tail {
		h.bytes += uint32(len(e.Raw))
		h.chain = e.After
	}
	l.mu.Lock()
	num := l.nextSeg
	l.nextSeg++
	l.unlock()
	s, err := l.makeSegment(num, max(min(size, l.o.SegmentSize), page+h.extent()))
	if err != nil {
		return nil, err
	}
	_, err = s.f.WriteAt(assemble(nil, h, tail, s), s.end)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		// The batch may reach the disk yet, or not: nobody may write on as if it
		// did not exist.
		s.f.Close()
		err = fmt.Errorf("start segment: %w", err)
		l.mu.Lock()
		l.faultLocked(err)
		l.unlock()
		return nil, err
	}
	s.note(h, s.end)
	return s, nil
}

// retain splits segments into those that hold entries up to last, and those
// that don't.
func retain(segs []*segment, last uint64) (keep, dead []*segment) {
	for _, s := range segs {
		if s.first() > last {
			dead = append(dead, s)
			continue
		}
		keep = append(keep, s)
	}
	return keep, dead
}

// shrink gives the unused rest of a segment back.
func shrink(s *segment) error {
	if s.size <= s.end {
		return nil
	}
	if err := s.f.Truncate(s.end); err != nil {
		return err
	}
	s.size = s.end
	return nil
}

// keepTorn keeps a copy of a torn batch until the next start, for people.
func (l *Log) keepTorn(ld *loaded) {
	b := make([]byte, min(ld.tornLen, ld.torn.size-ld.tornAt))
	n, err := ld.torn.f.ReadAt(b, ld.tornAt)
	if err == nil || errors.Is(err, io.EOF) {
		path := filepath.Join(l.dir, fmt.Sprintf("%016x-%d.torn", ld.torn.num, ld.tornAt))
		err = replace(l.fs, path, b[:n])
	}
	l.log.Warn("cut a torn tail off the log", "path", ld.torn.path, "offset", ld.tornAt, "bytes", n, "after", ld.last, "err", err)
}

// Close makes the log durable and ends it.
func (l *Log) Close() error {
	l.mu.Lock()
	if errors.Is(l.err, ErrClosed) {
		l.unlock()
		return nil
	}
	l.closing = true
	l.wantLocked(l.last.Seq)
	l.unlock()

	l.token <- struct{}{}
	for !l.flushBatch(true) {
	}
	err := l.closeToken()
	<-l.token
	close(l.closed)
	l.wg.Wait()
	l.timer.Stop()

	l.segMu.Lock()
	defer l.segMu.Unlock()
	l.mu.Lock()
	defer l.unlock()
	for _, s := range l.segs {
		err = errors.Join(err, s.f.Close())
	}
	if l.spare != nil {
		err = errors.Join(err, l.spare.f.Close())
	}
	return err
}

// closeToken writes a last, empty batch, which says that everything before it
// is durable, and stops the log. Needs the token.
func (l *Log) closeToken() error {
	l.mu.Lock()
	h := batchHeader{
		first: l.last.Seq + 1, durable: l.written, committed: l.Committed.Get(),
		base: l.last, chain: l.last.Chain, time: l.lastTime,
	}
	err := l.err
	if err == nil && l.written != l.last.Seq {
		err = l.prepErr
	}
	fits := l.active().end+h.extent() <= l.active().size
	l.unlock()
	if err == nil && fits {
		err = l.write(&h, nil)
	}
	l.mu.Lock()
	defer l.unlock()
	l.leads.Store(false)
	l.err = errors.Join(ErrClosed, l.err)
	l.stopLocked()
	return err
}
