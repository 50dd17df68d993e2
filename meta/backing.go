package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrBacking: the file system under a data directory cannot keep a slot.
var ErrBacking = errors.New("file system cannot keep a slot")

// The file systems that are known to persist names in order, by statfs(2) type.
const (
	magicExt4 = 0xef53
	magicXFS  = 0x58465342
)

// checkBacking refuses a file system without trusted attributes, and warns of
// one that may persist a later name without an earlier one: recovery copes, but
// it was not tested there.
func (s *Slot) checkBacking() error {
	dir := filepath.Join(s.dir, dirTree)
	probe := filepath.Join(s.dir, dirStage)
	const name = markName + ".probe"
	if err := unix.Setxattr(probe, name, []byte{1}, 0); err != nil {
		return &DataError{File: dir, Reason: ErrBacking, Detail: fmt.Sprintf("set attribute %s: %v", name, err),
			Remedy: "run as root, on ext4 or XFS"}
	}
	if err := unix.Removexattr(probe, name); err != nil {
		return fmt.Errorf("remove attribute %s: %w", name, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	switch uint32(st.Type) {
	case magicExt4:
		if fastCommit(dir) {
			s.log.Warn("ext4 is mounted with fast_commit, which may persist names out of order: mount it without", keyPath, dir)
		}
	case magicXFS:
	default:
		s.log.Warn("neither ext4 nor XFS: power loss was not tested on this file system", keyPath, dir, "type", fmt.Sprintf("%#x", st.Type))
	}
	return nil
}

// fastCommit reports whether the ext4 under dir uses fast commits; false if the
// kernel does not say.
func fastCommit(dir string) bool {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return false
	}
	target, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join("/proc/fs/ext4", filepath.Base(target), "options"))
	return err == nil && slices.Contains(strings.Fields(string(b)), "fast_commit")
}
