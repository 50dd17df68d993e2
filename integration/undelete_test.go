package integration_test

import (
	"encoding/json"
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

type undeleted struct {
	Restored, Failed int
	Items            []struct{ Path, To, Error string }
}

func (f *fixture) undelete(n *cluster.Node, flags ...string) (u undeleted) {
	f.t.Helper()
	out, err := n.Run(append([]string{"undelete", f.Store, "--json"}, flags...)...)
	if err != nil {
		f.t.Fatal(out, err)
	}
	must(f.t, json.Unmarshal([]byte(out), &u))
	return u
}

// TestUndelete: what a burst of removals took from many users is kept beyond the
// window, over starts and a change of primary, and comes back once, as it was.
func TestUndelete(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Slot: "brake_window = \"5s\"\nbrake_keep = \"1h\"\nbrake_min = 20"})
	f.expect(provoked...)
	f.expect("were removed between", "store is in the log")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	old := time.Unix(1_500_000_000, 123_000)
	for i := range 4 {
		user := fmt.Sprint("user", i)
		must(t, deliver(n1.Mount, user, letters("a", 20)))
		must(t, os.Chtimes(filepath.Join(n1.Mount, user, "cur", "a3:2,"), old, old))
	}
	// A user's own expunge of a folder does not engage the brake.
	for i := range 15 {
		must(t, os.Remove(filepath.Join(n1.Mount, "user0", "cur", fmt.Sprintf("a%d:2,", i))))
	}
	out, err := n1.Run("status")
	if err != nil || strings.Contains(out, "burst of removals") {
		t.Errorf("one user's expunge: %s, %v", out, err)
	}
	begun := time.Now()
	must(t, os.RemoveAll(filepath.Join(n1.Mount, "user1")))
	for i := 2; i < 4; i++ {
		for j := range 20 {
			must(t, os.Remove(filepath.Join(n1.Mount, fmt.Sprint("user", i), "cur", fmt.Sprintf("a%d:2,", j))))
		}
	}
	f.waitText(n1, "undelete mail --since")
	f.waitText(n2, "undelete mail --since")
	time.Sleep(time.Until(begun.Add(8 * time.Second))) // past the window, and some checkpoints
	must(t, deliver(n1.Mount, "user2", map[string][]byte{"a5": []byte("another one of this name\n")}))
	must(t, f.Stop())
	must(t, f.Start())
	must(t, n1.WaitMounted())
	must(t, f.WaitInSync())
	// The other slot has all of it, too.
	must(t, n1.Demote())
	must(t, n2.Promote())
	must(t, n2.WaitMounted())
	if out, err := n1.Run("undelete", f.Store, "--since", "1h"); exitCode(err) != 8 {
		t.Errorf("on a replica: %s, %v", out, err)
	}
	if u := f.undelete(n2, "--since", "1h", "--user", "user3", "--dry-run"); u.Restored != 20 || u.Failed != 0 {
		t.Errorf("dry run: %+v", u)
	}
	if u := f.undelete(n2, "--since", "1h", "--user", "user3"); u.Restored != 20 || u.Failed != 0 {
		t.Errorf("one user: %+v", u)
	}
	if u := f.undelete(n2, "--since", "1h"); u.Restored < 40 || u.Failed != 0 {
		t.Errorf("the others: %+v", u)
	}
	if u := f.undelete(n2, "--since", "1h"); u.Restored+u.Failed != 0 {
		t.Errorf("a second time: %+v", u)
	}
	for i := 1; i < 4; i++ {
		user := fmt.Sprint("user", i)
		want := letters("a", 20)
		if i == 2 {
			delete(want, "a5")
		}
		readAll(t, n2.Mount, user, want)
		st, err := os.Stat(filepath.Join(n2.Mount, user, "cur", "a3:2,"))
		if err != nil || !st.ModTime().Equal(old) || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", user, st, err)
		}
		if _, err := os.Stat(filepath.Join(n2.Mount, user, "tmp")); errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has no tmp", user)
		}
	}
	list, err := os.ReadDir(filepath.Join(n2.Mount, "user2", "cur"))
	if err != nil || len(list) != 21 {
		t.Errorf("user2 has %d messages, %v", len(list), err)
	}
	f.equal()
	// What came back is not offered by the other slot either.
	must(t, n2.Demote())
	must(t, n1.Promote())
	must(t, n1.WaitMounted())
	if u := f.undelete(n1, "--since", "1h"); u.Restored+u.Failed != 0 {
		t.Errorf("on the other node: %+v", u)
	}
}

// TestUndeleteFromPeer: bytes that have rotted in trash/ come from the other node.
func TestUndeleteFromPeer(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("damaged content", "checksum of block")
	must(t, f.StartPair())
	n1 := f.Nodes[0]
	want := letters("a", 5)
	must(t, deliver(n1.Mount, "ann", want))
	begun := time.Now()
	for name := range want {
		must(t, os.Remove(filepath.Join(n1.Mount, "ann", "cur", name+":2,")))
	}
	f.equal()
	rotten, err := filepath.Glob(filepath.Join(n1.Data, "trash", "*"))
	must(t, err)
	count := 0
	for _, path := range rotten {
		if b, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(b), "Message-ID") {
			flip(t, path, int64(len(b)-1))
			count++
		}
	}
	if count != len(want) {
		t.Fatalf("%d of %d messages in trash", count, len(want))
	}
	if u := f.undelete(n1, "--since", begun.Add(-time.Minute).Format(time.RFC3339)); u.Restored != len(want) || u.Failed != 0 {
		t.Errorf("%+v", u)
	}
	readAll(t, n1.Mount, "ann", want)
}
