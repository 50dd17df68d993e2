package meta

import (
	"os"
	"path/filepath"
	"testing"

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
