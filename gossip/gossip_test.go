package gossip_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfs/gossip"
)

var (
	keyA = bytes.Repeat([]byte{1}, 32)
	keyB = bytes.Repeat([]byte{2}, 32)
)

// quick notices a dead node within a second.
var quick = gossip.Timing{Probe: 100 * time.Millisecond, Timeout: 50 * time.Millisecond, Suspicion: 2,
	Gossip: 20 * time.Millisecond, PushPull: time.Second, Rejoin: 100 * time.Millisecond}

// lockedBuffer collects log lines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, name string, key []byte, join ...*gossip.Gossip) *gossip.Gossip {
	t.Helper()
	o := gossip.Options{Node: name, Bind: "127.0.0.1:0", Key: key, Timing: quick, Logger: slog.New(slog.DiscardHandler)}
	for _, j := range join {
		o.Join = append(o.Join, j.Addr())
	}
	return startWith(t, o)
}

func startWith(t *testing.T, o gossip.Options) *gossip.Gossip {
	t.Helper()
	g, err := gossip.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// eventually waits for cond, looking again whenever g changes.
func eventually(t *testing.T, g *gossip.Gossip, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(15 * time.Second)
	for {
		changed := g.Changed()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: not within 15 s\nmembers: %+v\nproblems: %+v", what, g.Members(), g.Problems())
		}
	}
}

func member(g *gossip.Gossip, name string) (gossip.Member, bool) {
	for _, m := range g.Members() {
		if m.Name == name {
			return m, true
		}
	}
	return gossip.Member{}, false
}

func alive(g *gossip.Gossip, name string) func() bool {
	return func() bool { m, ok := member(g, name); return ok && m.Alive }
}

func join(t *testing.T, g *gossip.Gossip) {
	t.Helper()
	if n, refusals := g.Join(context.Background()); n == 0 || len(refusals) > 0 {
		t.Fatalf("join: %d answered, refusals %v", n, refusals)
	}
}

func slots(store, id string, n int) []gossip.Slot {
	out := []gossip.Slot{{Store: store, StoreID: id, Role: "replica"}}
	for i := 1; i < n; i++ {
		out = append(out, gossip.Slot{Store: fmt.Sprintf("%s-%d", store, i), StoreID: id, Role: "replica"})
	}
	return out
}

func TestThreeNodesExchangeStates(t *testing.T) {
	a := start(t, "a", keyA)
	b := start(t, "b", keyA, a)
	c := start(t, "c", keyA, b)
	join(t, b)
	join(t, c)
	all := map[string]*gossip.Gossip{"a": a, "b": b, "c": c}
	for name, g := range all {
		g.Publish(gossip.State{Repl: "192.0.2.1:1" + name, Slots: slots("mail-"+name, name, 1)})
	}
	for _, g := range all {
		for name := range all {
			eventually(t, g, "state of "+name, func() bool {
				m, ok := member(g, name)
				return ok && m.Alive && m.Repl == "192.0.2.1:1"+name && len(m.Slots) == 1 && m.Slots[0].Store == "mail-"+name
			})
		}
	}
	// A change, one that fits no packet, arrives too.
	a.Publish(gossip.State{Repl: "192.0.2.9:1", Slots: slots("big", "a", 40)})
	for _, g := range all {
		eventually(t, g, "the long state", func() bool { m, _ := member(g, "a"); return len(m.Slots) == 40 })
	}
	if p := a.Problems(); len(p) > 0 {
		t.Errorf("problems: %+v", p)
	}
}

func TestDeathGoodbyeAndReturn(t *testing.T) {
	a := start(t, "a", keyA)
	b := start(t, "b", keyA, a)
	join(t, b)
	eventually(t, a, "b joins", alive(a, "b"))
	addr := b.Addr()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "b leaves", func() bool { m, _ := member(a, "b"); return !m.Alive && m.Left })

	// It returns to the same address without joining anybody: a asks for it.
	o := gossip.Options{Node: "b", Bind: addr, Key: keyA, Timing: quick, Logger: slog.New(slog.DiscardHandler)}
	a.SetJoin([]string{addr})
	b = startWith(t, o)
	b.Publish(gossip.State{Repl: "192.0.2.2:2"})
	eventually(t, a, "b returns", func() bool { m, _ := member(a, "b"); return m.Alive && m.Repl == "192.0.2.2:2" })
}

