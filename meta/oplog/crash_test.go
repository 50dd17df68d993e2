package oplog

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfs/meta/op"
)

var (
	crashSeeds = flag.Int("crash.seeds", 50, "how many random histories TestCrash runs")
	crashFirst = flag.Uint64("crash.first", 1, "the first of their seeds")
)

var (
	errNoSpc    = syscall.ENOSPC
	errInjected = errors.New("injected")
	errKilled   = errors.New("killed")
)

// world is a log under test, and what must be true of it.
type world struct {
	t    *testing.T
	rnd  *rand.Rand
	fs   *crashFS
	dir  string
	l    *Log
	seed uint64

	mu        sync.Mutex
	hist      map[uint64][]byte // Raw of every entry appended on the present branch
	end       uint64            // of hist
	base      op.Pos            // of the last Reset
	acked     uint64            // everything up to it was reported durable
	committed uint64            // highest mark ever seen
	sealed    uint64
	rescued   int
	trace     []string
	maybe     *op.Pos // a Reset to here failed: the next Open may find it done
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
	if len(w.trace) > 40 {
		w.trace = w.trace[1:]
	}
}

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.fs.kill()
	w.dump()
	for _, s := range w.trace {
		w.t.Log(s)
	}
	w.t.Fatalf("seed %d: %s", w.seed, fmt.Sprintf(format, args...))
}

// open opens the log after a crash and checks what it says.
func (w *world) open() bool {
	if w.rnd.IntN(6) == 0 {
		w.arm()
	}
	l, err := Open(w.dir, Options{SegmentSize: 64 << 10, FlushDelay: time.Millisecond, fs: w.fs})
	if err != nil {
		if !errors.Is(err, errInjected) {
			w.fatalf("open: %v", err)
		}
		w.note("open: %v", err)
		w.fs.kill()
		if w.rnd.IntN(2) == 0 {
			w.note("power")
			w.fs.power()
		}
		return false
	}
	w.l = l
	last := l.Last()
	if w.maybe != nil && *w.maybe == last {
		w.wasReset(last)
	}
	w.maybe = nil
	w.note("opened to %v, acked %d, committed %d", last, w.acked, l.RecoveredCommitted())
	switch {
	case last.Seq < w.acked:
		w.fatalf("log ends at %v, %d was durable", last, w.acked)
	case last.Seq > w.end:
		w.fatalf("log ends at %v, only %d were appended", last, w.end)
	case l.RecoveredCommitted() > min(last.Seq, w.committed):
		w.fatalf("recovered committed %d, last %v, seen %d", l.RecoveredCommitted(), last, w.committed)
	case l.Sealed() < w.sealed:
		w.fatalf("sealed %d, was %d", l.Sealed(), w.sealed)
	case l.Durable.Get() != last.Seq || l.Appended.Get() != last.Seq:
		w.fatalf("marks differ from last %v", last)
	}
	for seq := range w.hist {
		if seq > last.Seq {
			delete(w.hist, seq)
		}
	}
	w.end, w.acked, w.committed = last.Seq, last.Seq, l.RecoveredCommitted()
	w.readAll()
	l.SetApplied(l.RecoveredCommitted())
	return true
}

// readAll compares everything the log holds with what was appended.
func (w *world) readAll() {
	w.t.Helper()
	first, last := w.l.First(), w.l.Last()
	for seq := first; seq <= last.Seq; {
		es, err := w.l.Read(seq, w.rnd.IntN(100_000))
		if err != nil || len(es) == 0 {
			if w.l.Err() != nil || errors.Is(err, errInjected) {
				return
			}
			w.fatalf("read %d of %d to %v: %d entries, %v", seq, first, last, len(es), err)
		}
		for _, e := range es {
			w.mu.Lock()
			want := w.hist[e.Seq]
			w.mu.Unlock()
			if e.Seq != seq || !bytes.Equal(e.Raw, want) {
				w.fatalf("seq %d: not what was appended (want seq %d)", e.Seq, seq)
			}
			seq++
		}
	}
	if first > 1 {
		// What has been trimmed may still be in memory.
		if _, err := w.l.Read(first-1, 1); err != nil && !errors.As(err, new(*TrimmedError)) && !errors.Is(err, errInjected) {
			w.fatalf("read before first: %v", err)
		}
	}
	for range 3 {
		seq := first - 1 + uint64(w.rnd.Int64N(int64(last.Seq-first+2)))
		pos, err := w.l.PosAt(seq)
		if err != nil {
			if errors.Is(err, errInjected) {
				return
			}
			w.fatalf("PosAt(%d) of %d to %v: %v", seq, first, last, err)
		}
		if raw := w.hist[seq]; raw != nil {
			if e, err := op.Decode(raw); err != nil || e.Pos() != pos {
				w.fatalf("PosAt(%d) is %v, appended %v", seq, pos, e.Pos())
			}
		} else if seq == w.base.Seq && pos != w.base {
			w.fatalf("PosAt(%d) is %v, log was reset to %v", seq, pos, w.base)
		}
	}
}

