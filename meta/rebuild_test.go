package meta

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// The index made from tree and log is the one that was lost.
func TestRebuild(t *testing.T) {
	harm := map[string]func(t *testing.T, dir string, rnd *rand.Rand){
		"lost": func(t *testing.T, dir string, _ *rand.Rand) {
			if err := os.RemoveAll(filepath.Join(dir, dirIndex)); err != nil {
				t.Fatal(err)
			}
		},
		"emptied": func(t *testing.T, dir string, _ *rand.Rand) {
			if err := emptyDir(filepath.Join(dir, dirIndex)); err != nil {
				t.Fatal(err)
			}
		},
		"garbled manifest": func(t *testing.T, dir string, rnd *rand.Rand) {
			garble(t, filepath.Join(dir, dirIndex, "MANIFEST"), rnd)
		},
		"garbled tables": func(t *testing.T, dir string, rnd *rand.Rand) {
			files, _ := filepath.Glob(filepath.Join(dir, dirIndex, "*.sst"))
			if len(files) == 0 {
				t.Skip("no tables")
			}
			for _, f := range files {
				garble(t, f, rnd)
			}
		},
		"garbled memtable": func(t *testing.T, dir string, rnd *rand.Rand) {
			files, _ := filepath.Glob(filepath.Join(dir, dirIndex, "*.mem"))
			for _, f := range files {
				garble(t, f, rnd)
			}
		},
		"of another history": func(t *testing.T, dir string, _ *rand.Rand) {
			if err := os.RemoveAll(filepath.Join(dir, dirIndex)); err != nil {
				t.Fatal(err)
			}
			ix, err := openIndex(filepath.Join(dir, dirIndex), testLogger())
			if err != nil {
				t.Fatal(err)
			}
			if err := ix.flushRaw(state{Pos: op.Pos{Epoch: 9, Seq: 10, Chain: 11}}); err != nil {
				t.Fatal(err)
			}
			if err := ix.close(); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, f := range harm {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				rebuildOnce(t, seed, f)
			}
		})
	}
}

func rebuildOnce(t *testing.T, seed uint64, harm func(t *testing.T, dir string, rnd *rand.Rand)) {
	rnd := rand.New(rand.NewPCG(seed, 9))
	entries := history(t, 300+seed, 500)
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	// Small segments and no log kept: it begins in the middle.
	o := Options{LogMax: 1, Reserve: -1, Log: oplog.Options{SegmentSize: 64 << 10}}
	open := func() *Slot {
		s, err := Open(dir, o)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	for len(entries) > 150 {
		s := open()
		follow(t, s, entries[:100])
		entries = entries[100:]
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open()
	follow(t, s, entries)
	want, tree := s.Stats(), treeState(t, filepath.Join(dir, dirTree))
	if first := s.Log.First(); first == 1 && seed == 0 {
		t.Logf("the log was not trimmed")
	}
	if seed%2 == 0 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	} else {
		crashSlot(t, s)
	}
	harm(t, dir, rnd)
	s = open()
	if sum, _, err := audit(t.Context(), s.ix); err != nil || sum.Digest != s.Stats().Digest {
		t.Errorf("seed %d: index at %v: %v", seed, s.Stats().Pos, err)
	}
	follow(t, s, entries) // what was not known to be committed
	got := s.Stats()
	got.Checkpoint, want.Checkpoint = op.Pos{}, op.Pos{}
	if got != want {
		t.Errorf("seed %d: slot is %+v, should be %+v", seed, got, want)
	}
	sameState(t, fmt.Sprint("seed ", seed), treeState(t, filepath.Join(dir, dirTree)), tree)
	for _, e := range s.Events.List() {
		if e.Kind != EventRecovery {
			t.Errorf("seed %d: event %+v", seed, e)
		}
	}
	t.Log(s.Events.List())
	if _, err := os.Lstat(filepath.Join(dir, fileRebuild)); err == nil {
		t.Errorf("the marker is still there")
	}
	s.Close()
}

// garble changes bytes all over a file.
func garble(t *testing.T, path string, rnd *rand.Rand) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 1 + len(b)/20 {
		b[rnd.IntN(len(b))] ^= byte(1 + rnd.IntN(255))
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
