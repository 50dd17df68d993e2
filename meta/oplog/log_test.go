package oplog

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"slotfs/meta/op"
)

// quiet fails the test when the log warns about anything.
type quiet struct{ t testing.TB }

func (q quiet) Write(p []byte) (int, error) {
	q.t.Errorf("logged: %s", p)
	return len(p), nil
}

func logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(quiet{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

// open opens a log that must be fine, and closes it at the end of the test.
func open(t testing.TB, dir string, o Options) *Log {
	t.Helper()
	if o.Logger == nil {
		o.Logger = logger(t)
	}
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// primary opens a log and begins an epoch with the given peers.
func primary(t testing.TB, dir string, o Options, peers ...op.SlotID) *Log {
	t.Helper()
	l := open(t, dir, o)
	l.Lead(l.Last().Epoch+1, peers)
	add(t, l, &op.EpochBegin{Epoch: l.Last().Epoch + 1})
	return l
}

func add(t testing.TB, l *Log, o op.Op) *op.Entry {
	t.Helper()
	e, err := l.Append(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func write(n int) *op.Write { return &op.Write{ID: 2, Data: bytes.Repeat([]byte{byte(n)}, n)} }

func durable(t testing.TB, l *Log) {
	t.Helper()
	last := l.Appended.Get()
	l.Flush(last)
	if err := l.Durable.Wait(context.Background(), last); err != nil {
		t.Fatal(err)
	}
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// soon waits for something that is about to happen by itself.
func soon(t testing.TB, what string, cond func() bool) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(end) {
			t.Fatalf("does not happen: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// blocked runs fn and makes sure that it has not returned shortly after.
func blocked(t testing.TB, fn func() error) <-chan error {
	t.Helper()
	c := make(chan error, 1)
	go func() { c <- fn() }()
	select {
	case err := <-c:
		t.Fatalf("does not block, returns %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	return c
}

func got(t testing.TB, c <-chan error, want error) {
	t.Helper()
	select {
	case err := <-c:
		if !errors.Is(err, want) {
			t.Fatalf("got %v, want %v", err, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("still blocked, want %v", want)
	}
}

var (
	discard = slog.New(slog.DiscardHandler)
	slotA   = op.SlotID{1}
	slotB   = op.SlotID{2}
	bg      = context.Background()
)

func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "oplog")
	l := primary(t, dir, Options{SegmentSize: 32 << 10})
	var want []*op.Entry
	for i := range 200 {
		want = append(want, add(t, l, write(i*10)))
		if i%7 == 0 {
			durable(t, l)
		}
	}
	last := l.Last()
	l.SetApplied(last.Seq)
	l.NotBefore(1 << 62)
	future := add(t, l, write(1))
	closeLog(t, l)
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := l.Append(write(1)); !errors.Is(err, ErrClosed) {
		t.Errorf("append after Close: %v", err)
	}
	if err := l.Durable.Wait(bg, 1000); !errors.Is(err, ErrClosed) {
		t.Errorf("wait after Close: %v", err)
	}

	l = open(t, dir, Options{SegmentSize: 32 << 10})
	if l.Last() != future.Pos() || l.First() != 1 || l.RecoveredCommitted() != future.Seq || l.Committed.Get() != future.Seq {
		t.Fatalf("from %d to %v, committed %d; want to %v", l.First(), l.Last(), l.RecoveredCommitted(), future.Pos())
	}
	es, err := l.Read(2, 1<<30)
	for len(es) < len(want) && err == nil {
		var more []*op.Entry
		more, err = l.Read(es[len(es)-1].Seq+1, 1<<30)
		es = append(es, more...)
	}
	if err != nil || !reflect.DeepEqual(es[:len(want)], want) {
		t.Fatalf("read %d entries, %v; want %d", len(es), err, len(want))
	}
	for _, e := range want {
		if pos, err := l.PosAt(e.Seq); err != nil || pos != e.Pos() {
			t.Fatalf("PosAt(%d) = %v, %v; want %v", e.Seq, pos, err, e.Pos())
		}
	}
	if es, err := l.Read(l.Last().Seq+1, 1); es != nil || err != nil {
		t.Errorf("read at the end: %v, %v", es, err)
	}
	if _, err := l.Read(l.Last().Seq+2, 1); err == nil {
		t.Error("read past the end")
	}
	if ep := l.Epochs(); len(ep) != 1 || ep[0].Seq != 1 || ep[0].Begin.Epoch != 1 {
		t.Errorf("epochs %+v", ep)
	}
	// Time goes on from the last entry, whatever the clock says.
	l.Lead(2, nil)
	if e := add(t, l, &op.EpochBegin{Epoch: 2}); e.Time != future.Time+1 {
		t.Errorf("time %d after %d", e.Time, future.Time)
	}
	closeLog(t, l)

	var seqs []uint64
	err = Scan(dir, 5, func(e *op.Entry) error { seqs = append(seqs, e.Seq); return nil })
	if err != nil || len(seqs) != int(future.Seq)+1-4 || seqs[0] != 5 {
		t.Errorf("Scan: %d entries, %v", len(seqs), err)
	}
	stop := errors.New("stop")
	if err := Scan(dir, 0, func(*op.Entry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Scan with a failing fn: %v", err)
	}
}

// TestScanWhileOpen: Scan is for a log that may be open in another process.
func TestScanWhileOpen(t *testing.T) {
	dir := t.TempDir()
	l := primary(t, dir, Options{})
	add(t, l, write(5000))
	durable(t, l)
	n := 0
	if err := Scan(dir, 0, func(*op.Entry) error { n++; return nil }); err != nil || n != 2 {
		t.Fatal(n, err)
	}
}

func TestFirstEntry(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	l.Lead(1, nil)
	if _, err := l.Append(write(1)); !errors.Is(err, ErrEpoch) {
		t.Errorf("first entry is no EpochBegin: %v", err)
	}
	add(t, l, &op.EpochBegin{Epoch: 1})
	if _, err := l.Append(&op.EpochBegin{Epoch: 1}); !errors.Is(err, ErrEpoch) {
		t.Errorf("same epoch again: %v", err)
	}
	if _, err := l.Append(&op.Mkdir{Parent: 1, Name: "a/b"}); !errors.Is(err, op.ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
}

func TestSeal(t *testing.T) {
	dir := t.TempDir()
	l := primary(t, dir, Options{})
	durable(t, l)
	l.Follow()
	if err := l.Seal(4); err != nil {
		t.Fatal(err)
	}
	if err := l.Seal(2); err != nil || l.Sealed() != 4 {
		t.Fatal(err, l.Sealed())
	}
	closeLog(t, l)
	l = open(t, dir, Options{})
	if l.Sealed() != 4 {
		t.Fatal(l.Sealed())
	}
	old := op.NewEntry(l.Last(), 1, l.lastTime+1, write(1))
	begin := op.NewEntry(old.Pos(), 5, l.lastTime+2, &op.EpochBegin{Epoch: 5})
	if err := l.AppendEntries([]*op.Entry{old}); !errors.Is(err, ErrSealed) {
		t.Errorf("old epoch: %v", err)
	}
	if err := l.AppendFrom(4, []*op.Entry{old}); !errors.Is(err, ErrSealed) {
		t.Errorf("from the primary of a sealed epoch: %v", err)
	}
	if err := l.AppendFrom(5, []*op.Entry{op.NewEntry(old.Pos(), 6, 1, &op.EpochBegin{Epoch: 6})}); !errors.Is(err, ErrEpoch) {
		t.Errorf("newer than its primary: %v", err)
	}
	if err := l.AppendFrom(5, []*op.Entry{old, begin}); err != nil {
		t.Errorf("history from a newer primary: %v", err)
	}
	l.Lead(6, nil)
	add(t, l, &op.EpochBegin{Epoch: 6})
	if err := l.Seal(6); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(write(1)); !errors.Is(err, ErrSealed) {
		t.Errorf("append to a sealed epoch: %v", err)
	}
	closeLog(t, l)
	if err := os.WriteFile(filepath.Join(dir, sealName), []byte("garbage that is as long as it is"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, op.ErrCorrupt) {
		t.Errorf("open with a bad seal: %v", err)
	}
}

// TestReserve: who wants to append waits while the peer is too far behind, or
// too much is unapplied.
func TestReserve(t *testing.T) {
	t.Run("entries", func(t *testing.T) {
		l := primary(t, t.TempDir(), Options{}, slotA)
		for range maxUnreceived {
			// However slow the machine, the age does not count here.
			l.mu.Lock()
			l.recs[0].at = l.now() + time.Hour
			l.mu.Unlock()
			if err := l.Reserve(bg, 10); err != nil {
				t.Fatal(err)
			}
			add(t, l, write(10))
		}
		c := blocked(t, func() error { return l.Reserve(bg, 10) })
		l.Ack(slotA, l.Last().Seq, 0)
		got(t, c, nil)
	})
	t.Run("age", func(t *testing.T) {
		l := primary(t, t.TempDir(), Options{}, slotA)
		l.mu.Lock()
		l.recs[0].at -= 2 * maxUnreceivedAge
		l.mu.Unlock()
		c := blocked(t, func() error { return l.Reserve(bg, 10) })
		l.Ack(slotA, 1, 0)
		got(t, c, nil)
	})
	t.Run("unapplied", func(t *testing.T) {
		l := primary(t, t.TempDir(), Options{MaxUncommitted: 1000})
		add(t, l, write(2000))
		c := blocked(t, func() error { return l.Reserve(bg, 10) })
		ctx, cancel := context.WithCancel(bg)
		d := blocked(t, func() error { return l.Reserve(ctx, 10) })
		cancel()
		got(t, d, context.Canceled)
		l.SetApplied(2)
		got(t, c, nil)
	})
	t.Run("disk", func(t *testing.T) {
		full := errors.New("full")
		l := primary(t, t.TempDir(), Options{Reserve: func(n int64) error {
			if n > 100 {
				return full
			}
			return nil
		}})
		if err := l.Reserve(bg, 100); err != nil {
			t.Error(err)
		}
		if err := l.Reserve(bg, 101); !errors.Is(err, full) {
			t.Error(err)
		}
	})
	t.Run("follow", func(t *testing.T) {
		l := primary(t, t.TempDir(), Options{MaxUncommitted: 1000})
		add(t, l, write(2000))
		c := blocked(t, func() error { return l.Reserve(bg, 10) })
		l.Follow()
		got(t, c, ErrNotLeading)
	})
}

// TestFlushDelay: an entry that nobody waits for gets durable by itself.
func TestFlushDelay(t *testing.T) {
	l := primary(t, t.TempDir(), Options{})
	e := add(t, l, write(10))
	if err := l.Committed.Wait(bg, e.Seq); err != nil {
		t.Fatal(err)
	}
	if l.Durable.Get() != e.Seq {
		t.Error(l.Durable.Get())
	}
}

// TestGroupCommit: barriers that arrive while a flush runs share the next one.
func TestGroupCommit(t *testing.T) {
	gate := newGate()
	l := primary(t, t.TempDir(), Options{fs: gate, FlushDelay: time.Hour})
	durable(t, l)
	soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
	gate.close()
	var wg sync.WaitGroup
	for range 50 {
		e := add(t, l, write(10))
		wg.Go(func() {
			if err := l.Barrier(bg, e.Seq); err != nil {
				t.Error(err)
			}
		})
	}
	soon(t, "all wait", func() bool {
		l.Committed.mu.Lock()
		defer l.Committed.mu.Unlock()
		return len(l.Committed.waiters) == 50
	})
	before := gate.syncs()
	gate.open()
	wg.Wait()
	if n := gate.syncs() - before; n > 2 {
		t.Errorf("%d syncs for 50 barriers", n)
	}
}

// TestFault: after a failed fsync nothing is acknowledged any more, and the
// next start finds out what is there.
func TestFault(t *testing.T) {
	for _, label := range []string{"write", "fdatasync"} {
		t.Run(label, func(t *testing.T) {
			fs := newCrashFS(rand.New(rand.NewPCG(1, 2)))
			dir := t.TempDir()
			faulted := make(chan error, 2)
			l := primary(t, dir, Options{fs: fs, Logger: discard, OnFault: func(err error) { faulted <- err }}, slotA)
			durable(t, l)
			good := l.Last()
			w := blocked(t, func() error { return l.Committed.Wait(bg, good.Seq) })
			soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
			fs.mu.Lock()
			fs.fault = func(l, _ string) error {
				if l == label {
					return errInjected
				}
				return nil
			}
			fs.mu.Unlock()
			e := add(t, l, write(10))
			if err := l.Barrier(bg, e.Seq); !errors.Is(err, ErrFaulted) || !errors.Is(err, errInjected) {
				t.Fatal(err)
			}
			got(t, w, ErrFaulted)
			got(t, faulted, errInjected)
			fs.mu.Lock()
			fs.fault = nil
			fs.mu.Unlock()
			if _, err := l.Append(write(1)); !errors.Is(err, ErrFaulted) {
				t.Error(err)
			}
			if err := l.Reserve(bg, 1); !errors.Is(err, ErrFaulted) {
				t.Error(err)
			}
			if err := l.AppendEntries(nil); !errors.Is(err, ErrFaulted) {
				t.Error(err)
			}
			l.Ack(slotA, e.Seq, e.Seq)
			if l.Committed.Get() != 0 || l.Durable.Get() != good.Seq {
				t.Error("marks advanced after the fault")
			}
			<-l.Durable.Changed()
			l.Close()
			l = open(t, dir, Options{fs: fs, Logger: discard})
			if l.Last().Seq < good.Seq || l.Last().Seq > e.Seq {
				t.Error(l.Last())
			}
			if len(faulted) > 0 {
				t.Error("OnFault called twice")
			}
		})
	}
}

func TestFail(t *testing.T) {
	l := primary(t, t.TempDir(), Options{Logger: discard}, slotA)
	c := blocked(t, func() error { return l.Barrier(bg, 1) })
	cause := errors.New("apply")
	l.Fail(cause)
	got(t, c, ErrFaulted)
	if err := l.Err(); !errors.Is(err, cause) {
		t.Error(err)
	}
	if err := l.Close(); !errors.Is(err, cause) {
		t.Error(err)
	}
}

// TestTrim removes whole segments, and makes new ones of them.
func TestTrim(t *testing.T) {
	dir := t.TempDir()
	l := primary(t, dir, Options{SegmentSize: 64 << 10})
	for range 100 {
		add(t, l, write(5000))
		durable(t, l)
	}
	if err := l.Trim(50); err != nil || l.First() != 1 {
		t.Fatal("trimmed what is not applied", err)
	}
	l.SetApplied(90)
	size := l.Size()
	if err := l.Trim(1 << 60); err != nil {
		t.Fatal(err)
	}
	first := l.First()
	if first == 1 || first > 91 || l.Size() >= size {
		t.Fatalf("first %d, size %d of %d", first, l.Size(), size)
	}
	if pos, err := l.PosAt(first - 1); err != nil || pos.Seq != first-1 {
		t.Errorf("PosAt(First-1): %v, %v", pos, err)
	}
	var trimmed *TrimmedError
	if _, err := l.PosAt(first - 30); err != nil && (!errors.As(err, &trimmed) || trimmed.First != first) {
		t.Error(err)
	}
	if len(l.Epochs()) != 0 {
		t.Error("epochs of trimmed entries")
	}
	for range 200 {
		add(t, l, write(5000))
		durable(t, l)
		l.SetApplied(l.Last().Seq)
		if err := l.Trim(l.Last().Seq); err != nil {
			t.Fatal(err)
		}
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) > 5 {
		t.Errorf("%d files left: %v %v", len(names), names, err)
	}
	last := l.Last()
	closeLog(t, l)
	l = open(t, dir, Options{SegmentSize: 64 << 10})
	if l.Last() != last {
		t.Fatalf("%v, want %v", l.Last(), last)
	}
	if pos, err := l.PosAt(last.Seq); err != nil || pos != last {
		t.Errorf("PosAt(last): %v, %v", pos, err)
	}
	if _, err := l.Read(1, 1); !errors.As(err, &trimmed) || trimmed.First != l.First() {
		t.Error(err)
	}
	if err := Scan(dir, 1, func(*op.Entry) error { return nil }); !errors.As(err, &trimmed) {
		t.Error(err)
	}
}

// TestCache: recent entries stay in memory, old ones don't.
func TestCache(t *testing.T) {
	l := primary(t, t.TempDir(), Options{})
	data := write(1 << 20)
	for range 30 {
		e := add(t, l, data)
		if err := l.Barrier(bg, e.Seq); err != nil {
			t.Fatal(err)
		}
		l.SetApplied(e.Seq)
	}
	l.mu.Lock()
	n, bytes, unapplied, pending := len(l.recs), l.recBytes, l.unapplied, l.pending
	l.mu.Unlock()
	if n > 9 || n < 7 || bytes > cacheBytes || unapplied != 0 || pending != 0 {
		t.Errorf("%d entries, %d bytes, %d unapplied, %d pending", n, bytes, unapplied, pending)
	}
	seq := uint64(1)
	for seq <= l.Last().Seq {
		es, err := l.Read(seq, 3<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if e.Seq != seq {
				t.Fatalf("seq %d, want %d", e.Seq, seq)
			}
			seq++
		}
	}
}

func TestCutAndReset(t *testing.T) {
	dir, rescue := t.TempDir(), t.TempDir()
	l := primary(t, dir, Options{}, slotA)
	var want []*op.Entry
	for i := range 20 {
		want = append(want, add(t, l, write(200_000+i)))
	}
	l.Ack(slotA, 5, 5)
	durable(t, l)
	if _, err := l.Cut(10, rescue); err == nil {
		t.Fatal("cut while leading")
	}
	l.Follow()
	if _, err := l.Cut(4, rescue); err == nil {
		t.Fatal("cut what is committed")
	}
	w := blocked(t, func() error { return l.Durable.Wait(bg, 100) })
	n, err := l.Cut(10, rescue)
	if err != nil || n != 11 || l.Last() != want[8].Pos() || l.Durable.Get() != 10 || l.Appended.Get() != 10 {
		t.Fatal(n, err, l.Last())
	}
	got(t, w, ErrCut)
	if n, err := l.Cut(10, rescue); n != 0 || err != nil {
		t.Fatal("second cut", n, err)
	}
	files, err := filepath.Glob(filepath.Join(rescue, "*"))
	if err != nil || len(files) != 1 || !strings.HasPrefix(filepath.Base(files[0]), "11-21-") {
		t.Fatal(files, err)
	}
	var saved []*op.Entry
	keep := func(e *op.Entry) error {
		c, err := op.Decode(bytes.Clone(e.Raw))
		saved = append(saved, c)
		return err
	}
	if err := ScanFile(files[0], keep); err != nil || !reflect.DeepEqual(saved, want[9:]) {
		t.Fatal(len(saved), err)
	}
	// A rescue file with a hole is not taken for a whole one.
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2]++
	if err := os.WriteFile(files[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ScanFile(files[0], keep); err == nil {
		t.Error("damaged rescue file read without error")
	}
	closeLog(t, l)
	l = open(t, dir, Options{})
	if l.Last() != want[8].Pos() {
		t.Fatal(l.Last())
	}
	at := op.Pos{Epoch: 9, Seq: 1000, Chain: 77}
	if err := l.Reset(at); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if pos, err := l.PosAt(1000); l.Last() != at || l.First() != 1001 || pos != at || err != nil || l.Committed.Get() != 1000 {
			t.Fatal(l.Last(), l.First(), pos, err)
		}
		if pos, err := l.PosAt(0); pos != (op.Pos{}) || err != nil {
			t.Error(pos, err)
		}
		if _, err := l.PosAt(999); !errors.As(err, new(*TrimmedError)) {
			t.Error(err)
		}
	}
	check()
	closeLog(t, l)
	l = open(t, dir, Options{})
	check()
	if err := l.AppendEntries([]*op.Entry{op.NewEntry(at, 9, 1, write(1))}); err != nil {
		t.Fatal(err)
	}
}
