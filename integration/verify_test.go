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
		})
	}
}

// TestMismatchMendsItself: when a digest differs at the same entry the slots are
// compared, and what is outvoted is corrected, without anybody asking.
func TestMismatchMendsItself(t *testing.T) {
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
