package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// deliver publishes messages in a Maildir on a mount, as a mail server would.
func deliver(mount, user string, messages map[string][]byte) error {
	for _, dir := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(mount, user, dir), 0o700); err != nil {
			return err
		}
	}
	for name, data := range messages {
		tmp := filepath.Join(mount, user, "tmp", name)
		f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(data)
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
		if err := os.Rename(tmp, filepath.Join(mount, user, "cur", name+":2,")); err != nil {
			return err
		}
	}
	return nil
}

// flip changes one byte of a file beneath slotfs, times unchanged, and drops
// all caches.
func flip(t *testing.T, name string, at int64) {
	t.Helper()
	info, err := os.Stat(name)
	must(t, err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	must(t, err)
	b[0] ^= 0x20
	_, err = f.WriteAt(b, at)
	must(t, err)
	must(t, f.Sync())
	must(t, os.Chtimes(name, time.Time{}, info.ModTime()))
	must(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// TestRottenByte flips one byte of a message in the primary's tree. A reader
// gets the right bytes, fetched from the replica, and everybody is told. With
// the replica down, the reader gets an error, never wrong bytes.
func TestRottenByte(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("damaged content", "checksum of block")
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	messages := map[string][]byte{}
	for i, size := range []int{100, 20_000, 3 << 20} {
		for _, kind := range []string{"repaired", "lost"} {
			messages[fmt.Sprint(kind, i)] = bytes.Repeat(fmt.Appendf(nil, "%s %d ", kind, i), size/10)
		}
	}
	must(t, deliver(n1.Mount, "ann", messages))
	f.equal()

	for name, data := range messages {
		if !strings.HasPrefix(name, "repaired") {
			continue
		}
		rel := filepath.Join("ann", "cur", name+":2,")
		flip(t, filepath.Join(n1.Tree(), rel), int64(len(data)/2))
		got, err := os.ReadFile(filepath.Join(n1.Mount, rel))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, equal: %t, %v", name, len(got), bytes.Equal(got, data), err)
		}
		f.toldOf(n1, rel)
	}
	repaired := f.counter(n1, "repair")
	if repaired < 3 {
		t.Errorf("metrics count %v repairs, want 3", repaired)
	}
	f.equal() // the damaged copies were replaced

	must(t, n2.Stop())
	for name, data := range messages {
		if !strings.HasPrefix(name, "lost") {
			continue
		}
		rel := filepath.Join("ann", "cur", name+":2,")
		flip(t, filepath.Join(n1.Tree(), rel), int64(len(data)/2))
		got, err := os.ReadFile(filepath.Join(n1.Mount, rel))
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s without a good copy: %d bytes, equal: %t, %v; want EIO", name, len(got), bytes.Equal(got, data), err)
		}
		f.toldOf(n1, rel)
	}
	// When the replica is back, so is the mail.
	must(t, n2.Start())
	must(t, f.WaitInSync())
	for name, data := range messages {
		got, err := os.ReadFile(filepath.Join(n1.Mount, "ann", "cur", name+":2,"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s with the replica back: %d bytes, %v", name, len(got), err)
		}
	}
	f.equal()
}

// toldOf checks that damage to a path is in the status and in the log.
func (f *fixture) toldOf(n *cluster.Node, path string) {
	f.t.Helper()
	s, err := n.Slot()
	must(f.t, err)
	inStatus := false
	for _, finding := range s.Findings {
		inStatus = inStatus || strings.Contains(finding.Path+finding.Text, path)
	}
	if !inStatus {
		f.t.Errorf("status says nothing of %s: %+v", path, s.Findings)
	}
	log, err := n.Log()
	must(f.t, err)
	if !strings.Contains(log, path) {
		f.t.Errorf("the log says nothing of %s", path)
	}
}

// counter sums the metrics whose name, labels included, contains a word.
func (f *fixture) counter(n *cluster.Node, word string) (sum float64) {
	f.t.Helper()
	metrics, err := n.Metrics()
	must(f.t, err)
	for name, v := range metrics {
		if strings.Contains(name, word) {
			sum += v
		}
	}
	return sum
}
