package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// Writers may be held back by a switchover, at the median, for switchHeld, and
// for as long as switchSteps deliveries take on average: on a machine that is
// busy, or with the race detector, a switchover takes longer as they do.
const (
	switchHeld  = 500 * time.Millisecond
	switchSteps = 10
)

// roamers deliver messages to whichever node takes them, like a deliverer that
// retries, until they are told to end.
type roamers struct {
	f    *fixture
	end  chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	done map[string]time.Time // path below the mount: when it was acknowledged
}

func (f *fixture) roam(users int) *roamers {
	f.t.Helper()
	r := &roamers{f: f, end: make(chan struct{}), done: map[string]time.Time{}}
	for i := range users {
		r.wg.Go(func() { r.run(fmt.Sprint("roamer", i)) })
	}
	return r
}

func (r *roamers) run(user string) {
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s-%d", user, i)
		for try := 0; ; try++ {
			select {
			case <-r.end:
				return
			default:
			}
			n := r.f.Nodes[try%len(r.f.Nodes)]
			// Each attempt has a name of its own: one that failed may be there.
			path := filepath.Join(user, "cur", fmt.Sprintf("%s-%d:2,", name, try))
			if deliver(n.Mount, user, map[string][]byte{fmt.Sprintf("%s-%d", name, try): mail(name)}) == nil {
				r.mu.Lock()
				r.done[path] = time.Now()
				r.mu.Unlock()
				break
			}
			if try%len(r.f.Nodes) == len(r.f.Nodes)-1 {
				time.Sleep(2 * time.Millisecond) // as a client that tries again soon
			}
		}
	}
}

// stop ends them, and returns how many deliveries were acknowledged, each of
// which must be there once.
func (r *roamers) stop(primary *cluster.Node) int {
	r.f.t.Helper()
	close(r.end)
	r.wg.Wait()
	seen := map[string]bool{}
	for path := range r.done {
		name, _, _ := strings.Cut(filepath.Base(path), ":")
		id := name[:strings.LastIndexByte(name, '-')]
		got, err := os.ReadFile(filepath.Join(primary.Mount, path))
		if err != nil || string(got) != string(mail(id)) {
			r.f.t.Errorf("acknowledged and not there: %s: %d bytes, %v", path, len(got), err)
		}
		if seen[id] {
			r.f.t.Errorf("%s was acknowledged twice", id)
		}
		seen[id] = true
	}
	return len(r.done)
}

// longest is the longest time without an acknowledgement that ended after from.
func (r *roamers) longest(from time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	times := []time.Time{}
	for _, t := range r.done {
		if t.After(from.Add(-time.Second)) {
			times = append(times, t)
		}
	}
	slices.SortFunc(times, time.Time.Compare)
	var gap time.Duration
	for i := 1; i < len(times); i++ {
		if times[i].After(from) {
			gap = max(gap, times[i].Sub(times[i-1]))
		}
	}
	return gap
}

// TestSwitchUnderLoad: the primary changes under load, again and again, asked of
// either node. Nothing acknowledged is lost, and writers are held back briefly.
func TestSwitchUnderLoad(t *testing.T) {
	t.Run("without a register", func(t *testing.T) { switchUnderLoad(t, cluster.Options{}) })
	t.Run("with a register", func(t *testing.T) { switchUnderLoad(t, cluster.Options{Witness: true}) })
}

