package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/oplog"
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

// pastDamage lets the log begin after damage in it, if recovery needs nothing of
// what is lost: the index is past it. Slots that were away may need a resync.
func (s *Slot) pastDamage(d *oplog.DamageError) bool {
	dir := filepath.Join(s.dir, dirIndex)
	for _, name := range []string{filepath.Join(s.dir, fileRebuild), filepath.Join(s.dir, fileResync)} {
		if _, err := os.Lstat(name); err == nil {
			return false // the index is a mixture
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, badger.ManifestFilename)); err != nil {
		return false // there is none
	}
	x, err := openIndex(dir, s.log)
	if err != nil {
		return false
	}
	c := x.checkpointed().Pos.Seq
	if err := x.close(); err != nil || c+1 < d.Next {
		return false
	}
	s.finding(Event{Kind: EventDamaged, Path: d.Path, Text: fmt.Sprintf("%v; the checkpoint is at entry %d, so nothing is lost but history", d, c)},
		ledger.Entry{Kind: ledger.Log, Outcome: ledger.Kept})
	return true
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
