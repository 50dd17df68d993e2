package scratch

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// endWait is how long killed processes may take to be gone.
const endWait = 20 * time.Second

// Sweep kills what was started in a scratch directory, unmounts and detaches
// what is below it, and removes it. It may be called for a directory that is
// gone already.
func Sweep(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	pids, err := noted(path)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		signalGroup(path, pid)
	}
	// Only an aborted connection lets go of processes that wait for a FUSE
	// daemon which has just been killed or which is this process.
	mounts, err := mountsBelow(path)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		m.abort()
	}
	var errs []error
	for _, pid := range pids {
		errs = append(errs, killGroup(path, pid))
	}
	errs = append(errs, unmountBelow(path), detachLoops(path))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := clearImmutable(path); err != nil {
		return err
	}
	return os.RemoveAll(path)
}

func left(path string) ([]string, error) {
	var found []string
	pids, err := noted(path)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		for _, member := range group(path, pid) {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", member))
			found = append(found, fmt.Sprintf("process %d (%s)", member, strings.TrimSpace(string(comm))))
		}
	}
	mounts, err := mountsBelow(path)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		found = append(found, "mount "+m.point)
	}
	for dev, file := range loopsBelow(path) {
		found = append(found, "loop device "+dev+" of "+file)
	}
	return found, nil
}

func noted(path string) ([]int, error) {
	names, err := os.ReadDir(filepath.Join(path, procs))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// stat reads the process group and the start time (clock ticks since boot).
func stat(pid int) (pgrp int, start uint64, zombie bool, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false, err
	}
	// The second field is the name in parentheses and may hold anything.
	rest := string(text[strings.LastIndexByte(string(text), ')')+1:])
	f := strings.Fields(rest)
	if len(f) < 20 {
		return 0, 0, false, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(f))
	}
	pgrp, _ = strconv.Atoi(f[2])
	start, _ = strconv.ParseUint(f[19], 10, 64)
	return pgrp, start, f[0] == "Z", nil
}

func startTime(pid int) (uint64, error) {
	_, start, _, err := stat(pid)
	return start, err
}

// group lists the live members of the process group that pid was noted as
// leader of. A process that got the number later has another start time, and
// its group is not ours; a number cannot be given out while the group lives.
func group(path string, pid int) []int {
	text, err := os.ReadFile(filepath.Join(path, procs, strconv.Itoa(pid)))
	if err != nil {
		return nil
	}
	noted, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return nil
	}
	if start, err := startTime(pid); err == nil && start != noted {
		return nil
	}
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var members []int
	for _, n := range names {
		member, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		pgrp, start, zombie, err := stat(member)
		if err == nil && pgrp == pid && start >= noted && !zombie {
			members = append(members, member)
		}
	}
	return members
}

func signalGroup(path string, pid int) bool {
	members := group(path, pid)
	for _, member := range members {
		unix.Kill(member, unix.SIGKILL) // gone meanwhile is as good
	}
	return len(members) > 0
}

func killGroup(path string, pid int) error {
	for end := time.Now().Add(endWait); signalGroup(path, pid); {
		if time.Now().After(end) {
			return fmt.Errorf("processes %v of group %d do not end", group(path, pid), pid)
		}
		time.Sleep(2 * time.Millisecond) // there is no event for the end of a process that is no child
	}
	err := os.Remove(filepath.Join(path, procs, strconv.Itoa(pid)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

type mount struct {
	point, dev, kind string
}

// abort ends the connection of a FUSE mount: every waiting call gets an error.
func (m mount) abort() {
	major, minor, _ := strings.Cut(m.dev, ":")
	if major == "0" && strings.HasPrefix(m.kind, "fuse") {
		os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0) // no such file: gone already
	}
}

// mountsBelow lists the mounts in path, the latest first.
func mountsBelow(path string) ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var found []mount
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 7 {
			continue
		}
		m := mount{point: unescape.Replace(fields[4]), dev: fields[2]}
		if i := slices.Index(fields, "-"); i > 0 && i+1 < len(fields) {
			m.kind = fields[i+1]
		}
		if m.point == path || strings.HasPrefix(m.point, path+"/") {
			found = append(found, m)
		}
	}
	slices.Reverse(found)
	return found, lines.Err()
}

func unmountBelow(path string) error {
	for range 100 { // one mount point may be covered many times
		mounts, err := mountsBelow(path)
		if err != nil || len(mounts) == 0 {
			return err
		}
		for _, m := range mounts {
			if unix.Unmount(m.point, unix.UMOUNT_NOFOLLOW) != nil {
				unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			}
		}
	}
	return fmt.Errorf("mounts below %s do not end", path)
}

func loopsBelow(path string) map[string]string {
	found := map[string]string{}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		text, err := os.ReadFile(f)
		file := strings.TrimSuffix(strings.TrimSpace(string(text)), " (deleted)")
		if err == nil && strings.HasPrefix(file, path+"/") {
			found["/dev/"+strings.Split(f, "/")[3]] = file
		}
	}
	return found
}

func detachLoops(path string) error {
	var errs []error
	for dev := range loopsBelow(path) {
		errs = append(errs, detach(dev))
	}
	return errors.Join(errs...)
}

func detach(dev string) error {
	f, err := os.Open(dev)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) { // detached itself with the last user
		return nil
	}
	return err
}

// clearImmutable takes the flag of chattr +i from the directories below path:
// slotfs protects its bare mount points with it.
func clearImmutable(path string) error {
	return filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		return Mutable(name)
	})
}

// Mutable takes the flag of chattr +i from one file or directory.
func Mutable(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nil // a file system without flags has none to clear
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutable)
}
