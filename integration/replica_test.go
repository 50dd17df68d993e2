package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/treediff"
	"slotfs/integration/workload"
)

// background runs writers on the primary's mount until the function it
// returns is called; none may fail, and nothing may be lost.
func (f *fixture) background(users int) (stop func() (steps uint64)) {
	f.t.Helper()
	var writers []*workload.Writer
	for i := range users {
		writers = append(writers, workload.New(fmt.Sprint("background", i), uint64(i)))
	}
	end, done := make(chan struct{}), make(chan error, users)
	mount := f.Nodes[0].Mount
	for _, w := range writers {
		go func() { done <- w.Run(mount, end) }()
	}
	return func() (steps uint64) {
		f.t.Helper()
		close(end)
		for range writers {
			if err := <-done; err != nil {
				f.t.Errorf("a call failed: %v", err)
			}
		}
		for _, w := range writers {
			if _, err := w.Verify(mount, workload.Answered); err != nil {
				f.t.Error(err)
			}
			steps += w.Done()
		}
		return steps
	}
}

// TestReplicaLeavesAndReturns: a replica that stops answering holds up
// barriers for the configured time, then leaves the in-sync set, loudly; when
// it answers again it catches up and returns by itself.
func TestReplicaLeavesAndReturns(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	stop := f.background(2)
	epoch := f.epoch(n1)
	// Stopped, not killed: connections stay open and nothing answers.
	must(t, n2.Signal(syscall.SIGSTOP))
	at := time.Now()
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"alone": []byte("delivered alone\n")}))
	if took := time.Since(at); took > 4*time.Second {
		t.Errorf("a delivery took %v with a timeout of 1s", took)
	}
	s, err := n1.Slot()
	must(t, err)
	if len(s.Repl.Members) != 1 || s.Repl.Epoch <= epoch {
		t.Errorf("after the loss: %+v", s.Repl)
	}
	must(t, n2.Signal(syscall.SIGCONT))
	must(t, f.WaitInSync())
	if steps := stop(); steps < 20 {
		t.Errorf("only %d steps in the background", steps)
	}
	f.equal()
}

func (f *fixture) epoch(n *cluster.Node) uint64 {
	f.t.Helper()
	s, err := n.Slot()
	must(f.t, err)
	return s.Repl.Epoch
}

// TestStopWithoutReplica: with on_replica_loss = "stop", changes wait while
// the replica is away; reads go on, and the change completes when it is back.
func TestStopWithoutReplica(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Slot: `on_replica_loss = "stop"`})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"before": []byte("before\n")}))
	must(t, n2.Kill())
	done := make(chan error, 1)
	go func() { done <- deliver(n1.Mount, "ann", map[string][]byte{"after": []byte("after\n")}) }()
	select {
	case err := <-done:
		t.Errorf("a delivery returned %v without the replica", err)
	case <-time.After(4 * time.Second): // four times the timeout
	}
	if got, err := os.ReadFile(filepath.Join(n1.Mount, "ann", "cur", "before:2,")); err != nil || string(got) != "before\n" {
		t.Errorf("read meanwhile: %q, %v", got, err)
	}
	must(t, n2.Start())
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("the delivery does not return though the replica is back")
	}
	must(t, f.WaitInSync())
	f.equal()
}

// TestEmptiedReplica: a replica gets a new, empty disk while the primary
// serves on; it fills itself, also if it is killed on the way.
func TestEmptiedReplica(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Slot: `log_max = "256MiB"`})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.fill(n1, 350<<20)
	stop := f.background(2)
	must(t, n2.Kill())
	must(t, n2.Clear())
	must(t, n2.Empty())
	rng := newRand(seed(t))
	for range 4 { // it resumes after a death at any moment
		must(t, n2.Start())
		time.Sleep(time.Duration(50+rng.IntN(400)) * time.Millisecond)
		must(t, n2.Kill())
	}
	must(t, n2.Start())
	must(t, f.WaitInSync())
	stop()
	f.equal()
	// Promoted, it is as good as the other.
	must(t, n1.Demote())
	must(t, n2.Promote())
	r, err := treediff.Compare(n1.Tree(), n2.Mount, treediff.Options{NoDirTimes: true})
	if err != nil || len(r.Diff) > 0 || r.Files < 50 {
		t.Errorf("mount of the refilled slot: %d files, %q, %v", r.Files, r.Diff, err)
	}
}

