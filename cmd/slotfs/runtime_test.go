package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestRelaxTimers: every thread that runs when a node starts, Go's monitor among
// them, may be woken late.
func TestRelaxTimers(t *testing.T) {
	before, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if err := relaxTimers(); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, d := range before {
		b, err := os.ReadFile("/proc/" + d.Name() + "/timerslack_ns")
		if err != nil {
			continue // the thread has ended
		}
		seen++
		if ns, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || ns != timerSlack.Nanoseconds() {
			t.Errorf("thread %s: slack %q", d.Name(), b)
		}
	}
	if seen < 2 {
		t.Errorf("%d threads seen; the runtime has at least two", seen)
	}
}
