package integration_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"slotfs/integration/cluster"
)

// spoilRecord changes the mtime in a message's index record, as a program's bug
// would: the database's own checksums are right. The node must not run.
func spoilRecord(t *testing.T, n *cluster.Node, id uint64) {
	t.Helper()
	db, err := badger.Open(badger.DefaultOptions(filepath.Join(n.Data, "index")).WithLogger(nil).WithCompression(0))
	must(t, err)
	defer func() { must(t, db.Close()) }()
	key := binary.BigEndian.AppendUint64([]byte{'i'}, id)
	must(t, db.Update(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		b, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		at := 2 // after version and flags: mode, uid, gid, nlink, rdev, size
		for range 6 {
			_, k := binary.Uvarint(b[at:])
			at += k
		}
		b[at+1] ^= 0x10 // of the mtime
		return txn.Set(key, b)
	}))
}

// idOf is the id of a message, from the log that delivered it.
func idOf(t *testing.T, n *cluster.Node, name string) uint64 {
	t.Helper()
	log, err := n.History(0)
	must(t, err)
	for _, l := range log {
		if l.Op == "deliver" && strings.HasSuffix(l.Path, "/"+name) {
			return l.Seq
		}
	}
	t.Fatalf("%s is not in the log", name)
	return 0
}

// TestVerifyFindsRecord: a wrong record in the index of one slot is named by
// verify, outvoted and corrected, on whichever side it is; the other slot and the
// tree are left as they are.
func TestVerifyFindsRecord(t *testing.T) {
	t.Parallel()
	for side := range 2 {
		t.Run(fmt.Sprint("n", side+1), func(t *testing.T) {
			f := newCluster(t, 2, cluster.Options{})
			f.expect(provoked...)
			f.expect("attributes differ", "differ", "summed up anew")
			must(t, f.StartPair())
			n1 := f.Nodes[0]
			all := letters("v", 20)
			must(t, deliver(n1.Mount, "ann", all))
			f.equal()
			id := idOf(t, n1, "v7:2,")
			out, err := n1.Run("verify", f.Store)
			if err != nil || !strings.Contains(out, "EQUAL") {
				t.Fatalf("verify: %s, %v", out, err)
			}
			bad := f.Nodes[side]
			must(t, f.Stop())
			spoilRecord(t, bad, id)
			must(t, f.Start())
			must(t, n1.WaitMounted())
			must(t, f.WaitInSync())

			_, err = os.Stat(filepath.Join(n1.Mount, "ann", "cur", "v7:2,")) // the kernel gets to know the wrong one
			must(t, err)
			for _, asker := range f.Nodes {
				out, err := asker.Run("verify", f.Store)
				if exitCode(err) != 9 || !strings.Contains(out, "ann/cur/v7:2,") || strings.Contains(out, "v8") {
					t.Errorf("%s: %s, %v", asker.Name, out, err)
				}
			}
			if out, err := n1.Run("verify", f.Store, "--repair"); err != nil {
				t.Errorf("repair: %s, %v", out, err)
			}
			out, err = bad.Run("ledger", f.Store)
			if err != nil || !strings.Contains(out, "the index record was outvoted and corrected") {
				t.Errorf("ledger: %s, %v", out, err)
			}
			f.equal()
			readAll(t, n1.Mount, "ann", all)
			shown, err := os.Stat(filepath.Join(n1.Mount, "ann", "cur", "v7:2,"))
			must(t, err)
			plain, err := os.Stat(filepath.Join(n1.Tree(), "ann", "cur", "v7:2,"))
			must(t, err)
			if !shown.ModTime().Equal(plain.ModTime()) {
				t.Errorf("the mount shows mtime %v, the tree has %v", shown.ModTime(), plain.ModTime())
			}
		})
	}
}

// TestMismatchMendsItself: when a digest differs at the same entry the slots are
// compared, and what is outvoted is corrected, without anybody asking.
func TestMismatchMendsItself(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("differ", "outvoted", "summed up anew", "mtime is")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	all := letters("m", 20)
	must(t, deliver(n1.Mount, "ann", all))
	f.equal()
	id := idOf(t, n1, "m3:2,")
	must(t, f.Stop())
	spoilRecord(t, n2, id)
	must(t, f.Start())
	must(t, n1.WaitMounted())
	must(t, f.WaitInSync())
	// The wrong record goes into the digest when an entry changes the object.
	must(t, os.Rename(filepath.Join(n1.Mount, "ann", "cur", "m3:2,"), filepath.Join(n1.Mount, "ann", "cur", "m3:2,S")))
	must(t, f.Wait("the mismatch to be noticed and mended", func() error {
		out, err := n2.Run("ledger", f.Store, "--json")
		if err == nil && !strings.Contains(out, `"kind":"digest"`) {
			err = fmt.Errorf("nothing about a digest in the ledger of %s", n2.Name)
		}
		if err == nil {
			_, err = n1.Run("verify", f.Store)
		}
		return err
	}))
	f.equal()
}

