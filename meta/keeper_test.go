package meta

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// A running slot whose index is damaged or removed makes it anew, goes on, and
// ends where it would have ended.
func TestHeal(t *testing.T) {
	harm := map[string]func(t *testing.T, s *Slot, rnd *rand.Rand){
		"garbled tables": func(t *testing.T, s *Slot, rnd *rand.Rand) {
			files, _ := filepath.Glob(filepath.Join(s.dir, dirIndex, "*.sst"))
			if len(files) == 0 {
				t.Fatal("no tables")
			}
			for _, f := range files {
				garbleInPlace(t, f, rnd)
			}
		},
		"removed": func(t *testing.T, s *Slot, _ *rand.Rand) {
			if err := os.RemoveAll(filepath.Join(s.dir, dirIndex)); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, f := range harm {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				healOnce(t, seed, f)
			}
		})
	}
}

func healOnce(t *testing.T, seed uint64, harm func(t *testing.T, s *Slot, rnd *rand.Rand)) {
	rnd := rand.New(rand.NewPCG(seed, 11))
	entries := history(t, 900+seed, 500)
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	o := Options{LogMax: 1, Reserve: -1, Log: oplog.Options{SegmentSize: 64 << 10}}
	s := openTest(t, dir, o)
	follow(t, s, entries[:250])
	if err := s.Close(); err != nil { // which writes tables
		t.Fatal(err)
	}
	s = openTest(t, dir, o)
	follow(t, s, entries[:300])
	harm(t, s, rnd)
	waitEvent(t, s, EventIndex, "made anew in", func() { s.Inode(op.ID(1 << 40)) })
	if sum, _, err := audit(t.Context(), s.ix); err != nil || sum.Digest != s.Stats().Digest {
		t.Errorf("seed %d: index at %v: %v", seed, s.Stats().Pos, err)
	}
	follow(t, s, entries)
	want := finalState(t, entries)
	sameState(t, fmt.Sprint("seed ", seed), treeState(t, filepath.Join(dir, dirTree)), want.tree)
	if got := s.Stats(); got.Digest != want.stats.Digest || got.Pos != want.stats.Pos {
		t.Errorf("seed %d: slot is %+v, should be %+v", seed, got, want.stats)
	}
	for _, e := range s.Events.List() {
		if e.Kind != EventRecovery && e.Kind != EventIndex {
			t.Errorf("seed %d: event %+v", seed, e)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// The next start goes on with the index that was made.
	s = openTest(t, dir, o)
	if got := s.Stats(); got.Digest != want.stats.Digest || got.Pos != want.stats.Pos {
		t.Errorf("seed %d: after a start: %+v, should be %+v", seed, got, want.stats)
	}
	if _, err := os.Lstat(filepath.Join(dir, fileRebuild)); err == nil {
		t.Error("the marker is still there")
	}
	names, err := readNames(dir, "")
	if err != nil || slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, nextPrefix) }) {
		t.Error(names, err)
	}
	s.Close()
}

// badger takes what it cannot read for absent. Nobody may: not for a tree that
// was emptied, not for a directory without entries, and least of all for files
// that no entry explains.
func TestDamagedIndexIsNoAbsence(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, dir, Options{Reserve: -1})
	follow(t, s, history(t, 5, 300))
	want, err := s.Children(op.Root)
	if err != nil || len(want) == 0 {
		t.Fatal(want, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, dir, Options{Reserve: -1}) // not started: nobody heals
	files, _ := filepath.Glob(filepath.Join(dir, dirIndex, "*.sst"))
	if len(files) == 0 {
		t.Fatal("no tables")
	}
	for _, f := range files {
		garbleInPlace(t, f, rand.New(rand.NewPCG(3, 3)))
	}
	if err := s.guard(); !unusable(err) {
		t.Errorf("guard: %v", err)
	}
	if list, err := s.Children(op.Root); !unusable(err) {
		t.Errorf("children of the root: %d, %v", len(list), err)
	}
	for _, c := range want {
		if _, err := s.Inode(c.ID); err != nil && !unusable(err) {
			t.Errorf("%s: %v", c.Name, err)
		}
		if known, _, err := s.setStrayAside(op.Root, c.Name); known == nil && err != nil && !unusable(err) {
			t.Errorf("%s is a stray: %v", c.Name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, dirTree, c.Name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.reconcileDirs([]op.ID{op.Root}, true); !unusable(err) {
		t.Errorf("reconcile: %v", err)
	}
	if err := s.VerifyIndex(); !unusable(err) {
		t.Errorf("verify: %v", err)
	}
}

// Damaged indexes are kept, the latest two.
func TestAsideIsBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	entries := history(t, 7, 60)
	for range 4 {
		s := openTest(t, dir, Options{Reserve: -1})
		follow(t, s, entries)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		garble(t, filepath.Join(dir, dirIndex, "MANIFEST"), rand.New(rand.NewPCG(1, 1)))
	}
	names, err := readNames(dir, dirQuarantine)
	if err != nil || len(names) != 2*keepAside {
		t.Errorf("%d names in quarantine: %q, %v", len(names), names, err)
	}
}

func openTest(t testing.TB, dir string, o Options) *Slot {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// outcome is what a slot is that nothing happened to.
type outcome struct {
	stats Stats
	tree  map[string]string
}

func finalState(t testing.TB, entries []*op.Entry) outcome {
	dir := filepath.Join(t.TempDir(), "undisturbed")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, dir, Options{Reserve: -1})
	follow(t, s, entries)
	o := outcome{s.Stats(), treeState(t, filepath.Join(dir, dirTree))}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return o
}

// waitEvent waits for an event whose text contains text, doing what finds it
// now and then.
func waitEvent(t testing.TB, s *Slot, kind, text string, find func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		if slices.ContainsFunc(s.Events.List(), func(e Event) bool { return e.Kind == kind && strings.Contains(e.Text, text) }) {
			return
		}
		find()
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no event %q with %q: %+v (%v)", kind, text, s.Events.List(), s.Faulted())
		}
	}
}

// garbleInPlace changes bytes of a file that somebody has mapped.
func garbleInPlace(t testing.TB, path string, rnd *rand.Rand) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for range 1 + st.Size()/2/20 {
		at := rnd.Int64N(st.Size() / 2) // the table's own index is in memory
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		b[0] ^= byte(1 + rnd.IntN(255))
		if _, err := f.WriteAt(b, at); err != nil {
			t.Fatal(err)
		}
	}
}
