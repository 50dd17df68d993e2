package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/integration/cluster"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// letters are messages that a test can tell apart.
func letters(what string, n int) map[string][]byte {
	m := map[string][]byte{}
	for i := range n {
		m[fmt.Sprint(what, i)] = fmt.Appendf(nil, "Message-ID: <%s%d@example.org>\n\n%s\n", what, i, strings.Repeat(what, i))
	}
	return m
}

// readAll compares messages on a mount.
func readAll(t *testing.T, mount, user string, want map[string][]byte) {
	t.Helper()
	for name, data := range want {
		got, err := os.ReadFile(filepath.Join(mount, user, "cur", name+":2,"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(data))
		}
	}
}

// empty removes everything below a directory, behind slotfs's back.
func empty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) == 0 {
		t.Fatalf("%s is empty already", dir)
	}
	for _, e := range entries {
		must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
}

// waitText waits until a slot says of itself something that contains text.
func (f *fixture) waitText(n *cluster.Node, text string) {
	f.t.Helper()
	must(f.t, f.Wait(fmt.Sprintf("%s says %q", n.Name, text), func() error {
		out, err := n.Run("status", "--json")
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("status of %s says nothing of %q", n.Name, text)
		}
		return err
	}))
}

// TestIndexLost: an index that is removed under a running primary is made anew
// while it serves on.
func TestIndexLost(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("index")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	all := letters("a", 50)
	must(t, deliver(n1.Mount, "ann", all))
	stop := f.background(1)
	for _, n := range []*cluster.Node{n1, n2} {
		must(t, os.RemoveAll(filepath.Join(n.Data, "index")))
		f.waitText(n, "index made anew")
	}
	if steps := stop(); steps == 0 {
		t.Error("nothing was done meanwhile")
	}
	readAll(t, n1.Mount, "ann", all)
	f.equal()
	must(t, f.Stop())
	must(t, f.Start())
	must(t, n1.WaitMounted())
	must(t, f.WaitInSync())
	readAll(t, n1.Mount, "ann", all)
	f.equal()
}

// garbleEntry damages entry seq in the log of a slot, in the middle of its bytes.
func garbleEntry(t *testing.T, data string, seq uint64) {
	t.Helper()
	dir := filepath.Join(data, "oplog")
	var raw []byte
	must(t, oplog.Scan(dir, 0, func(e *op.Entry) error {
		if e.Seq == seq {
			raw = bytes.Clone(e.Raw)
		}
		return nil
	}))
	files, err := filepath.Glob(filepath.Join(dir, "*.log"))
	must(t, err)
	for _, path := range files {
		b, err := os.ReadFile(path)
		must(t, err)
		if at := bytes.Index(b, raw); at >= 0 && len(raw) > 0 {
			flip(t, path, int64(at+len(raw)/2))
			return
		}
	}
	t.Fatalf("no entry %d in %q", seq, files)
}

// TestLogNeeded: a slot that starts after a crash, and cannot read entries that
// recovery needs, is filled again.
func TestLogNeeded(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("log damaged", "log was damaged", "put a damaged segment", "the log is kept as")
	f.expect("nothing in the log made it") // what the kill left half made, by an entry that is damaged
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	// What came after the checkpoint. Not the last batch: that would be taken for
	// torn, and fetched again by the stream.
	must(t, deliver(n1.Mount, "ann", letters("b", 20)))
	f.equal()
	s, err := n2.Slot()
	must(t, err)
	for i := range 20 {
		must(t, deliver(n1.Mount, "ann", letters(fmt.Sprint("c", i, "-"), 1)))
	}
	must(t, n2.Kill())
	garbleEntry(t, n2.Data, s.Repl.Applied+3)
	must(t, n2.Start())
	must(t, f.Wait("n2 to say what it did", func() error {
		out, err := n2.Run("status", "--json")
		// A checkpoint may have come in between: then nothing is needed.
		if err == nil && !strings.Contains(out, "resynced to") && !strings.Contains(out, "nothing is lost but history") {
			err = errors.New("nothing so far")
		}
		return err
	}))
	must(t, f.WaitInSync())
	readAll(t, n1.Mount, "ann", letters("b", 20))
	_, err = f.WaitEqual()
	must(t, err)
	must(t, n2.Check())
}

// TestFailoverForLostTree: with a register the other slot takes over by itself.
func TestFailoverForLostTree(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Witness: true})
	f.expect(provoked...)
	f.expect("the tree is lost", "missing", "register", "lost:", "is not complete")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	all := letters("a", 30)
	must(t, deliver(n1.Mount, "ann", all))
	f.equal()
	empty(t, n1.Tree())
	must(t, n2.WaitMounted())
	readAll(t, n2.Mount, "ann", all)
	must(t, deliver(n2.Mount, "ann", letters("b", 5)))
	must(t, f.WaitInSync())
	f.equal()
}
