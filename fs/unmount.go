package fs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Holder is a process that uses the mount.
type Holder struct {
	PID  int    `json:"pid"`
	Name string `json:"name"` // of its program
	What string `json:"what"` // "cwd", "fd 5 …", "map …"
}

// HeldError says that the mount was in use and has been detached all the same:
// its files give ENOTCONN now, but what the holders have mapped or cached stays
// readable for them.
type HeldError struct {
	Dir     string
	Holders []Holder
}

func (e *HeldError) Error() string {
	var list []string
	for _, h := range e.Holders {
		list = append(list, fmt.Sprintf("%s[%d] %s", h.Name, h.PID, h.What))
	}
	return fmt.Sprintf("%s was in use and has been detached: held by %s", e.Dir, strings.Join(list, ", "))
}

// Unmount ends the mount: gracefully until ctx ends, as soon as nobody uses it
// any more; then by detaching it and aborting what is under way. It returns a
// *HeldError if it came to that. The slot goes on.
func (f *FS) Unmount(ctx context.Context) error {
	f.telling.Lock()
	f.ended = true
	f.telling.Unlock()
	err := f.unmountUntil(ctx)
	var held *HeldError
	if err != nil {
		held = &HeldError{Dir: f.mount, Holders: f.Holders()}
		f.cancel(errUnmounting) // let go of whoever waits
		f.detachMount()
	}
	<-f.dev.ended
	f.slot.Keep(nil)
	f.cancel(errUnmounting)
	f.wg.Wait()
	f.drop()
	if held != nil {
		return held
	}
	return nil
}

// unmountUntil tries an ordinary unmount, again and again: the kernel does not
// tell when a mount becomes free.
func (f *FS) unmountUntil(ctx context.Context) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Unmount(f.mount, 0)
		if errors.Is(err, unix.EPERM) {
			err = fusermount(f.mount, "-u")
		}
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not mounted any more
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}

// detachMount takes the mount out of sight and ends all requests on it: what is
// forced (umount(2), MNT_FORCE) is the end of the connection.
func (f *FS) detachMount() {
	err := unix.Unmount(f.mount, unix.MNT_FORCE|unix.MNT_DETACH)
	if errors.Is(err, unix.EPERM) {
		err = fusermount(f.mount, "-uz")
	}
	if err != nil && !errors.Is(err, unix.EINVAL) {
		f.log.Error("mount not detached", keyErr, err)
	}
}

// device is the mount's major:minor, "" if it is not mounted.
func (f *FS) device() string {
	dev := ""
	err := eachMount(f.mount, func(m mountLine) {
		if strings.HasPrefix(m.kind, "fuse") {
			dev = m.dev
		}
	})
	if err != nil {
		f.log.Warn("mounts cannot be listed", keyErr, err)
	}
	return dev
}

// drop frees what files outside the heap there are.
func (f *FS) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if n.vol != nil {
			n.vol.release()
			n.vol = nil
		}
		if n.base != nil {
			n.base.release()
			n.base = nil
		}
	}
}

// Wait returns when the mount has ended, whoever ended it.
func (f *FS) Wait() { <-f.dev.ended }

// Holders lists the processes that use the mount. It reads links and maps
// only: to look at the files would send requests to the mount itself.
func (f *FS) Holders() []Holder {
	var list []Holder
	dev := f.device()
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		what := f.heldBy(proc, dev)
		if what == "" {
			continue
		}
		name, _ := os.ReadFile(proc + "/comm")
		list = append(list, Holder{pid, strings.TrimSpace(string(name)), what})
	}
	return list
}

// heldBy says how one process uses the mount; "" if it does not.
func (f *FS) heldBy(proc, dev string) string {
	for _, link := range []string{"cwd", "root", "exe"} {
		if to, err := os.Readlink(proc + "/" + link); err == nil && f.inside(to) {
			return link
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		if to, err := os.Readlink(proc + "/fd/" + fd.Name()); err == nil && f.inside(to) {
			return "fd " + fd.Name() + " " + to
		}
	}
	major, minor, ok := strings.Cut(dev, ":")
	if !ok {
		return ""
	}
	maps, _ := os.ReadFile(proc + "/maps")
	mj, _ := strconv.Atoi(major)
	mn, _ := strconv.Atoi(minor)
	want := fmt.Sprintf(" %02x:%02x ", mj, mn)
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, want) {
			fields := strings.Fields(line)
			return "map " + fields[len(fields)-1]
		}
	}
	return ""
}

func (f *FS) inside(path string) bool {
	return path == f.mount || strings.HasPrefix(path, f.mount+"/")
}

// fusermount is for those who may not unmount by themselves.
func fusermount(dir, flag string) error {
	for _, name := range []string{"fusermount3", "fusermount"} {
		if bin, err := exec.LookPath(name); err == nil {
			if out, err := exec.Command(bin, flag, dir).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
			}
			return nil
		}
	}
	return exec.ErrNotFound
}
