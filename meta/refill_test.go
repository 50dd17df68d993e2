package meta

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// What may happen to a tree behind a slot's back.
var treeLosses = map[string]func(t *testing.T, dir string){
	"emptied": func(t *testing.T, dir string) {
		if err := emptyDir(filepath.Join(dir, dirTree)); err != nil {
			t.Fatal(err)
		}
	},
	"removed": func(t *testing.T, dir string) {
		if err := os.RemoveAll(filepath.Join(dir, dirTree)); err != nil {
			t.Fatal(err)
		}
	},
	"a bare mount point": func(t *testing.T, dir string) {
		tree := filepath.Join(dir, dirTree)
		if err := errors.Join(os.RemoveAll(tree), os.Mkdir(tree, 0o700)); err != nil {
			t.Fatal(err)
		}
	},
}

func pairForRefill(t *testing.T, seed uint64) (src *Slot, dir string, entries []*op.Entry) {
	entries = history(t, seed, 400)
	for staged(entries) {
		entries = entries[:len(entries)-1]
	}
	src = newSlot(t, filepath.Join(t.TempDir(), "a"), entries)
	dir = filepath.Join(t.TempDir(), "b")
	return src, dir, entries
}

// A tree that is lost while the slot does not run: nothing of it is taken for
// removed, and another slot fills it.
func TestLostTreeAtStart(t *testing.T) {
	for name, lose := range treeLosses {
		t.Run(name, func(t *testing.T) {
			src, dir, entries := pairForRefill(t, 31)
			if err := newSlot(t, dir, entries).Close(); err != nil {
				t.Fatal(err)
			}
			lose(t, dir)
			if _, err := tryOpen(t, dir, Options{}); !errors.Is(err, ErrTreeLost) {
				t.Fatalf("opened alone: %v", err)
			}
			dst := openSlot(t, dir, Options{Refill: true})
			dst.Start()
			refill(t, dst, src, entries)
		})
	}
}

func refill(t *testing.T, dst, src *Slot, entries []*op.Entry) {
	t.Helper()
	if dst.Unfit() == nil || !dst.Resyncing() {
		t.Fatalf("unfit: %v, resyncing: %v", dst.Unfit(), dst.Resyncing())
	}
	_, err := dst.ReadAt(t.Context(), op.Root, make([]byte, 1), 0)
	if !errors.Is(err, dst.Unfit()) {
		t.Errorf("read of an unfit slot: %v", err)
	}
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, dst, source{src, sn}, uint64(len(entries)), never); err != nil {
		t.Fatal(err)
	}
	if dst.Unfit() != nil || dst.Resyncing() {
		t.Errorf("still unfit: %v", dst.Unfit())
	}
	sameSlots(t, dst, src)
	checkClean(t, dst)
}

// The same while it runs: it is noticed within seconds.
func TestLostTreeWhileRunning(t *testing.T) {
	for name, lose := range treeLosses {
		t.Run(name, func(t *testing.T) {
			src, dir, entries := pairForRefill(t, 32)
			if err := newSlot(t, dir, entries).Close(); err != nil {
				t.Fatal(err)
			}
			told := make(chan error, 1)
			dst := openSlot(t, dir, Options{Refill: true, OnUnfit: func(err error) { told <- err }})
			dst.Start()
			lose(t, dir)
			select {
			case err := <-told:
				if !errors.Is(err, ErrTreeLost) {
					t.Fatal(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("not noticed")
			}
			refill(t, dst, src, entries)
		})
	}
}

// A disk that was away comes back: the next start finds all well, as long as no
// resync had begun.
func TestLostTreeComesBack(t *testing.T) {
	src, dir, entries := pairForRefill(t, 33)
	if err := newSlot(t, dir, entries).Close(); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, dirTree)
	if err := errors.Join(os.Rename(tree, tree+".away"), os.Mkdir(tree, 0o700)); err != nil {
		t.Fatal(err)
	}
	dst := openSlot(t, dir, Options{Refill: true})
	dst.Start()
	if dst.Unfit() == nil {
		t.Fatal("not noticed")
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(tree), os.Rename(tree+".away", tree)); err != nil {
		t.Fatal(err)
	}
	dst = openSlot(t, dir, Options{Refill: true})
	if dst.Unfit() != nil || dst.Resyncing() {
		t.Fatal(dst.Unfit())
	}
	sameSlots(t, dst, src)
}

// Another slot's tree is neither served nor overwritten.
func TestTreeOfAnotherSlot(t *testing.T) {
	src, dir, entries := pairForRefill(t, 34)
	if err := newSlot(t, dir, entries).Close(); err != nil {
		t.Fatal(err)
	}
	other := op.SlotID{1, 2, 3}
	if err := unix.Setxattr(filepath.Join(dir, dirTree), ownerName, other[:], 0); err != nil {
		t.Fatal(err)
	}
	before := treeState(t, filepath.Join(dir, dirTree))
	dst := openSlot(t, dir, Options{Refill: true})
	dst.Start()
	if !errors.Is(dst.Unfit(), ErrTreeLost) {
		t.Fatal(dst.Unfit())
	}
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, dst, source{src, sn}, 0, never); !errors.Is(err, ErrTreeLost) {
		t.Errorf("resync: %v", err)
	}
	sameState(t, "tree", treeState(t, filepath.Join(dir, dirTree)), before)
}

// Entries of the log that recovery needs cannot be read: the slot is refilled,
// and the damaged log is kept.
func TestLostLog(t *testing.T) {
	src, dir, entries := pairForRefill(t, 35)
	s := newSlot(t, dir, entries[:100])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSlot(t, dir, Options{CheckpointEvery: time.Hour})
	follow(t, s, entries[:200])
	follow(t, s, entries)
	if err := s.Log.Seal(1); err != nil {
		t.Fatal(err)
	}
	crashSlot(t, s)
	garbleLog(t, filepath.Join(dir, dirLog), 150)
	var damage *oplog.DamageError
	if _, err := tryOpen(t, dir, Options{}); !errors.As(err, &damage) {
		t.Fatalf("opened alone: %v", err)
	}
	dst := openSlot(t, dir, Options{Refill: true})
	dst.Start()
	if dst.Log.Sealed() != 1 {
		t.Error("the seal is gone")
	}
	refill(t, dst, src, entries)
	names, err := readNames(dir, dirQuarantine)
	if err != nil || !slices.ContainsFunc(names, func(n string) bool { return n[len(n)-len(dirLog):] == dirLog }) {
		t.Error(names, err)
	}
}

// garbleLog damages the entry seq.
func garbleLog(t *testing.T, dir string, seq uint64) {
	t.Helper()
	var raw []byte
	err := oplog.Scan(dir, 0, func(e *op.Entry) error {
		if e.Seq == seq {
			raw = slices.Clone(e.Raw)
		}
		return nil
	})
	if err != nil || raw == nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := false
		for at := 0; at+len(raw) <= len(b); at += 1 {
			if string(b[at:at+len(raw)]) == string(raw) {
				b[at+len(raw)/2] ^= 0x55
				changed = true
			}
		}
		if !changed {
			continue
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(b, 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
