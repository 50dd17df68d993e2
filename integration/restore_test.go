package integration_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// backup copies a stopped node's data directory, and returns what puts the copy
// in its place.
func (f *fixture) backup(n *cluster.Node) (restore func()) {
	f.t.Helper()
	kept := filepath.Join(f.scratch.Path, n.Name+".backup")
	must(f.t, os.RemoveAll(kept))
	out, err := exec.Command("cp", "-a", n.Data, kept).CombinedOutput()
	if err != nil {
		f.t.Fatalf("cp: %v: %s", err, out)
	}
	return func() {
		f.t.Helper()
		must(f.t, os.RemoveAll(n.Data))
		if out, err := exec.Command("cp", "-a", kept, n.Data).CombinedOutput(); err != nil {
			f.t.Fatalf("cp: %v: %s", err, out)
		}
	}
}

// staysDown makes sure that a node does not become primary by itself.
func (f *fixture) staysDown(n *cluster.Node) {
	f.t.Helper()
	// Longer than anything that it could be waiting for.
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		s, err := n.Slot()
		must(f.t, err)
		if s.Repl.Role != "replica" || s.Mounted {
			f.t.Fatalf("%s became %s: %+v", n.Name, s.Repl.Role, s.Repl)
		}
	}
}

// staysReplica makes sure that a node, alone, does not become primary, neither
// by itself nor because it is told to without force.
func (f *fixture) staysReplica(n *cluster.Node) {
	f.t.Helper()
	f.staysDown(n)
	for _, flags := range [][]string{{}, {"--old-primary-is-down"}} {
		var exit *cluster.ExitError
		if _, err := n.Run(append([]string{"promote", f.Store}, flags...)...); !errors.As(err, &exit) || exit.Code != 8 {
			f.t.Fatalf("promote %v of %s: %v; want exit code 8", flags, n.Name, err)
		}
	}
}

// TestRestoredReplica: a replica's disk is restored from last week's backup, and
// replaced by an empty one, while the other node is down. It is not promoted,
// though all that it knows says that it is in sync; it comes back by catching up,
// and takes nothing from the other.
func TestRestoredReplica(t *testing.T) {
	t.Parallel()
	t.Run("without a register", func(t *testing.T) { restoredReplica(t, cluster.Options{}) })
	t.Run("with a register", func(t *testing.T) { restoredReplica(t, cluster.Options{Witness: true}) })
}

func restoredReplica(t *testing.T, o cluster.Options) {
	f := newCluster(t, 2, o)
	f.expect(provoked...)
	if o.Witness {
		f.expect(noise...)
	}
	f.expect("was copied or restored", "resync from")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"old": mail("old")}))
	must(t, f.WaitInSync())
	must(t, n2.Stop())
	restore := f.backup(n2)
	must(t, n2.Start())
	must(t, f.WaitInSync())
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"new": mail("new")}))
	check := func(when string) {
		t.Helper()
		must(t, f.WaitInSync())
		have := copies(t, n1.Mount)
		for _, id := range []string{"old", "new"} {
			if len(have[string(mail(id))]) != 1 {
				t.Errorf("%s: %s is at %q", when, id, have[string(mail(id))])
			}
		}
		f.equal()
	}
	must(t, n2.Stop())
	must(t, n1.Stop())
	restore()
	must(t, n2.Start())
	f.staysReplica(n2)
	must(t, n1.Start())
	check("restored")
	// Once it has caught up it is as good as any other.
	if _, err := n1.Run("switch", f.Store, "--to", "n2"); err != nil {
		t.Fatal(err)
	}
	must(t, f.WaitInSync())
	if _, err := n1.Run("switch", f.Store, "--to", "n1"); err != nil {
		t.Fatal(err)
	}
	must(t, f.WaitInSync())
	must(t, n2.Stop())
	must(t, n1.Stop())
	must(t, n2.Empty())
	must(t, n2.Start())
	f.staysReplica(n2)
	must(t, n1.Start())
	if !o.Witness {
		// The other member of its set is gone for good, which only people know.
		must(t, n1.Promote("--old-primary-is-down"))
	}
	check("emptied")
}

// TestRestoredPrimary: the backup is from a time when the slot was primary, and
// alone. It does not resume that.
func TestRestoredPrimary(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("was copied or restored", "resync from", "mount was in use")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, n1.Kill())
	must(t, n2.Promote("--old-primary-is-down"))
	must(t, deliver(n2.Mount, "ann", map[string][]byte{"old": mail("old")}))
	must(t, n2.Stop())
	restore := f.backup(n2)
	must(t, n2.Start())
	must(t, n2.WaitMounted())
	must(t, n1.Start())
	must(t, f.WaitInSync())
	if _, err := n1.Run("switch", f.Store, "--to", "n1"); err != nil {
		t.Fatal(err)
	}
	must(t, f.WaitInSync())
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"new": mail("new")}))
	must(t, f.Stop())
	restore()
	must(t, n2.Start())
	f.staysReplica(n2)
	must(t, n1.Start())
	must(t, f.WaitInSync())
	have := copies(t, n1.Mount)
	for _, id := range []string{"old", "new"} {
		if len(have[string(mail(id))]) != 1 {
			t.Errorf("%s is at %q", id, have[string(mail(id))])
		}
	}
	f.equal()
}
