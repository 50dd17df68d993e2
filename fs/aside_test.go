package fs_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/fs"
)

// deadly kills its process while a lookup waits for the answer.
type deadly struct{ fuse.RawFileSystem }

func (deadly) Lookup(<-chan struct{}, *fuse.InHeader, string, *fuse.EntryOut) fuse.Status {
	unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// helperDeadly mounts a deadly file system and looks a name up in it, aside.
func helperDeadly(args []string) error {
	server, err := fuse.NewServer(deadly{fuse.NewDefaultRawFileSystem()}, args[0], &fuse.MountOptions{DirectMountStrict: true})
	if err != nil {
		return err
	}
	go server.Serve()
	return fs.Aside(func() error {
		if err := server.WaitMount(); err != nil {
			return err
		}
		var st unix.Stat_t
		return unix.Stat(filepath.Join(args[0], "name"), &st)
	})
}

// A process that is killed while it waits for itself ends.
func TestKilledWhileWaitingForItself(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, dir)
	cmd.Env = append(os.Environ(), "SLOTFS_TEST_HELPER=deadly")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if state := cmd.ProcessState.Sys().(syscall.WaitStatus); !state.Signaled() || state.Signal() != unix.SIGKILL {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still there long after SIGKILL")
		abort(t, dir)
		<-ended
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

// What a process that serves a mount starts does not inherit it: a mail server
// that a hook has started must not keep a killed daemon's mount alive.
func TestDeviceIsNotInherited(t *testing.T) {
	newWorld(t)
	out, err := exec.Command("ls", "-l", "/proc/self/fd").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("a child has /dev/fuse:\n%s", out)
	}
}

// abort ends the connection of the file system mounted at dir: fuse(4).
func abort(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	const control = "/sys/fs/fuse/connections"
	unix.Mount("none", control, "fusectl", 0, "") // it may be there already
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != dir {
			continue
		}
		_, minor, _ := strings.Cut(fields[2], ":")
		if err := os.WriteFile(fmt.Sprintf("%s/%s/abort", control, minor), []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// The process's first thread is never the one that is given up.
func TestAsideSparesFirstThread(t *testing.T) {
	for range 2000 {
		if err := fs.Aside(func() error {
			if unix.Gettid() == unix.Getpid() {
				return fmt.Errorf("on the first thread")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
