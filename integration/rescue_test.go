package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// branches is what "slotfs rescue list --json" prints.
type branches struct {
	Branches []struct {
		Name     string
		Fork     uint64
		Messages uint64
		Offered  uint64
		Left     uint64
		Decided  map[string]uint64
		Changes  struct{ Flags, Moved, Removed uint64 }
	}
}

func (f *fixture) branches(n *cluster.Node) (b branches) {
	f.t.Helper()
	must(f.t, n.RunJSON(&b, "rescue", "list", f.Store))
	return b
}

// copies finds all messages below dir by their content.
func copies(t *testing.T, dir string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		found[string(content)] = append(found[string(content)], rel)
		return err
	})
	must(t, err)
	return found
}

// twoHistories makes n1 go on alone with what branch does, then n2 with what
// goesOn does, and n1 come back and give its branch up.
func (f *fixture) twoHistories(branch, goesOn func(mount string)) {
	f.t.Helper()
	t, n1, n2 := f.t, f.Nodes[0], f.Nodes[1]
	must(t, f.WaitInSync())
	must(t, n2.Kill())
	branch(n1.Mount)
	must(t, n1.Kill())
	must(t, n2.Start())
	must(t, n2.Promote("--old-primary-is-down"))
	goesOn(n2.Mount)
	must(t, n1.Start())
	f.seesTwoHistories(n1)
	f.giveUp(n1)
}

// seesTwoHistories waits until n says that the store has two.
func (f *fixture) seesTwoHistories(n *cluster.Node) {
	f.t.Helper()
	must(f.t, f.Wait(n.Name+" to see the two histories", func() error {
		s, err := n.Slot()
		if err == nil && s.Repl.Diverged == "" {
			err = errors.New("it says nothing")
		}
		return err
	}))
}

// giveUp has n give its branch up: it may have resumed as a primary, because it
// was alone in its in-sync set and did not yet know of the other.
func (f *fixture) giveUp(n *cluster.Node) {
	f.t.Helper()
	if s, err := n.Slot(); err == nil && s.Repl.Role == "primary" {
		must(f.t, n.Demote())
	}
	if _, err := n.Run("rejoin", f.Store); err != nil {
		f.t.Fatal(err)
	}
	must(f.t, f.WaitInSync())
}

var branched = []string{"diverged", "two histories", "neither index nor log know this id", "tls handshake", "resync from", "are not in the primary's history", "a second object with this id"}

