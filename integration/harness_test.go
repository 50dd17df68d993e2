package integration_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/mailbox"
	"slotfs/integration/netns"
	"slotfs/integration/powerloss"
	"slotfs/integration/scratch"
	"slotfs/integration/treediff"
)

// Tests run side by side, each with a cluster of its own, except those that
// measure times or count requests: without t.Parallel they run alone, and first.
func TestMain(m *testing.M) {
	scratch.Guard()
	// A failed property test prints what it did; no file in the source tree.
	if err := flag.Set("rapid.nofailfile", "true"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// fixture is a cluster in a scratch directory. At the end of its test it must
// stop cleanly, must have logged nothing that was not expected, and must leave
// nothing behind.
type fixture struct {
	*cluster.Cluster
	t        *testing.T
	scratch  *scratch.Dir
	expected []string // texts of warnings and errors that the test provokes
	atEnd    []func()
}

func newScratch(t *testing.T) *scratch.Dir {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	d, err := scratch.New("", "slotfs-it-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		found, err := d.Left()
		if err != nil || len(found) > 0 {
			t.Errorf("left behind: %q, %v", found, err)
		}
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// newDisk is a small disk of its own, mounted below dir, for the test's time.
func newDisk(t *testing.T, dir string) *powerloss.Disk {
	t.Helper()
	must(t, os.Mkdir(dir, 0o755))
	disk, err := powerloss.New(dir, 2<<30)
	must(t, err)
	t.Cleanup(func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	})
	return disk
}

// newNet is a network of namespaces, for the test's time.
func newNet(t *testing.T, d *scratch.Dir) *netns.Net {
	t.Helper()
	net, err := netns.New(d)
	must(t, err)
	t.Cleanup(func() {
		if err := net.Close(); err != nil {
			t.Error(err)
		}
	})
	return net
}

// newCluster configures nodes; the reserve is small, because the tests share
// a disk that may be nearly full, and a lost replica is dropped soon.
func newCluster(t *testing.T, nodes int, o cluster.Options) *fixture {
	t.Helper()
	return newClusterIn(t, newScratch(t), nodes, o)
}

func newClusterIn(t *testing.T, d *scratch.Dir, nodes int, o cluster.Options) *fixture {
	t.Helper()
	if !strings.Contains(o.Slot, "reserve") {
		o.Slot += "\nreserve = \"192MiB\""
	}
	if o.Replication == "" {
		o.Replication = `replica_timeout = "1s"`
	}
	f := &fixture{t: t, scratch: d}
	t.Cleanup(f.end)
	var err error
	if f.Cluster, err = cluster.New(d, nodes, o); err != nil {
		t.Fatal(err)
	}
	return f
}

// expect says which warnings the test provokes.
func (f *fixture) expect(texts ...string) { f.expected = append(f.expected, texts...) }

func (f *fixture) end() {
	if f.Cluster == nil {
		return
	}
	if err := f.Stop(); err != nil {
		f.t.Errorf("stop: %v", err)
	}
	for i := range f.atEnd {
		f.atEnd[len(f.atEnd)-1-i]()
	}
	problems, err := f.Problems(f.expected...)
	if err != nil {
		f.t.Error(err)
	}
	for i, line := range problems {
		if i == 20 {
			f.t.Errorf("and %d more unexpected lines", len(problems)-i)
			break
		}
		f.t.Errorf("unexpected in the log: %s", line)
	}
	if f.t.Failed() {
		f.showLogs()
	}
	for _, n := range f.Nodes {
		if err := n.Clear(); err != nil {
			f.t.Error(err)
		}
	}
}

func (f *fixture) showLogs() {
	keep := os.Getenv("SLOTFS_KEEP_LOGS")
	for i, n := range f.Nodes {
		text, err := n.Log()
		if err != nil {
			f.t.Error(err)
		}
		if keep != "" {
			name := fmt.Sprintf("%s-%d-%s.log", strings.ReplaceAll(f.t.Name(), "/", "_"), i, n.Name)
			if err := os.WriteFile(filepath.Join(keep, name), []byte(text), 0o644); err != nil {
				f.t.Error(err)
			}
		}
		lines := strings.SplitAfter(text, "\n")
		f.t.Logf("the end of the log of %s:\n%s", n.Name, strings.Join(lines[max(0, len(lines)-60):], ""))
	}
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seed is $SLOTFS_SEED, or a new one; either way it is printed.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if text := os.Getenv("SLOTFS_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SLOTFS_SEED: %v", err)
		}
	}
	t.Logf("SLOTFS_SEED=%d", s)
	return s
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x736c6f74)) }

// equal checks that all slots hold the same: digests and, byte by byte, the
// trees, and that each passes its own check.
func (f *fixture) equal() {
	f.t.Helper()
	var diff []string
	for range 5 {
		before := f.seq()
		if _, err := f.WaitEqual(); err != nil {
			f.t.Fatal(err)
		}
		diff = nil
		for _, n := range f.Nodes[1:] {
			r, err := treediff.Compare(f.Nodes[0].Tree(), n.Tree(), treediff.Options{})
			if err != nil {
				f.t.Fatal(err)
			}
			for _, line := range r.Diff {
				diff = append(diff, fmt.Sprintf("trees of %s and %s: %s", f.Nodes[0].Name, n.Name, line))
			}
		}
		// A mail server may have written while the trees were read.
		if len(diff) == 0 || f.seq() == before {
			break
		}
	}
	for i, line := range diff {
		if i == 10 {
			f.t.Errorf("and %d more differences", len(diff)-i)
			break
		}
		f.t.Error(line)
	}
	f.check()
}

// seq is where the longest log of the nodes that run ends.
func (f *fixture) seq() (last uint64) {
	for _, n := range f.Nodes {
		if s, err := n.Slot(); err == nil {
			last = max(last, s.Repl.Pos.Seq)
		}
	}
	return last
}

// check runs slotfs check on every node.
func (f *fixture) check() {
	f.t.Helper()
	for _, n := range f.Nodes {
		if err := n.Check(); err != nil {
			f.t.Errorf("check of %s: %v", n.Name, err)
		}
	}
	if f.t.Failed() {
		f.t.FailNow()
	}
}

// mail starts a Dovecot on a node's mount. It must have ended before the
// node, so it ends with the fixture at the latest.
func (f *fixture) mail(n *cluster.Node, name string, expected ...string) (*dovecot.Server, mailbox.Server) {
	f.t.Helper()
	s, err := dovecot.Start(f.scratch, name, n.Mount, dovecot.Options{})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			f.t.Error(err)
		}
		problems, err := s.Problems(expected...)
		if err != nil {
			f.t.Error(err)
		}
		for _, line := range problems {
			f.t.Errorf("unexpected in the log of Dovecot: %s", line)
		}
	})
	return s, mailbox.Server{LMTP: s.LMTP, IMAP: s.IMAP, Password: "secret"}
}

// corpus is where real messages are, if they are.
const corpus = "../../shared/corpus/messages.tar.zst"
