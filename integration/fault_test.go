package integration_test

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/history"
	"slotfs/integration/sender"
	"slotfs/integration/workload"
)

// TestFaults is the campaign: in each round mail is delivered from all sides
// while one or several faults come and go; then everything is made whole and
// everything that was acknowledged is looked for.
func TestFaults(t *testing.T) {
	t.Parallel()
	s := seed(t)
	w := newWorld(t, s, true, cluster.Options{})
	c := &campaign{world: w, seed: s, kinds: chosen(t, kinds(true)), outages: outages{}}
	c.extra, c.judged = c.maildirs, c.judge
	for i := range 2 {
		name := fmt.Sprint("writer", i)
		x := &writer{Writer: workload.New(name, s+100+uint64(i)), name: name}
		x.Pause = 5 * time.Millisecond // all that is written is read again, by every check
		w.writers = append(w.writers, x)
	}
	n := rounds(t, 26)
	start := time.Now()
	for round := range n {
		c.round(round)
	}
	t.Logf("%d rounds in %v: %d deliveries, %d acknowledged, each found exactly once; %d more of unknown outcome\n%s",
		n, time.Since(start).Round(time.Second), c.made, c.acked, c.made-c.acked, c.outages)
}

// milli shows a time as the logs of the nodes do.
const milli = "15:04:05.000"

type campaign struct {
	*world
	seed        uint64
	kinds       []fault
	deck        []int // of kinds, not yet drawn
	outages     outages
	made, acked int
	old         []checked // rounds whose mail is still there

	// A campaign may send other mail and judge it otherwise.
	extra  func(dir string) []func(end <-chan struct{})
	judged func(dir string, since history.Epoch)
}

// checked is a round whose mail is looked at again after later rounds.
type checked struct {
	dir   string
	made  []history.Delivery
	since history.Epoch // when it began
}

// draw chooses the faults of a round: mostly one, sometimes several at once.
func (c *campaign) draw() []fault {
	if c.rng.IntN(4) == 0 {
		n := 2 + c.rng.IntN(2)
		var list []fault
		for _, i := range c.rng.Perm(len(c.kinds))[:min(n, len(c.kinds))] {
			list = append(list, c.kinds[i])
		}
		return list
	}
	if len(c.deck) == 0 { // each kind comes before one comes again
		c.deck = c.rng.Perm(len(c.kinds))
	}
	i := c.deck[0]
	c.deck = c.deck[1:]
	return []fault{c.kinds[i]}
}

func (c *campaign) round(number int) {
	c.t.Helper()
	faults := c.draw()
	c.t.Logf("round %d:", number)
	c.suffer(fmt.Sprint("r", number), faults)
	if c.t.Failed() {
		c.t.Fatalf("round %d failed", number)
	}
}

// suffer sends mail to a directory, applies the faults, makes everything whole
// and judges.
func (c *campaign) suffer(dir string, faults []fault) {
	c.t.Helper()
	at := time.Now()
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
	}
	c.t.Logf("  %s", strings.Join(names, " + "))
	primary, replica := c.roles()
	since := c.present()
	more := c.extra(dir)
	for _, x := range c.writers {
		x.who = survivors(faults)
	}
	stop := c.load(dir, more...)
	must(c.t, c.Wait("mail before the fault", func() error { return c.acknowledged(10) }))
	must(c.t, c.WaitInSync()) // a disk that stands still for long costs a replica its place

	begin := c.harm(faults, primary, replica)
	c.whole()
	healed := time.Now()
	must(c.t, c.Wait("mail after the fault", func() error {
		if _, ok := c.record.FirstAfter(healed); !ok {
			return fmt.Errorf("none is acknowledged")
		}
		return nil
	}))
	first, _ := c.record.FirstAfter(begin)
	again, _ := c.record.FirstAfter(healed)
	if d := again.Sub(healed); d > hangBound {
		c.t.Errorf("the first delivery after everything was whole took %v", d)
	}
	name := names[0]
	if len(names) > 1 {
		name = "several at once"
	}
	c.outages.add(name, first.Sub(begin))
	stop()
	c.settled()
	c.judged(dir, since)
	c.t.Logf("  from %s to %s; outage %v, %v in all", begin.Format(milli), healed.Format(milli), first.Sub(begin).Round(time.Millisecond), time.Since(at).Round(time.Millisecond))
}

