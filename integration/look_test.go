package integration_test

import (
	"strings"
	"testing"

	"slotfs/integration/cluster"
)

// TestLook runs the commands that only look, against each of two nodes.
func TestLook(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	must(t, deliver(f.Nodes[0].Mount, "ann", map[string][]byte{"m": []byte("hello\n")}))
	_, err := f.WaitEqual()
	must(t, err)
	var digests []string
	for i, n := range f.Nodes {
		var s cluster.Status
		must(t, n.RunJSON(&s, "status"))
		if len(s.Nodes) != 2 || len(s.Slots) != 1 || s.Slots[0].Messages != 1 {
			t.Errorf("status of %s: %+v", n.Name, s)
		}
		for args, want := range map[string][]string{
			"status":                {"n1", "n2", "primary", "replica", f.Nodes[0].Mount},
			"log mail --user ann":   {"ann/cur/m:2,"},
			"log mail --user bob":   {},
			"digest mail ann":       {},
			"metrics":               {"slotfs_"},
			"check mail":            {},
			"--help":                {"Examples:"},
			"promote --help":        {"--old-primary-is-down"},
			"completion bash":       {"slotfs"},
			"--version":             {"slotfs"},
			"digest mail":           {"n1", "n2"},
			"log mail --since 1000": {},
		} {
			if i == 0 && args != "status" {
				continue // the same program; the replica is the harder one to ask
			}
			out, err := n.Run(strings.Fields(args)...)
			if err != nil {
				t.Errorf("slotfs %s: %v", args, err)
			}
			for _, text := range want {
				if !strings.Contains(out, text) {
					t.Errorf("slotfs %s on %s does not show %q: %s", args, n.Name, text, out)
				}
			}
		}
		var d cluster.Digest
		must(t, n.RunJSON(&d, "digest", "mail", "ann"))
		digests = append(digests, d.Digest)
		if d.Files != 1 || d.Bytes != 6 {
			t.Errorf("digest of ann's mail on %s: %+v", n.Name, d)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("digests of ann's mail: %q", digests)
	}
	// Who asks for what is not there is told so, by an exit code.
	_, err = f.Nodes[0].Run("digest", "nosuch")
	if err == nil {
		t.Error("a digest of no store")
	}
	must(t, f.Nodes[1].Stop())
	_, err = f.Nodes[1].Run("status")
	refused(t, err, 7, "not running")
	f.expect(provoked...)
}
