package repl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// pair is two nodes in sync, a being primary.
func pair(t *testing.T, opts func(*Options)) (w *world, a, b *node) {
	t.Helper()
	w = newFakeWorld(t)
	a, b = w.add("a", opts), w.add("b", opts)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	return w, a, b
}

// same waits until b has applied all of a, and compares.
func (w *world) same(a, b *node) {
	w.t.Helper()
	last := a.log.Last()
	w.wait(fmt.Sprintf("%s to apply seq %d", b.name, last.Seq), func() bool { return a.log.Applied.Get() >= last.Seq && b.log.Applied.Get() >= last.Seq })
	if got, err := b.log.PosAt(last.Seq); err != nil || got != last {
		w.t.Errorf("%s is at %v (%v), %s at %v", b.name, got, err, a.name, last)
	}
}

func (n *node) refusal(what string, err error, words ...string) {
	n.w.t.Helper()
	if err == nil {
		n.w.t.Fatalf("%s: not refused", what)
	}
	if !errors.Is(err, ErrRefused) {
		n.w.t.Errorf("%s: error %v is not ErrRefused", what, err)
	}
	for _, x := range words {
		if !strings.Contains(err.Error(), x) {
			n.w.t.Errorf("%s: %q lacks %q", what, err, x)
		}
	}
}

func TestPair(t *testing.T) {
	w, a, b := pair(t, nil)
	for i := range 50 {
		seq := a.mustMkdir(fmt.Sprint("d", i))
		if got := b.log.Durable.Get(); got < seq {
			t.Fatalf("seq %d acknowledged, the replica has %d", seq, got)
		}
	}
	w.same(a, b)
	if b.hooks.isMounted() {
		t.Error("the replica is mounted")
	}
	s := b.m.State()
	if s.Role != Replica || !s.InSync || s.Epoch != 2 {
		t.Errorf("replica's state: %+v", s)
	}
}

func TestSwitchover(t *testing.T) {
	w, a, b := pair(t, nil)
	ctx := context.Background()
	for i := range 5 {
		a.mustMkdir(fmt.Sprint("x", i))
		b.refusal("promote beside a primary", b.m.Promote(ctx, PromoteOptions{}), a.name+" is primary", "demote it there first")
		a.refusal("promote the primary", a.m.Promote(ctx, PromoteOptions{}), "already is primary")
		if err := a.m.Demote(ctx); err != nil {
			t.Fatal(err)
		}
		if a.hooks.isMounted() {
			t.Fatal("demoted and mounted")
		}
		w.promote(b, PromoteOptions{})
		w.inSync(b, a)
		b.mustMkdir(fmt.Sprint("y", i))
		w.same(b, a)
		a, b = b, a
	}
}

func TestReplicaLostAndBack(t *testing.T) {
	w, a, b := pair(t, nil)
	b.cable.set(true, false)
	a.cable.set(true, false)
	begun := time.Now()
	a.mustMkdir("alone")
	if d := time.Since(begun); d > 4*testTimeout {
		t.Errorf("the barrier took %v", d)
	}
	if s := a.m.State(); len(s.Members) != 1 {
		t.Errorf("members %v", s.Members)
	}
	for i := range 20 {
		a.mustMkdir(fmt.Sprint("more", i))
	}
	a.cable.set(false, false)
	b.cable.set(false, false)
	w.inSync(a, b)
	w.same(a, b)
}

func TestSilentReplica(t *testing.T) {
	w, a, b := pair(t, nil)
	a.cable.set(false, true) // bytes vanish
	begun := time.Now()
	a.mustMkdir("alone")
	if d := time.Since(begun); d < testTimeout/2 || d > 4*testTimeout {
		t.Errorf("the barrier took %v", d)
	}
	a.cable.set(false, false)
	w.inSync(a, b)
	w.same(a, b)
}

func TestStopOnLoss(t *testing.T) {
	w, a, b := pair(t, func(o *Options) { o.StopOnLoss = true })
	b.stop()
	done := make(chan error, 1)
	go func() { _, err := a.mkdir("blocked"); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("acknowledged without the replica: %v", err)
	case <-time.After(3 * testTimeout):
	}
	b.start()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if s := a.m.State(); s.Epoch != 2 {
		t.Errorf("epoch %d, members %v", s.Epoch, s.Members)
	}
	w.same(a, b)
}

func TestFailover(t *testing.T) {
	w, a, b := pair(t, nil)
	for i := range 10 {
		a.mustMkdir(fmt.Sprint("d", i))
	}
	last := a.log.Last()
	a.kill()
	ctx := context.Background()
	b.refusal("promote without a word", b.m.Promote(ctx, PromoteOptions{}), "a (the primary of epoch 2) cannot be reached", "last heard the primary (a)", "--old-primary-is-down")
	w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
	if got, err := b.log.PosAt(last.Seq); err != nil || got != last {
		t.Errorf("b has %v (%v) where a had %v", got, err, last)
	}
	b.mustMkdir("after")
	a.start()
	w.inSync(b, a)
	w.same(b, a)
	if a.hooks.isMounted() {
		t.Error("the old primary is mounted")
	}
}