// acknowledged is nil once so many deliveries were, and no writer has found
// anything wrong.
func (c *campaign) acknowledged(n int) error {
	if k := c.record.Acks(); k < n {
		return fmt.Errorf("%d are acknowledged", k)
	}
	return nil
}

// harm applies faults one after another, not far apart, holds each for its
// time, and undoes them in the order of their ends, the last ones last. It
// returns when the first was applied.
func (c *campaign) harm(faults []fault, primary, replica *cluster.Node) (begin time.Time) {
	type end struct {
		at   time.Time
		undo func()
	}
	var ends []end
	var last []func()
	begin = time.Now()
	for i, f := range faults {
		if i > 0 {
			time.Sleep(time.Duration(c.rng.IntN(1500)) * time.Millisecond)
		}
		undo := f.do(c.world, primary, replica)
		if i == 0 && f.slow {
			begin = time.Now()
		}
		hold := f.hold[0] + time.Duration(c.rng.Int64N(int64(f.hold[1]-f.hold[0])))
		if f.last {
			last = append(last, undo)
			continue
		}
		ends = append(ends, end{time.Now().Add(hold), undo})
	}
	slices.SortFunc(ends, func(a, b end) int { return a.at.Compare(b.at) })
	for _, e := range ends {
		time.Sleep(time.Until(e.at))
		if e.undo != nil {
			e.undo()
		}
	}
	for _, undo := range last {
		undo()
	}
	return begin
}

// survivors is what the writers may count on: what one node has in memory is
// lost if both processes end in one round, in whatever order.
func survivors(faults []fault) workload.Survivors {
	ends := map[string]bool{}
	for _, f := range faults {
		for _, who := range f.ends {
			ends[who] = true
		}
	}
	if ends[thePrimary] && ends[theReplica] {
		return workload.Durable
	}
	return workload.Received
}

// sinceOld is where the log begins to concern mail that is still there.
func (c *campaign) sinceOld() history.Epoch {
	if len(c.old) == 0 {
		return history.Epoch{}
	}
	return c.old[0].since
}

// maildirs sends into a directory of this round.
func (c *campaign) maildirs(dir string) []func(end <-chan struct{}) {
	c.aim(dir, 3, c.rng.Uint64())
	return nil
}

// remember keeps what was sent in a round.
func (c *campaign) remember(dir string, since history.Epoch) {
	made := c.record.Take()
	c.old = append(c.old, checked{dir, made, since})
	for _, d := range made {
		c.made++
		if d.Acked {
			c.acked++
		}
	}
}

// judge checks this round's mail and that of the last rounds, and removes what
// has been looked at three times.
func (c *campaign) judge(dir string, since history.Epoch) {
	c.t.Helper()
	c.remember(dir, since)
	primary, _ := c.roles()
	dirOf := func(p string) (string, bool) {
		root, _, ok := strings.Cut(p, "/")
		base, _, _ := strings.Cut(path.Base(p), ":2,")
		return base, ok && slices.ContainsFunc(c.old, func(o checked) bool { return o.dir == root })
	}
	log := c.log(c.sinceOld(), dirOf)
	var all []history.Delivery
	var held []history.Held
	for _, o := range c.old {
		all = append(all, o.made...)
		h, err := sender.Held(filepath.Join(primary.Mount, o.dir))
		must(c.t, err)
		held = append(held, h...)
	}
	c.report(history.Check(all, held, log))
	for _, x := range c.writers {
		if x.err != nil {
			c.t.Errorf("a writer: %v", x.err)
		} else if _, err := x.Verify(primary.Mount, x.who); err != nil {
			c.t.Errorf("a writer: %v", err)
		}
	}
	if len(c.old) > 2 && !c.t.Failed() {
		must(c.t, os.RemoveAll(filepath.Join(primary.Mount, c.old[0].dir)))
		must(c.t, os.RemoveAll(filepath.Join(primary.Mount, "probe")))
		c.old = c.old[1:]
	}
}

func (c *campaign) report(broken []string) {
	c.t.Helper()
	for i, line := range broken {
		if i == 20 {
			c.t.Errorf("and %d more", len(broken)-i)
			return
		}
		c.t.Error(line)
	}
}