func TestWrongKey(t *testing.T) {
	var logA, logB lockedBuffer
	a := startWith(t, gossip.Options{Node: "a", Bind: "127.0.0.1:0", Key: keyA, Timing: quick, Logger: slog.New(slog.NewTextHandler(&logA, nil))})
	b := startWith(t, gossip.Options{Node: "b", Bind: "127.0.0.1:0", Key: keyB, Timing: quick, Join: []string{a.Addr()},
		Logger: slog.New(slog.NewTextHandler(&logB, nil))})
	n, refusals := b.Join(context.Background())
	if n != 0 || len(refusals) != 1 {
		t.Fatalf("%d answered, refusals %v", n, refusals)
	}
	for _, side := range []struct {
		g    *gossip.Gossip
		log  *lockedBuffer
		name string
		addr string
	}{{a, &logA, "b", b.Addr()}, {b, &logB, "a", a.Addr()}} {
		p := side.g.Problems()
		var k *gossip.KeyMismatch
		if len(p) != 1 || !errors.As(p[0].Problem, &k) || k.Addr != side.addr || k.Name != side.name {
			t.Fatalf("problems: %+v", p)
		}
		want := fmt.Sprintf("node %q at %s uses another cluster key", side.name, side.addr)
		if !strings.Contains(k.Error(), want) {
			t.Errorf("message %q lacks %q", k, want)
		}
		if !strings.Contains(side.log.String(), "uses another cluster key") {
			t.Errorf("log lacks it: %s", side.log)
		}
		if _, ok := member(side.g, side.name); ok {
			t.Errorf("%s is a member", side.name)
		}
	}
}

func TestWrongKeyPacket(t *testing.T) {
	a := start(t, "a", keyA)
	conn, err := net.Dial("udp", a.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("sfg1XXXXXXXXsome packet of another cluster")); err != nil {
		t.Fatal(err)
	}
	eventually(t, a, "report", func() bool {
		p := a.Problems()
		return len(p) == 1 && strings.Contains(p[0].Text, "node at "+conn.LocalAddr().String()+" uses another cluster key")
	})
}

func TestOneNameTwoNodes(t *testing.T) {
	a := start(t, "a", keyA)
	b := start(t, "a", keyA, a)
	n, refusals := b.Join(context.Background())
	var c *gossip.NameConflict
	if n != 0 || len(refusals) != 1 || !errors.As(refusals[0], &c) || !c.Self || c.With != a.Addr() {
		t.Fatalf("%d answered, refusals %v", n, refusals)
	}
	if want := fmt.Sprintf("another node is called \"a\", too: it is at %s, we are at %s", a.Addr(), b.Addr()); !strings.Contains(c.Error(), want) {
		t.Errorf("message %q lacks %q", c, want)
	}
	p := a.Problems()
	if len(p) != 1 || !errors.As(p[0].Problem, &c) || c.With != b.Addr() {
		t.Errorf("the first holder reports %+v", p)
	}
}

// The second holder of a name joins through a third node.
func TestOneNameTwoNodesThroughThird(t *testing.T) {
	a := start(t, "a", keyA)
	third := start(t, "c", keyA, a)
	join(t, third)
	eventually(t, third, "a joins", alive(third, "a"))
	b := start(t, "a", keyA, third)
	_, refusals := b.Join(context.Background())
	var c *gossip.NameConflict
	if len(refusals) != 1 || !errors.As(refusals[0], &c) || !c.Self || c.With != a.Addr() {
		t.Fatalf("refusals %v", refusals)
	}
	if p := a.Problems(); len(p) != 1 || !errors.As(p[0].Problem, &c) || !c.Self || c.With != b.Addr() {
		t.Errorf("the first holder reports %+v", p)
	}
	eventually(t, third, "third node's report", func() bool {
		p := third.Problems()
		return len(p) > 0 && strings.Contains(p[0].Text, "two nodes are called \"a\"")
	})
	// Its end is not taken for that of the first holder.
	if err := b.Abort(); err != nil {
		t.Fatal(err)
	}
	if m, ok := member(third, "a"); !ok || !m.Alive || m.Gossip != a.Addr() {
		t.Errorf("the third node now believes: %+v", m)
	}
}

