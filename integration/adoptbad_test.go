package integration_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/integration/cluster"
)

// TestAdoptUnreadable: one message that cannot be read is told of, and keeps neither
// the others from getting their checksums nor a replica from being filled; when it
// is removed nothing is left of it.
func TestAdoptUnreadable(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("damaged", "not on this slot", "cannot be read", "content is")
	n1, n2 := f.Nodes[0], f.Nodes[1]
	var names []string
	for rel := range spool(t, n1.Tree(), 1, 10) {
		names = append(names, rel)
	}
	bad := slices.Min(names)
	_, err := n1.Run("adopt", f.Store)
	must(t, err)
	// Its mark says that the content is not there (package meta, mark.go).
	path := filepath.Join(n1.Tree(), bad)
	mark := make([]byte, 34)
	_, err = unix.Getxattr(path, "trusted.slotfs", mark)
	must(t, err)
	mark[1] |= 2
	must(t, unix.Setxattr(path, "trusted.slotfs", mark, 0))

	must(t, n1.Start())
	must(t, n1.WaitMounted())
	must(t, n2.Start())
	must(t, f.WaitInSync())
	out, err := n1.Run("adopt", f.Store)
	if exitCode(err) != 9 || !strings.Contains(out, bad) || !strings.Contains(out, "1 adopted messages cannot be read") {
		t.Errorf("%s, %v", out, err)
	}
	for _, rel := range names {
		if _, err := os.ReadFile(filepath.Join(n1.Mount, rel)); (err != nil) != (rel == bad) {
			t.Errorf("%s: %v", rel, err)
		}
	}
	must(t, os.Remove(filepath.Join(n1.Mount, bad)))
	f.equal()
	must(t, followed(n1, f.Store))
	for _, n := range f.Nodes {
		must(t, n.Check())
	}
}
