package integration_test

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/netns"
)

// faulty are the warnings that faults bring beyond provoked.
var faulty = []string{
	"register", "etcd", "raft", // it is out of reach
	"level=WARN msg=replication", // a connection broke
	"superseded", "demoted", "isolated", "unmount", "hook failed", "mount was in use",
	"switchover to",            // one of its nodes was stopped or cut off
	"copies left",              // of three
	"were removed between",     // mail of rounds that have been judged
	"space", "full", "reserve", // a disk is full
	"gossip", "memberlist",
	"the attribute that ties it to its id", // made again after a power loss, which it had not survived
}

// fault is one way to harm the world. do harms and returns what makes it whole;
// undo may be nil, and must not mind what happened meanwhile.
type fault struct {
	name string
	hold [2]time.Duration // for how long: from, to
	slow bool             // the harm is done when do returns, not when it begins
	last bool             // its undo waits for processes that other faults stop
	// ends says which processes end or lose what they had only in memory.
	ends []string
	do   func(w *world, primary, replica *cluster.Node) (undo func())
}

// who of the world a fault of a kind concerns.
const (
	thePrimary = "primary"
	theReplica = "replica"
	theWitness = "witness"
)

func (w *world) one(who string, primary, replica *cluster.Node) *cluster.Node {
	switch who {
	case thePrimary:
		return primary
	case theReplica:
		return replica
	}
	return w.Witness
}

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// kill ends processes with SIGKILL, and starts them again.
func kill(name string, who ...string) fault {
	return fault{name: name, hold: [2]time.Duration{ms(1500), ms(6000)}, ends: who, do: func(w *world, p, r *cluster.Node) func() {
		for _, x := range who {
			signal(w.one(x, p, r), syscall.SIGKILL)
		}
		return func() {
			for _, i := range w.rng.Perm(len(who)) {
				n := w.one(who[i], p, r)
				must(w.t, n.Kill())
				w.start(n)
			}
		}
	}}
}

// start starts a node again. One with a disk filled to the last byte may refuse;
// then it is started when everything is made whole.
func (w *world) start(n *cluster.Node) {
	w.t.Helper()
	err := n.Start()
	var exit *cluster.ExitError
	if errors.As(err, &exit) && exit.Code == 4 && w.disk(n) != nil {
		if _, err := os.Lstat(filepath.Join(w.disk(n).Path(), "ballast")); err == nil {
			return
		}
	}
	must(w.t, err)
}

// freeze stops a process for a while, connections and mount staying as they are.
func freeze(who string, from, to int) fault {
	return fault{name: "SIGSTOP of " + who, hold: [2]time.Duration{ms(from), ms(to)}, do: func(w *world, p, r *cluster.Node) func() {
		n := w.one(who, p, r)
		if w.rng.IntN(2) == 0 { // its part in the register, too
			_ = n.SignalAll(syscall.SIGSTOP) // it may have been killed
		} else {
			signal(n, syscall.SIGSTOP)
		}
		return func() { _ = n.SignalAll(syscall.SIGCONT) }
	}}
}

// restart stops a process in good order and starts it again.
func restart(who string) fault {
	return fault{name: "restart of " + who, hold: [2]time.Duration{ms(100), ms(3000)}, ends: []string{who}, do: func(w *world, p, r *cluster.Node) func() {
		n := w.one(who, p, r)
		if n.Running() {
			_ = n.SignalAll(syscall.SIGCONT) // as systemd does for one that stands still
			if err := n.Stop(); err != nil {
				w.t.Error(err)
			}
		}
		return func() {
			if !n.Running() {
				w.start(n)
			}
		}
	}}
}

// cut cuts links: pairs of who sends to whom.
func cut(name string, directions ...[2]string) fault {
	return fault{name: "cut " + name, hold: [2]time.Duration{ms(500), ms(8000)}, slow: true, do: func(w *world, p, r *cluster.Node) func() {
		var all []netns.Direction
		for _, d := range directions {
			all = append(all, netns.Direction{From: w.one(d[0], p, r).Host, To: w.one(d[1], p, r).Host})
		}
		must(w.t, w.net.Cut(all...))
		return func() { must(w.t, w.net.Heal()) }
	}}
}

func both(a, b string) [][2]string { return [][2]string{{a, b}, {b, a}} }

// flap cuts the link between the nodes again and again.
func flap() fault {
	return fault{name: "flapping link", hold: [2]time.Duration{0, ms(500)}, do: func(w *world, p, r *cluster.Node) func() {
		for range 5 {
			must(w.t, w.net.CutBoth(p.Host, r.Host))
			time.Sleep(ms(100 + w.rng.IntN(900)))
			must(w.t, w.net.Heal())
			time.Sleep(ms(50 + w.rng.IntN(400)))
		}
		return nil
	}}
}

// full fills a node's disk to the last byte.
func full(who string) fault {
	return fault{name: "disk of " + who + " full", hold: [2]time.Duration{ms(500), ms(4000)}, slow: true, do: func(w *world, p, r *cluster.Node) func() {
		disk := w.disk(w.one(who, p, r))
		ballast := filepath.Join(disk.Path(), "ballast")
		f, err := os.Create(ballast)
		must(w.t, err)
		defer f.Close()
		var st syscall.Statfs_t
		must(w.t, syscall.Statfs(disk.Path(), &st))
		// Blocks are taken without being written; the rest is written.
		if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(8<<20)); err != nil && !errors.Is(err, syscall.ENOSPC) {
			must(w.t, err)
		}
		_, err = f.Seek(0, 2)
		must(w.t, err)
		for chunk := make([]byte, 1<<20); err == nil; {
			_, err = f.Write(chunk)
		}
		return func() {
			if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
				w.t.Error(err)
			}
		}
	}}
}