// A node that died and comes back under another address is no conflict.
func TestNewAddressAfterDeath(t *testing.T) {
	a := start(t, "a", keyA)
	b := start(t, "b", keyA, a)
	join(t, b)
	eventually(t, a, "b joins", alive(a, "b"))
	b.Close()
	eventually(t, a, "b is gone", func() bool { return !alive(a, "b")() })
	b2 := start(t, "b", keyA, a)
	join(t, b2)
	b2.Publish(gossip.State{Repl: "192.0.2.7:7"})
	eventually(t, a, "b at its new address", func() bool {
		m, _ := member(a, "b")
		return m.Alive && m.Gossip == b2.Addr() && m.Repl == "192.0.2.7:7"
	})
}

// Only b names the other. Whichever of them is restarted is found again at
// once, also while somebody else does not answer at all.
func TestOneSidedJoin(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a := start(t, "a", keyA)
	options := func(name, bind string, joins ...string) gossip.Options {
		return gossip.Options{Node: name, Bind: bind, Key: keyA, Timing: quick, Join: joins, Logger: slog.New(slog.DiscardHandler)}
	}
	b := startWith(t, options("b", "127.0.0.1:0", silent.Addr().String(), a.Addr()))
	b.Join(context.Background())
	eventually(t, a, "b joins", alive(a, "b"))
	for range 3 {
		addrA, addrB := a.Addr(), b.Addr()
		if err := a.Abort(); err != nil {
			t.Fatal(err)
		}
		eventually(t, b, "a is gone", func() bool { return !alive(b, "a")() })
		a = startWith(t, options("a", addrA))
		begun := time.Now()
		eventually(t, a, "a is found by b", alive(a, "b"))
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("a was found after %v", took)
		}
		if err := b.Abort(); err != nil {
			t.Fatal(err)
		}
		eventually(t, a, "b is gone", func() bool { return !alive(a, "b")() })
		b = startWith(t, options("b", addrB, silent.Addr().String(), addrA))
		begun = time.Now()
		b.Join(context.Background())
		eventually(t, a, "b finds a", alive(a, "b"))
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("b was found after %v", took)
		}
	}
}

func TestStoreNameTwice(t *testing.T) {
	a := start(t, "a", keyA)
	b := start(t, "b", keyA, a)
	c := start(t, "c", keyA, a)
	a.Publish(gossip.State{Slots: slots("mail1", "11111111aa", 1)})
	b.Publish(gossip.State{Slots: slots("mail1", "11111111aa", 1)})
	c.Publish(gossip.State{Slots: slots("mail1", "22222222bb", 1)})
	b.Join(context.Background())
	c.Join(context.Background())
	for _, g := range []*gossip.Gossip{a, b, c} {
		eventually(t, g, "conflict", func() bool {
			for _, r := range g.Problems() {
				var sc *gossip.StoreConflict
				if errors.As(r.Problem, &sc) && sc.Store == "mail1" {
					return strings.Contains(r.Text, "two different stores are called \"mail1\"") &&
						strings.Contains(r.Text, "11111111") && strings.Contains(r.Text, "22222222")
				}
			}
			return false
		})
	}
	// It ends when the wrong one is gone.
	c.Publish(gossip.State{})
	eventually(t, a, "conflict ends", func() bool { return len(a.Problems()) == 0 })
}

func TestAddressInUse(t *testing.T) {
	a := start(t, "a", keyA)
	_, err := gossip.Start(gossip.Options{Node: "b", Bind: a.Addr(), Key: keyA, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v", err)
	}
}
