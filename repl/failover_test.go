package repl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/meta/oplog"
)

// blind makes what n and the others say to each other vanish.
func (n *node) blind(others ...*node) {
	for _, x := range append(others, n) {
		x.cable.set(false, true)
	}
}

func (n *node) sighted(others ...*node) {
	for _, x := range append(others, n) {
		x.cable.set(false, false)
	}
}

// TestFenced cuts the primary off while calls wait for their commit. They end
// with an error, nothing of theirs was acknowledged, and the slot follows its
// successor.
func TestFenced(t *testing.T) {
	w, reg, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	last := a.mustMkdir("before")
	a.blind(b)
	reg.cut("a", true)
	blocked := make(chan error, 1)
	go func() { _, err := a.mkdir("lost"); blocked <- err }()
	w.primary(b)
	if b.log.Last().Seq <= last {
		t.Errorf("b is at seq %d, a had acknowledged %d", b.log.Last().Seq, last)
	}
	select {
	case err := <-blocked:
		t.Fatalf("the call on the old primary ended: %v", err)
	default:
	}
	b.mustMkdir("after")
	begun := time.Now()
	reg.cut("a", false)
	if err := <-blocked; !errors.Is(err, oplog.ErrNotLeading) {
		t.Errorf("the blocked call got %v", err)
	}
	if d := time.Since(begun); d > 2*time.Second {
		t.Errorf("it took %v after the register was heard again", d)
	}
	w.wait("a to be unmounted", func() bool { return !a.hooks.isMounted() && a.m.State().Role == Replica })
	a.sighted(b)
	w.inSync(b, a)
	w.same(b, a)
	if _, err := os.ReadDir(filepath.Join(a.dir, "rescue")); err != nil {
		t.Error(err)
	}
}

// TestIsolated: who hears neither member nor register does not go on showing
// what may be old.
func TestIsolated(t *testing.T) {
	w, reg, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	a.blind(b)
	reg.cut("a", true)
	reg.cut("b", true) // so that nobody supersedes it
	begun := time.Now()
	_, err := a.mkdir("blocked")
	if !errors.Is(err, oplog.ErrNotLeading) {
		t.Errorf("the blocked call got %v", err)
	}
	if d := time.Since(begun); d > isolatedIn+2*time.Second {
		t.Errorf("blocked for %v", d)
	}
	w.wait("a to be unmounted", func() bool { return !a.hooks.isMounted() })
	if s := b.m.State(); s.Role != Replica || s.Register.Unreachable.IsZero() || !strings.Contains(s.Register.Trouble, "roles cannot change") {
		t.Errorf("b: %s, %+v", s.Role, s.Register)
	}
	a.sighted(b)
	reg.cut("a", false)
	reg.cut("b", false)
	w.wait("one of them to be primary, both in sync", func() bool {
		for _, n := range nodes {
			if s := n.m.State(); s.Role == Primary && len(s.Members) == 2 && n.hooks.isMounted() {
				return true
			}
		}
		return false
	})
}