// blackout takes the power from nodes: what their disks had not yet flushed is
// dropped or torn.
func blackout(name string, who ...string) fault {
	return fault{name: "power loss of " + name, hold: [2]time.Duration{ms(1500), ms(5000)}, ends: who, do: func(w *world, p, r *cluster.Node) func() {
		var dark []*cluster.Node
		for _, x := range who {
			n := w.one(x, p, r)
			if !n.Running() {
				continue
			}
			if w.rng.IntN(2) == 0 {
				must(w.t, w.disk(n).Writeback(w.rng))
			}
			w.disk(n).Freeze()
			signal(n, syscall.SIGKILL)
			dark = append(dark, n)
		}
		for _, n := range dark {
			_, err := w.disk(n).Lose(w.rng)
			must(w.t, err)
			must(w.t, n.Kill())
			must(w.t, w.disk(n).Restart())
		}
		return func() {
			for _, i := range w.rng.Perm(len(dark)) {
				if !dark[i].Running() {
					w.start(dark[i])
				}
			}
		}
	}}
}

// chosen are the faults of which $SLOTFS_FAULTS, a regular expression, matches
// the name; all if it is not set.
func chosen(t *testing.T, all []fault) []fault {
	t.Helper()
	only, err := regexp.Compile(os.Getenv("SLOTFS_FAULTS"))
	must(t, err)
	return slices.DeleteFunc(all, func(f fault) bool { return !only.MatchString(f.name) })
}

// switchover hands the store over, in good order, asked of either node. That it
// is refused when something else is broken is fine.
func switchover() fault {
	return fault{name: "switchover", hold: [2]time.Duration{0, ms(1000)}, last: true, do: func(w *world, p, r *cluster.Node) func() {
		n := []*cluster.Node{p, r}[w.rng.IntN(2)]
		done := make(chan error, 1)
		go func() { _, err := n.Run("switch", w.Store); done <- err }()
		return func() {
			var exit *cluster.ExitError
			select {
			case err := <-done:
				if err != nil && !errors.As(err, &exit) {
					w.t.Error(err)
				}
			case <-time.After(hangBound):
				w.t.Error("slotfs switch does not return")
			}
		}
	}}
}

// kinds are all faults; those of disks only where there are disks to harm.
func kinds(disks bool) []fault {
	all := []fault{
		kill("kill -9 of primary", thePrimary), kill("kill -9 of primary", thePrimary), // the one that matters most
		kill("kill -9 of replica", theReplica),
		kill("kill -9 of both", thePrimary, theReplica),
		kill("kill -9 of all three", thePrimary, theReplica, theWitness),
		kill("witness lost", theWitness),
		kill("register lost: witness and replica killed", theWitness, theReplica),
		kill("register lost: witness and primary killed", theWitness, thePrimary),
		freeze(thePrimary, 300, 9000), freeze(thePrimary, 5000, 9000),
		freeze(theReplica, 300, 7000), freeze(theWitness, 300, 6000),
		restart(thePrimary), restart(theReplica), restart(theWitness),
		cut("primary-replica", both(thePrimary, theReplica)...),
		cut("primary-witness", both(thePrimary, theWitness)...),
		cut("replica-witness", both(theReplica, theWitness)...),
		cut("primary to replica", [2]string{thePrimary, theReplica}),
		cut("replica to primary", [2]string{theReplica, thePrimary}),
		cut("primary to witness", [2]string{thePrimary, theWitness}),
		cut("witness to primary", [2]string{theWitness, thePrimary}),
		cut("replica to witness", [2]string{theReplica, theWitness}),
		cut("witness to replica", [2]string{theWitness, theReplica}),
		cut("primary off", append(both(thePrimary, theReplica), both(thePrimary, theWitness)...)...),
		cut("replica off", append(both(theReplica, thePrimary), both(theReplica, theWitness)...)...),
		cut("everybody alone", append(append(both(thePrimary, theReplica), both(thePrimary, theWitness)...), both(theReplica, theWitness)...)...),
		flap(), switchover(), switchover(),
	}
	if disks {
		all = append(all, full(thePrimary), full(theReplica),
			blackout("primary", thePrimary), blackout("replica", theReplica), blackout("both", thePrimary, theReplica))
	}
	return all
}

// whole undoes whatever is still broken.
func (w *world) whole() {
	w.t.Helper()
	nodes := w.All()
	must(w.t, w.net.Heal())
	for _, n := range nodes {
		_ = n.SignalAll(syscall.SIGCONT) // it may not run
		if d := w.disk(n); d != nil {
			if err := os.Remove(filepath.Join(d.Path(), "ballast")); err != nil && !errors.Is(err, os.ErrNotExist) {
				w.t.Error(err)
			}
		}
	}
	for _, n := range nodes {
		if !n.Running() {
			must(w.t, n.Kill())
			must(w.t, n.Start())
		}
	}
}