// fill writes more than the log keeps, so that it no longer reaches back.
func (f *fixture) fill(n *cluster.Node, total int) {
	f.t.Helper()
	messages := map[string][]byte{}
	for i := 0; total > 0; i++ {
		data := bytes.Repeat(fmt.Appendf(nil, "message %d of the filling\n", i), 60_000)
		messages[fmt.Sprint("fill", i)] = data
		total -= len(data)
	}
	must(f.t, deliver(n.Mount, "fill", messages))
}

// TestLongAway: a replica was away for longer than the log reaches back. Only
// what differs is moved.
func TestLongAway(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Slot: `log_max = "256MiB"`})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "same", map[string][]byte{"a": []byte("a\n"), "b": []byte("b\n")}))
	f.equal()
	must(t, n2.Stop())
	f.fill(n1, 300<<20)
	must(t, os.RemoveAll(filepath.Join(n1.Mount, "fill")))
	must(t, deliver(n1.Mount, "new", map[string][]byte{"c": []byte("c\n")}))
	must(t, os.Rename(filepath.Join(n1.Mount, "same", "cur", "a:2,"), filepath.Join(n1.Mount, "same", "cur", "a:2,S")))
	f.fill(n1, 100<<20)
	must(t, n2.Start())
	must(t, f.WaitInSync())
	f.equal()
}

// TestLargeMailWhileMembersChange: a large message is staged in pieces. The
// in-sync set may change between two of them.
func TestLargeMailWhileMembersChange(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	rng := newRand(seed(t))
	messages := map[string][]byte{}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			name := fmt.Sprint("large", i)
			data := bytes.Repeat(fmt.Appendf(nil, "piece of %d\n", i), 3<<20)
			if err := deliver(n1.Mount, "ann", map[string][]byte{name: data}); err != nil {
				done <- err
				return
			}
			messages[name] = data
			if i > 2 { // not the whole disk
				old := fmt.Sprint("large", i-3)
				if err := os.Remove(filepath.Join(n1.Mount, "ann", "cur", old+":2,")); err != nil {
					done <- err
					return
				}
				delete(messages, old)
			}
		}
	}()
	for range 4 {
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		must(t, n2.Kill())
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		must(t, n2.Start())
		must(t, f.WaitInSync())
	}
	close(stop)
	must(t, <-done)
	for name, data := range messages {
		got, err := os.ReadFile(filepath.Join(n1.Mount, "ann", "cur", name+":2,"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(data), err)
		}
	}
	f.equal()
}

// TestBareMountPoint: nothing can be written where no store is mounted.
func TestBareMountPoint(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 1, cluster.Options{})
	must(t, f.StartPair())
	n := f.Nodes[0]
	must(t, os.Mkdir(filepath.Join(n.Mount, "there"), 0o755))
	must(t, n.Stop())
	if err := os.Mkdir(filepath.Join(n.Mount, "ghost"), 0o755); !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EACCES) {
		t.Errorf("mkdir on the bare mount point: %v", err)
	}
	if _, err := os.Stat(filepath.Join(n.Tree(), "there")); err != nil {
		t.Errorf("the tree is not plain: %v", err)
	}
}

// TestTwoHistories: an operator promotes a replica whose primary had gone on
// alone. Both then have an epoch of one number that began differently. That is
// recognised, and nothing is thrown away until the operator chooses.
func TestTwoHistories(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("diverged", "two histories", "neither index nor log know this id", "tls handshake") // the branch that is given up goes to quarantine/
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"common": []byte("common\n")}))
	must(t, n2.Kill())
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"alone": []byte("only on n1\n")}))
	must(t, n1.Kill())
	must(t, n2.Start())
	var exit *cluster.ExitError
	if err := n2.Promote(); !errors.As(err, &exit) || exit.Code != 8 {
		t.Errorf("promote without a word about the old primary: %v; want exit code 8", err)
	}
	must(t, n2.Promote("--old-primary-is-down"))
	must(t, deliver(n2.Mount, "ann", map[string][]byte{"other": []byte("only on n2\n")}))
	must(t, n1.Start())
	for _, n := range f.Nodes {
		f.seesTwoHistories(n)
	}
	f.giveUp(n1) // the operator chooses n2's branch
	f.equal()
	// What was given up is kept.
	rescued, err := os.ReadDir(filepath.Join(n1.Data, "rescue"))
	if err != nil || len(rescued) == 0 {
		t.Errorf("rescue/ holds %d files, %v", len(rescued), err)
	}
}
