package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"slotfs/integration/cluster"
)

// risk is what "slotfs status STORE --at-risk --json" prints.
type risk struct {
	Node     string
	Seq      uint64
	After    uint64
	Why      string
	Messages []struct {
		Seq       uint64
		Path      string
		User      string
		MessageID string `json:"message_id"`
		Size      int64
		Why       string
	}
	Total struct {
		Messages uint64
		Users    map[string]uint64
	}
}

func (f *fixture) atRisk(n *cluster.Node) (r risk) {
	f.t.Helper()
	must(f.t, n.RunJSON(&r, "status", f.Store, "--at-risk"))
	return r
}

func (r *risk) paths() (list []string) {
	for _, m := range r.Messages {
		list = append(list, m.Path)
	}
	slices.Sort(list)
	return list
}

func mail(id string) []byte {
	return fmt.Appendf(nil, "From: a@example.org\r\nMessage-ID: <%s@example.org>\r\nSubject: %s\r\n\r\nbody of %s\r\n", id, id, id)
}

// TestAtRisk: what would be lost if the primary's disk failed now is listed,
// also after a restart, also by the other node; and nothing once it is on two
// nodes.
func TestAtRisk(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"both": mail("both")}))
	must(t, f.Wait("nothing at risk", func() error {
		for _, n := range f.Nodes {
			if r := f.atRisk(n); len(r.Messages) != 0 || r.Total.Messages != 0 || r.Node != "n1" {
				return fmt.Errorf("%+v", r)
			}
		}
		return nil
	}))
	must(t, n2.Kill())
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"a1": mail("a1"), "a2": mail("a2"), "gone": mail("gone")}))
	must(t, deliver(n1.Mount, "bob", map[string][]byte{"b1": mail("b1")}))
	must(t, os.Remove(filepath.Join(n1.Mount, "ann", "cur", "gone:2,")))
	must(t, os.Rename(filepath.Join(n1.Mount, "ann", "cur", "a2:2,"), filepath.Join(n1.Mount, "ann", "cur", "a2:2,S")))
	must(t, os.Rename(filepath.Join(n1.Mount, "ann", "cur", "both:2,"), filepath.Join(n1.Mount, "ann", "cur", "both:2,S")))
	look := func(when string) {
		t.Helper()
		r := f.atRisk(n1)
		if want := []string{"ann/cur/a1:2,", "ann/cur/a2:2,S", "bob/cur/b1:2,"}; !slices.Equal(r.paths(), want) {
			t.Errorf("%s: at risk are %q, want %q", when, r.paths(), want)
		}
		if r.Total.Messages != 3 || r.Total.Users["ann"] != 2 || r.Total.Users["bob"] != 1 {
			t.Errorf("%s: total %+v", when, r.Total)
		}
		for _, m := range r.Messages {
			name, _, _ := strings.Cut(filepath.Base(m.Path), ":")
			if m.MessageID != "<"+name+"@example.org>" || m.User != filepath.Dir(filepath.Dir(m.Path)) || m.Size != int64(len(mail(name))) || m.Seq <= r.After || m.Why == "" {
				t.Errorf("%s: %+v", when, m)
			}
		}
		out, err := n1.Run("status", f.Store, "--at-risk")
		must(t, err)
		if !strings.Contains(out, "3 messages") || !strings.Contains(out, "<a1@example.org>") {
			t.Errorf("%s: it prints\n%s", when, out)
		}
	}
	look("alone")
	must(t, n1.Stop())
	must(t, n1.Start())
	must(t, n1.WaitMounted())
	look("after a restart")
	must(t, n2.Start())
	must(t, f.WaitInSync())
	if r := f.atRisk(n2); len(r.Messages) != 0 {
		t.Errorf("with the replica back: %+v", r)
	}
	f.equal()
}

// TestForceListsFirst: a slot that is not in sync is promoted by force only,
// after what that gives up was listed: by name where the other node answers, by
// number where it does not. Without --yes nothing changes.
func TestForceListsFirst(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"both": mail("both")}))
	must(t, f.WaitInSync())
	must(t, n2.Kill())
	must(t, deliver(n1.Mount, "ann", map[string][]byte{"a1": mail("a1")}))
	must(t, deliver(n1.Mount, "bob", map[string][]byte{"b1": mail("b1")}))
	// Both are up, and none is primary; n2 has not caught up, as n1 does not lead.
	must(t, n1.Demote())
	must(t, n2.Start())
	lacks := func(want ...string) {
		t.Helper()
		var exit *cluster.ExitError
		var out string
		must(t, f.Wait("the list", func() (err error) {
			out, err = n2.Run("promote", f.Store, "--force")
			if !errors.As(err, &exit) || exit.Code != 10 || !strings.Contains(exit.Output, "--yes") {
				return fmt.Errorf("promote --force without --yes: %v", err)
			}
			for _, text := range want {
				if !strings.Contains(out, text) {
					return fmt.Errorf("%q is not in\n%s", text, out)
				}
			}
			return nil
		}))
		if strings.Contains(out, "<both@") {
			t.Errorf("what both have is listed:\n%s", out)
		}
		if s, err := n2.Slot(); err != nil || s.Repl.Role != "replica" || s.Repl.Epoch != 2 {
			t.Errorf("after the list: %+v, %v", s.Repl, err)
		}
	}
	lacks("<a1@example.org>", "ann/cur/a1:2,", "<b1@example.org>", "2 messages", "1  bob")
	must(t, n1.Kill())
	lacks("cannot be named", "entries", "with 3 messages")
	if _, err := n2.Run("promote", f.Store, "--force", "--yes"); err != nil {
		t.Fatal(err)
	}
	must(t, n2.WaitMounted())
}
