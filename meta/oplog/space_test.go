package oplog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mount mounts a file system of its own for the test.
func mount(t *testing.T, fstype, source, data string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount(source, dir, fstype, 0, data); err != nil {
		t.Skipf("mount %s: %v", fstype, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill appends until there is no space, and returns the last seq committed.
func fill(t *testing.T, l *Log, n int) uint64 {
	t.Helper()
	for range 10_000 {
		err := l.Reserve(bg, n)
		if errors.Is(err, ErrNoSpace) {
			return l.Committed.Get()
		}
		if err != nil {
			t.Fatal(err)
		}
		e := add(t, l, write(n))
		if err := l.Barrier(bg, e.Seq); err != nil {
			t.Fatal(err)
		}
		l.SetApplied(e.Seq)
	}
	t.Fatal("never full")
	return 0
}

// TestDiskFull: a full disk refuses what is new, and loses nothing.
func TestDiskFull(t *testing.T) {
	top := mount(t, "tmpfs", "slotfs-test", "size=40m")
	dir := filepath.Join(top, "oplog")
	ballast := filepath.Join(top, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	o := Options{SegmentSize: 8 << 20, Logger: discard}
	l := primary(t, dir, o)
	end := fill(t, l, 100_000)
	if l.Err() != nil || end != l.Last().Seq || end < 200 {
		t.Fatalf("full at %d: %v", end, l.Err())
	}
	// Small changes, an expunge say, still find room for a while.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	soon(t, "space is found again", func() bool { return l.Reserve(bg, 100_000) == nil })
	end2 := fill(t, l, 100_000)
	if end2 <= end {
		t.Fatalf("full at %d, %d before", end2, end)
	}
	// Trimming makes room, too.
	if err := l.Trim(end2); err != nil {
		t.Fatal(err)
	}
	soon(t, "space is found after trimming", func() bool { return l.Reserve(bg, 100_000) == nil })
	fill(t, l, 100_000)
	last := l.Last()
	// A full disk does not keep the log from opening.
	l.Fail(errors.New("crash"))
	l.Close()
	l = open(t, dir, o)
	if l.Last() != last {
		t.Fatalf("%v, want %v", l.Last(), last)
	}
	l.SetApplied(last.Seq)
	if err := l.Trim(last.Seq); err != nil {
		t.Fatal(err)
	}
	l.Lead(2, nil)
	soon(t, "space after the new start", func() bool { return l.Reserve(bg, 100_000) == nil })
}

// TestFullWhileFlushing: what was appended without room waits for it in memory.
func TestFullWhileFlushing(t *testing.T) {
	fs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
	l := primary(t, t.TempDir(), Options{SegmentSize: 64 << 10, fs: fs, Logger: discard})
	durable(t, l)
	soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
	fs.mu.Lock()
	fs.space = fs.used()
	fs.mu.Unlock()
	for range 10 {
		add(t, l, write(30_000))
	}
	last := l.Appended.Get()
	c := blocked(t, func() error { return l.Barrier(bg, last) })
	if err := l.Seal(0); err != nil {
		t.Error(err)
	}
	if err := l.Reserve(bg, 1); !errors.Is(err, ErrNoSpace) {
		t.Errorf("reserve: %v", err)
	}
	if l.Err() != nil {
		t.Fatal(l.Err())
	}
	fs.mu.Lock()
	fs.space = 1 << 40
	fs.mu.Unlock()
	got(t, c, nil)
}

// TestCloseWhileFull: Close does not hang, and says that something is missing.
func TestCloseWhileFull(t *testing.T) {
	fs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
	l := primary(t, t.TempDir(), Options{SegmentSize: 64 << 10, fs: fs, Logger: discard})
	durable(t, l)
	soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
	fs.mu.Lock()
	fs.space = fs.used()
	fs.mu.Unlock()
	for range 10 {
		add(t, l, write(30_000))
	}
	l.Flush(l.Appended.Get())
	if err := l.Close(); !errors.Is(err, ErrNoSpace) {
		t.Error(err)
	}
}

// TestNoJournalCommit counts the commits of ext4's journal: a barrier must not
// need one.
func TestNoJournalCommit(t *testing.T) {
	if testing.Short() {
		t.Skip("makes a file system")
	}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 256<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v %s", err, out)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("losetup: %v", err)
	}
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v %s", err, out)
		}
	})
	dir := mount(t, "ext4", loop, "")
	commits := func() int {
		b, err := os.ReadFile(fmt.Sprintf("/proc/fs/jbd2/%s-8/info", filepath.Base(loop)))
		if err != nil {
			t.Skip(err)
		}
		m := regexp.MustCompile(`^(\d+) transactions`).FindSubmatch(b)
		if m == nil {
			t.Skipf("%s", b)
		}
		n, _ := strconv.Atoi(string(m[1]))
		return n
	}
	l := primary(t, dir, Options{})
	durable(t, l)
	soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
	const barriers = 100 // fit into the first segment
	start, before := time.Now(), commits()
	for range barriers {
		e := add(t, l, write(3000))
		if err := l.Barrier(context.Background(), e.Seq); err != nil {
			t.Fatal(err)
		}
	}
	// The journal commits by itself every five seconds.
	allowed := 2 + int(time.Since(start)/(5*time.Second))
	if n := commits() - before; n > allowed {
		t.Errorf("%d journal commits for %d barriers", n, barriers)
	}
}