// TestRescue: both sides have written, both have renamed the same message, and
// mailboxes are gone on one side. What had been acknowledged comes back, once;
// the rest can be looked at, delivered and dropped.
func TestRescue(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect(branched...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	one := func(mount, user, id string) {
		t.Helper()
		must(t, deliver(mount, user, map[string][]byte{id: mail(id)}))
	}
	for _, id := range []string{"both", "old"} {
		one(n1.Mount, "ann", id)
	}
	one(n1.Mount, "bob", "bobs")
	one(n1.Mount, "ann/.Work", "work")
	cur := func(mount, name string) string { return filepath.Join(mount, "ann", "cur", name) }
	f.twoHistories(func(m string) {
		must(t, os.Rename(cur(m, "both:2,"), cur(m, "both:2,S")))
		must(t, os.Remove(cur(m, "old:2,")))
		one(m, "ann", "a1")
		one(m, "ann", "seen")
		must(t, os.Rename(cur(m, "seen:2,"), cur(m, "seen:2,FST")))
		one(m, "ann", "gone")
		must(t, os.Remove(cur(m, "gone:2,")))
		one(m, "ann/.Work", "w1")
		one(m, "bob", "same")
		one(m, "carl", "c1")
	}, func(m string) {
		one(m, "ann", "n2")
		one(m, "bob", "retried")
		must(t, os.Rename(cur(m, "both:2,"), cur(m, "both:2,R")))
		must(t, os.RemoveAll(filepath.Join(m, "ann", ".Work")))
		// An MTA that got no answer delivers the same bytes again.
		must(t, deliver(m, "bob", map[string][]byte{"again": mail("same")}))
	})
	var b branches
	must(t, f.Wait("the messages to be delivered again", func() error {
		b = f.branches(n1)
		if len(b.Branches) != 1 || b.Branches[0].Decided["delivered"] != 3 || b.Branches[0].Decided["present"] != 1 || b.Branches[0].Decided["kept"] != 1 {
			return fmt.Errorf("%+v", b)
		}
		return nil
	}))
	br := b.Branches[0]
	if br.Messages != 5 || br.Offered != 5 || br.Left != 1 || br.Changes.Flags != 1 || br.Changes.Removed != 1 {
		t.Errorf("branch: %+v", br)
	}
	have := copies(t, n2.Mount)
	for id, where := range map[string]string{"a1": "ann/new/", "seen": "ann/cur/", "w1": "ann/new/", "same": "bob/cur/again", "both": "ann/cur/both:2,R",
		"old": "ann/cur/old:2,", "n2": "ann/cur/n2:2,", "retried": "bob/cur/"} {
		if got := have[string(mail(id))]; len(got) != 1 || !strings.HasPrefix(got[0], where) {
			t.Errorf("%s is at %q, want once in %s", id, got, where)
		}
	}
	if got := have[string(mail("seen"))]; len(got) == 1 && !strings.HasSuffix(got[0], ":2,FS") {
		t.Errorf("flags of a message that was delivered again: %s", got[0])
	}
	for _, id := range []string{"gone", "c1", "work"} {
		if got := have[string(mail(id))]; len(got) != 0 {
			t.Errorf("%s is at %q", id, got)
		}
	}
	out, err := n1.Run("rescue", "show", f.Store, br.Name)
	must(t, err)
	for _, want := range []string{"<a1@example.org>", "flags     ann/cur/both:2, -> ann/cur/both:2,S", "remove    ann/cur/old:2,", "kept, neither the mailbox", "ann/.Work/cur/w1:2,  78 bytes", "carl/cur/c1:2,"} {
		if !strings.Contains(out, want) {
			t.Errorf("rescue show lacks %q:\n%s", want, out)
		}
	}
	if _, err := n1.Run("rescue", "deliver", f.Store, br.Name, "--all", "--into", "bob"); err != nil {
		t.Fatal(err)
	}
	if got := copies(t, n2.Mount)[string(mail("c1"))]; len(got) != 1 || !strings.HasPrefix(got[0], "bob/new/") {
		t.Errorf("c1 is at %q", got)
	}
	var exit *cluster.ExitError
	if _, err := n1.Run("rescue", "drop", f.Store, br.Name); !errors.As(err, &exit) || exit.Code != 10 {
		t.Errorf("drop without --yes: %v", err)
	}
	if _, err := n1.Run("rescue", "drop", f.Store, br.Name, "--yes"); err != nil {
		t.Fatal(err)
	}
	if b := f.branches(n1); len(b.Branches) != 0 {
		t.Errorf("after drop: %+v", b)
	}
	f.equal()
}

// TestRescueCrashes: the slot that offers messages of its lost branch and the
// primary that delivers them are killed again and again, and the primary changes.
// Each message is there once.
func TestRescueCrashes(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect(branched...)
	f.expect("deliver messages of lost branch", "message of a lost branch", "did not become primary")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"both": mail("both")}))
	const count = 150
	f.twoHistories(func(m string) {
		for i := range count {
			must(t, deliver(m, "ann", map[string][]byte{fmt.Sprint("m", i): mail(fmt.Sprint("m", i))}))
		}
	}, func(m string) {
		must(t, deliver(m, "ann", map[string][]byte{"other": mail("other")}))
	})
	rng := newRand(seed(t))
	primary := n2
	for round := 0; ; round++ {
		b := f.branches(n1)
		if len(b.Branches) != 1 || b.Branches[0].Messages != count || b.Branches[0].Offered != count {
			t.Fatalf("branches: %+v", b)
		}
		t.Logf("round %d: %v", round, b.Branches[0].Decided)
		if b.Branches[0].Left == 0 || round > 60 {
			break
		}
		must(t, f.Wait("a message to be delivered", func() error {
			if now := f.branches(n1); now.Branches[0].Left == b.Branches[0].Left {
				return errors.New("none was")
			}
			return nil
		}))
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		switch what := rng.IntN(5); {
		case what < 2:
			must(t, n1.Kill())
			must(t, n1.Start())
		case what < 4:
			must(t, n2.Kill())
			must(t, n2.Start())
		default:
			if _, err := n1.Run("switch", f.Store); err != nil {
				t.Logf("switch: %v", err)
			}
		}
		must(t, f.WaitInSync())
		primary = n1
		if s, err := n2.Slot(); err == nil && s.Repl.Role == "primary" {
			primary = n2
		}
	}
	have := copies(t, primary.Mount)
	for i := range count {
		if got := have[string(mail(fmt.Sprint("m", i)))]; len(got) != 1 {
			t.Errorf("m%d is at %q", i, got)
		}
	}
	f.equal()
}