// The old primary has entries that nobody else has: they go to rescue/.
func TestRejoinCutsTail(t *testing.T) {
	w, a, b := pair(t, func(o *Options) { o.StopOnLoss = true })
	a.mustMkdir("both")
	a.cable.set(true, false)
	b.cable.set(true, false)
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	for i := range 3 {
		e, err := a.log.Append(mkdirOp(fmt.Sprint("lost", i)))
		if err != nil {
			t.Fatal(err)
		}
		if i == 2 {
			if err := a.log.Barrier(ctx, e.Seq); err == nil {
				t.Fatal("committed alone")
			}
		}
	}
	a.kill()
	b.cable.set(false, false)
	w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
	b.mustMkdir("new")
	a.start()
	w.inSync(b, a)
	w.same(b, a)
	if got := rescued(t, a); got != 3 {
		t.Errorf("%d entries in rescue/, want 3", got)
	}
}

// A primary that was partitioned finds that another one went on with its
// history: it steps down by itself.
func TestSupersededStepsDown(t *testing.T) {
	w, a, b := pair(t, func(o *Options) { o.StopOnLoss = true })
	a.mustMkdir("both")
	a.cable.set(true, false)
	b.cable.set(true, false)
	go func() { _, _ = a.mkdir("never acknowledged") }()
	w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
	b.mustMkdir("new")
	a.cable.set(false, false)
	b.cable.set(false, false)
	w.bell.notify()
	w.inSync(b, a)
	w.same(b, a)
	if a.hooks.isMounted() {
		t.Error("the superseded primary is mounted")
	}
}

// Two primaries were made independently: both refuse, until one gives up.
func TestDiverged(t *testing.T) {
	w, a, b := pair(t, nil)
	a.mustMkdir("both")
	a.cable.set(true, false)
	b.cable.set(true, false)
	a.mustMkdir("mine")
	w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
	b.mustMkdir("yours")
	a.cable.set(false, false)
	b.cable.set(false, false)
	w.bell.notify()
	w.wait("both to say so", func() bool { return a.m.State().Diverged != "" && b.m.State().Diverged != "" })
	if !a.hooks.isMounted() || !b.hooks.isMounted() {
		t.Error("a primary gave up by itself")
	}
	ctx := context.Background()
	a.refusal("give up while primary", a.m.Rejoin(ctx, true), "demote")
	a.refusal("keep mine", a.m.Rejoin(ctx, false), "on the other node")
	if err := a.m.Demote(ctx); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * testTimeout) // long enough for a wrong join to happen
	if s := a.m.State(); s.Diverged == "" || s.Role != Replica {
		t.Errorf("after demotion: %+v", s)
	}
	if p, _ := b.log.PosAt(4); p == (a.log.Last()) {
		t.Error("joined")
	}
}

// A primary that was stopped resumes; one whose store went on does not.
func TestResume(t *testing.T) {
	w, a, b := pair(t, nil)
	a.mustMkdir("one")
	a.stop()
	a.start()
	w.wait("a to resume", func() bool { return a.m.State().Role == Primary })
	w.inSync(a, b)
	a.mustMkdir("two")
	w.same(a, b)

	// Both: b alone cannot resume, and a only when it sees b.
	a.stop()
	b.stop()
	a.start()
	w.wait("a to say what it waits for", func() bool { return strings.Contains(a.m.State().Doing, "waiting for b") })
	b.start()
	w.wait("a to resume", func() bool { return a.m.State().Role == Primary })
	w.inSync(a, b)
	if err := a.m.Demote(context.Background()); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.start()
	time.Sleep(3 * testTimeout) // long enough to resume wrongly
	if s := a.m.State(); s.Role != Replica {
		t.Errorf("resumed after a demotion: %+v", s)
	}
}

func TestThirdSlotAndLocal(t *testing.T) {
	w, a, b := pair(t, nil)
	c := w.add("c", func(o *Options) { o.Local = true })
	a.mustMkdir("x")
	w.same(a, c)
	time.Sleep(2 * testTimeout)
	if s := a.m.State(); len(s.Members) != 2 {
		t.Errorf("members %v", s.Members)
	}
	d := w.add("d", nil)
	w.inSync(a, b, d)
	a.mustMkdir("y")
	a.kill()
	ctx := context.Background()
	c.refusal("promote a local slot", c.m.Promote(ctx, PromoteOptions{OldPrimaryIsDown: true}), "not in the in-sync set")
	w.promote(d, PromoteOptions{OldPrimaryIsDown: true})
	w.inSync(d, b)
	d.mustMkdir("z")
	w.same(d, b)
	w.same(d, c)
	a.start()
	w.inSync(d, a, b)
}

func TestFreshSlotRefusals(t *testing.T) {
	w, a, _ := pair(t, nil)
	a.mustMkdir("x")
	a.cable.set(true, false)
	c := w.add("c", nil)
	ctx := context.Background()
	c.refusal("create a second store", c.m.Promote(ctx, PromoteOptions{Force: true}), "exists already")
}

func TestOtherStoreRefused(t *testing.T) {
	w, a, b := pair(t, nil)
	b.stop()
	// A store of the same name, made while nobody else could be reached.
	a.cable.set(true, false)
	w.mu.Lock()
	saved := w.nodes
	w.nodes = map[string]*node{}
	w.mu.Unlock()
	d := w.add("d", nil)
	w.promote(d, PromoteOptions{})
	w.mu.Lock()
	saved["d"] = d
	w.nodes = saved
	w.mu.Unlock()
	a.cable.set(false, false)
	w.bell.notify()
	w.wait("both to complain", func() bool {
		return strings.Contains(a.m.State().LastError, "another store") && strings.Contains(d.m.State().LastError, "another store")
	})
	if a.m.State().Role != Primary || d.m.State().Role != Primary {
		t.Error("a primary gave up")
	}
}
