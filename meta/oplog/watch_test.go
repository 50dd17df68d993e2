package oplog

import (
	"errors"
	"testing"
	"time"

	"slotfs/meta/op"
)

// told is a Waiter.
type told chan error

func (w told) Waited(err error) { w <- err }

// nothing fails if w was told something.
func (w told) nothing(t *testing.T) {
	t.Helper()
	select {
	case err := <-w:
		t.Fatalf("told %v too early", err)
	default:
	}
}

// TestAfter: who waits without a goroutine is told at the same moments as who
// waits with one, once.
func TestAfter(t *testing.T) {
	l := primary(t, t.TempDir(), Options{Logger: discard}, slotA)
	e := add(t, l, write(10))
	received, committed := make(told, 2), make(told, 2)
	l.AfterReceived(e.Seq, received)
	l.AfterBarrier(e.Seq, committed)
	soon(t, "flush", func() bool { return l.Durable.Get() >= e.Seq })
	received.nothing(t)
	committed.nothing(t)
	l.Ack(slotA, e.Seq, 0)
	got(t, received, nil)
	committed.nothing(t)
	l.Ack(slotA, e.Seq, e.Seq)
	got(t, committed, nil)
	received.nothing(t)

	// What is over already is told at once.
	l.AfterReceived(e.Seq, received)
	l.AfterBarrier(e.Seq, committed)
	if len(received) != 1 || len(committed) != 1 {
		t.Fatal("not told at once")
	}
	<-received
	<-committed

	// A log that ceases to lead, or stops, lets nobody wait for ever.
	e = add(t, l, write(10))
	l.AfterReceived(e.Seq, received)
	l.AfterBarrier(e.Seq, committed)
	l.Follow()
	got(t, received, ErrNotLeading)
	got(t, committed, ErrNotLeading)
	l.AfterBarrier(e.Seq, committed)
	got(t, committed, ErrNotLeading)
	l.Lead(2, nil)
	l.Fail(errors.New("broken"))
	l.AfterReceived(e.Seq+1, received)
	got(t, received, ErrFaulted)
}

// TestAppendTellsNobody: Append may be called with locks that a Waiter needs.
func TestAppendTellsNobody(t *testing.T) {
	l := primary(t, t.TempDir(), Options{}, slotA)
	e := add(t, l, write(10))
	inside := make(chan bool, 1)
	l.AfterReceived(e.Seq, waiterFunc(func(error) { inside <- true }))
	l.mu.Lock()
	l.acks[slotA] = ack{e.Seq + 1, 0} // as if the acknowledgement had just come in
	l.mu.Unlock()
	inside <- false // whoever is told in this goroutine hangs
	add(t, l, write(10))
	if <-inside {
		t.Fatal("told from inside Append")
	}
	if !<-inside {
		t.Fatal("not told")
	}
}

type waiterFunc func(error)

func (f waiterFunc) Waited(err error) { f(err) }

// signalled is whether w got a signal.
func signalled(w *Watcher) bool {
	select {
	case <-w.C:
		return true
	default:
		return false
	}
}

// TestWatch: a watcher that looks again before long is only called for what
// cannot wait.
func TestWatch(t *testing.T) {
	l := primary(t, t.TempDir(), Options{FlushDelay: time.Hour, Logger: discard}, slotA)
	durable(t, l)
	w := l.Watch(4)
	defer l.Unwatch(w)
	done := func(idle bool) {
		w.Done(l.Appended.Get()+1, l.Wanted.Get(), l.Awaited.Get(), idle)
		signalled(w)
	}
	done(true)
	add(t, l, write(1))
	if !signalled(w) {
		t.Error("idle, and not called for an entry")
	}
	done(false)
	add(t, l, write(1))
	l.Ack(slotA, 1, 1)
	if signalled(w) {
		t.Error("called for what nobody waits for")
	}
	e := add(t, l, write(1))
	l.AfterReceived(e.Seq, make(told, 1))
	if !signalled(w) {
		t.Error("not called for what somebody waits for")
	}
	done(false)
	for range 4 {
		add(t, l, write(1))
	}
	if !signalled(w) {
		t.Error("not called for many")
	}
	done(false)
	l.Flush(l.Last().Seq)
	if !signalled(w) {
		t.Error("not called for what somebody wants to be durable")
	}
	done(false)
	l.Fail(errors.New("broken"))
	if !signalled(w) {
		t.Error("not called at the end")
	}
}

// TestOnFlush: a follower hears of what is durable.
func TestOnFlush(t *testing.T) {
	l := open(t, t.TempDir(), Options{FlushDelay: time.Hour})
	heard := make(chan uint64, 16)
	l.OnFlush(func() { heard <- l.Durable.Get() })
	other := primary(t, t.TempDir(), Options{})
	for range 3 {
		add(t, other, write(9))
	}
	es, err := other.Read(1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendEntries(es); err != nil {
		t.Fatal(err)
	}
	last := es[len(es)-1].Seq
	l.Flush(last)
	if at := <-heard; at != last {
		t.Fatalf("durable %d when told, want %d", at, last)
	}
	l.OnFlush(nil)
}

// TestHurry: whoever waits for Applied is noticed; who only looks is not.
func TestHurry(t *testing.T) {
	l := primary(t, t.TempDir(), Options{})
	e := add(t, l, write(1))
	l.Applied.Changed()
	select {
	case <-l.Hurry():
		t.Fatal("in a hurry without anybody waiting")
	default:
	}
	done := blocked(t, func() error { return l.Applied.Wait(bg, e.Seq) })
	<-l.Hurry()
	l.SetApplied(e.Seq)
	got(t, done, nil)
}

// TestTryReserve does not block.
func TestTryReserve(t *testing.T) {
	l := primary(t, t.TempDir(), Options{MaxUncommitted: 1000}, slotA)
	soon(t, "room", func() bool { // a segment is being made
		wait, err := l.TryReserve(10)
		return !wait && err == nil
	})
	add(t, l, &op.Write{ID: 2, Data: make([]byte, 2000)})
	if wait, err := l.TryReserve(10); !wait || err != nil {
		t.Fatal(wait, err)
	}
	l.Follow()
	if wait, err := l.TryReserve(10); wait || !errors.Is(err, ErrNotLeading) {
		t.Fatal(wait, err)
	}
}
