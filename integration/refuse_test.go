package integration_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/integration/cluster"
)

// tells waits until a node's status and log both contain a text.
func (f *fixture) tells(n *cluster.Node, text string) {
	f.t.Helper()
	err := f.Wait(n.Name+" to report: "+text, func() error {
		s, err := n.Status()
		if err != nil {
			return err
		}
		var all []string
		for _, p := range s.Problems {
			all = append(all, p.Text)
		}
		for _, slot := range s.Slots {
			all = append(all, slot.Error, slot.Repl.LastError, slot.Repl.Diverged)
			for _, p := range slot.Repl.Peers {
				all = append(all, p.LastError)
			}
		}
		all = append(all, s.Warnings...)
		log, err := n.Log()
		if err != nil {
			return err
		}
		if !strings.Contains(strings.Join(all, "\n"), text) {
			return errors.New("status has " + strings.Join(all, "; "))
		}
		if !strings.Contains(strings.ReplaceAll(log, `\"`, `"`), text) {
			return errors.New("it is in the status, but not in the log")
		}
		return nil
	})
	if err != nil {
		f.t.Error(err)
	}
}

// works checks that a pair is as it was, whatever came by.
func (f *fixture) works(pair *fixture) {
	f.t.Helper()
	must(f.t, deliver(pair.Nodes[0].Mount, "works", map[string][]byte{"m": []byte("still works\n")}))
	must(f.t, os.RemoveAll(filepath.Join(pair.Nodes[0].Mount, "works")))
}

// TestWrongClusterKey: a node with another cluster's key is refused, and both
// sides say why.
func TestWrongClusterKey(t *testing.T) {
	t.Parallel()
	d := newScratch(t)
	f := newClusterIn(t, d, 2, cluster.Options{})
	must(t, f.StartPair())
	stranger := f.stranger()
	f.joinThrough(stranger, f.Nodes[0])
	f.expect("cluster key")
	stranger.expect("cluster key")
	// It is new and nobody lets it in, so it does not even start.
	var exit *cluster.ExitError
	if err := stranger.Nodes[0].Start(); !errors.As(err, &exit) || exit.Code != 6 || !strings.Contains(exit.Output, "another cluster key") {
		t.Errorf("the stranger was refused with: %v", err)
	}
	f.tells(f.Nodes[0], "another cluster key")
	f.works(f)
}

// refused checks that slotfs ended with an exit code and said why.
func refused(t *testing.T, err error, code int, texts ...string) {
	t.Helper()
	var exit *cluster.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("not refused: %v", err)
	}
	if exit.Code != code {
		t.Errorf("refused with code %d, want %d: %s", exit.Code, code, exit.Output)
	}
	for _, text := range texts {
		if !strings.Contains(exit.Output, text) {
			t.Errorf("the refusal does not mention %q: %s", text, exit.Output)
		}
	}
}

// stranger is a cluster of one node with keys of its own.
func (f *fixture) stranger() *fixture {
	f.t.Helper()
	return newClusterIn(f.t, f.scratch, 1, cluster.Options{Names: []string{"x1"}})
}

// joinThrough makes the only node of a cluster look for a node of another.
func (f *fixture) joinThrough(from *fixture, to *cluster.Node) {
	f.t.Helper()
	must(f.t, from.Nodes[0].Edit("join = []", `join = ["`+to.Gossip+`"]`))
}

// TestForeignCertificate: a node that has the gossip key, but a certificate
// of another authority, gets no mail.
func TestForeignCertificate(t *testing.T) {
	t.Parallel()
	d := newScratch(t)
	f := newClusterIn(t, d, 2, cluster.Options{})
	must(t, f.StartPair())
	must(t, deliver(f.Nodes[0].Mount, "ann", map[string][]byte{"m": []byte("secret\n")}))
	stranger := f.stranger()
	key, err := os.ReadFile(filepath.Join(f.Nodes[0].Dir, "cluster", "gossip.key"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(stranger.Nodes[0].Dir, "cluster", "gossip.key"), key, 0o600))
	f.joinThrough(stranger, f.Nodes[0])
	f.expect("certificate")
	stranger.expect("certificate")
	must(t, stranger.Nodes[0].Start())
	f.tells(f.Nodes[0], "certificate")
	f.tells(stranger.Nodes[0], "certificate")
	if _, err := os.Stat(filepath.Join(stranger.Nodes[0].Tree(), "ann")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the stranger has ann's mail: %v", err)
	}
	f.works(f)
}

// TestOneNameTwice: two nodes with one name.
func TestOneNameTwice(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	f.expect("node names must be unique", "node does not answer")
	twin, err := f.Add("n2")
	must(t, err)
	refused(t, twin.Start(), 6, `another node is called "n2"`, "Give this node another name")
	f.tells(f.Nodes[0], `two nodes are called "n2"`)
	f.tells(f.Nodes[1], `another node is called "n2"`)
	must(t, f.WaitInSync())
	f.works(f)
}

// TestOneStoreNameTwice: a third node has another store of the same name.
func TestOneStoreNameTwice(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	third, err := f.Add("n3")
	must(t, err)
	// It makes its own store while it knows nobody.
	join := `join = ["` + f.Nodes[0].Gossip + `", "` + f.Nodes[1].Gossip + `"]`
	must(t, third.Edit(join, "join = []"))
	must(t, third.Start())
	must(t, third.Promote())
	must(t, third.Stop())
	must(t, third.Edit("join = []", join))
	f.expect("store names must be unique", "belongs to another store of the same name", "tls handshake")
	must(t, third.Start())
	for _, n := range f.Nodes {
		f.tells(n, `two different stores are called "mail"`)
	}
	f.works(f)
}
