package integration_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// TestThreeVote: three slots in sync. Rot on one or two of them is repaired from a
// third; a wrong record in one index, the primary's as well as a replica's, is
// outvoted by the two others; verify proves all three equal, whoever is asked.
func TestThreeVote(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 3, cluster.Options{})
	f.expect(provoked...)
	f.expect("no good copy on any reachable peer: asked by another slot") // which asks the third one next
	f.expect("damaged content", "checksum of block", "attributes differ", "differ", "outvoted", "summed up anew", "should be", "not in the tree", "mtime is", "copies left")
	must(t, f.StartPair())
	n1, n2, n3 := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	all := letters("v", 20)
	must(t, deliver(n1.Mount, "ann", all))
	f.equal()
	proven := func() {
		t.Helper()
		for _, n := range f.Nodes {
			if out, err := n.Run("verify", f.Store); err != nil || strings.Count(out, "EQUAL") != 2 {
				t.Errorf("verify on %s: %s, %v", n.Name, out, err)
			}
		}
		if out, err := n1.Run("verify", f.Store, "--content"); err != nil || strings.Count(out, ": clean") != 3 {
			t.Errorf("verify --content: %s, %v", out, err)
		}
		readAll(t, n1.Mount, "ann", all)
		f.equal()
	}
	proven()

	file := func(n *cluster.Node, name string) string { return filepath.Join(n.Tree(), "ann", "cur", name+":2,") }
	flip(t, file(n2, "v5"), 30)  // on one
	flip(t, file(n1, "v11"), 30) // on two
	flip(t, file(n3, "v11"), 40)
	must(t, os.Remove(file(n1, "v12"))) // gone on one, rotten on another
	flip(t, file(n2, "v12"), 30)
	must(t, os.Chtimes(file(n3, "v13"), time.Time{}, time.Unix(86400, 0)))
	out, err := n1.Run("scrub", f.Store, "--both")
	if exitCode(err) != 1 {
		t.Errorf("scrub: %s, %v", out, err)
	}
	for who, names := range map[string][]string{"n1": {"v11", "v12"}, "n2": {"v5", "v12"}, "n3": {"v11", "v13"}} {
		for _, name := range names {
			if !strings.Contains(out, who+": ann/cur/"+name+":2,") {
				t.Errorf("scrub says nothing of %s on %s:\n%s", name, who, out)
			}
		}
	}
	proven()

	// Nobody's record is right because he is the primary.
	ofReplica, ofPrimary := idOf(t, n1, "v3:2,"), idOf(t, n1, "v7:2,")
	must(t, f.Stop())
	spoilRecord(t, n2, ofReplica)
	spoilRecord(t, n1, ofPrimary)
	must(t, f.Start())
	must(t, n1.WaitMounted())
	must(t, f.WaitInSync())
	for _, n := range f.Nodes {
		out, err := n.Run("verify", f.Store)
		if exitCode(err) != 9 || !strings.Contains(out, "v3:2,") || !strings.Contains(out, "v7:2,") || strings.Contains(out, "v8:2,") {
			t.Errorf("verify on %s: %s, %v", n.Name, out, err)
		}
	}
	if out, err := n1.Run("verify", f.Store, "--repair"); err != nil {
		t.Errorf("repair: %s, %v", out, err)
	}
	for _, n := range []*cluster.Node{n1, n2} {
		out, err := n.Run("ledger", f.Store)
		if err != nil || !strings.Contains(out, "the index record was outvoted and corrected") {
			t.Errorf("ledger of %s: %s, %v", n.Name, out, err)
		}
	}
	if out, err := n3.Run("ledger", f.Store); err != nil || strings.Contains(out, "outvoted") {
		t.Errorf("ledger of n3: %s, %v", out, err)
	}
	proven()
}
