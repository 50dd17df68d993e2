package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// timerSlack is how much later than asked for the kernel may end a thread's sleep.
const timerSlack = time.Millisecond

// useProcessors has Go code run on half of the processors at a time, unless the
// environment's GOMAXPROCS says otherwise. The mail server runs on the others. On
// more processors Go spends more time on finding work for idle threads, and on
// waking them, than it gains: on two processors a third of all thread switches,
// and a sixth of the CPU time of a flag change.
func useProcessors() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	}
}

// relaxTimers lets the kernel end the sleeps of this process late. Go's monitor
// thread asks for 20 µs after every change from idle to busy, some thousand times a
// second under load: a tenth of a node's CPU time, and a quarter of its thread
// switches. It looks for threads that block in system calls; the one call that
// regularly does is the log's, which lets go of its processor by itself. Nothing
// else here sleeps less than milliseconds.
//
// The monitor runs already, so this goes by the threads that there are. Later ones
// take it from whoever starts them.
func relaxTimers() error {
	tids, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return fmt.Errorf("timer slack: %w", err)
	}
	for _, t := range tids {
		path := "/proc/" + t.Name() + "/timerslack_ns"
		err := os.WriteFile(path, strconv.AppendInt(nil, timerSlack.Nanoseconds(), 10), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ESRCH) { // that thread has ended
			return fmt.Errorf("timer slack: %w", err)
		}
	}
	return nil
}