// TestNeverAcknowledged: what a primary could not commit is cut off and kept, and
// delivered only if an operator says so.
func TestNeverAcknowledged(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Slot: `on_replica_loss = "stop"`})
	f.expect(provoked...)
	f.expect(branched...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"both": mail("both")}))
	must(t, f.WaitInSync())
	must(t, n2.Kill())
	done := make(chan error, 1)
	go func() { done <- deliver(n1.Mount, "ann", map[string][]byte{"waits": mail("waits")}) }()
	must(t, f.Wait("the delivery to be on n1's disk", func() error {
		s, err := n1.Slot()
		if err == nil && (s.Repl.Pos.Seq == s.Repl.Committed || s.Repl.Durable < s.Repl.Pos.Seq) {
			err = errors.New("nothing waits")
		}
		return err
	}))
	must(t, n1.Kill())
	if err := <-done; err == nil {
		t.Error("a delivery was acknowledged without the replica")
	}
	must(t, n2.Start())
	must(t, n2.Promote("--old-primary-is-down"))
	must(t, deliver(n2.Mount, "ann", map[string][]byte{"other": mail("other")}))
	must(t, n1.Start())
	must(t, f.WaitInSync())
	b := f.branches(n1)
	if len(b.Branches) != 1 || b.Branches[0].Messages != 1 || b.Branches[0].Offered != 0 || b.Branches[0].Left != 1 {
		t.Fatalf("branches: %+v", b)
	}
	if got := copies(t, n2.Mount)[string(mail("waits"))]; len(got) != 0 {
		t.Errorf("it was delivered as %q", got)
	}
	if _, err := n1.Run("rescue", "deliver", f.Store, b.Branches[0].Name, "--all"); err != nil {
		t.Fatal(err)
	}
	if got := copies(t, n2.Mount)[string(mail("waits"))]; len(got) != 1 || !strings.HasPrefix(got[0], "ann/new/") {
		t.Errorf("it is at %q", got)
	}
	f.equal()
}

// TestForcedRescue: with a register, a replica that is not in sync is promoted
// by force. When the former primary is back, everything happens by itself.
func TestForcedRescue(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Witness: true})
	f.expect(provoked...)
	f.expect(branched...)
	f.expect("register")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"both": mail("both")}))
	must(t, f.WaitInSync())
	must(t, n2.Kill())
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"a1": mail("a1"), "a2": mail("a2")}))
	must(t, n1.Kill())
	must(t, n2.Start())
	f.staysReplica(n2)
	out, err := n2.Run("promote", f.Store, "--force", "--old-primary-is-down")
	var exit *cluster.ExitError
	if !errors.As(err, &exit) || exit.Code != 10 || !strings.Contains(out, "the register has epoch 3, with n1 primary and in sync n1") {
		t.Fatalf("promote --force without --yes: %v\n%s", err, out)
	}
	must(t, n2.Promote("--force", "--old-primary-is-down", "--yes"))
	must(t, deliver(n2.Mount, "ann", map[string][]byte{"other": mail("other")}))
	must(t, n1.Start())
	must(t, f.WaitInSync())
	must(t, f.Wait("the messages to be delivered again", func() error {
		if b := f.branches(n1); len(b.Branches) != 1 || b.Branches[0].Left != 0 {
			return fmt.Errorf("%+v", b)
		}
		return nil
	}))
	have := copies(t, n2.Mount)
	for _, id := range []string{"both", "a1", "a2", "other"} {
		if got := have[string(mail(id))]; len(got) != 1 {
			t.Errorf("%s is at %q", id, got)
		}
	}
	f.equal()
}
