package main

import (
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// backings are the file systems that a benchmark may meaningfully run on, by
// the magic number of statfs(2).
var backings = map[int64]string{
	unix.EXT4_SUPER_MAGIC:  "ext4",
	unix.XFS_SUPER_MAGIC:   "xfs",
	unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.TMPFS_MAGIC:       "tmpfs",
}

// backing names the file system that holds dir.
func backing(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", fmt.Errorf("statfs %s: %w", dir, err)
	}
	if name, ok := backings[int64(st.Type)]; ok {
		return name, nil
	}
	return fmt.Sprintf("file system %#x", st.Type), nil
}

// machine describes where the numbers come from.
func machine(dir string) (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	fs, err := backing(dir)
	if err != nil {
		return "", err
	}
	kernel := strings.TrimRight(string(u.Release[:]), "\x00")
	return fmt.Sprintf("Linux %s, %d processors, %s, %s", kernel, runtime.NumCPU(), fs, runtime.Version()), nil
}
