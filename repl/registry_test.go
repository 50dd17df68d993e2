package repl

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"
)

// testRegister is a register in memory, which each node reaches by a line of
// its own.
type testRegister struct {
	mu     sync.Mutex
	rec    Record
	found  bool
	bad    error // of Get
	gets   int
	swaps  int
	bell   notifier
	denied map[string]bool // nodes that cannot reach it
}

var errNoMajority = errors.New("no majority answers")

// line is one node's access to the register.
type line struct {
	reg  *testRegister
	node string
	mu   sync.Mutex
	last Reach
	// lose, if set, says of a Swap whether it is carried out, and whether its
	// answer arrives.
	lose func(next Record) (done, answered bool)
}

func (r *testRegister) line(node string) *line {
	return &line{reg: r, node: node, last: Reach{Heard: time.Now()}}
}

func (r *testRegister) cut(node string, yes bool) {
	r.mu.Lock()
	if r.denied == nil {
		r.denied = map[string]bool{}
	}
	r.denied[node] = yes
	r.mu.Unlock()
	r.bell.notify()
}

func (l *line) reach() error {
	l.reg.mu.Lock()
	defer l.reg.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reg.denied[l.node] {
		if l.last.Since.IsZero() {
			l.last.Since = time.Now()
		}
		l.last.Error = errNoMajority.Error()
		return errNoMajority
	}
	l.last = Reach{Heard: time.Now()}
	return nil
}

func (l *line) Get(context.Context, string) (Record, bool, error) {
	if err := l.reach(); err != nil {
		return Record{}, false, err
	}
	l.reg.mu.Lock()
	defer l.reg.mu.Unlock()
	l.reg.gets++
	return l.reg.rec, l.reg.found, l.reg.bad
}

func (l *line) Swap(_ context.Context, _ string, expect uint64, next Record) (Record, bool, error) {
	if err := l.reach(); err != nil {
		return Record{}, false, err
	}
	done, answered := true, true
	l.mu.Lock()
	if l.lose != nil {
		done, answered = l.lose(next)
	}
	l.mu.Unlock()
	if !done {
		return Record{}, false, errNoMajority
	}
	l.reg.mu.Lock()
	won := !l.reg.found && expect == 0 || l.reg.found && (l.reg.rec.Epoch == expect || l.reg.rec.Nonce == next.Nonce)
	if won {
		l.reg.rec, l.reg.found = next, true
		l.reg.swaps++
	}
	now := l.reg.rec
	l.reg.mu.Unlock()
	l.reg.bell.notify()
	if !answered {
		return Record{}, false, errNoMajority
	}
	return now, won, nil
}

func (l *line) Watch(ctx context.Context, _ string, f func(Record, bool)) {
	for ctx.Err() == nil {
		c := l.reg.bell.changed()
		if rec, found, err := l.Get(ctx, ""); err == nil {
			f(rec, found)
		}
		select {
		case <-c:
		case <-ctx.Done():
		}
	}
}

func (l *line) Reach() Reach {
	_ = l.reach()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// registered is a world with a register, and a failover timeout for tests.
func registered(t *testing.T, names ...string) (*world, *testRegister, []*node) {
	t.Helper()
	w := newFakeWorld(t)
	reg := &testRegister{}
	var nodes []*node
	for _, name := range names {
		l := reg.line(name)
		n := w.add(name, func(o *Options) {
			o.Register, o.FailoverTimeout, o.FailoverPause = l, 2*testTimeout, time.Millisecond
		})
		n.line = l
		nodes = append(nodes, n)
	}
	w.promote(nodes[0], PromoteOptions{})
	w.inSync(nodes[0], nodes[1:]...)
	return w, reg, nodes
}

func (w *world) primary(n *node) {
	w.t.Helper()
	w.wait(n.name+" to be primary", func() bool { return n.m.State().Role == Primary && n.hooks.isMounted() })
}

func TestAutomaticFailover(t *testing.T) {
	w, _, nodes := registered(t, "a", "b")
	a, b := nodes[0], nodes[1]
	for round := range 3 {
		last := a.mustMkdir(fmt.Sprint("before", round))
		a.kill()
		begun := time.Now()
		w.primary(b)
		if _, err := b.mkdir(fmt.Sprint("after", round)); err != nil {
			t.Fatal(err)
		}
		t.Logf("outage %v", time.Since(begun))
		if b.log.Last().Seq <= last {
			t.Errorf("b has seq %d, a had acknowledged %d", b.log.Last().Seq, last)
		}
		a.start()
		w.inSync(b, a)
		w.same(b, a)
		a, b = b, a
	}
}
