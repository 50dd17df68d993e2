package integration_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/history"
)

// generous is a promised time as a test may demand it: the race detector makes
// everything slower, and a machine that runs tests has other things to do. The
// real figures are printed.
func generous(promise time.Duration) time.Duration {
	if strings.HasSuffix(os.Getenv("SLOTFS_BIN"), "-race") {
		return 4 * promise
	}
	return 2 * promise
}

// TestFailoverTimes: how long nobody takes mail when the primary is lost, at
// the default settings.
func TestFailoverTimes(t *testing.T) {
	s := seed(t)
	w := newWorld(t, s, false, cluster.Options{})
	c := &campaign{world: w, seed: s, outages: outages{}}
	c.extra, c.judged = c.maildirs, c.judge
	for _, kind := range []struct {
		fault   fault
		rounds  int
		promise time.Duration
	}{
		{kill("kill -9 of primary", thePrimary), 4, 2 * time.Second},
		{cut("primary off", append(both(thePrimary, theReplica), both(thePrimary, theWitness)...)...), 2, 5 * time.Second},
		{freeze(thePrimary, 8000, 9000), 2, 5 * time.Second},
	} {
		kind.fault.hold = [2]time.Duration{ms(7000), ms(7500)} // not healed before it failed over
		for i := range kind.rounds {
			primary, _ := w.roles()
			c.suffer(fmt.Sprintf("%.4s%d", kind.fault.name, i), []fault{kind.fault})
			if now, _ := w.roles(); now == primary {
				t.Errorf("%s: %s is primary as before", kind.fault.name, primary.Name)
			}
			list := c.outages[kind.fault.name]
			if d := list[len(list)-1]; d > generous(kind.promise) {
				t.Errorf("%s: nobody took mail for %v; %v is promised, %v demanded here", kind.fault.name, d, kind.promise, generous(kind.promise))
			}
		}
	}
	t.Logf("at default settings:\n%s", c.outages)
}

// TestFlappingLink: a link that comes and goes does not move the store to and
// fro. The primary drops the replica and takes it back; it stays the primary.
func TestFlappingLink(t *testing.T) {
	w := newWorld(t, seed(t), false, cluster.Options{}, func(w *world) {
		for _, n := range w.Nodes { // the default
			must(w.t, n.Edit(`failover_pause = "1ms"`, ``))
		}
	})
	primary, replica := w.roles()
	first := w.epoch(primary)
	w.aim("flap", 2, 1)
	stop := w.load("flap")
	for range 12 {
		must(t, w.net.CutBoth(primary.Host, replica.Host))
		time.Sleep(ms(200 + w.rng.IntN(2500)))
		must(t, w.net.Heal())
		time.Sleep(ms(100 + w.rng.IntN(800)))
	}
	must(t, w.WaitInSync())
	stop()
	w.settled()
	// With the register on its side either node may win once; then it rests.
	lines, err := primary.History(first)
	must(t, err)
	changes, last := 0, primary.Name
	for _, l := range lines {
		if l.Op == "epoch" && l.Epoch > first && w.slots[l.Primary] != last {
			changes, last = changes+1, w.slots[l.Primary]
		}
	}
	t.Logf("12 cuts: epochs %d to %d, %d changes of primary", first, w.epoch(primary), changes)
	if changes > 1 {
		t.Errorf("the primary changed %d times", changes)
	}
}

// TestStoppedPrimaryIsFenced: a primary that was stopped while it had
// acknowledgements unread wakes up into a world that has moved on. It
// acknowledges nothing more, and those who wait get an error.
func TestStoppedPrimaryIsFenced(t *testing.T) {
	w := newWorld(t, seed(t), false, cluster.Options{})
	for round := range 3 {
		primary, replica := w.roles()
		dir := fmt.Sprint("fenced", round)
		w.aim(dir, 4, uint64(round))
		stop := w.load(dir)
		must(t, w.Wait("mail", func() error {
			if w.record.Acks() < 30 {
				return fmt.Errorf("%d acknowledged", w.record.Acks())
			}
			return nil
		}))
		must(t, primary.Signal(syscall.SIGSTOP))
		must(t, replica.WaitMounted())
		time.Sleep(ms(w.rng.IntN(1000)))
		must(t, primary.Signal(syscall.SIGCONT))
		woke := time.Now()
		must(t, w.Wait(primary.Name+" to step down", func() error {
			s, err := primary.Slot()
			if err == nil && (s.Mounted || s.Repl.Role != "replica") {
				err = fmt.Errorf("it is %s, mounted: %t", s.Repl.Role, s.Mounted)
			}
			return err
		}))
		t.Logf("%s stepped down %v after it woke up", primary.Name, time.Since(woke).Round(time.Millisecond))
		stop()
		w.settled()
		c := &campaign{world: w}
		c.judge(dir, history.Epoch{})
	}
}
