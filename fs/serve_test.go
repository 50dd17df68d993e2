package fs_test

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/fs"
)

// TestOthersGoOn: requests that wait, for whatever reason, hold up no others,
// however many there are.
func TestOthersGoOn(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/f", "x")
	answer := w.stalled()
	var waiting sync.WaitGroup
	const many = 40
	for i := range many {
		waiting.Go(func() {
			f, err := os.OpenFile(w.path("u/f"), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte("y"), int64(i)); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if err := f.Sync(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	// Volatile files need no log: they go on while the others wait.
	for i := range 100 {
		w.write(fmt.Sprintf("u/tmp/%d", i), "z")
		if _, err := os.Stat(w.path(fmt.Sprintf("u/tmp/%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() { waiting.Wait(); close(done) }()
	for {
		answer()
		select {
		case <-done:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// TestLongRequests: requests and answers longer than what is at hand for most.
func TestLongRequests(t *testing.T) {
	w := newWorld(t)
	data := make([]byte, 3<<20+12345)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	w.must(os.WriteFile(w.path("big"), data, 0o600))
	fd, err := unix.Open(w.path("big"), unix.O_RDONLY|unix.O_DIRECT, 0)
	w.must(err)
	defer unix.Close(fd)
	got := make([]byte, 0, len(data))
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Pread(fd, buf, int64(len(got)))
		w.must(err)
		if n == 0 {
			break
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != string(data) {
		t.Fatal("content differs")
	}
	var names []string
	for i := range 2000 {
		names = append(names, fmt.Sprintf("%0200d", i))
		w.must(os.WriteFile(w.path(names[i]), nil, 0o600))
	}
	list, err := os.ReadDir(w.mnt)
	w.must(err)
	if len(list) != len(names)+1 {
		t.Fatalf("%d names listed, %d there", len(list), len(names)+1)
	}
}

// TestPollDeclined: the mount answers the kernel's question about poll once, so
// that who waits for its files with the poller that waits for requests is not
// held up.
func TestPollDeclined(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	var asked atomic.Bool
	w.fs.SetHooks(fs.Hooks{Request: func(op string) {
		if op == "OP40" { // POLL
			asked.Store(true)
		}
	}})
	f, err := os.Open(w.path("f"))
	w.must(err)
	defer f.Close()
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}, 0)
	w.must(err)
	if asked.Load() {
		t.Error("the kernel asked again")
	}
}
