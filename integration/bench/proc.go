package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat: USER_HZ, 100 on every Linux
// that Go runs on.
const tick = 10 * time.Millisecond

// cpuTime sums the CPU time of the processes with the given ids, of all their
// living descendants, and of those of their children that have ended and were
// waited for. What the kernel does in threads of its own (writeback, the ext4
// journal) belongs to nobody and is not counted, on any target alike.
func cpuTime(roots []int) time.Duration {
	type process struct {
		parent int
		time   time.Duration
	}
	procs := map[int]process{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		parent, t, err := processStat(pid)
		if err == nil { // it may have ended meanwhile
			procs[pid] = process{parent, t}
		}
	}
	root := map[int]bool{}
	for _, pid := range roots {
		root[pid] = true
	}
	var sum time.Duration
	for pid, p := range procs {
		for at := pid; at > 1; at = procs[at].parent {
			if root[at] {
				sum += p.time
				break
			}
		}
	}
	return sum
}

// processStat reads the parent and the CPU time of a process: proc(5), fields
// 4 and 14 to 17, counted after the name, which may hold spaces.
func processStat(pid int) (parent int, t time.Duration, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 15 {
		return 0, 0, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	if parent, err = strconv.Atoi(f[1]); err != nil {
		return 0, 0, err
	}
	for _, v := range f[11:15] {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return 0, 0, err
		}
		t += time.Duration(n) * tick
	}
	return parent, t, nil
}

// switches is how often the threads of a process have given up a processor, or
// lost it.
func switches(pid int) (n int64) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(b)) {
			if name, v, ok := strings.Cut(line, ":"); ok && strings.HasSuffix(name, "ctxt_switches") {
				k, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
				n += k
			}
		}
	}
	return n
}

// quiet waits until the processes have nothing left to do (an applier or a
// replica that catches up would disturb the next target), and says how long
// that took.
func quiet(roots []int, limit time.Duration) time.Duration {
	const step = 200 * time.Millisecond
	start := time.Now()
	before := cpuTime(roots)
	for time.Since(start) < limit {
		time.Sleep(step)
		now := cpuTime(roots)
		if now-before <= step/20 { // 5 % of one processor
			return max(0, time.Since(start)-step)
		}
		before = now
	}
	return time.Since(start)
}