// arm makes some operation of the file system fail later on.
func (w *world) arm() {
	labels := []string{"write", "fdatasync", "fsync", "create", "rename", "syncdir", "allocate", "remove", "write", "fdatasync"}
	label, n := labels[w.rnd.IntN(len(labels))], w.rnd.IntN(40)
	w.fs.mu.Lock()
	defer w.fs.mu.Unlock()
	w.fs.fault = func(l, path string) error {
		if l != label {
			return nil
		}
		if n--; n < 0 && n > -4 {
			return errInjected
		}
		return nil
	}
}

// die ends the life of the process, in the middle of whatever it does.
func (w *world) die() {
	if w.rnd.IntN(4) == 0 {
		w.see()
		want := w.l.Last().Seq
		if w.l.Err() != nil {
			want = w.acked
		}
		err := w.l.Close()
		w.see()
		w.note("close at %d: %v", want, err)
		if err == nil {
			w.acked = want
		}
	} else {
		w.fs.mu.Lock()
		w.fs.fault = func(string, string) error { return errKilled }
		w.fs.mu.Unlock()
		w.see()
		w.note("kill at %d durable %d acked %d: %v", w.l.Last().Seq, w.l.Durable.Get(), w.acked, w.l.Err())
		w.l.Close()
		w.see()
	}
	w.fs.kill()
	if w.rnd.IntN(2) == 0 {
		w.note("power")
		w.fs.power()
	}
}

func (w *world) see() { w.committed = max(w.committed, w.l.Committed.Get()) }

func (w *world) ack(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked = max(w.acked, seq)
}

func (w *world) append(o op.Op) *op.Entry {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, err := w.l.Append(o)
	if err != nil {
		if !errors.Is(err, ErrFaulted) && !errors.Is(err, ErrNotLeading) {
			w.t.Errorf("seed %d: append: %v", w.seed, err)
		}
		return nil
	}
	if w.hist[e.Seq] != nil {
		w.t.Errorf("seed %d: seq %d appended twice", w.seed, e.Seq)
	}
	w.hist[e.Seq], w.end = e.Raw, e.Seq
	return e
}

func (w *world) randomOp(rnd *rand.Rand) op.Op {
	n := rnd.IntN(3000)
	switch rnd.IntN(20) {
	case 0:
		n = rnd.IntN(150_000) // more than a segment
	case 1, 2:
		n = rnd.IntN(30_000)
	}
	data := make([]byte, n)
	for i := 0; i < len(data); i += 8 {
		data[i] = byte(rnd.Uint32())
	}
	return &op.Write{ID: 2, Off: int64(n), Data: data}
}