// TestRegisterAway: without a register an intact pair goes on, and a primary
// that needs its replica waits for the register.
func TestRegisterAway(t *testing.T) {
	w, reg, nodes := registered(t, "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	for _, n := range nodes {
		reg.cut(n.name, true)
	}
	for i := range 20 {
		a.mustMkdir(fmt.Sprint("intact", i))
	}
	b.kill()
	done := make(chan error, 1)
	go func() { _, err := a.mkdir("waits"); done <- err }()
	select {
	case err := <-done:
		t.Fatalf("acknowledged without b, and without a word from the register: %v", err)
	case <-time.After(3 * testTimeout):
	}
	if s := a.m.State(); len(s.Members) != 3 || s.Role != Primary {
		t.Errorf("%s, members %v", s.Role, s.Members)
	}
	for _, n := range nodes {
		reg.cut(n.name, false)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	w.inSync(a, c)
	w.same(a, c)
	b.start()
	w.inSync(a, b, c)
}

// TestIdleRegister: nothing is asked of the register while nothing changes. On
// a machine that stands still for a while something does: a slot looks whether
// it was superseded. So one quiet stretch of several is enough.
func TestIdleRegister(t *testing.T) {
	_, reg, nodes := registered(t, "a", "b")
	counts := func() (gets, swaps int) {
		reg.mu.Lock()
		defer reg.mu.Unlock()
		return reg.gets, reg.swaps
	}
	made, reads := 0, 0
	for range 5 {
		gets, swaps := counts()
		for end := time.Now().Add(3 * testTimeout); time.Now().Before(end); made++ {
			nodes[0].mustMkdir(fmt.Sprint("d", made))
		}
		g, s := counts()
		if s != swaps {
			t.Fatalf("%d changes while nothing happened", s-swaps)
		}
		if reads = g - gets; reads <= 1 {
			return
		}
	}
	t.Errorf("%d reads while nothing happened", reads)
}

// TestUnknownOutcome loses the answers to Swaps that were carried out, and
// others on their way to the register.
func TestUnknownOutcome(t *testing.T) {
	for name, done := range map[string]bool{"won": true, "never arrived": false} {
		t.Run(name, func(t *testing.T) {
			w, _, nodes := registered(t, "a", "b")
			a, b := nodes[0], nodes[1]
			tries := 0
			b.line.mu.Lock()
			b.line.lose = func(Record) (bool, bool) {
				tries++
				return done || tries > 3, tries > 3
			}
			b.line.mu.Unlock()
			a.mustMkdir("before")
			a.kill()
			w.primary(b)
			if s := b.m.State(); s.Epoch != 3 {
				t.Errorf("epoch %d", s.Epoch)
			}
			b.mustMkdir("after")
		})
	}
}

// TestColdStart kills both nodes, and starts them in either order.
func TestColdStart(t *testing.T) {
	w, reg, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	last := a.mustMkdir("before")
	a.kill()
	b.kill()
	for _, n := range nodes {
		reg.cut(n.name, true)
	}
	b.start() // in sync, alone, and without a register
	w.wait("b to wait for the register", func() bool { return strings.Contains(b.m.State().Doing, "waiting for the register") })
	reg.cut("b", false)
	w.primary(b)
	if b.log.Last().Seq <= last {
		t.Errorf("b is at %d, %d was acknowledged", b.log.Last().Seq, last)
	}
	b.mustMkdir("alone")
	b.kill()
	a.start() // not in sync any more
	reg.cut("a", false)
	w.wait("a to say why it does not lead", func() bool { return strings.Contains(a.m.State().NotPromotable, "not in the in-sync set") })
	time.Sleep(3 * testTimeout) // long enough to promote itself wrongly
	if s := a.m.State(); s.Role != Replica {
		t.Fatalf("a is %s", s.Role)
	}
	a.refusal("promote it all the same", a.m.Promote(context.Background(), PromoteOptions{}), "not in the in-sync set of epoch 3 (b)")
	b.start()
	w.primary(b)
	w.inSync(b, a)
	w.same(b, a)
}

// TestEmptied empties the primary's disk, with the other one down: it says so,
// and does not take the other one's mail away.
func TestEmptied(t *testing.T) {
	w, _, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	a.mustMkdir("mail")
	last := b.log.Last()
	a.kill()
	b.kill()
	for _, f := range []string{"oplog", "store", notesFile} {
		if err := os.RemoveAll(filepath.Join(a.dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	a.start()
	time.Sleep(3 * testTimeout) // long enough to promote itself wrongly
	a.refusal("promote the empty one", a.m.Promote(context.Background(), PromoteOptions{}), "the store exists already", "names a its primary")
	b.start()
	w.primary(b)
	if got, err := b.log.PosAt(last.Seq); err != nil || got != last {
		t.Errorf("b has %v (%v), had %v", got, err, last)
	}
	w.inSync(b, a)
	w.same(b, a)
}

// TestFaultedPrimary: the disk fails under the primary, whose process answers.
func TestFaultedPrimary(t *testing.T) {
	w, _, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	a.mustMkdir("before")
	c := a.slot.(*counter)
	c.mu.Lock()
	c.fault = errors.New("the disk failed")
	c.mu.Unlock()
	a.log.Fail(errors.New("the disk failed"))
	begun := time.Now()
	w.primary(b)
	t.Logf("after %v", time.Since(begun))
	b.mustMkdir("after")
	w.wait("a to be unmounted", func() bool { return !a.hooks.isMounted() })
}

// TestThreeSlots kills the primary of three, then the next one.
func TestThreeSlots(t *testing.T) {
	w, _, nodes := registered(t, "a", "b", "c")
	nodes[0].mustMkdir("one")
	nodes[0].kill()
	var second, third *node
	w.wait("one of the others to be primary, both in sync", func() bool {
		for i, n := range nodes[1:] {
			if s := n.m.State(); s.Role == Primary && len(s.Members) == 2 && n.hooks.isMounted() {
				second, third = n, nodes[2-i]
				return true
			}
		}
		return false
	})
	last := second.mustMkdir("two")
	second.kill()
	w.primary(third)
	if third.log.Last().Seq <= last {
		t.Errorf("at seq %d, %d was acknowledged", third.log.Last().Seq, last)
	}
	third.mustMkdir("three")
	nodes[0].start()
	second.start()
	w.inSync(third, nodes[0], second)
	w.same(third, second)
}

// TestLocalSlotStays: a slot with durability "local" is promoted by force only.
func TestLocalSlotStays(t *testing.T) {
	w, reg, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	l := w.add("l", func(o *Options) {
		o.Register, o.FailoverTimeout, o.Local = reg.line("l"), 2*testTimeout, true
	})
	last := a.mustMkdir("mail")
	w.wait("l to have it", func() bool { return l.log.Applied.Get() >= last })
	a.kill()
	b.kill()
	l.refusal("promote the local one", l.m.Promote(context.Background(), PromoteOptions{}), "by --force only")
	l.refusal("force it without a word", l.m.Promote(context.Background(), PromoteOptions{Force: true}), "--old-primary-is-down")
	w.promote(l, PromoteOptions{Force: true, OldPrimaryIsDown: true})
	a.start()
	w.wait("a to follow", func() bool { s := a.m.State(); return s.Role == Replica && s.Epoch == l.m.State().Epoch })
}

// TestBadRecords: a record that cannot be right stops changes of role, not mail.
func TestBadRecords(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*testRegister)
		say   string
	}{
		"absent":        {func(r *testRegister) { r.found = false }, "no record of this store"},
		"garbage":       {func(r *testRegister) { r.bad = fmt.Errorf("%w: no JSON", ErrRecord) }, "no JSON"},
		"older":         {func(r *testRegister) { r.rec.Epoch = 1 }, "restored from an older state"},
		"another nonce": {func(r *testRegister) { r.rec.Nonce[3]++ }, "two histories with one epoch number"},
		"another store": {func(r *testRegister) { r.rec.Store[3]++ }, "another store of the same name"},
	} {
		t.Run(name, func(t *testing.T) {
			w, reg, nodes := registered(t, "a", "b")
			a, b := nodes[0], nodes[1]
			w.same(a, b) // b knows its epoch
			reg.mu.Lock()
			c.spoil(reg)
			reg.mu.Unlock()
			reg.bell.notify()
			for i := range 5 {
				a.mustMkdir(fmt.Sprint("d", i))
			}
			for _, n := range nodes {
				if name == "garbage" {
					break // nobody is told of it before he asks
				}
				w.wait(n.name+" to say so", func() bool { return strings.Contains(n.m.State().Register.Trouble, c.say) })
			}
			a.kill()
			b.refusal("promote", b.m.Promote(context.Background(), PromoteOptions{}), c.say)
			time.Sleep(3 * testTimeout) // long enough to promote itself wrongly
			if s := b.m.State(); s.Role != Replica {
				t.Errorf("b is %s", s.Role)
			}
		})
	}
}
