package meta

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"slotfs/meta/op"
)

// stopped makes a slot's data directory as a kill leaves it: entries are in the
// log, the first committed of them known to be committed.
func stopped(t *testing.T, entries []*op.Entry, committed int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	s := newSlot(t, dir, entries[:committed])
	if len(entries) > committed {
		if err := s.Log.AppendEntries(entries[committed:]); err != nil {
			t.Fatal(err)
		}
		last := entries[len(entries)-1].Seq
		s.Log.Flush(last)
		if err := s.Log.Durable.Wait(t.Context(), last); err != nil {
			t.Fatal(err)
		}
	}
	crashSlot(t, s)
	return dir
}

func twinState(t *testing.T, entries []*op.Entry, k int) map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "twin")
	applied(t, dir, &memLog{entries: entries}, uint64(k), uint64(k))
	return treeState(t, filepath.Join(dir, dirTree))
}

func TestRecoverDir(t *testing.T) {
	entries := history(t, 40, 300)
	dir := stopped(t, entries, 250)
	r, err := Recover(t.Context(), dir, RecoverOptions{Content: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("finding: %v", f)
	}
	sameState(t, "recovered", treeState(t, filepath.Join(dir, dirTree)), twinState(t, entries, len(entries)))
	s := openSlot(t, dir, Options{})
	follow(t, s, entries)
	sameState(t, "later", treeState(t, filepath.Join(dir, dirTree)), twinState(t, entries, len(entries)))
	checkClean(t, s)
}

func TestRecoverUnlock(t *testing.T) {
	entries := history(t, 41, 300)
	dir := stopped(t, entries, 200)
	if _, err := Recover(t.Context(), dir, RecoverOptions{Unlock: true, Content: true}); err != nil {
		t.Fatal(err)
	}
	sameState(t, "unlocked", treeState(t, filepath.Join(dir, dirTree)), twinState(t, entries, len(entries)))
	if _, err := os.Lstat(filepath.Join(dir, dirVolatile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", dirVolatile, err)
	}
	_, err := tryOpen(t, dir, Options{})
	var de *DataError
	if !errors.Is(err, ErrUnlocked) || !errors.As(err, &de) || de.Remedy == "" {
		t.Fatalf("open: %v", err)
	}

	// Somebody used it. Then it is to be a slot again.
	n := 0
	err = filepath.WalkDir(filepath.Join(dir, dirTree), func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if n++; n%3 == 0 {
			return os.WriteFile(path, []byte("changed without slotfs"), 0o600)
		}
		if n%3 == 1 {
			return os.Rename(path, path+"-renamed")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	s := openSlot(t, dir, Options{Resync: true})
	s.Start()
	if !s.Resyncing() {
		t.Error("an unlocked slot serves")
	}
	if err := resync(t, s, source{src, sn}, uint64(len(entries)), never); err != nil {
		t.Fatal(err)
	}
	sameSlots(t, s, src)
	checkClean(t, s)
	s.Close()
	openSlot(t, dir, Options{})
}

// A resync whose source is gone for good leaves what there was.
func TestRecoverGivesUpResync(t *testing.T) {
	entries := history(t, 42, 400)
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	dir := filepath.Join(t.TempDir(), "data")
	s := newSlot(t, dir, entries[:150])
	want := treeState(t, filepath.Join(dir, dirTree))
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	steps := 0
	err = resync(t, s, source{src, sn}, 0, func() error {
		if steps++; steps > 30 {
			return errStopped
		}
		return nil
	})
	if !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	crashSlot(t, s)
	r, err := Recover(t.Context(), dir, RecoverOptions{Content: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		t.Errorf("finding: %v", f)
	}
	sameState(t, "given up", treeState(t, filepath.Join(dir, dirTree)), want)
	if s = openSlot(t, dir, Options{}); s.Resyncing() {
		t.Error("still resyncing")
	}
}

// Without its log a slot does not serve, and its tree is not touched.
func TestRecoverLogLost(t *testing.T) {
	entries := history(t, 43, 300)
	dir := filepath.Join(t.TempDir(), "data")
	s := newSlot(t, dir, entries)
	want := treeState(t, filepath.Join(dir, dirTree))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := emptyDir(filepath.Join(dir, dirLog)); err != nil {
		t.Fatal(err)
	}
	var lost *LogLostError
	if _, err := tryOpen(t, dir, Options{}); !errors.As(err, &lost) {
		t.Fatalf("open: %v", err)
	}
	r, err := Recover(t.Context(), dir, RecoverOptions{Unlock: true})
	if err != nil {
		t.Fatal(err)
	}
	if r.Clean() || r.Findings[0].Invariant != InvLog {
		t.Errorf("findings: %v", r.Findings)
	}
	sameState(t, "tree", treeState(t, filepath.Join(dir, dirTree)), want)

	// The index, too.
	if err := emptyDir(filepath.Join(dir, dirIndex)); err != nil {
		t.Fatal(err)
	}
	if _, err := tryOpen(t, dir, Options{Resync: true}); !errors.As(err, &lost) {
		t.Fatalf("open without log and index: %v", err)
	}
	sameState(t, "tree", treeState(t, filepath.Join(dir, dirTree)), want)
}
