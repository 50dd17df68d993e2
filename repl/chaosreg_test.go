package repl

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"
)

// settled waits until one of the nodes is primary with all of them in sync.
func (w *world) settled(nodes []*node) (primary *node) {
	w.t.Helper()
	w.wait("one primary, all in sync", func() bool {
		for _, n := range nodes {
			if s := n.m.State(); s.Role == Primary && len(s.Members) == len(nodes) && n.hooks.isMounted() {
				primary = n
				return true
			}
		}
		return false
	})
	return primary
}

// TestChaosRegister is TestChaos with a register, and nobody at the keyboard:
// nodes die, cables fail, the register is out of reach or loses answers, while
// mail arrives wherever it is taken. Nothing acknowledged may be missing.
func TestChaosRegister(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SLOTFS_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("SLOTFS_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	reg := &testRegister{}
	names := []string{"a", "b", "c"}[:2+int(seed%2)]
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
	w.settled(nodes)

	mail := arrive(seed, nodes, time.Second)
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		p := w.settled(nodes)
		other := nodes[0]
		for _, n := range nodes {
			if n != p {
				other = n
			}
		}
		time.Sleep(time.Duration(rng.IntN(150)) * time.Millisecond) // mail arrives
		what := rng.IntN(7)
		t.Logf("round %d: %d, primary %s, epoch %d", round, what, p.name, p.m.State().Epoch)
		switch what {
		case 0:
			p.kill()
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
			p.start()
		case 1:
			other.kill()
			time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
			other.start()
		case 2: // the primary hears nobody, and is heard by nobody
			p.blind(nodes...)
			reg.cut(p.name, true)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			reg.cut(p.name, false)
			p.sighted(nodes...)
		case 3: // the nodes do not hear each other, but the register
			p.blind(nodes...)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			p.sighted(nodes...)
		case 4: // no register, and then a death
			for _, n := range nodes {
				reg.cut(n.name, true)
			}
			p.kill()
			time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
			for _, n := range nodes {
				reg.cut(n.name, false)
			}
			p.start()
		case 5: // answers of the register are lost, while the primary dies
			for _, n := range nodes {
				done := rng.IntN(2) == 0
				left := rng.IntN(4)
				n.line.mu.Lock()
				n.line.lose = func(Record) (bool, bool) {
					left--
					return done || left < 0, left < 0
				}
				n.line.mu.Unlock()
			}
			p.kill()
			p.start()
		case 6: // all have no power
			for _, n := range nodes {
				n.kill()
			}
			for _, i := range rng.Perm(len(nodes)) {
				nodes[i].start()
				time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
			}
		}
	}
	mail.end()
	// The last trouble may not have been noticed yet when all looks well.
	var p *node
	w.wait("the end to be written", func() bool {
		p = w.settled(nodes)
		_, err := p.mkdir("the end")
		return err == nil
	})
	p = w.settled(nodes)
	for _, n := range nodes {
		if n != p {
			w.equal(p, n)
		}
	}
	mail.check(t, nodes)
	t.Logf("%d messages acknowledged, epoch %d", len(mail.acked), p.m.State().Epoch)
}
