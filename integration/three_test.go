package integration_test

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/history"
	"slotfs/integration/sender"
)

// newThree configures three nodes and a witness on hosts of their own; none is
// started.
func newThree(t *testing.T, voters []int) *world {
	t.Helper()
	d := newScratch(t)
	w := &world{rng: newRand(seed(t)), slots: map[string]string{}, net: newNet(t, d)}
	w.fixture = newClusterIn(t, d, 3, cluster.Options{Net: w.net, Witness: true, Voters: voters, Replication: `failover_pause = "1ms"`})
	w.expect(provoked...)
	w.expect(faulty...)
	return w
}

// know notes which slot is whose.
func (w *world) know() {
	w.t.Helper()
	for _, n := range w.Nodes {
		s, err := n.Slot()
		must(w.t, err)
		w.slots[s.Repl.Slot] = n.Name
	}
}

// leads waits until one of the nodes is primary, and returns it.
func (w *world) leads(nodes ...*cluster.Node) (primary *cluster.Node) {
	w.t.Helper()
	must(w.t, w.Wait("a primary", func() error {
		for _, n := range nodes {
			if s, err := n.Slot(); err == nil && s.Repl.Role == "primary" && s.Mounted {
				primary = n
				return nil
			}
		}
		return errors.New("there is none")
	}))
	return primary
}

// more waits for a number of further acknowledgements.
func (w *world) more(n int) {
	w.t.Helper()
	want := w.record.Acks() + n
	must(w.t, w.Wait("more mail", func() error {
		if k := w.record.Acks(); k < want {
			return fmt.Errorf("%d of %d", k, want)
		}
		return nil
	}))
}

// TestThreeInSync: an in-sync set of three. A replica dies: the other two go
// on. The primary dies: one of the others takes over, the third follows it.
func TestThreeInSync(t *testing.T) {
	t.Parallel()
	w := newThree(t, nil)
	must(t, w.StartPair())
	w.know()
	n1, n2, n3 := w.Nodes[0], w.Nodes[1], w.Nodes[2]
	if s, err := n1.Slot(); err != nil || len(s.Repl.Members) != 3 {
		t.Fatalf("in sync: %d slots, %v; want 3", len(s.Repl.Members), err)
	}
	w.aim("three", 3, 1)
	stop := w.load("three")
	w.more(30)
	must(t, n3.Kill())
	w.more(60) // the two that are left take mail
	s, err := n1.Slot()
	must(t, err)
	if len(s.Repl.Members) != 2 {
		t.Errorf("without n3 %d slots are in sync, want 2", len(s.Repl.Members))
	}
	must(t, n3.Start())
	must(t, w.WaitInSync())
	w.more(10)

	must(t, n1.Kill())
	at := time.Now()
	primary := w.leads(n2, n3)
	w.more(60)
	first, _ := w.record.FirstAfter(at)
	t.Logf("%s took over; the first delivery was acknowledged after %v", primary.Name, first.Sub(at).Round(time.Millisecond))
	s, err = primary.Slot()
	must(t, err)
	if len(s.Repl.Members) != 2 {
		t.Errorf("%s has %d slots in sync, want the two that live", primary.Name, len(s.Repl.Members))
	}
	must(t, n1.Start())
	must(t, w.WaitInSync())
	w.more(10)
	stop()
	w.equal()
	(&campaign{world: w}).judge("three", history.Epoch{})
}

// TestOffSite: a third slot, 100 ms away, with durability "local". It follows,
// delays nobody, and is promoted by force only.
func TestOffSite(t *testing.T) {
	w := newThree(t, []int{0, 2}) // so that what is left when both mail nodes are lost is a majority
	n1, n2, off := w.Nodes[0], w.Nodes[1], w.Nodes[2]
	must(t, off.Edit("[[slot]]\n", "[[slot]]\ndurability = \"local\"\n"))
	const away = 100 * time.Millisecond
	must(t, w.net.Delay(off.Host, away))
	must(t, w.Start())
	must(t, w.Wait("n1 to be promoted", func() error { return n1.Promote() }))
	w.know()
	members := func() []string {
		s, err := n1.Slot()
		must(t, err)
		return s.Repl.Members
	}
	must(t, w.Wait("n1 and n2 to be in sync, and the other to follow", func() error {
		s, err := off.Slot()
		if err == nil && (len(members()) != 2 || s.Repl.Pos.Seq == 0) {
			err = fmt.Errorf("%d are in sync; the off-site slot is at %d", len(members()), s.Repl.Pos.Seq)
		}
		return err
	}))
	latency := w.latency(n1, 60)
	t.Logf("a delivery takes %v (median of 60) while a slot %v away follows", latency.Round(time.Millisecond), away)
	if latency > away {
		t.Errorf("a delivery takes %v: it waits for the slot that is %v away", latency, away)
	}
	caughtUp := func() error {
		var d [3]cluster.Digest
		for i, n := range w.Nodes {
			var err error
			if d[i], err = n.Digest(""); err != nil {
				return err
			}
		}
		if d[0] != d[1] || d[0] != d[2] {
			return fmt.Errorf("%+v", d)
		}
		return nil
	}
	must(t, w.Wait("equal digests on all three", caughtUp))
	if slices.Contains(members(), w.slotOf(off)) {
		t.Error("the off-site slot is in sync")
	}

	// Both mail nodes are lost. The off-site slot stays what it is.
	for _, n := range []*cluster.Node{n1, n2} {
		must(t, n.Signal(syscall.SIGKILL))
	}
	must(t, errors.Join(n1.Kill(), n2.Kill()))
	time.Sleep(8 * time.Second) // more than twice what a replica waits
	s, err := off.Slot()
	must(t, err)
	if s.Repl.Role != "replica" {
		t.Errorf("the off-site slot has become %s by itself", s.Repl.Role)
	}
	refused(t, off.Promote(), 8)
	// Forced, it first says what that gives up.
	must(t, w.Wait("a promotion by force", func() error { return off.Promote("--force", "--yes", "--old-primary-is-down") }))
	must(t, deliver(off.Mount, "after", map[string][]byte{"m": []byte("after the disaster\n")}))
	held, err := sender.Held(off.Mount)
	must(t, err)
	if len(held) != 61 {
		t.Errorf("the off-site slot shows %d messages, want 61", len(held))
	}
}

func (w *world) slotOf(n *cluster.Node) string {
	for slot, name := range w.slots {
		if name == n.Name {
			return slot
		}
	}
	return ""
}

// latency is the median time of a delivery on a node.
func (w *world) latency(n *cluster.Node, count int) time.Duration {
	w.t.Helper()
	to := sender.Maildir(n.Name, n.Mount, "latency")
	var took []time.Duration
	for i := range count {
		start := time.Now()
		must(w.t, to.Deliver(fmt.Sprint(i), sender.Text(fmt.Sprint(i), 3000, 1)))
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2]
}
