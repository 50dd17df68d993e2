package meta

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Marks that were removed or changed are written again; nothing else happens to
// the objects, and what only looks like one is not taken for it.
func TestMarksAreRewritten(t *testing.T) {
	entries := history(t, 51, 400)
	dir := filepath.Join(t.TempDir(), "a")
	s := newSlot(t, dir, entries)
	before := treeState(t, filepath.Join(dir, dirTree))
	inodes := map[string]uint64{}
	var paths []string
	n := 0
	if err := s.ix.eachInode(func(in *Inode) error {
		if in.ID == op.Root || len(in.Names) != 1 || in.IsRegular() && !in.Sealed { // a checkpoint writes those of control files
			return nil
		}
		rel, err := s.ix.path(in.ID)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, dirTree, rel)
		if n++; n%2 == 0 {
			err = unix.Lremovexattr(path, markName)
		} else {
			err = writeMark(path, mark{ID: 1 << 40})
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		inodes[path] = st.Ino
		paths = append(paths, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n < 10 {
		t.Fatalf("only %d objects", n)
	}
	r, err := s.Check(t.Context(), CheckOptions{Repair: true})
	if err != nil || len(r.Findings) < n/2 {
		t.Fatalf("%+v, %v", r, err)
	}
	sameState(t, "tree", treeState(t, filepath.Join(dir, dirTree)), before)
	for _, path := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Ino != inodes[path] {
			t.Errorf("%s is another file now (%v)", path, err)
		}
	}
	checkClean(t, s)
	if kept, err := readNames(dir, dirQuarantine); err != nil || len(kept) > 0 {
		t.Errorf("in quarantine: %q, %v", kept, err)
	}
	told := map[string]bool{}
	for _, e := range s.Events.List() {
		told[filepath.Join(dir, dirTree, e.Path)] = e.Kind == EventRepaired
	}
	for _, path := range paths {
		if !told[path] {
			t.Errorf("no event about %s: %s", path, before[path[len(dir)+6:]])
		}
	}
}

// A file with other content under a message's name is not recognised.
func TestMarkOfAnotherContent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	data := []byte("a message\n")
	w := []op.Op{
		&op.EpochBegin{Epoch: 1, Store: testStore},
		&op.Put{Parent: op.Root, Name: "m", Attr: op.Attr{Mode: typeRegular | 0o600}, Sealed: true, Sum: op.SumOf(data), Data: data},
	}
	var entries []*op.Entry
	var pos op.Pos
	for i, o := range w {
		e := op.NewEntry(pos, 1, int64(1000+i), o)
		entries, pos = append(entries, e), e.Pos()
	}
	s := newSlot(t, dir, entries)
	path := filepath.Join(dir, dirTree, "m")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("A message\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Check(t.Context(), CheckOptions{Repair: true}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != string(data) {
		t.Errorf("%q, %v", b, err)
	}
	if kept, err := readNames(dir, dirQuarantine); err != nil || len(kept) != 2 {
		t.Errorf("in quarantine: %q, %v", kept, err)
	}
}
