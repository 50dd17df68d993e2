package integration_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/history"
	"slotfs/integration/netns"
	"slotfs/integration/powerloss"
	"slotfs/integration/sender"
	"slotfs/integration/workload"
)

// hangBound is how long a call may hang once everything that was broken is
// whole again, and how long the store may take to serve again then: the
// primary's isolation (5 s), a replica's silence (3 s), an unmount (5 s), and
// a machine that is busy with the race detector.
const hangBound = 30 * time.Second

// world is two nodes and a witness, each on a host of its own, on disks that
// can lose power and be filled, and whoever sends mail to them.
type world struct {
	*fixture
	net   *netns.Net
	disks []*powerloss.Disk // by node; nil: on the common disk
	rng   *rand.Rand
	slots map[string]string // slot id → node

	services map[*cluster.Node]*dovecot.Service // of the mail servers, if there are some

	record  history.Recorder
	senders []*sender.Sender
	writers []*writer
}

// newWorld starts a pair and its witness; the first node is primary.
func newWorld(t *testing.T, seed uint64, disks bool, o cluster.Options, configure ...func(*world)) *world {
	t.Helper()
	d := newScratch(t)
	w := &world{rng: newRand(seed), slots: map[string]string{}, net: newNet(t, d)}
	if disks {
		for i := range 2 {
			w.disks = append(w.disks, newDisk(t, filepath.Join(d.Path, fmt.Sprint("disk", i+1))))
		}
		o.Data = func(i int) string { return filepath.Join(w.disks[i].Path(), "data") }
	}
	o.Net, o.Witness = w.net, true
	if o.Slot == "" {
		o.Slot = `log_max = "256MiB"`
	}
	// The other times are the defaults, which are what is promised; with the
	// default of this one most rounds would only wait for it to pass.
	o.Replication = `failover_pause = "1ms"`
	w.fixture = newClusterIn(t, d, 2, o)
	w.expect(provoked...)
	w.expect(faulty...)
	for _, f := range configure {
		f(w)
	}
	must(t, w.StartPair())
	w.know()
	return w
}

// roles are the present primary and the other node; the store must be whole.
func (w *world) roles() (primary, replica *cluster.Node) {
	w.t.Helper()
	for i, n := range w.Nodes {
		if s, err := n.Slot(); err == nil && s.Repl.Role == "primary" {
			return n, w.Nodes[(i+1)%len(w.Nodes)]
		}
	}
	w.t.Fatal("there is no primary")
	return nil, nil
}

func (w *world) disk(n *cluster.Node) *powerloss.Disk {
	if i := slices.Index(w.Nodes, n); i >= 0 && i < len(w.disks) {
		return w.disks[i]
	}
	return nil
}

// load starts senders, writers and whatever else is to run; the function that
// it returns stops them and checks that nothing hangs.
func (w *world) load(dir string, more ...func(end <-chan struct{})) (stop func()) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	for _, s := range w.senders {
		wg.Go(func() { s.Run(end) })
	}
	for _, x := range w.writers {
		wg.Go(func() { x.run(w.Nodes, end) })
	}
	for _, f := range more {
		wg.Go(func() { f(end) })
	}
	return func() {
		w.t.Helper()
		close(end)
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(hangBound):
			w.t.Errorf("%s: a writer hangs", dir)
			return
		}
		for _, s := range w.senders {
			if err := s.Wait(hangBound); err != nil {
				w.t.Errorf("%s: %v", dir, err)
			}
		}
	}
}

// aim makes senders that deliver into a directory of the mounts.
func (w *world) aim(dir string, count int, seed uint64) {
	w.senders = nil
	for i := range count {
		name := fmt.Sprintf("%s-s%d", dir, i)
		var targets []sender.Target
		for _, n := range w.Nodes {
			targets = append(targets, sender.Maildir(n.Name, n.Mount, filepath.Join(dir, name)))
		}
		s := sender.New(name, seed+uint64(i), &w.record, targets...)
		s.Pause = 20 * time.Millisecond // each message is read several times in the end
		w.senders = append(w.senders, s)
	}
}

// writer is a workload that fails over.
type writer struct {
	*workload.Writer
	name string
	who  workload.Survivors // of the faults of this round
	err  error
	n    int
}

// run works on whichever node has the store until end. Before it goes on on
// another mount it makes sure, by a barrier, that what it sees there is the
// history of the store, and compares it with what it knows.
func (x *writer) run(nodes []*cluster.Node, end <-chan struct{}) {
	for {
		for _, n := range nodes {
			select {
			case <-end:
				return
			default:
			}
			if x.probe(n.Mount) != nil {
				continue
			}
			_, err := x.Verify(n.Mount, x.who)
			var lost *workload.LostError
			if errors.As(err, &lost) {
				x.err = err
				return
			}
			if err == nil {
				x.Run(n.Mount, end) // until the mount fails
			}
		}
		select {
		case <-end:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// probe delivers a message beside the writer's directory.
func (x *writer) probe(mount string) error {
	x.n++
	return sender.Maildir("", mount, filepath.Join("probe", x.name)).Deliver(fmt.Sprint(x.n), []byte("probe\n\n"))
}

// settled waits until the store is whole: everybody in sync, same history,
// same content, and each slot passes its check.
func (w *world) settled() {
	w.t.Helper()
	must(w.t, w.WaitInSync())
	w.equal()
	// A primary logs now and then by itself, so a moment is waited for at which
	// both say the same seq.
	must(w.t, w.Wait("both slots at one seq, with one chain", func() error {
		a, err := w.Nodes[0].Slot()
		if err != nil {
			return err
		}
		b, err := w.Nodes[1].Slot()
		if err == nil && a.Repl.Pos != b.Repl.Pos {
			err = fmt.Errorf("they are at %+v and %+v", a.Repl.Pos, b.Repl.Pos)
		}
		return err
	}))
}

// log reads what the log tells of deliveries after a point.
func (w *world) log(after history.Epoch, key func(path string) (string, bool)) history.Log {
	w.t.Helper()
	primary, _ := w.roles()
	lines, err := primary.History(after.Seq + 1)
	must(w.t, err)
	var log history.Log
	if after.Epoch > 0 {
		log.Epochs = append(log.Epochs, after)
	}
	for _, l := range lines {
		switch l.Op {
		case "epoch":
			log.Epochs = append(log.Epochs, history.Epoch{Seq: l.Seq, Epoch: l.Epoch, Primary: w.slots[l.Primary]})
		case "deliver":
			if k, ok := key(l.Path); ok {
				log.Entries = append(log.Entries, history.Entry{Seq: l.Seq, Epoch: l.Epoch, Key: k})
			}
		}
	}
	return log
}

// present is the epoch of a store that is whole, as a beginning of what its log
// tells from now on.
func (w *world) present() history.Epoch {
	w.t.Helper()
	primary, _ := w.roles()
	s, err := primary.Slot()
	must(w.t, err)
	return history.Epoch{Seq: s.Repl.Pos.Seq, Epoch: s.Repl.Epoch, Primary: primary.Name}
}

// signal ignores that the process has gone meanwhile: faults overlap.
func signal(n *cluster.Node, sig syscall.Signal) {
	if n.Running() {
		_ = n.Signal(sig)
	}
}
