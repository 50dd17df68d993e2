package repl

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"slotfs/meta/op"
)

// How a walk of the explorer ends, and how a failure is made short.

// heal ends all troubles, and waits.
func (w *xworld) heal() {
	clear(w.cut)
	w.healing = true
	for _, n := range w.nodes {
		n.still = false
		if n.up && n.fault != "" {
			w.crash(n, 0)
		}
		if !n.up {
			w.start(n)
		}
	}
	if !w.found || w.failed != nil || !slices.ContainsFunc(w.rec.InSync, func(s op.SlotID) bool { return !w.node(s).stale }) {
		return // nothing was begun, or the last disk with everything is gone
	}
	end := w.now.Add(3 * time.Minute)
	for w.now.Before(end) && w.failed == nil {
		if w.well() {
			return
		}
		w.round()
	}
	if w.failed == nil {
		s := ""
		for _, n := range w.nodes {
			s += fmt.Sprintf("\n%s: %s, %v, doing %q, target %q, unfit %q, trouble %q, leading %v, change %+v", nameOf(n.id), n.m.role, n.pos(), n.m.doing, nameOf(n.m.target), n.m.unfit(), n.m.reg.trouble, n.m.leading, n.m.change)
		}
		for _, c := range w.conns {
			s += fmt.Sprintf("\n%s follows %s: open %v, closed %v, %v, sent %d, down %d, up %d", nameOf(c.rep.id), nameOf(c.pri.id), c.open, c.repClosed, c.priGone, c.sent, len(c.down), len(c.up))
		}
		w.fail("all is healed, but not well: record epoch %d, primary %s, in sync %s%s", w.rec.Epoch, nameOf(w.rec.Primary), list2(w), s)
	}
}

// round lets everything happen that can, once or a few times.
func (w *xworld) round() {
	for _, n := range w.nodes {
		n.drained, n.demoted = false, 0
	}
	w.do(act{kind: aTime, r: 10})
	for i := range w.nodes {
		for range 4 {
			w.do(act{kind: aEvent, n: uint8(i)})
		}
		w.do(act{kind: aAppend, n: uint8(i)})
		w.do(act{kind: aFlush, n: uint8(i)})
	}
	for k := len(w.msgs) - 1; k >= 0; k-- {
		w.do(act{kind: aMessage, k: uint8(k)})
	}
	for k := len(w.regs) - 1; k >= 0; k-- {
		w.do(act{kind: aRegister, k: uint8(k)})
		w.do(act{kind: aReply, k: uint8(k)})
	}
	for i := range 24 {
		for k := range w.conns {
			w.do(act{kind: aStream, k: uint8(k), r: uint16(i%4) | 8})
		}
	}
}

func list2(w *xworld) string { return list(w.rec.InSync, nameOf) }

// well is whether there is a primary, and everybody who can be is in sync.
func (w *xworld) well() bool {
	want := 0
	for _, n := range w.nodes {
		if !n.local {
			want++
		}
	}
	p := w.node(w.rec.Primary)
	return len(w.rec.InSync) == want && p.m.role == Primary && p.m.epoch == w.rec.Epoch
}

// replay runs a list of actions.
func replay(seed uint64, b bug, list []act, say func(string, ...any)) *xworld {
	w := newXworld(2+int(seed%2), seed%5 == 4, b)
	w.say = say
	for _, a := range list {
		if w.do(a); w.failed != nil {
			break
		}
	}
	return w
}

// shorten leaves out what is not needed for a failure, and tells the rest.
func shorten(seed uint64, b bug, list []act) string {
	if replay(seed, b, list, nil).failed == nil {
		return "(it fails only after everything was healed; these are the last steps)\n" + lastSteps(seed, b, len(list))
	}
	end := time.Now().Add(10 * time.Second)
	for size := len(list) / 2; size > 0 && time.Now().Before(end); {
		cut := false
		for i := 0; i+size <= len(list) && time.Now().Before(end); {
			try := slices.Delete(slices.Clone(list), i, i+size)
			if replay(seed, b, try, nil).failed != nil {
				list, cut = try, true
			} else {
				i += size
			}
		}
		if !cut || size > len(list) {
			size /= 2
		}
	}
	var out strings.Builder
	w := replay(seed, b, list, func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) })
	return fmt.Sprintf("%d actions do it: %v\n%s", len(list), w.failed, out.String())
}

// lastSteps tells the end of a walk.
func lastSteps(seed uint64, b bug, length int) string {
	var lines []string
	rng := rand.New(rand.NewPCG(seed, 1))
	w := newXworld(2+int(seed%2), seed%5 == 4, b)
	for i := range length {
		a := draw(rng)
		if i == 0 {
			a = act{kind: aPromote}
		}
		w.do(a)
	}
	w.say = func(format string, args ...any) {
		if lines = append(lines, fmt.Sprintf(format, args...)); len(lines) > 2000 {
			lines = slices.Delete(lines, 0, 1000)
		}
	}
	w.heal()
	return strings.Join(lines[max(0, len(lines)-60):], "\n")
}
