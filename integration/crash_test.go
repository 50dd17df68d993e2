package integration_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/powerloss"
	"slotfs/integration/workload"
)

// provoked are the warnings that losing a node brings.
var provoked = []string{
	"follow the primary on",     // the stream broke
	"connect to the primary on", // nobody listens there
	"node does not answer",      // says gossip
	"removing the mount that a killed process left",
	"resync ",                // the log did not reach back, or it broke off
	"one copy left",          // the replica was dropped
	"tls handshake",          // the peer died in the middle of it
	"did not become primary", // the other, whose word it needs, is not there yet
	"kept in rescue/",        // entries that nobody was told were kept
	"were removed between",   // the writers expunge what they delivered
	"cut a torn tail",        // a batch was on its way to the disk
}

// rounds is how often the crash tests crash.
func rounds(t *testing.T, inCI int) int {
	t.Helper()
	text := os.Getenv("SLOTFS_SOAK_ROUNDS")
	if text == "" {
		return inCI
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("SLOTFS_SOAK_ROUNDS: %v", err)
	}
	return n
}

// crashSlot is the slots' configuration: what these tests remove is meant to go.
const crashSlot = "log_max = \"256MiB\"\nbrake_share = \"off\""

// TestKill kills nodes with SIGKILL at random moments under load. Whatever
// was acknowledged must be there afterwards.
func TestKill(t *testing.T) {
	t.Parallel()
	s := seed(t)
	f := newCluster(t, 2, cluster.Options{Slot: crashSlot})
	c := &crasher{fixture: f, rng: newRand(s)}
	c.crash = func(victims ...*cluster.Node) {
		for _, n := range victims {
			if err := n.Signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			c.sleep(c.rng.IntN(20))
		}
		for _, n := range victims {
			if err := n.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.run(s, rounds(t, 50))
}

// TestPowerLoss takes the power from one node's disk, or both: what was not
// yet synced is dropped or torn.
func TestPowerLoss(t *testing.T) {
	t.Parallel()
	s := seed(t)
	d := newScratch(t)
	var disks []*powerloss.Disk
	for i := range 2 {
		disks = append(disks, newDisk(t, filepath.Join(d.Path, fmt.Sprint("disk", i+1))))
	}
	f := newClusterIn(t, d, 2, cluster.Options{
		Slot: crashSlot,
		Data: func(i int) string { return filepath.Join(disks[i].Path(), "data") },
	})
	c := &crasher{fixture: f, rng: newRand(s)}
	c.crash = func(victims ...*cluster.Node) {
		var dark []*powerloss.Disk
		for _, n := range victims {
			for i := range f.Nodes {
				if f.Nodes[i] == n {
					dark = append(dark, disks[i])
				}
			}
		}
		for _, disk := range dark {
			if c.rng.IntN(2) == 0 {
				must(t, disk.Writeback(c.rng))
			}
		}
		for i, disk := range dark {
			disk.Freeze()
			must(t, victims[i].Signal(syscall.SIGKILL))
		}
		for i, disk := range dark {
			loss, err := disk.Lose(c.rng)
			must(t, err)
			must(t, victims[i].Kill())
			must(t, disk.Restart())
			t.Logf("  %s: unsynced writes: %d kept, %d dropped, %d torn", victims[i].Name, loss.Kept, loss.Dropped, loss.Torn)
		}
	}
	n := 20
	if soak := rounds(t, 0); soak > 0 {
		n = (soak + 3) / 4 // they take longer
	}
	c.run(s, n)
}

// crasher runs rounds of load, crash, recovery and check.
type crasher struct {
	*fixture
	rng     *rand.Rand
	crash   func(victims ...*cluster.Node)
	writers []*workload.Writer
	steps   int
}

func (c *crasher) sleep(ms int) { time.Sleep(time.Duration(ms) * time.Millisecond) }

func (c *crasher) run(seed uint64, rounds int) {
	c.t.Helper()
	c.expect(provoked...)
	must(c.t, c.StartPair())
	for i := range 4 {
		c.writers = append(c.writers, workload.New(fmt.Sprint("user", i), seed+uint64(i)))
	}
	primary, replica := c.Nodes[0], c.Nodes[1]
	start := time.Now()
	for round := range rounds {
		kind := c.rng.IntN(10)
		at := time.Now()
		switch {
		case kind < 4:
			promote := c.rng.IntN(2) == 0
			c.t.Logf("round %d: %s, the primary, dies; promote the other: %t", round, primary.Name, promote)
			c.primaryDies(primary, replica, promote)
			if promote {
				primary, replica = replica, primary
			}
		case kind < 7:
			c.t.Logf("round %d: %s, the replica, dies", round, replica.Name)
			c.replicaDies(primary, replica)
		default:
			c.t.Logf("round %d: both die; %s is primary", round, primary.Name)
			c.bothDie(primary, replica)
		}
		if c.t.Failed() {
			c.t.Fatalf("round %d failed", round)
		}
		must(c.t, c.WaitInSync())
		c.equal()
		c.t.Logf("  %v", time.Since(at).Round(time.Millisecond))
	}
	c.t.Logf("%d rounds, %d steps, %v: nothing acknowledged was lost", rounds, c.steps, time.Since(start).Round(time.Second))
}

// load starts the writers; the function it returns waits for them. They must
// not fail before calls are expected to fail.
func (c *crasher) load(mount string) (stop func(mayFail bool)) {
	var wg sync.WaitGroup
	end := make(chan struct{})
	errs := make([]error, len(c.writers))
	for i, w := range c.writers {
		wg.Go(func() { errs[i] = w.Run(mount, end) })
	}
	return func(mayFail bool) {
		c.t.Helper()
		close(end)
		wg.Wait()
		for _, err := range errs {
			if err != nil && !mayFail {
				c.t.Errorf("a call failed: %v", err)
			}
		}
	}
}

// verify checks every writer's directory on the mount of the present primary.
func (c *crasher) verify(mount string, who workload.Survivors) {
	c.t.Helper()
	var outcomes []workload.Outcome
	for _, w := range c.writers {
		o, err := w.Verify(mount, who)
		if err != nil {
			c.t.Fatal(err)
		}
		c.steps += o.Steps
		outcomes = append(outcomes, o)
	}
	if err := workload.Ordered(outcomes); err != nil {
		c.t.Fatal(err)
	}
	var text []string
	for _, o := range outcomes {
		text = append(text, fmt.Sprintf("%d/%d", o.Lost, o.Steps))
	}
	c.t.Logf("  steps lost, of those since the last check: %s", strings.Join(text, " "))
}

func (c *crasher) primaryDies(primary, replica *cluster.Node, promote bool) {
	stop := c.load(primary.Mount)
	c.sleep(20 + c.rng.IntN(600))
	c.crash(primary)
	stop(true)
	if promote {
		must(c.t, replica.Promote("--old-primary-is-down"))
		c.verify(replica.Mount, workload.Received)
		must(c.t, primary.Start())
		return
	}
	must(c.t, primary.Start())
	must(c.t, primary.WaitMounted())
	c.verify(primary.Mount, workload.Received)
}

func (c *crasher) replicaDies(primary, replica *cluster.Node) {
	stop := c.load(primary.Mount)
	c.sleep(20 + c.rng.IntN(300))
	c.crash(replica)
	c.sleep(c.rng.IntN(1000))
	must(c.t, replica.Start())
	must(c.t, c.WaitInSync())
	stop(false)
	c.verify(primary.Mount, workload.Answered)
}

func (c *crasher) bothDie(primary, replica *cluster.Node) {
	stop := c.load(primary.Mount)
	c.sleep(20 + c.rng.IntN(600))
	victims := []*cluster.Node{primary, replica}
	if c.rng.IntN(2) == 0 {
		victims[0], victims[1] = replica, primary
	}
	c.crash(victims...)
	stop(true)
	for _, n := range victims {
		must(c.t, n.Start())
	}
	must(c.t, primary.WaitMounted())
	c.verify(primary.Mount, workload.Durable)
}
