package meta

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

var (
	crashSeeds = flag.Int("crash.seeds", 25, "how many random histories the crash tests run")
	crashFirst = flag.Uint64("crash.first", 1, "the first of their seeds")
)

// applied makes a data directory by the real applier, with a checkpoint after
// entry c and entries up to a in the tree.
func applied(t testing.TB, data string, log *memLog, c, a uint64) {
	t.Helper()
	makeData(t, data)
	ix, err := openIndex(filepath.Join(data, dirIndex), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer ix.close()
	applyMore(t, data, ix, log, 1, c)
	st, err := ix.freeze()
	if err == nil {
		err = ix.commit(st)
	}
	if err != nil {
		t.Fatal(err)
	}
	applyMore(t, data, ix, log, c+1, a)
}

// applyMore applies entries from…to to an index and a tree.
func applyMore(t testing.TB, data string, ix *index, log *memLog, from, to uint64) {
	t.Helper()
	tr, err := openTree(data, ix, func(ev Event, _ ledger.Entry) {
		t.Errorf("applier: %s %d %s: %s", ev.Kind, ev.ID, ev.Path, ev.Text)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	for seq := from; seq <= to; seq++ {
		ch, err := ix.apply(log.entries[seq-1])
		if err == nil {
			err = tr.do(ch)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.setTimes(); err != nil {
		t.Fatal(err)
	}
}

// damageWorld does to a tree what a loss of power may have done to the objects
// and names that entries after c touched.
type damageWorld struct {
	t    *testing.T
	rnd  *rand.Rand
	data string
	c    uint64
	tr   *trail
	log  *memLog
	n    int
}

func (d *damageWorld) must(err error) {
	d.t.Helper()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.t.Fatal(err)
	}
}

func (d *damageWorld) limbo(path string) {
	d.n++
	d.must(os.Rename(path, filepath.Join(d.data, dirStage, fmt.Sprintf("limbo-%d", d.n*7))))
}

func (d *damageWorld) run() {
	var paths []string
	for _, top := range []string{dirTree, dirTrash} {
		d.must(filepath.WalkDir(filepath.Join(d.data, top), func(path string, _ fs.DirEntry, err error) error {
			if filepath.Dir(path) != d.data {
				paths = append(paths, path)
			}
			return err
		}))
	}
	slices.Reverse(paths) // children before their directories: paths stay right
	for _, path := range paths {
		m, err := readMark(path)
		if err != nil || !d.tr.objects[m.ID] {
			continue
		}
		d.one(path, m.ID)
	}
	if d.rnd.IntN(3) == 0 { // a reconcile that was killed
		d.must(os.WriteFile(filepath.Join(d.data, dirStage, "new-3"), []byte("half"), 0o600))
	}
}

func (d *damageWorld) one(path string, id op.ID) {
	var st unix.Stat_t
	d.must(unix.Lstat(path, &st))
	regular, dir := st.Mode&typeMask == typeRegular, st.Mode&typeMask == typeDir
	fresh := uint64(id) > d.c
	if put, ok := d.log.entries[id-1].Op.(*op.Put); ok && put.Stage != 0 && put.Stage <= d.c {
		fresh = false // its first chunk was on disk at the checkpoint
	}
	switch r := d.rnd.IntN(12); {
	case r < 2 && fresh && !dir:
		d.must(os.Remove(path))
		return
	case r == 2 && d.dirTouched(path):
		d.limbo(path)
		return
	case r == 3 && fresh && regular:
		d.must(os.WriteFile(path, make([]byte, st.Size), 0o600))
	case r == 4 && fresh && regular:
		d.must(os.Truncate(path, d.rnd.Int64N(st.Size+1)))
	case r == 5 && fresh && (dir || st.Nlink == 1) && filepath.Base(filepath.Dir(path)) != dirTrash:
		if at, ok := d.nameOf(path); ok && d.tr.made[at] == id {
			d.must(unix.Lremovexattr(path, markName))
		}
	case r == 6 && st.Mode&typeMask != typeSymlink:
		d.must(unix.Chmod(path, 0o707))
	case r == 7:
		d.must(os.Lchown(path, 99, 98))
	case r == 8 && (regular || dir):
		d.must(unix.Lsetxattr(path, "user.z", []byte("?"), 0))
	}
	if regular && !fresh {
		d.tear(path, id)
	}
	if d.rnd.IntN(3) == 0 {
		d.must(utimensat(unix.AT_FDCWD, path, d.rnd.Int64N(1e18)))
	}
}

// dirTouched: a stop in the middle of a reconcile moves nothing out of others.
func (d *damageWorld) dirTouched(path string) bool {
	m, err := readMark(filepath.Dir(path))
	return err != nil || d.tr.dirs[m.ID]
}

// nameOf is the name that path is, if its directory still has its id.
func (d *damageWorld) nameOf(path string) (Name, bool) {
	m, err := readMark(filepath.Dir(path))
	return Name{m.ID, filepath.Base(path)}, err == nil
}

// tear garbles what was written to an older file since the checkpoint.
func (d *damageWorld) tear(path string, id op.ID) {
	for _, e := range d.log.entries[d.c:] {
		w, ok := e.Op.(*op.Write)
		if !ok || w.ID != id || d.rnd.IntN(2) == 0 {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		d.must(err)
		var st unix.Stat_t
		d.must(unix.Fstat(int(f.Fd()), &st))
		for i := range w.Data {
			if off := w.Off + int64(i); off < st.Size && d.rnd.IntN(3) == 0 {
				_, err := f.WriteAt([]byte{'#'}, off)
				d.must(err)
			}
		}
		d.must(f.Close())
	}
}

// crash is one random history, stop and restart.
type crash struct {
	w       *world
	c, k, a uint64
	data    string
	tr      *trail
}

func newCrash(t *testing.T, seed uint64, exact bool) *crash {
	w := newWorld(t, seed)
	for n := 60 + w.rnd.IntN(200); n > 0; n-- {
		w.step()
	}
	last := w.log.last()
	x := &crash{w: w, data: t.TempDir()}
	x.c = 1 + w.rnd.Uint64N(last)
	x.a = x.c + w.rnd.Uint64N(last-x.c+1)
	x.k = x.a + w.rnd.Uint64N(last-x.a+1)
	if !exact { // what was applied had not been noted as committed
		x.k = x.c + w.rnd.Uint64N(x.a-x.c+1)
	}
	applied(t, x.data, w.log, x.c, x.a)
	x.follow()
	d := &damageWorld{t: t, rnd: w.rnd, data: x.data, c: x.c, tr: x.tr, log: w.log}
	d.run()
	return x
}

// follow makes the trail of what a recovery replays.
func (x *crash) follow() {
	x.tr = newTrail(x.c, x.k)
	for _, e := range x.w.log.entries[x.c:] {
		x.tr.add(e)
	}
}

// goOn recovers, and applies what was applied before once more, up to another stop.
func (x *crash) goOn(t *testing.T) {
	t.Helper()
	if _, err := x.recover(t, nil); err != nil {
		t.Fatalf("C %d A %d K %d: %v", x.c, x.a, x.k, err)
	}
	ix, err := openIndex(filepath.Join(x.data, dirIndex), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	applyMore(t, x.data, ix, x.w.log, x.k+1, x.a)
	if err := ix.close(); err != nil {
		t.Fatal(err)
	}
}

// recover runs a recovery on a fresh index, as a start does.
func (x *crash) recover(t *testing.T, hold func(step, path string) error) (*ReconcileReport, error) {
	t.Helper()
	ix, err := openIndex(filepath.Join(x.data, dirIndex), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer ix.close()
	v := &recovery{data: x.data, ix: ix, log: x.w.log, last: x.w.log.last(), committed: x.k, hold: hold,
		note: func(kind string, id op.ID, path, text string) { t.Errorf("event %s %d %s: %s", kind, id, path, text) }}
	return v.run()
}

// compare checks tree and index against those of a slot that never stopped,
// now and after applying the rest.
func (x *crash) compare(t *testing.T) {
	t.Helper()
	twin := filepath.Join(t.TempDir(), "twin")
	applied(t, twin, x.w.log, x.k, x.k)
	got, want := treeState(t, filepath.Join(x.data, dirTree)), treeState(t, filepath.Join(twin, dirTree))
	x.forgetNewer(t, got, want)
	sameState(t, fmt.Sprintf("at %d", x.k), got, want)
	ix := testIndex(t, filepath.Join(x.data, dirIndex))
	twinIx := testIndex(t, filepath.Join(twin, dirIndex))
	if ix.current() != twinIx.current() {
		t.Errorf("index is %+v, should be %+v", ix.current(), twinIx.current())
	}
	last := x.w.log.last()
	applyMore(t, x.data, ix, x.w.log, x.k+1, last)
	applyMore(t, twin, twinIx, x.w.log, x.k+1, last)
	sameState(t, fmt.Sprintf("at %d", last), treeState(t, filepath.Join(x.data, dirTree)), treeState(t, filepath.Join(twin, dirTree)))
	left, err := os.ReadDir(filepath.Join(x.data, dirQuarantine))
	if err != nil || len(left) > 0 {
		t.Errorf("quarantine: %v %v", left, err)
	}
}

// forgetNewer leaves out files whose content entries after K changed: their
// bytes are ahead of the index until those come again.
func (x *crash) forgetNewer(t *testing.T, states ...map[string]string) {
	for _, st := range states {
		maps.DeleteFunc(st, func(path, _ string) bool {
			for _, dir := range []string{x.data} {
				if m, err := readMark(filepath.Join(dir, dirTree, path)); err == nil && x.tr.newer[m.ID] != 0 {
					return true
				}
			}
			return false
		})
	}
}

func eachSeed(t *testing.T, f func(t *testing.T, seed uint64)) {
	for i := range uint64(*crashSeeds) {
		seed := *crashFirst + i
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { f(t, seed) })
		if t.Failed() {
			return
		}
	}
}

func TestRecoverAfterPowerLoss(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		x := newCrash(t, seed, true)
		if r, err := x.recover(t, nil); err != nil {
			t.Fatalf("C %d A %d K %d: %v", x.c, x.a, x.k, err)
		} else {
			t.Logf("C %d A %d K %d: %+v", x.c, x.a, x.k, *r)
		}
		x.compare(t)
	})
}

// What was applied before the stop may be ahead of what is known committed.
func TestRecoverBehindTree(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		x := newCrash(t, seed, false)
		if r, err := x.recover(t, nil); err != nil {
			t.Fatalf("C %d A %d K %d: %v", x.c, x.a, x.k, err)
		} else {
			t.Logf("C %d A %d K %d: %+v", x.c, x.a, x.k, *r)
		}
		x.compare(t)
	})
}

// A replica that is filled may be stopped several times ahead of what it knows
// to be committed: what its applier made twice is no finding.
func TestRecoverBehindTreeAgain(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		x := newCrash(t, seed, false)
		for range 3 {
			x.goOn(t)
		}
		if _, err := x.recover(t, nil); err != nil {
			t.Fatalf("C %d A %d K %d: %v", x.c, x.a, x.k, err)
		}
		x.compare(t)
	})
}

// The same, but each time it knows more to be committed: an object may have been
// put away half made, been made again, and be removed by the time it is found.
func TestRecoverCatchingUp(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		x := newCrash(t, seed, false)
		for range 4 {
			x.goOn(t)
			x.k += x.w.rnd.Uint64N(x.a - x.k + 1)
			x.follow()
		}
		if _, err := x.recover(t, nil); err != nil {
			t.Fatalf("C %d A %d K %d: %v", x.c, x.a, x.k, err)
		}
		x.compare(t)
	})
}

var errStopped = errors.New("stopped")

// A recovery can be killed at any step, any number of times.
func TestRecoverKilled(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		x := newCrash(t, seed, true)
		for limit := 1; ; limit += 1 + limit/2 {
			steps := 0
			_, err := x.recover(t, func(step, path string) error {
				if steps++; steps > limit {
					return errStopped
				}
				return nil
			})
			if err == nil {
				break
			}
			if !errors.Is(err, errStopped) {
				t.Fatalf("C %d A %d K %d, after %d steps: %v", x.c, x.a, x.k, limit, err)
			}
		}
		x.compare(t)
	})
}
