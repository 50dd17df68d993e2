package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/loop"
	"slotfs/integration/workload"
)

// TestDiskFull fills the disk of a slot, once by mail and once by somebody
// else: the caller gets ENOSPC, nothing is lost, and everything goes on when
// there is space again.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d := newScratch(t)
	img, disk := filepath.Join(d.Path, "image"), filepath.Join(d.Path, "disk")
	must(t, errors.Join(loop.Mkfs(img, 1600<<20), os.Mkdir(disk, 0o755)))
	dev, err := loop.Attach(img)
	must(t, err)
	must(t, loop.Mount(dev, disk))
	t.Cleanup(func() {
		if err := errors.Join(loop.Unmount(disk), loop.Detach(dev)); err != nil {
			t.Error(err)
		}
	})
	f := newClusterIn(t, d, 1, cluster.Options{
		// The reserve is what checkpoints need, so that what was removed is freed.
		Slot: "log_max = \"256MiB\"\nreserve = \"256MiB\"",
		Data: func(int) string { return filepath.Join(disk, "data") },
	})
	f.expect("space", "full")
	must(t, f.StartPair())
	n := f.Nodes[0]
	w := workload.New("before", 1)
	stop := make(chan struct{})
	go func() {
		for w.Done() < 200 {
			time.Sleep(time.Millisecond)
		}
		close(stop)
	}()
	must(t, w.Run(n.Mount, stop))

	full := func(fill func(i int) error) {
		t.Helper()
		for i := range 10_000 {
			if err := fill(i); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("full disk: %v; want ENOSPC", err)
				}
				return
			}
		}
		t.Fatal("the disk is never full")
	}
	data := make([]byte, 4<<20)
	full(func(i int) error {
		return deliver(n.Mount, "filler", map[string][]byte{fmt.Sprint(i): data})
	})
	if _, err := w.Verify(n.Mount, workload.Answered); err != nil {
		t.Error(err)
	}
	// Removing mail needs no space.
	must(t, os.RemoveAll(filepath.Join(n.Mount, "filler")))
	tries := 0
	must(t, f.Wait("space to return", func() error {
		tries++
		return deliver(n.Mount, "again", map[string][]byte{fmt.Sprint(tries): data})
	}))
	must(t, os.RemoveAll(filepath.Join(n.Mount, "again")))

	// Somebody else fills the disk to the last byte, while mail comes in.
	ballast := filepath.Join(disk, "ballast")
	fill := func() {
		b, err := os.Create(ballast)
		must(t, err)
		full(func(int) error { _, err := b.Write(data); return err })
		full(func(int) error { _, err := b.Write(make([]byte, 4096)); return err })
		must(t, b.Close())
	}
	fill()
	full(func(i int) error {
		return deliver(n.Mount, "late", map[string][]byte{fmt.Sprint(i): data[:10_000]})
	})
	if _, err := w.Verify(n.Mount, workload.Answered); err != nil {
		t.Error(err)
	}
	must(t, os.Remove(ballast))
	must(t, f.Wait("space to return", func() error {
		tries++
		return deliver(n.Mount, "late", map[string][]byte{fmt.Sprint("again", tries): data})
	}))
	f.check()
	// And a restart finds everything.
	must(t, n.Stop())
	must(t, n.Start())
	must(t, n.WaitMounted())
	if _, err := w.Verify(n.Mount, workload.Answered); err != nil {
		t.Error(err)
	}
	f.check()

	// Nor does a start need more than slotfs has put aside. If even that is gone,
	// it is refused in words.
	must(t, n.Stop())
	fill()
	must(t, n.Start())
	must(t, n.WaitMounted())
	if _, err := w.Verify(n.Mount, workload.Answered); err != nil {
		t.Error(err)
	}
	must(t, n.Stop())
	fill()
	err = n.Start()
	var exit *cluster.ExitError
	if !errors.As(err, &exit) || exit.Code != 4 || !strings.Contains(err.Error(), "make room on this file system") {
		t.Errorf("start with a full disk: %v", err)
	}
	must(t, os.Remove(ballast))
	must(t, n.Start())
	must(t, n.WaitMounted())
	if _, err := w.Verify(n.Mount, workload.Answered); err != nil {
		t.Error(err)
	}
	f.check()
}
