package oplog

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"slotfs/meta/op"
)

// TestPair runs a primary and a replica side by side: writers on the one, a
// stream to the other, both apply and trim. What was acknowledged is on both.
func TestPair(t *testing.T) {
	o := Options{SegmentSize: 256 << 10, MaxUncommitted: 1 << 20}
	a, b := primary(t, t.TempDir(), o, slotB), open(t, t.TempDir(), o)
	ctx, cancel := context.WithCancel(bg)
	var stream sync.WaitGroup
	stream.Go(func() { ship(ctx, t, a, b) })
	stream.Go(func() { acks(ctx, a, b) })
	stream.Go(func() { apply(ctx, t, a) })
	stream.Go(func() { apply(ctx, t, b) })

	var writers sync.WaitGroup
	for w := range 8 {
		rnd := rand.New(rand.NewPCG(uint64(w), 7))
		writers.Go(func() {
			for i := range 40 {
				n := rnd.IntN(30_000)
				if err := a.Reserve(ctx, n); err != nil {
					t.Error(err)
					return
				}
				e, err := a.Append(write(n))
				if err != nil {
					t.Error(err)
					return
				}
				switch i % 3 {
				case 0:
					err = a.Barrier(ctx, e.Seq)
					if err == nil && (b.Durable.Get() < e.Seq || a.Durable.Get() < e.Seq) {
						t.Errorf("seq %d acknowledged, durable %d and %d", e.Seq, a.Durable.Get(), b.Durable.Get())
					}
				case 1:
					err = a.WaitReceived(ctx, e.Seq)
					if err == nil && b.Appended.Get() < e.Seq {
						t.Errorf("seq %d received, the replica ends at %d", e.Seq, b.Appended.Get())
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	last := a.Last()
	if err := a.Barrier(ctx, last.Seq); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*Log{a, b} {
		if err := l.Applied.Wait(ctx, last.Seq); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	stream.Wait()
	if b.Last() != last {
		t.Fatalf("primary ends at %v, replica at %v", last, b.Last())
	}
	if a.First() == 1 || b.First() == 1 {
		t.Error("nothing was trimmed")
	}
	for _, l := range []*Log{a, b} {
		// Closing notes what is committed, if there is room for one more batch.
		room := l.active().end+(&batchHeader{}).extent() <= l.active().size
		closeLog(t, l)
		if l := open(t, l.dir, o); l.Last() != last || room && l.RecoveredCommitted() != last.Seq {
			t.Errorf("reopened at %v, committed %d; want %v", l.Last(), l.RecoveredCommitted(), last)
		}
	}
}

// ship streams from a to b.
func ship(ctx context.Context, t *testing.T, a, b *Log) {
	for next := uint64(1); ctx.Err() == nil; {
		appended, committed, wanted := a.Appended.Changed(), a.Committed.Changed(), a.Wanted.Changed()
		es, err := a.Read(next, 64<<10)
		if err == nil && len(es) > 0 {
			err = b.AppendFrom(1, es)
			next = es[len(es)-1].Seq + 1
		}
		if err != nil {
			t.Error(err)
			return
		}
		b.Flush(a.Wanted.Get())
		b.Commit(a.Committed.Get())
		if len(es) > 0 {
			continue
		}
		select {
		case <-appended:
		case <-committed:
		case <-wanted:
		case <-ctx.Done():
		}
	}
}

// acks tells a what b has.
func acks(ctx context.Context, a, b *Log) {
	for ctx.Err() == nil {
		appended, durable := b.Appended.Changed(), b.Durable.Changed()
		a.Ack(slotB, b.Appended.Get(), b.Durable.Get())
		select {
		case <-appended:
		case <-durable:
		case <-ctx.Done():
		}
	}
}

// apply reads what is committed, as an applier does, and trims.
func apply(ctx context.Context, t *testing.T, l *Log) {
	var pos op.Pos
	for ctx.Err() == nil {
		changed := l.Committed.Changed()
		to := l.Committed.Get()
		for pos.Seq < to {
			es, err := l.Read(pos.Seq+1, 100<<10)
			if err != nil {
				t.Error(err)
				return
			}
			for _, e := range es {
				if e.Seq > to {
					break
				}
				if e.Before != pos.Chain {
					t.Errorf("seq %d does not continue %v", e.Seq, pos)
					return
				}
				pos = e.Pos()
			}
			l.SetApplied(pos.Seq)
			// The streamer is never this far behind.
			if err := l.Trim(pos.Seq - min(pos.Seq, 300)); err != nil {
				t.Error(err)
				return
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// TestMarkCrowd: many waiters, for many values, some of whom give up.
func TestMarkCrowd(t *testing.T) {
	const waiters, end = 200, 1000
	m := new(Mark)
	var wg sync.WaitGroup
	for i := range waiters {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithCancel(bg)
				v := rnd.Uint64N(end) + 1
				if rnd.IntN(3) == 0 {
					go cancel()
				}
				err := m.Wait(ctx, v)
				cancel()
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if err == nil && m.Get() < v {
					t.Errorf("woken at %d for %d", m.Get(), v)
				}
			}
		})
	}
	wg.Go(func() {
		for v := range uint64(end + 1) {
			c := m.Changed()
			if m.advance(v) {
				<-c
			}
		}
	})
	wg.Wait()
	if len(m.waiters) != 0 {
		t.Errorf("%d waiters left", len(m.waiters))
	}
	c := m.Changed()
	m.fail(ErrClosed)
	<-c
	<-m.Changed()
	if err := m.Wait(bg, end+1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := m.Wait(bg, end); err != nil {
		t.Errorf("wait for what had passed: %v", err)
	}
}

// TestPrepareFails: that the next segment cannot be made is no fault, whatever
// the reason.
func TestPrepareFails(t *testing.T) {
	fs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
	l := open(t, t.TempDir(), Options{SegmentSize: 64 << 10, fs: fs, Logger: discard})
	l.Lead(1, nil)
	add(t, l, &op.EpochBegin{Epoch: 1})
	durable(t, l)
	soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
	fs.mu.Lock()
	fs.fault = func(label, _ string) error {
		if label == "create" {
			return errInjected
		}
		return nil
	}
	fs.mu.Unlock()
	for range 3 {
		add(t, l, write(20_000))
		durable(t, l)
	}
	soon(t, "reserve fails", func() bool { return errors.Is(l.Reserve(bg, 1), errInjected) })
	add(t, l, write(50_000))
	c := blocked(t, func() error { return l.Barrier(bg, l.Appended.Get()) })
	fs.mu.Lock()
	fs.fault = nil
	fs.mu.Unlock()
	got(t, c, nil)
	soon(t, "reserve succeeds", func() bool { return l.Reserve(bg, 1) == nil })
}
