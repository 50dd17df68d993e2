package integration_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/mailbox"
)

// TestAdopt: Maildirs that a bare Dovecot wrote become a store in place. Dovecot
// on the mount shows the same mail, UIDs, flags and dates included; a replica is
// filled, and after a change of primary shows it, too; evidence says where it
// came from.
func TestAdopt(t *testing.T) {
	t.Parallel()
	s := seed(t)
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	bare := filepath.Join(f.scratch.Path, "bare")
	must(t, os.Mkdir(bare, 0o755))
	d, err := dovecot.Start(f.scratch, "d0", bare, dovecot.Options{})
	must(t, err)
	t.Cleanup(func() { d.Stop() })
	mail := mailbox.Server{LMTP: d.LMTP, IMAP: d.IMAP, Password: "secret"}
	users := []string{"ann", "bob", "cat"}
	acks, err := mail.Deliver(users, mixedMail(t, s, 100), 4, nil)
	must(t, err)
	rng := newRand(s)
	for range 2 {
		for _, user := range users {
			if _, _, err := mail.Change(user, rng); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, err := mail.Snapshot(users)
	must(t, err)
	must(t, d.Stop())

	// While the store is not adopted nothing touches what is there.
	var report struct {
		Messages int
		Left     []struct{ Path string }
	}
	out, err := n1.Run("adopt", f.Store, "--from", bare, "--json")
	if err != nil {
		t.Fatal(out, err)
	}
	must(t, json.Unmarshal([]byte(out), &report))
	if report.Messages < len(acks)/2 {
		t.Errorf("adopted %s", out)
	}
	must(t, n1.Start())
	must(t, n1.WaitMounted()) // the slot's own epoch names it
	first, mail := f.mail(n1, "d1")
	shot, err := mail.Snapshot(users)
	must(t, err)
	if diff := shot.Diff(before); len(diff) > 0 {
		t.Errorf("through the mount: %q", diff)
	}
	must(t, n2.Start())
	must(t, f.WaitInSync())
	more, err := mail.Deliver(users[:1], mixedMail(t, s+1, 10), 1, nil)
	must(t, err)
	must(t, first.Stop())
	f.equal()
	list, err := n1.Run("evidence", f.Store, "ann")
	if err != nil || !strings.Contains(list, "\tadopted\t") || strings.Count(list, "\tdelivered\t") < len(more) {
		t.Errorf("evidence: %.2000s, %v", list, err)
	}

	must(t, n1.Demote())
	must(t, n2.Promote())
	must(t, n2.WaitMounted())
	second, mail := f.mail(n2, "d2")
	shot, err = mail.Snapshot(users)
	must(t, err)
	if diff := shot.Diff(before, "ann"); len(diff) > 0 {
		t.Errorf("on the replica: %q", diff)
	}
	if missing := shot.Missing(more); len(missing) > 0 {
		t.Errorf("missing: %q", missing)
	}
	must(t, second.Stop())
}
