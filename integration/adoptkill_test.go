package integration_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/treediff"
)

// spool writes Maildirs as a mail server would; the same seed makes the same ones.
func spool(t *testing.T, dir string, seed uint64, perBox int) map[string][]byte {
	t.Helper()
	rng := newRand(seed)
	mail := map[string][]byte{}
	at := func(path string) {
		when := time.Unix(1_500_000_000+rng.Int64N(1e8), rng.Int64N(1e9))
		must(t, os.Chtimes(path, when, when))
	}
	for _, user := range []string{"ann", "bob"} {
		for _, box := range []string{"", ".Sent", ".Archive"} {
			for _, d := range []string{"cur", "new", "tmp"} {
				must(t, os.MkdirAll(filepath.Join(dir, user, box, d), 0o755))
			}
			for i := range perBox {
				rel := filepath.Join(user, box, "cur", fmt.Sprintf("%d.M%d.host:2,S", i, rng.IntN(1e6)))
				body := bytes.Repeat([]byte(fmt.Sprintf("line %d\n", rng.IntN(1e6))), 1+rng.IntN(800))
				mail[rel] = append([]byte(fmt.Sprintf("Message-ID: <%s.%d@example.org>\n\n", user, i)), body...)
				must(t, os.WriteFile(filepath.Join(dir, rel), mail[rel], 0o644))
				at(filepath.Join(dir, rel))
			}
			uids := filepath.Join(dir, user, box, "dovecot-uidlist")
			must(t, os.WriteFile(uids, []byte("3 V1 N1\n"), 0o644))
			at(uids)
			at(filepath.Join(dir, user, box, "cur"))
		}
	}
	return mail
}

// messageLines are the lines of an evidence list without what depends on when it
// was made.
func messageLines(t *testing.T, n *cluster.Node, store string) (lines []string) {
	t.Helper()
	for _, user := range []string{"ann", "bob"} {
		list, err := n.Run("evidence", store, user)
		must(t, err)
		for line := range strings.Lines(list) {
			if f := strings.Split(line, "\t"); len(f) > 5 {
				lines = append(lines, strings.Join(slices.Delete(f, 3, 4), "\t"))
			}
		}
	}
	return lines
}

// adopts runs adopt and kills it after d; false if it had ended by itself.
func adopts(t *testing.T, n *cluster.Node, store string, d time.Duration, args ...string) (killed bool) {
	t.Helper()
	bin, err := cluster.Binary()
	must(t, err)
	cmd := exec.Command(bin, append([]string{"adopt", store, "--config", n.Config}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	kill := time.AfterFunc(d, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != -1 {
		if cmd.ProcessState.ExitCode() == 7 && strings.Contains(out.String(), "start the node") {
			return false // killed when all was done
		}
		t.Fatalf("adopt: %v: %s", err, out.String())
	}
	return !cmd.ProcessState.Exited()
}

// TestAdoptKilled: adoption killed at random moments, while it registers what is
// there and while the node reads it, comes to what an uninterrupted one comes to.
// The store is served meanwhile, a replica is filled, and a register that has
// never heard of the store gets its record.
func TestAdoptKilled(t *testing.T) {
	s := seed(t)
	rng := newRand(s)
	ref := newCluster(t, 1, cluster.Options{})
	bare := filepath.Join(ref.scratch.Path, "bare")
	mail := spool(t, bare, s, 500)
	began := time.Now()
	adopts(t, ref.Nodes[0], ref.Store, time.Minute, "--from", bare)
	took := time.Since(began)
	must(t, ref.Nodes[0].Start())
	must(t, ref.Nodes[0].WaitMounted())
	must(t, followed(ref.Nodes[0], ref.Store))

	f := newCluster(t, 2, cluster.Options{Witness: true, Voters: []int{}})
	f.expect(provoked...)
	f.expect(noise...)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, n1.Edit("[scrub]\n", "[scrub]\nrate = \"300kB/s\"\n"))
	spool(t, n1.Tree(), s, 500)
	kills := 0
	for kills < 12 && adopts(t, n1, f.Store, time.Duration(rng.Int64N(int64(took)/3))) {
		kills++
	}
	if adopts(t, n1, f.Store, time.Minute) {
		t.Fatal("adopt does not end")
	}
	t.Logf("%d kills in the first pass, which takes %v", kills, took)

	must(t, f.Witness.Start())
	served := 0
	for i := 0; i < 12 || kills < 20; i++ {
		must(t, n1.Start())
		if i%3 == 0 {
			must(t, n1.WaitMounted())
			served += serves(t, n1, mail, rng)
		}
		timer := time.NewTimer(time.Duration(rng.Int64N(int64(time.Second))))
		<-timer.C
		must(t, n1.Kill())
		kills++
	}
	must(t, n1.Start())
	must(t, n1.WaitMounted())
	slot, err := n1.Slot()
	must(t, err)
	t.Logf("%d kills, %d reads; then %+v", kills, served, slot.Adoption)
	must(t, n2.Start())
	must(t, f.WaitInSync())
	if slot, err = n1.Slot(); err != nil || slot.Adoption.Unverified == 0 {
		t.Errorf("all was read before the replica was filled: %+v, %v", slot.Adoption, err)
	}
	must(t, followed(n1, f.Store))
	f.equal()
	for _, n := range f.Nodes {
		must(t, n.Check())
		if got, want := messageLines(t, n, f.Store), messageLines(t, ref.Nodes[0], ref.Store); !slices.Equal(got, want) || len(want) != len(mail) {
			t.Errorf("%s: %d messages, want %d:\n%.300q\n%.300q", n.Name, len(got), len(want), got, want)
		}
	}
	r, err := treediff.Compare(n2.Tree(), ref.Nodes[0].Tree(), treediff.Options{NoDirTimes: true})
	must(t, err)
	if len(r.Diff) > 0 {
		t.Errorf("%q", r.Diff)
	}
}

// followed runs adopt until all messages have a checksum.
func followed(n *cluster.Node, store string) error {
	_, err := n.Run("adopt", store)
	return err
}

// serves reads some messages through the mount.
func serves(t *testing.T, n *cluster.Node, mail map[string][]byte, rng *rand.Rand) (count int) {
	t.Helper()
	all := make([]string, 0, len(mail))
	for rel := range mail {
		all = append(all, rel)
	}
	slices.Sort(all)
	for range 20 {
		rel := all[rng.IntN(len(all))]
		got, err := os.ReadFile(filepath.Join(n.Mount, rel))
		must(t, err)
		if !bytes.Equal(got, mail[rel]) {
			t.Errorf("%s: other bytes", rel)
		}
		count++
	}
	return count
}
