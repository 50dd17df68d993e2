package oplog

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"slotfs/meta/op"
)

// TestCommitRule: an entry is committed when it is durable here and on every
// peer, and received when every peer has it.
func TestCommitRule(t *testing.T) {
	l := primary(t, t.TempDir(), Options{}, slotA, slotB)
	e := add(t, l, write(10))
	received := blocked(t, func() error { return l.WaitReceived(bg, e.Seq) })
	committed := blocked(t, func() error { return l.Barrier(bg, e.Seq) })
	if l.Durable.Get() != e.Seq || l.Awaited.Get() != e.Seq || l.Wanted.Get() != e.Seq {
		t.Fatalf("durable %d", l.Durable.Get())
	}
	l.Ack(slotA, e.Seq+100, e.Seq+100)
	l.Ack(slotB, e.Seq, 0)
	got(t, received, nil)
	if l.Committed.Get() != 0 {
		t.Fatalf("committed %d", l.Committed.Get())
	}
	l.Ack(slotB, e.Seq, e.Seq)
	got(t, committed, nil)
	if l.Committed.Get() != e.Seq || l.Received.Get() != e.Seq {
		t.Fatalf("committed %d, received %d", l.Committed.Get(), l.Received.Get())
	}
	// Marks never go back, whatever a peer says after a restart.
	l.Ack(slotB, 0, 0)
	if l.Committed.Get() != e.Seq || l.Received.Get() != e.Seq {
		t.Fatal("marks went back")
	}
	if err := l.Barrier(bg, e.Seq); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(bg)
	e = add(t, l, write(10))
	c := blocked(t, func() error { return l.Barrier(ctx, e.Seq) })
	cancel()
	got(t, c, context.Canceled)
}

// TestDropPeer: the smaller set counts once its epoch is in this log for
// certain, not earlier.
func TestDropPeer(t *testing.T) {
	gate := newGate()
	l := primary(t, t.TempDir(), Options{fs: gate, FlushDelay: time.Hour}, slotA)
	durable(t, l)
	e := add(t, l, write(10))
	durable(t, l)
	c := blocked(t, func() error { return l.Barrier(bg, e.Seq) })
	gate.close()
	l.Lead(2, nil)
	begin := add(t, l, &op.EpochBegin{Epoch: 2})
	if l.Committed.Get() != 0 || l.Received.Get() != 0 {
		t.Fatalf("committed %d, received %d before the epoch is durable", l.Committed.Get(), l.Received.Get())
	}
	gate.open()
	got(t, c, nil)
	if err := l.Committed.Wait(bg, begin.Seq); err != nil {
		t.Fatal(err)
	}
	// The peer comes back: barriers wait for it at once, before the epoch.
	l.Lead(2, []op.SlotID{slotA})
	e = add(t, l, write(10))
	c = blocked(t, func() error { return l.Barrier(bg, e.Seq) })
	l.Lead(3, []op.SlotID{slotA})
	begin = add(t, l, &op.EpochBegin{Epoch: 3})
	durable(t, l)
	l.Ack(slotA, begin.Seq, e.Seq)
	got(t, c, nil)
	if l.Committed.Get() != e.Seq {
		t.Fatalf("committed %d", l.Committed.Get())
	}
}

// TestAppendThenDrop is TestDropPeer with the entry before the call of Lead.
func TestAppendThenDrop(t *testing.T) {
	gate := newGate()
	l := primary(t, t.TempDir(), Options{fs: gate, FlushDelay: time.Hour}, slotA)
	durable(t, l)
	gate.close()
	begin := add(t, l, &op.EpochBegin{Epoch: 2})
	l.Lead(2, nil)
	if l.Committed.Get() != 0 {
		t.Fatal("committed before the epoch is durable")
	}
	gate.open()
	if err := l.Committed.Wait(bg, begin.Seq); err != nil {
		t.Fatal(err)
	}
}

// TestFollow: who waits for a commit learns that nobody knows any more.
func TestFollow(t *testing.T) {
	l := primary(t, t.TempDir(), Options{}, slotA)
	e := add(t, l, write(10))
	a := blocked(t, func() error { return l.Barrier(bg, e.Seq) })
	b := blocked(t, func() error { return l.WaitReceived(bg, e.Seq) })
	c := blocked(t, func() error { return l.Committed.Wait(bg, e.Seq) })
	l.Follow()
	got(t, a, ErrNotLeading)
	got(t, b, ErrNotLeading)
	got(t, c, ErrNotLeading)
	if _, err := l.Append(write(1)); !errors.Is(err, ErrNotLeading) {
		t.Errorf("append: %v", err)
	}
	if err := l.Reserve(bg, 1); !errors.Is(err, ErrNotLeading) {
		t.Errorf("reserve: %v", err)
	}
	// What a replica learns is no answer to the calls of a former primary.
	l.Commit(e.Seq)
	if l.Committed.Get() != e.Seq {
		t.Fatalf("committed %d", l.Committed.Get())
	}
	if err := l.Barrier(bg, e.Seq); !errors.Is(err, ErrNotLeading) {
		t.Errorf("barrier: %v", err)
	}
	if err := l.WaitReceived(bg, e.Seq); !errors.Is(err, ErrNotLeading) {
		t.Errorf("received: %v", err)
	}
	if err := l.Committed.Wait(bg, e.Seq); err != nil {
		t.Error(err)
	}
}

