package meta

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// makeData makes an empty data directory.
func makeData(t testing.TB, dir string) string {
	t.Helper()
	for _, name := range []string{dirTree, dirTrash, dirStage, dirQuarantine} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeMark(filepath.Join(dir, dirTree), mark{ID: op.Root}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func reconcileAll(t testing.TB, data string, w *world) *ReconcileReport {
	t.Helper()
	tr := newTrail(0, w.log.last())
	for _, e := range w.log.entries {
		tr.add(e)
	}
	r := newReconciler(data, w.ix, w.log, tr)
	r.note = func(kind string, id op.ID, path, text string) { t.Errorf("event %s %d %s: %s", kind, id, path, text) }
	report, err := r.run()
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// The log alone makes the whole tree, and a second run changes nothing.
func TestReconcileFromNothing(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed)
		for range 200 {
			w.step()
		}
		data := makeData(t, t.TempDir())
		reconcileAll(t, data, w)
		r := reconcileAll(t, data, w)
		if r.Made+r.Moved+r.Trashed+r.Quarantined > 0 {
			t.Errorf("seed %d: second run: %+v", seed, *r)
		}
		if t.Failed() {
			return
		}
	}
}

// A tree can be deeper than a path can be long.
func TestReconcileDeep(t *testing.T) {
	w := newWorld(t, 1)
	dir := op.Root
	name := strings.Repeat("deep", 60)
	for range 20 {
		dir = w.add(&op.Mkdir{Parent: dir, Name: name, Attr: w.attr(typeDir)})
	}
	data := []byte("at the bottom")
	id := w.add(&op.Put{Parent: dir, Name: "m", Attr: w.attr(typeRegular), Sealed: true, Sum: op.SumOf(data), Data: data})
	w.add(&op.Link{ID: id, Parent: dir, Name: "n"})
	s := newSlot(t, filepath.Join(t.TempDir(), "data"), nil)
	entries := rechain(w.log.entries[1:])
	follow(t, s, entries)
	checkClean(t, s)
	want := s.Stats()
	dataDir := s.dir
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dataDir, dirIndex)); err != nil {
		t.Fatal(err)
	}
	s = openSlot(t, dataDir, Options{})
	if got := s.Stats(); got != want {
		t.Errorf("%+v, should be %+v", got, want)
	}
	checkClean(t, s)
	// Everything at the bottom is lost, and comes back.
	h, err := s.tree.dir(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"m", "n"} {
		if err := unix.Unlinkat(h.fd, name, 0); err != nil {
			t.Fatal(err)
		}
	}
	h.release()
	if _, err := s.Check(t.Context(), CheckOptions{Repair: true}); err != nil {
		t.Fatal(err)
	}
	checkClean(t, s)
}

// rechain makes a history of the same operations in the test's store.
func rechain(entries []*op.Entry) []*op.Entry {
	list := []*op.Entry{op.NewEntry(op.Pos{}, 1, 1, &op.EpochBegin{Epoch: 1, Store: testStore})}
	for _, e := range entries {
		list = append(list, op.NewEntry(list[len(list)-1].Pos(), 1, e.Time, e.Op))
	}
	return list
}
