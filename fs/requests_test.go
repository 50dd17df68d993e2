package fs_test

import (
	"bytes"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRequests counts the requests that the steps of a mail server's work cost.
// The numbers depend on the kernel, not on the machine: more than here means
// that something the kernel was to remember is asked for again.
func TestRequests(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	const n = 50
	// Filled: the kernel cuts a write where it finds a page of the caller's that
	// is not in memory yet.
	piece := bytes.Repeat([]byte("x"), 5000)
	deliver := func(i int) {
		fd, err := unix.Open(w.path(fmt.Sprintf("u/tmp/%d", i)), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o600)
		w.must(err)
		for range 4 {
			_, err := unix.Write(fd, piece)
			w.must(err)
		}
		w.must(unix.Fsync(fd))
		w.must(unix.Close(fd))
		w.must(unix.Rename(w.path(fmt.Sprintf("u/tmp/%d", i)), w.path(fmt.Sprintf("u/new/%d", i))))
		dir, err := unix.Open(w.path("u/new"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		w.must(err)
		w.must(unix.Fsync(dir))
		w.must(unix.Close(dir))
	}
	read := func(path string) {
		b, err := os.ReadFile(w.path(path))
		w.must(err)
		if len(b) != 20000 {
			t.Fatalf("%s: %d bytes", path, len(b))
		}
	}
	deliver(1000) // what is asked once for a mount is behind us
	read("u/new/1000")
	steps := []struct {
		what string
		do   func(i int)
		max  float64 // requests for each
	}{
		{"deliver", deliver, 17.1}, // the kernel splits three of the four writes at a page
		{"first scan: list and move to cur", func(i int) {
			if i == 0 {
				_, err := os.ReadDir(w.path("u/new"))
				w.must(err)
			}
			w.must(unix.Rename(w.path(fmt.Sprintf("u/new/%d", i)), w.path(fmt.Sprintf("u/cur/%d:2,", i))))
		}, 4.1},
		{"list", func(i int) {
			_, err := os.ReadDir(w.path("u/cur"))
			w.must(err)
		}, 0.5},
		{"stat", func(i int) { stat(t, w.path(fmt.Sprintf("u/cur/%d:2,", i))) }, 1},
		{"stat again", func(i int) { stat(t, w.path(fmt.Sprintf("u/cur/%d:2,", i))) }, 0},
		{"read", func(i int) { read(fmt.Sprintf("u/cur/%d:2,", i)) }, 4.1}, // of the pages that were written in two pieces
		{"read again", func(i int) { read(fmt.Sprintf("u/cur/%d:2,", i)) }, 1},
		{"flag", func(i int) {
			w.must(unix.Rename(w.path(fmt.Sprintf("u/cur/%d:2,", i)), w.path(fmt.Sprintf("u/cur/%d:2,S", i))))
		}, 3},
		{"expunge", func(i int) { w.must(unix.Unlink(w.path(fmt.Sprintf("u/cur/%d:2,S", i)))) }, 3},
	}
	for _, s := range steps {
		before := w.fs.Stats()
		for i := range n {
			s.do(i)
		}
		var sum float64
		var list []string
		for name, k := range w.fs.Stats() {
			if d := float64(k-before[name]) / n; d > 0 {
				sum += d
				list = append(list, fmt.Sprintf("%s %.2g", name, d))
			}
		}
		sort.Strings(list)
		t.Logf("%-34s %5.2f: %s", s.what, sum, strings.Join(list, ", "))
		if sum > s.max {
			t.Errorf("%s takes %.2f requests, want at most %.2f", s.what, sum, s.max)
		}
	}
}