// live does random things until something fails or it has had enough.
func (w *world) live() {
	l := w.l
	if w.rnd.IntN(3) == 0 {
		w.arm()
	}
	ctx := context.Background()
	lead := func() {
		if l.Leading() {
			return
		}
		l.Lead(l.Last().Epoch+1, nil)
		if l.Last().Epoch+1 > l.Sealed() {
			w.append(&op.EpochBegin{Epoch: l.Last().Epoch + 1})
		}
	}
	for range w.rnd.IntN(60) {
		if l.Err() != nil {
			return
		}
		w.see()
		switch w.rnd.IntN(20) {
		default:
			if l.Last().Epoch <= l.Sealed() {
				break
			}
			lead()
			if e := w.append(w.randomOp(w.rnd)); e != nil && w.rnd.IntN(2) == 0 && l.Barrier(ctx, e.Seq) == nil {
				w.ack(e.Seq)
			}
		case 0:
			lead()
		case 1:
			l.Flush(l.Appended.Get())
		case 2:
			if seq := l.Durable.Get(); seq > 0 {
				w.ack(seq)
			}
		case 3:
			l.SetApplied(l.Committed.Get())
			if err := l.Trim(l.First() + uint64(w.rnd.IntN(100))); err != nil && !errors.Is(err, ErrFaulted) && !errors.Is(err, errInjected) {
				w.fatalf("trim: %v", err)
			}
		case 4:
			w.readAll()
		case 5:
			epoch := l.Last().Epoch - uint64(w.rnd.IntN(2))*min(1, l.Last().Epoch)
			if err := l.Seal(epoch); err == nil {
				w.sealed = max(w.sealed, epoch)
			} else if !errors.Is(err, ErrFaulted) && !errors.Is(err, errInjected) {
				w.fatalf("seal: %v", err)
			}
			l.Follow()
		case 6:
			w.follow()
		case 7:
			if w.rnd.IntN(4) == 0 {
				w.reset()
			}
		case 8:
			if l.Last().Epoch > l.Sealed() {
				lead()
				w.crowd()
			}
		}
	}
}

// crowd appends from several goroutines at once.
func (w *world) crowd() {
	var wg sync.WaitGroup
	for range 4 {
		rnd := rand.New(rand.NewPCG(w.rnd.Uint64(), 0))
		wg.Go(func() {
			for range 5 {
				if e := w.append(w.randomOp(rnd)); e != nil && w.l.Barrier(context.Background(), e.Seq) == nil {
					w.ack(e.Seq)
				}
			}
		})
	}
	wg.Wait()
}

// follow makes the log a replica's: a tail is cut, another branch comes.
func (w *world) follow() {
	l := w.l
	l.Follow()
	w.see()
	low := max(l.Committed.Get(), l.Applied.Get())
	last := l.Last()
	if low < last.Seq && w.rnd.IntN(2) == 0 {
		after := low + uint64(w.rnd.Int64N(int64(last.Seq-low)))
		if after+1 < l.First() {
			return
		}
		before := w.rescues()
		n, err := l.Cut(after, w.dir+"/rescue")
		w.note("cut after %d of %v: %v", after, last, err)
		if err != nil {
			if l.Err() == nil && !errors.Is(err, errInjected) {
				w.fatalf("cut after %d of %v: %v", after, last, err)
			}
			w.acked = min(w.acked, after) // it may have happened
			return
		}
		if n != int(last.Seq-after) || l.Last().Seq != after {
			w.fatalf("cut after %d of %v: %d entries, log ends at %v", after, last, n, l.Last())
		}
		w.checkRescue(before, after, last)
		for seq := after + 1; seq <= last.Seq; seq++ {
			delete(w.hist, seq)
		}
		w.end, w.acked = after, after // a cut that returned is durable, too
	}
	// Entries of another primary.
	pos := l.Last()
	var es []*op.Entry
	for i := range 1 + w.rnd.IntN(10) {
		var o op.Op = w.randomOp(w.rnd)
		epoch := pos.Epoch
		if i == 0 {
			epoch = max(pos.Epoch, l.Sealed()) + 1
			o = &op.EpochBegin{Epoch: epoch, Reason: "another primary"}
		}
		e := op.NewEntry(pos, epoch, time.Now().UnixNano(), o)
		es, pos = append(es, e), e.Pos()
	}
	if err := l.AppendFrom(pos.Epoch, es); err != nil {
		if l.Err() == nil {
			w.fatalf("append entries: %v", err)
		}
		return
	}
	for _, e := range es {
		w.hist[e.Seq], w.end = e.Raw, e.Seq
	}
	if w.rnd.IntN(2) == 0 {
		l.Flush(pos.Seq)
		if l.Durable.Wait(context.Background(), pos.Seq) == nil {
			w.ack(pos.Seq)
		}
	}
	if w.rnd.IntN(2) == 0 {
		w.committed = max(w.committed, pos.Seq)
		l.Commit(pos.Seq)
	}
}

