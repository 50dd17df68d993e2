package fs

import (
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// aside runs f on a thread of its own that shares no file descriptors with the
// rest of the process, and has none of /dev/fuse.
//
// A call into our own mount waits for this very process. If it is killed just
// then, the kernel lets the call wait for its answer even in a dying thread, and
// the answer can only be given up once the last descriptor of /dev/fuse is
// closed: with a common table that is when the last thread has ended, which is
// the one that waits. The process would stay for ever, and with it the lock on
// the data directory.
func aside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread never ends, and /proc/self means its
			// table. While it is held here, the next goroutine gets another one.
			done <- aside(f)
			runtime.UnlockOSThread()
			return
		}
		// Never unlocked: the thread ends with this goroutine.
		if err := unix.Unshare(unix.CLONE_FILES); err != nil {
			done <- fmt.Errorf("unshare file descriptors: %w", err)
			return
		}
		if err := forgetFuse(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// forgetFuse closes the descriptors of /dev/fuse in this thread's table.
func forgetFuse() error { return eachFuse("/proc/thread-self/fd", unix.Close) }

// eachFuse calls do for each descriptor of /dev/fuse in a table.
func eachFuse(table string, do func(fd int) error) error {
	dir, err := unix.Open(table, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	defer unix.Close(dir)
	var names []string
	for buf := make([]byte, 8192); ; {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil {
			return fmt.Errorf("list descriptors: %w", err)
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	link := make([]byte, 16)
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if n, err := unix.Readlinkat(dir, name, link); err != nil || string(link[:n]) != "/dev/fuse" {
			continue // also those that are gone by now
		}
		if err := do(fd); err != nil {
			return fmt.Errorf("descriptor %d of /dev/fuse: %w", fd, err)
		}
	}
	return nil
}
