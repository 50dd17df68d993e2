package workload_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"slotfs/integration/powerloss"
	"slotfs/integration/scratch"
	"slotfs/integration/workload"
)

func TestMain(m *testing.M) {
	scratch.Guard()
	os.Exit(m.Run())
}

// run lets each writer take that many more steps, or a few more. Steps, not
// time: how many fit into a moment is the machine's business.
func run(t *testing.T, root string, writers []*workload.Writer, steps uint64) {
	t.Helper()
	var wg sync.WaitGroup
	for _, w := range writers {
		stop, ended := make(chan struct{}), make(chan struct{})
		goal := w.Done() + steps
		wg.Go(func() {
			defer close(ended)
			if err := w.Run(root, stop); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			defer close(stop)
			for tick := time.Tick(time.Millisecond); w.Done() < goal; {
				select {
				case <-tick:
				case <-ended:
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestNoCrashNoLoss(t *testing.T) {
	root := t.TempDir()
	writers := []*workload.Writer{workload.New("a", 1), workload.New("b", 2)}
	for range 5 {
		run(t, root, writers, 50)
		var outcomes []workload.Outcome
		for _, w := range writers {
			o, err := w.Verify(root, workload.Answered)
			if err != nil || o.Lost != 0 || o.Steps == 0 {
				t.Fatalf("%+v, %v", o, err)
			}
			outcomes = append(outcomes, o)
		}
		if err := workload.Ordered(outcomes); err != nil {
			t.Error(err)
		}
	}
}

func TestDamageIsSeen(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"message removed":  func(dir string) error { return os.Remove(some(dir, "cur/*")) },
		"message changed":  func(dir string) error { return os.WriteFile(some(dir, "cur/*"), []byte("x"), 0o600) },
		"mode changed":     func(dir string) error { return os.Chmod(some(dir, "cur/*"), 0o640) },
		"message appeared": func(dir string) error { return os.WriteFile(dir+"/new/x", nil, 0o600) },
		"control changed":  func(dir string) error { return os.WriteFile(dir+"/dovecot-uidlist", []byte("x"), 0o600) },
		"folder removed":   func(dir string) error { return os.Remove(dir + "/tmp") },
	} {
		root := t.TempDir()
		w := workload.New("a", 1)
		run(t, root, []*workload.Writer{w}, 100)
		if err := harm(filepath.Join(root, "a")); err != nil {
			t.Fatal(err)
		}
		var lost *workload.LostError
		if _, err := w.Verify(root, workload.Answered); !errors.As(err, &lost) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func some(dir, pattern string) string {
	names, _ := filepath.Glob(filepath.Join(dir, pattern))
	if len(names) == 0 {
		return filepath.Join(dir, "nothing")
	}
	return names[0]
}

// TestBareExt4IsFoundOut: the promise that a rename from tmp/ is a barrier is
// more than ext4 gives. The workload must notice on a disk that loses power.
func TestBareExt4IsFoundOut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	d, err := scratch.New("", "slotfs-workload-")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Remove()
	disk, err := powerloss.New(d.Path, 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 10 {
		w := workload.New("a", uint64(round))
		root := filepath.Join(disk.Path(), string(rune('a'+round)))
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		run(t, root, []*workload.Writer{w}, 50)
		disk.Freeze()
		if _, err := disk.Lose(rng); err != nil {
			t.Fatal(err)
		}
		if err := disk.Restart(); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Verify(root, workload.Durable); err != nil {
			t.Logf("round %d: found: %.300v", round, err)
			return
		}
	}
	t.Error("ten losses of power, and nothing was noticed")
}