func (w *world) rescues() map[string]bool {
	names, _ := w.fs.List(w.dir + "/rescue")
	m := make(map[string]bool)
	for _, n := range names {
		m[n] = true
	}
	return m
}

// checkRescue reads the rescue file that a cut has made; or has made again, where
// a crash undid the cut but not the file.
func (w *world) checkRescue(before map[string]bool, after uint64, last op.Pos) {
	now := w.rescues()
	name := fmt.Sprintf("%d-%d-%016x.log", after+1, last.Seq, last.Chain)
	made := now[name]
	maps.DeleteFunc(now, func(n string, _ bool) bool { return before[n] || n == name })
	if !made || len(now) > 0 {
		w.fatalf("rescue file %s: %v; others: %v", name, made, now)
	}
	w.rescued++
	next := after + 1
	err := scanFile(w.fs, filepath.Join(w.dir, "rescue", name), func(e *op.Entry) error {
		if e.Seq != next || !bytes.Equal(e.Raw, w.hist[e.Seq]) {
			return fmt.Errorf("seq %d is wrong (want %d)", e.Seq, next)
		}
		next++
		return nil
	})
	if err != nil && !errors.Is(err, errInjected) || err == nil && next != last.Seq+1 {
		w.fatalf("rescue file %s ends at %d, want %d: %v", name, next-1, last.Seq, err)
	}
}

// reset is what a resync does.
func (w *world) reset() {
	l := w.l
	l.Follow()
	at := op.Pos{Epoch: l.Last().Epoch + uint64(w.rnd.IntN(2)), Seq: l.Last().Seq + uint64(w.rnd.IntN(1000)), Chain: w.rnd.Uint64()}
	if at.Epoch == 0 {
		return
	}
	err := l.Reset(at)
	w.note("reset to %v: %v", at, err)
	if err != nil {
		if l.Err() == nil && !errors.Is(err, errInjected) {
			w.fatalf("reset: %v", err)
		}
		w.l.Fail(err)
		w.maybe = &at
		return
	}
	if l.Err() == nil && (l.Last() != at || l.First() != at.Seq+1 || l.Committed.Get() != at.Seq) && l.Err() == nil {
		w.fatalf("reset to %v: log from %d to %v", at, l.First(), l.Last())
	}
	w.wasReset(at)
}

func (w *world) wasReset(at op.Pos) {
	clear(w.hist)
	w.base, w.end, w.acked, w.committed = at, at.Seq, at.Seq, at.Seq
}

// TestCrash lives through random histories with crashes of process and
// machine, failed system calls, cuts and resets. What was reported durable is
// there after every start, and nothing is that was not appended.
func TestCrash(t *testing.T) {
	lives, rescued := 0, 0
	for seed := *crashFirst; seed < *crashFirst+uint64(*crashSeeds) && !t.Failed(); seed++ {
		rnd := rand.New(rand.NewPCG(seed, 1))
		w := &world{t: t, rnd: rnd, fs: newCrashFS(rand.New(rand.NewPCG(seed, 2))), dir: t.TempDir(), hist: map[uint64][]byte{}, seed: seed}
		for range 15 {
			if !w.open() {
				continue
			}
			lives++
			w.live()
			w.die()
		}
		rescued += w.rescued
	}
	t.Logf("%d lives, %d cuts", lives, rescued)
}

// dump describes the segments, for whoever has to find out what went wrong.
func (w *world) dump() {
	names, _ := w.fs.List(w.dir)
	for _, name := range names {
		s, err := openSegment(w.fs, w.dir, name, false)
		if err != nil {
			w.t.Log(name)
			continue
		}
		text := ""
		fl, err := s.scan(func(h *batchHeader, es []*op.Entry) {
			text += fmt.Sprintf(" [%d+%d d%d c%d", h.first, h.count, h.durable, h.committed)
			if h.restart {
				text += " restart"
			}
			if h.reset {
				text += " reset"
			}
			text += "]"
		})
		w.t.Logf("%s size %d end %d:%s; flaw %+v %v", name, s.size, s.end, text, fl, err)
	}
}
