// Package scratch gives a test or a demonstration a directory of its own in
// which it may start processes, mount file systems, attach loop devices and
// listen on addresses of its own, and promises that nothing of that outlives it: not after a failed test, a
// panic, a time-out of "go test", or a kill -9 of the program itself.
//
// The promise is kept by a guard: the program starts itself once more as a
// process that does nothing but wait for the end of a pipe. When the pipe
// ends without a word, its owner has died, and the guard sweeps. A program
// that uses this package calls [Guard] before anything else.
//
// What was started is found again as follows. Processes: each is the leader
// of a process group of its own, noted under .procs with its start time, so
// that a number that was given out again is never killed. Mounts: the mount
// table, everything below the directory. Loop devices: their backing files.
// Addresses ([loopback]) end with their owner.
package scratch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"slotfs/integration/loopback"
)

// guardEnv carries the directory to the guard process.
const guardEnv = "SLOTFS_SCRATCH_GUARD"

// procs is where started processes are noted, below the directory.
const procs = ".procs"

// Dir is a scratch directory.
type Dir struct {
	Path string

	guard *exec.Cmd
	pipe  io.WriteCloser

	mu    sync.Mutex
	hosts []*loopback.Host // guarded by mu
}

// New makes a directory below parent (the system's temporary directory when
// empty) that other users may pass through, and starts its guard.
func New(parent, pattern string) (*Dir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	path, err := os.MkdirTemp(parent, pattern)
	if err != nil {
		return nil, err
	}
	return Use(path)
}

// Use is New for a directory that the caller has made.
func Use(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o755); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(path, procs), 0o755); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	d := &Dir{Path: path, guard: exec.Command(self)}
	d.guard.Env = append(os.Environ(), guardEnv+"="+path)
	d.guard.Dir = "/"
	d.guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if d.pipe, err = d.guard.StdinPipe(); err != nil {
		return nil, err
	}
	if err := d.guard.Start(); err != nil {
		return nil, fmt.Errorf("start the guard of %s: %w", path, err)
	}
	return d, nil
}

// Guard does the guard's work and ends the process, if this process was
// started as one; otherwise it returns at once.
func Guard() {
	path := os.Getenv(guardEnv)
	if path == "" {
		return
	}
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if word, _ := io.ReadAll(os.Stdin); len(word) > 0 {
		os.Exit(0)
	}
	if err := Sweep(path); err != nil {
		fmt.Fprintf(os.Stderr, "sweep %s: %v\n", path, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Start starts cmd as the leader of a new process group and notes it.
func (d *Dir) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return err
	}
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		return nil // it ended already: nothing to find again
	}
	note := filepath.Join(d.Path, procs, strconv.Itoa(cmd.Process.Pid))
	return os.WriteFile(note, []byte(strconv.FormatUint(start, 10)), 0o644)
}

// Loopback reserves one more address, until the directory is removed or
// released.
func (d *Dir) Loopback() (*loopback.Host, error) {
	h, err := loopback.Take()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts = append(d.hosts, h)
	return h, nil
}

// Kill ends the process group that cmd leads with SIGKILL, whether or not its
// leader still lives, and waits until nothing of it is left.
func (d *Dir) Kill(pid int) error { return killGroup(d.Path, pid) }

// Notes is the directory in which the started processes are noted: a file
// named by the number of the leader of a process group, which holds its start
// time, field 22 of /proc/PID/stat. Who starts a process by other means than
// Start notes it there.
func (d *Dir) Notes() string { return filepath.Join(d.Path, procs) }

// Left names what still runs, is mounted or is attached below the directory:
// what the owner has forgotten to end.
func (d *Dir) Left() ([]string, error) { return left(d.Path) }

// Remove ends everything in the directory, removes it and lets the guard go.
func (d *Dir) Remove() error {
	err := Sweep(d.Path)
	return errors.Join(err, d.Release())
}

// Release lets the guard go and leaves everything as it is; somebody else
// will call Sweep.
func (d *Dir) Release() error {
	if d.pipe == nil {
		return nil
	}
	_, err := io.WriteString(d.pipe, "released")
	err = errors.Join(err, d.pipe.Close(), d.guard.Wait())
	d.pipe = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.hosts {
		err = errors.Join(err, h.Close())
	}
	d.hosts = nil
	return err
}