// TestFollower takes entries in, and refuses what does not fit.
func TestFollower(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	var es []*op.Entry
	pos := op.Pos{}
	next := func(epoch uint64, o op.Op) *op.Entry {
		e := op.NewEntry(pos, epoch, int64(pos.Seq)+100, o)
		pos = e.Pos()
		es = append(es, e)
		return e
	}
	next(3, &op.EpochBegin{Epoch: 3})
	next(3, write(10))
	if err := l.AppendEntries(es); err != nil {
		t.Fatal(err)
	}
	if l.Last() != pos || l.Appended.Get() != 2 {
		t.Fatal(l.Last())
	}
	var fork *ForkError
	if err := l.AppendEntries(es); !errors.As(err, &fork) || fork.Have != pos || fork.Got.Seq != 0 {
		t.Fatalf("again: %v", err)
	}
	other := op.NewEntry(op.Pos{Epoch: 3, Seq: 2, Chain: 1}, 3, 1, write(1))
	if err := l.AppendEntries([]*op.Entry{other}); !errors.As(err, &fork) || fork.Got.Chain != 1 {
		t.Fatalf("another chain: %v", err)
	}
	for name, e := range map[string]*op.Entry{
		"epoch back":       op.NewEntry(pos, 2, 1, write(1)),
		"epoch unbegun":    op.NewEntry(pos, 4, 1, write(1)),
		"begin of another": op.NewEntry(pos, 4, 1, &op.EpochBegin{Epoch: 5}),
		"begin of the old": op.NewEntry(pos, 3, 1, &op.EpochBegin{Epoch: 3}),
	} {
		if err := l.AppendEntries([]*op.Entry{e}); !errors.Is(err, ErrEpoch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// All or none.
	good, bad := op.NewEntry(pos, 3, 1, write(1)), op.NewEntry(pos, 3, 1, write(2))
	if err := l.AppendEntries([]*op.Entry{good, bad}); err == nil || l.Last() != pos {
		t.Fatal(err, l.Last())
	}
	// Committed here is durable here.
	l.Commit(2)
	l.Commit(1)
	l.Flush(2)
	if err := l.Committed.Wait(bg, 2); err != nil || l.Durable.Get() < 2 {
		t.Fatal(err)
	}
	// What is not here yet is not remembered: another primary may send another
	// entry for that place.
	l.Commit(3)
	if err := l.AppendEntries([]*op.Entry{good}); err != nil {
		t.Fatal(err)
	}
	l.Flush(3)
	if err := l.Durable.Wait(bg, 3); err != nil || l.Committed.Get() != 2 {
		t.Fatal(err, l.Committed.Get())
	}
	l.Commit(3)
	if l.Committed.Get() != 3 {
		t.Fatal(l.Committed.Get())
	}
}

// gateFS lets a test hold back what makes durable.
type gateFS struct {
	osFS
	mu   sync.Mutex
	cond *sync.Cond
	shut bool
	n    int
}

type gateFile struct {
	file
	g *gateFS
}

func newGate() *gateFS {
	g := &gateFS{}
	g.cond = sync.NewCond(&g.mu)
	return g
}

func (g *gateFS) close() { g.mu.Lock(); g.shut = true; g.mu.Unlock() }
func (g *gateFS) open()  { g.mu.Lock(); g.shut = false; g.cond.Broadcast(); g.mu.Unlock() }
func (g *gateFS) syncs() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

func (g *gateFS) Create(path string) (file, error) {
	f, err := g.osFS.Create(path)
	return gateFile{f, g}, err
}

func (g *gateFS) Open(path string, w bool) (file, error) {
	f, err := g.osFS.Open(path, w)
	if err != nil {
		return nil, err
	}
	return gateFile{f, g}, nil
}

func (f gateFile) Datasync() error {
	f.g.pass()
	return f.file.Datasync()
}

func (f gateFile) CommitAt(p []byte, off int64) error {
	f.g.pass()
	return f.file.CommitAt(p, off)
}

func (g *gateFS) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.shut {
		g.cond.Wait()
	}
	g.n++
}