// TestScrubCommand: pausing, parts, and the exit code of a scrub that cannot run.
func TestScrubCommand(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1 := f.Nodes[0]
	must(t, deliver(n1.Mount, "ann", letters("s", 5)))
	must(t, deliver(n1.Mount, "bob", letters("s", 3)))
	f.equal()
	for _, args := range [][]string{{"scrub"}, {"scrub", "nosuch"}, {"scrub", f.Store, "--rate", "fast"}, {"scrub", f.Store, "--since", "now"},
		{"scrub", f.Store, "--nosuch"}, {"scrub", f.Store, "--user", "nobody"}, {"scrub", f.Store, "--pause", "--resume"}} {
		if out, err := n1.Run(args...); exitCode(err) != 3 {
			t.Errorf("slotfs %q: %s, %v; want exit code 3", args, out, err)
		}
	}
	out, err := n1.Run("scrub", f.Store, "--user", "bob")
	if err != nil || !strings.Contains(out, "clean") || !strings.Contains(out, " 3 messages") {
		t.Errorf("bob: %s, %v", out, err)
	}
	if out, err = n1.Run("scrub", f.Store, "--since", "2999-01-01"); err != nil || !strings.Contains(out, " 0 messages") {
		t.Errorf("the future: %s, %v", out, err)
	}
	if out, err = n1.Run("scrub", f.Store, "--both"); err != nil || strings.Count(out, ": clean") != 2 {
		t.Errorf("both: %s, %v", out, err)
	}
	out, err = n1.Run("status")
	if err != nil || !strings.Contains(out, "last full pass ended") {
		t.Errorf("status: %s, %v", out, err)
	}
	if f.counter(n1, "scrub_last_pass_timestamp_seconds") == 0 {
		t.Error("no pass in the metrics")
	}
	if out, err = n1.Run("scrub", f.Store, "--pause"); err != nil || !strings.Contains(out, "PAUSED") {
		t.Errorf("pause: %s, %v", out, err)
	}
	must(t, n1.Stop())
	if _, err := n1.Run("scrub", f.Store); exitCode(err) != 3 {
		t.Errorf("of a node that is down: %v", err)
	}
	must(t, n1.Start())
	if out, err = n1.Run("status"); err != nil || !strings.Contains(out, "PAUSED") {
		t.Errorf("after a restart: %s, %v", out, err)
	}
	if out, err = n1.Run("scrub", f.Store, "--resume"); err != nil || strings.Contains(out, "PAUSED") {
		t.Errorf("resume: %s, %v", out, err)
	}
	must(t, f.WaitInSync())
}

// TestLedgerCommand: a ledger that somebody has changed is noticed, and the line
// is named; with a running node and without.
func TestLedgerCommand(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 1, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1 := f.Nodes[0]
	must(t, deliver(n1.Mount, "ann", letters("l", 2)))
	for range 3 { // each pass is an entry
		_, err := n1.Run("scrub", f.Store)
		must(t, err)
	}
	out, err := n1.Run("ledger", f.Store, "--verify")
	if err != nil || !strings.Contains(out, "3 entries verified") {
		t.Fatalf("verify: %s, %v", out, err)
	}
	_, head, _ := strings.Cut(strings.TrimSpace(out), "head ")
	if out, err = n1.Run("ledger", f.Store, "--verify", "--head", head); err != nil {
		t.Errorf("with its head: %s, %v", out, err)
	}
	names, err := filepath.Glob(filepath.Join(n1.Data, "ledger", "*.jsonl"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%q, %v", names, err)
	}
	b, err := os.ReadFile(names[0])
	must(t, err)
	must(t, os.WriteFile(names[0], []byte(strings.Replace(string(b), `"seq":2`, `"seq":3`, 1)), 0o600))
	for _, args := range [][]string{{"ledger", f.Store, "--verify"}, {"ledger", f.Store, "--verify", "--dir", n1.Data}} {
		if out, err := n1.Run(args...); exitCode(err) != 9 || !strings.Contains(out, "BROKEN at line 2") {
			t.Errorf("slotfs %q: %s, %v", args, out, err)
		}
	}
	must(t, os.WriteFile(names[0], b[:strings.LastIndex(strings.TrimSpace(string(b)), "\n")+1], 0o600))
	if out, err := n1.Run("ledger", f.Store, "--verify"); exitCode(err) != 9 {
		t.Errorf("cut, and the node runs: %s, %v", out, err)
	}
	must(t, os.WriteFile(names[0], b, 0o600))
}