func switchUnderLoad(t *testing.T, o cluster.Options) {
	f := newCluster(t, 2, o)
	f.expect("mount was in use")
	if o.Witness {
		f.expect(noise...)
	}
	must(t, f.StartPair())
	const users = 3
	start, r := time.Now(), f.roam(users)
	rounds := 20
	if testing.Short() {
		rounds = 4
	}
	var held, gaps []time.Duration
	primary := 0
	for i := range rounds {
		to := f.Nodes[1-primary]
		from := time.Now()
		var o struct {
			Node   string
			Epoch  uint64
			HeldMS int64 `json:"held_ms"`
		}
		args := []string{"switch", f.Store}
		if i%2 == 0 {
			args = append(args, "--to", to.Name)
		}
		must(t, f.Nodes[i%2].RunJSON(&o, args...))
		if o.Node != to.Name {
			t.Fatalf("round %d: primary is %s, want %s", i, o.Node, to.Name)
		}
		primary = 1 - primary
		must(t, f.WaitInSync())
		time.Sleep(100 * time.Millisecond)
		held = append(held, time.Duration(o.HeldMS)*time.Millisecond)
		gaps = append(gaps, r.longest(from))
	}
	took := time.Since(start)
	n := r.stop(f.Nodes[primary])
	slices.Sort(held)
	slices.Sort(gaps)
	t.Logf("%d switchovers, %d deliveries; held back: median %v, longest %v; gap seen by writers: median %v, longest %v",
		rounds, n, held[len(held)/2], held[len(held)-1], gaps[len(gaps)/2], gaps[len(gaps)-1])
	if n < 5*rounds {
		t.Errorf("only %d deliveries", n)
	}
	limit := switchHeld + switchSteps*users*took/time.Duration(max(n, 1))
	if m := gaps[len(gaps)/2]; m > limit {
		t.Errorf("writers were held back for %v at the median, more than %v", m, limit)
	}
	f.equal()
}

// TestSwitchRefused: what cannot take over is refused with a reason, and the
// primary serves on. A target that fails gives the store back.
func TestSwitchRefused(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("mount was in use", "did not become primary", "switchover to n2 failed", "mount point", "connection refused")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	refused := func(want string, args ...string) {
		t.Helper()
		var exit *cluster.ExitError
		if _, err := n1.Run(append([]string{"switch", f.Store}, args...)...); !errors.As(err, &exit) || exit.Code != 8 && exit.Code != 2 || !strings.Contains(exit.Output, want) {
			t.Errorf("switch %v: %v; want %q", args, err, want)
		}
		must(t, deliver(n1.Mount, "ann", map[string][]byte{fmt.Sprint("m", time.Now().UnixNano()): mail("x")}))
	}
	refused("already is primary", "--to", "n1")
	refused("no node is called", "--to", "n9")
	if _, err := n1.Run("drain", "n2"); err != nil {
		t.Fatal(err)
	}
	refused("it is drained")
	if _, err := n1.Run("undrain", "n2"); err != nil {
		t.Fatal(err)
	}
	// Its mount point is not usable.
	must(t, n2.Clear())
	must(t, os.WriteFile(filepath.Join(n2.Mount, "stray"), nil, 0o600))
	refused("not empty")
	must(t, os.Remove(filepath.Join(n2.Mount, "stray")))
	must(t, n2.Kill())
	refused("cannot take over")
	must(t, n2.Start())
	must(t, f.WaitInSync())
	if _, err := n2.Run("switch", f.Store); err != nil {
		t.Fatal(err)
	}
	must(t, n2.WaitMounted())
	must(t, f.WaitInSync())
	f.equal()
}

// TestDrain: a drained node's primaries move away and do not come back, over a
// restart and over the loss of the other node; until it is undrained.
func TestDrain(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("mount was in use")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"a": mail("a")}))
	if _, err := n2.Run("drain", "n1"); err != nil {
		t.Fatal(err)
	}
	must(t, n2.WaitMounted())
	must(t, f.WaitInSync())
	must(t, n1.Stop())
	must(t, n1.Start())
	must(t, f.WaitInSync())
	out, err := n2.Run("status")
	must(t, err)
	if !strings.Contains(out, ", drained") {
		t.Errorf("status:\n%s", out)
	}
	var exit *cluster.ExitError
	if out, err := n1.Run("drain", "n2"); !errors.As(err, &exit) || exit.Code != 8 || !strings.Contains(out, "still primary on n2") {
		t.Errorf("drain of the last node: %v\n%s", err, out)
	}
	for _, n := range f.Nodes {
		if _, err := n1.Run("undrain", n.Name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n1.Run("switch", f.Store, "--to", "n1"); err != nil {
		t.Fatal(err)
	}
	must(t, n1.WaitMounted())
	must(t, f.WaitInSync())
	f.equal()
}
