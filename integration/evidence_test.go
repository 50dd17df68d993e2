package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/integration/cluster"
)

// evidenceReport is what "slotfs evidence verify --json" says.
type evidenceReport struct {
	Messages, Unchanged, Moved, Gone, Altered int
	LogComplete                               bool `json:"log_complete"`
	Items                                     []struct {
		Path, State, Now, By, Text string
		MessageID                  string `json:"message_id"`
		Seq                        uint64
	}
}

// exitCode is the code of a command that failed.
func exitCode(err error) int {
	var e *cluster.ExitError
	if errors.As(err, &e) {
		return e.Code
	}
	return -1
}

// TestEvidence makes a signed list of a user's messages, changes the store, and
// holds the list against both slots.
func TestEvidence(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("damaged content", "checksum of block")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", letters("a", 20)))
	must(t, deliver(n1.Mount, "bob", letters("b", 3)))
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"large": bytes.Repeat([]byte("large "), 1<<19)}))
	f.equal()
	list, err := n1.Run("evidence", f.Store, "ann")
	must(t, err)
	file := filepath.Join(f.scratch.Path, "ann.evidence")
	must(t, os.WriteFile(file, []byte(list), 0o600))
	if strings.Contains(list, "bob") || strings.Count(list, "\tverified\t") != 21 || !strings.Contains(list, "<a7@example.org>") {
		t.Errorf("the list:\n%s", list)
	}
	out, err := n1.Run("evidence", "verify", file)
	if err != nil || !strings.Contains(out, "21 unchanged, 0 moved, 0 gone, 0 altered") || !strings.Contains(out, "all the way back") {
		t.Errorf("verify: %s, %v", out, err)
	}

	cur := filepath.Join(n1.Mount, "ann", "cur")
	must(t, os.Rename(filepath.Join(cur, "a1:2,"), filepath.Join(cur, "a1:2,S")))
	must(t, os.Remove(filepath.Join(cur, "a2:2,")))
	must(t, os.Rename(filepath.Join(cur, "a3:2,"), filepath.Join(cur, "a4:2,"))) // which replaces a4
	f.equal()
	for _, n := range f.Nodes {
		flip(t, filepath.Join(n.Tree(), "ann", "cur", "a5:2,"), 10)
	}
	for _, n := range []*cluster.Node{n1, n2} {
		var r evidenceReport
		out, err := n.Run("evidence", "verify", file, "--json")
		if e := json.Unmarshal([]byte(out), &r); e != nil {
			t.Fatal(out, e)
		}
		if exitCode(err) != 9 || r.Unchanged != 16 || r.Moved != 2 || r.Gone != 2 || r.Altered != 1 || !r.LogComplete {
			t.Errorf("%s: %+v, %v", n.Name, r, err)
		}
		told := map[string]string{}
		for _, i := range r.Items {
			told[filepath.Base(i.Path)] = i.State
			if i.State == "gone" && (i.Seq == 0 || i.By != "n1" || i.MessageID == "") {
				t.Errorf("%+v", i)
			}
		}
		for name, state := range map[string]string{"a1:2,": "moved", "a2:2,": "gone", "a3:2,": "moved", "a4:2,": "gone", "a5:2,": "altered"} {
			if told[name] != state {
				t.Errorf("%s: %s is %q, want %q", n.Name, name, told[name], state)
			}
		}
	}

	// The list itself is protected, also where there is no node.
	ca := filepath.Join(n1.Dir, "cluster", "ca.pem")
	if out, err := n1.RunBare("evidence", "verify", file, "--ca", ca); err != nil || !strings.Contains(out, "signed by n1") {
		t.Errorf("verify the signature: %s, %v", out, err)
	}
	must(t, os.WriteFile(file, []byte(strings.Replace(list, "a6:2,", "a6:2,S", 1)), 0o600))
	if out, err := n1.Run("evidence", "verify", file); exitCode(err) != 11 {
		t.Errorf("a changed list: %s, %v", out, err)
	}
	if out, err := n1.RunBare("evidence", "verify", file, "--ca", ca); exitCode(err) != 11 {
		t.Errorf("a changed list: %s, %v", out, err)
	}
	if out, err := n1.Run("evidence", f.Store, "nobody"); exitCode(err) != 2 {
		t.Errorf("evidence of nobody: %s, %v", out, err)
	}
}
