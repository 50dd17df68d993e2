package meta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// acl builds a POSIX ACL as its attribute has it: owner, one more user, group,
// mask, others; see acl(5) and linux/posix_acl_xattr.h.
func acl(owner, user, group, mask, other uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, owner, 1<<32 - 1}, {2, user, 77}, {4, group, 1<<32 - 1}, {16, mask, 1<<32 - 1}, {32, other, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// What a directory would hand down by itself (group, set-gid bit, default ACL)
// does not count: an entry says all.
func TestNothingIsInherited(t *testing.T) {
	s := newMailSlot(t, Options{})
	dir := s.add(&op.Mkdir{Parent: op.Root, Name: "shared", Attr: op.Attr{
		Mode: typeDir | 0o2770, UID: 1, GID: 9,
		Xattr: map[string][]byte{aclDefault: acl(7, 6, 5, 7, 0)},
	}})
	data := []byte("x")
	s.add(&op.Put{Parent: dir, Name: "m", Attr: op.Attr{Mode: typeRegular | 0o640, UID: 2, GID: 3}, Sum: op.SumOf(data), Sealed: true, Data: data})
	s.add(&op.Create{Parent: dir, Name: "c", Attr: op.Attr{Mode: typeRegular | 0o604}})
	s.add(&op.Mkdir{Parent: dir, Name: "d", Attr: op.Attr{Mode: typeDir | 0o705}})
	s.add(&op.Create{Parent: dir, Name: "f", Attr: op.Attr{Mode: unix.S_IFIFO | 0o622, UID: 4, GID: 5}})
	access := acl(6, 4, 4, 6, 0)
	s.add(&op.Create{Parent: dir, Name: "a", Attr: op.Attr{Mode: typeRegular | 0o660, Xattr: map[string][]byte{aclAccess: access}}})
	for name, want := range map[string]string{
		"": "42770 1:9", "m": "100640 2:3", "c": "100604 0:0", "d": "40705 0:0", "f": "10622 4:5", "a": "100660 0:0",
	} {
		path := filepath.Join(s.dir, dirTree, "shared", name)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
		var b [256]byte
		n, err := unix.Lgetxattr(path, aclAccess, b[:])
		switch {
		case name == "a" && (err != nil || !bytes.Equal(b[:n], access)):
			t.Errorf("ACL of %q: %x, %v", name, b[:max(n, 0)], err)
		case name != "a" && !errors.Is(err, unix.ENODATA):
			t.Errorf("%q inherited an ACL: %v", name, err)
		}
		if _, err := unix.Lgetxattr(path, aclDefault, b[:]); name == "d" && !errors.Is(err, unix.ENODATA) {
			t.Errorf("%q inherited a default ACL: %v", name, err)
		}
	}
	s.noEvents()
}

// chown(2) clears set-id bits; the entry's mode is the last word.
func TestOwnerAndMode(t *testing.T) {
	s := newMailSlot(t, Options{})
	id := s.add(&op.Create{Parent: s.cur, Name: "c", Attr: op.Attr{Mode: typeRegular | 0o4755, UID: 1}})
	mode := func() uint32 {
		var st unix.Stat_t
		if err := unix.Lstat(s.file("c"), &st); err != nil {
			t.Fatal(err)
		}
		return st.Mode & permMask
	}
	if got := mode(); got != 0o4755 {
		t.Errorf("new: %o", got)
	}
	s.add(&op.SetAttr{ID: id, Valid: op.SetUID, UID: 2})
	if got := mode(); got != 0o4755 {
		t.Errorf("after an owner change without a mode: %o", got)
	}
	s.add(&op.SetAttr{ID: id, Valid: op.SetUID | op.SetGID | op.SetMode, UID: 3, GID: 3, Mode: 0o2710})
	if got := mode(); got != 0o2710 {
		t.Errorf("after owner and mode: %o", got)
	}
	s.add(&op.Write{ID: id, Data: []byte("x")})
	if got := mode(); got != 0o2710 {
		t.Errorf("after a write: %o", got)
	}
}

// Names of any bytes, the longest, and times before 1970.
func TestOddNamesAndTimes(t *testing.T) {
	s := newMailSlot(t, Options{})
	for i, name := range []string{strings.Repeat("n", 255), "a:2,S=\xff\xfe \n", "-rf", "*", "%s"} {
		mtime := int64(-1_500_000_001 + i)
		data := []byte(name)
		id := s.add(&op.Put{Parent: s.cur, Name: name, Attr: op.Attr{Mode: typeRegular, Mtime: mtime}, Sum: op.SumOf(data), Sealed: true, Data: data})
		var st unix.Stat_t
		if err := unix.Lstat(s.file(name), &st); err != nil {
			t.Fatal(err)
		}
		if got := unix.TimespecToNsec(st.Mtim); got != mtime {
			t.Errorf("mtime %d, want %d", got, mtime)
		}
		if got, err := s.read(id, 1000); err != nil || string(got) != name {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	s.reopen()
	if c, err := s.Children(s.cur); err != nil || len(c) != 5 {
		t.Errorf("%v, %v", c, err)
	}
}

// A file or directory that somebody took out of the tree is reported, not a
// reason to stop; a directory is made again where something is to go into it.
func TestMissingInTree(t *testing.T) {
	s := newMailSlot(t, Options{})
	sub := s.add(&op.Mkdir{Parent: s.cur, Name: "sub", Attr: op.Attr{Mode: typeDir | 0o701, UID: 8}})
	id := s.put("m", []byte("x"))
	c := s.add(&op.Create{Parent: s.cur, Name: "c", Attr: op.Attr{Mode: typeRegular}})
	s.tree.forget()
	for _, name := range []string{"sub", "m", "c"} {
		if err := os.Remove(s.file(name)); err != nil {
			t.Fatal(err)
		}
	}
	s.add(&op.Unlink{ID: id, Parent: s.cur, Name: "m"})
	s.add(&op.Write{ID: c, Data: []byte("lost")})
	s.add(&op.Create{Parent: sub, Name: "new", Attr: op.Attr{Mode: typeRegular | 0o600}})
	var st unix.Stat_t
	if err := unix.Lstat(s.file("sub/new"), &st); err != nil {
		t.Error(err)
	}
	if err := unix.Lstat(s.file("sub"), &st); err != nil || st.Mode&permMask != 0o701 || st.Uid != 8 {
		t.Errorf("directory made again: %o %d, %v", st.Mode, st.Uid, err)
	}
	if m, err := readMark(s.file("sub")); err != nil || m.ID != sub {
		t.Errorf("mark %+v, %v", m, err)
	}
	if got := s.Events.Counts()[EventMissing]; got < 3 {
		t.Errorf("%d events: %+v", got, s.Events.List())
	}
	if err := s.Faulted(); err != nil {
		t.Error(err)
	}
}

// A new epoch removes what the one before had staged, and nothing else.
func TestEpochClearsStage(t *testing.T) {
	s := newMailSlot(t, Options{})
	stage := filepath.Join(s.dir, dirStage)
	first := s.add(&op.Chunk{Data: pattern(100)})
	s.add(&op.Chunk{Stage: uint64(first), Off: 100, Data: pattern(50)})
	if b, err := os.ReadFile(filepath.Join(stage, stageName(uint64(first)))); err != nil || !bytes.Equal(b, append(pattern(100), pattern(50)...)) {
		t.Errorf("stage holds %d bytes, %v", len(b), err)
	}
	if err := os.WriteFile(filepath.Join(stage, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s.add(&op.EpochBegin{Epoch: 2, Primary: s.ID, Members: []op.SlotID{s.ID}, Store: [16]byte{1}})
	names, err := os.ReadDir(stage)
	if err != nil || len(names) != 1 || names[0].Name() != "other" {
		t.Errorf("stage holds %v, %v", names, err)
	}
}

// A primary that only loses or regains a replica publishes later what it has
// begun to stage.
func TestChangeOfMembersKeepsStage(t *testing.T) {
	s := newMailSlot(t, Options{})
	other := op.SlotID{9}
	s.add(&op.EpochBegin{Epoch: 2, Primary: s.ID, Members: []op.SlotID{s.ID, other}, Store: [16]byte{1}})
	first := s.add(&op.Chunk{Data: pattern(100)})
	path := filepath.Join(s.dir, dirStage, stageName(uint64(first)))
	s.add(&op.EpochBegin{Epoch: 3, Primary: s.ID, Members: []op.SlotID{s.ID}, Store: [16]byte{1}})
	s.add(&op.Chunk{Stage: uint64(first), Off: 100, Data: pattern(50)})
	s.reopen()
	s.Log.Lead(4, nil)
	s.add(&op.EpochBegin{Epoch: 4, Primary: s.ID, Members: []op.SlotID{other, s.ID}, Store: [16]byte{1}})
	if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, append(pattern(100), pattern(50)...)) {
		t.Errorf("stage holds %d bytes, %v", len(b), err)
	}
	s.add(&op.EpochBegin{Epoch: 5, Primary: s.ID, Members: []op.SlotID{s.ID, other}, Store: [16]byte{1}})
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stage of a process that has ended: %v", err)
	}
}

// An entry of another store faults the slot instead of mixing two.
func TestEntryOfAnotherStore(t *testing.T) {
	s := newMailSlot(t, Options{})
	e, err := s.Log.Append(&op.EpochBegin{Epoch: 2, Store: [16]byte{2}})
	if err != nil {
		t.Fatal(err)
	}
	s.Log.Flush(e.Seq)
	if err := s.Log.Applied.Wait(t.Context(), e.Seq); err == nil || !errors.Is(s.Faulted(), ErrOtherStore) {
		t.Errorf("%v, fault %v", err, s.Faulted())
	}
}

// A full disk holds entries up that are committed; nothing is lost, and it goes
// on when there is space.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=192m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	data := filepath.Join(dir, "data")
	if _, err := Create(data, Identity{Store: "test"}); err != nil {
		t.Fatal(err)
	}
	full := make(chan Event, 64)
	opt := Options{Reserve: -1, CheckpointEvery: time.Hour, OnEvent: func(e Event) { full <- e }}
	opt.Log.SegmentSize = 16 << 20
	s := &mailSlot{testSlot: &testSlot{t: t, dir: data, opt: opt}}
	s.open()
	defer s.Close()
	s.Log.Lead(1, nil)
	s.add(&op.EpochBegin{Epoch: 1, Store: [16]byte{1}})
	s.cur = s.add(&op.Mkdir{Parent: op.Root, Name: "cur", Attr: op.Attr{Mode: typeDir | 0o700}})
	s.put("before", pattern(1000))

	fill := filepath.Join(dir, "fill")
	fillDisk(t, fill)
	message := pattern(1 << 20)
	e, err := s.Log.Append(&op.Put{Parent: s.cur, Name: "m", Attr: op.Attr{Mode: typeRegular}, Sum: op.SumOf(message), Sealed: true, Data: message})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Log.Barrier(t.Context(), e.Seq); err != nil {
		t.Fatal(err)
	}
	if ev := <-full; ev.Kind != EventSpace {
		t.Errorf("event %+v", ev)
	}
	if got := s.Log.Applied.Get(); got != e.Seq-1 {
		t.Errorf("applied %d while the disk is full, want %d", got, e.Seq-1)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	s.settle()
	if got, err := s.read(op.ID(e.Seq), 1<<20); err != nil || !bytes.Equal(got, message) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := s.Faulted(); err != nil {
		t.Error(err)
	}

	// Closed while it waits: the next start has the entry again.
	fillDisk(t, fill)
	e, err = s.Log.Append(&op.Put{Parent: s.cur, Name: "n", Attr: op.Attr{Mode: typeRegular}, Sum: op.SumOf(message), Sealed: true, Data: message})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Log.Barrier(t.Context(), e.Seq); err != nil {
		t.Fatal(err)
	}
	for ev := range full {
		if strings.Contains(ev.Text, "disk full") {
			break
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	s.open()
	if s.Log.Committed.Get() < e.Seq {
		s.Log.Commit(e.Seq)
	}
	s.settle()
	if got, err := s.read(op.ID(e.Seq), 1<<20); err != nil || !bytes.Equal(got, message) {
		t.Errorf("after a restart: %d bytes, %v", len(got), err)
	}
}

// fillDisk writes to path until the disk is full.
func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}
