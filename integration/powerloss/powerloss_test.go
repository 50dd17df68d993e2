package powerloss_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"slotfs/integration/powerloss"
	"slotfs/integration/scratch"
)

func TestMain(m *testing.M) {
	scratch.Guard()
	os.Exit(m.Run())
}

func newDisk(t *testing.T, size int64) *powerloss.Disk {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	d, err := scratch.New("", "slotfs-powerloss-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	disk, err := powerloss.New(d.Path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
		if found, err := d.Left(); err != nil || len(found) > 0 {
			t.Errorf("left: %q, %v", found, err)
		}
	})
	return disk
}

// put writes a file, and makes it and its name durable if sync is set.
func put(name string, data []byte, sync bool) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil || !sync {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// TestOnlySyncedSurvives proves the simulator: who syncs never loses
// anything on this disk, and who does not, does.
func TestOnlySyncedSurvives(t *testing.T) {
	disk := newDisk(t, 128<<20)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	content := func(kind string, i int) []byte {
		return bytes.Repeat(fmt.Appendf(nil, "%s %d\n", kind, i), 1+int(uint32(i)*2654435761%20000))
	}
	const rounds, files = 12, 10
	synced, lost := 0, 0
	for round := range rounds {
		before := disk.Flushes()
		for i := range files {
			n := round*files + i
			if err := put(filepath.Join(disk.Path(), fmt.Sprint("synced", n)), content("synced", n), true); err != nil {
				t.Fatal(err)
			}
			if err := put(filepath.Join(disk.Path(), fmt.Sprint("loose", n)), content("loose", n), false); err != nil {
				t.Fatal(err)
			}
		}
		if got := disk.Flushes() - before; got < files {
			t.Fatalf("%d flushes arrived for %d files with fsync", got, files)
		}
		if round%2 == 1 {
			if err := disk.Writeback(rng); err != nil {
				t.Fatal(err)
			}
		}
		disk.Freeze()
		loss, err := disk.Lose(rng)
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.Restart(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		t.Logf("round %d: %+v", round, loss)
		synced += files
		for i := range (round + 1) * files {
			got, err := os.ReadFile(filepath.Join(disk.Path(), fmt.Sprint("synced", i)))
			if err != nil || !bytes.Equal(got, content("synced", i)) {
				t.Fatalf("round %d: synced file %d: %d bytes, %v", round, i, len(got), err)
			}
		}
		for i := range files {
			n := round*files + i
			got, err := os.ReadFile(filepath.Join(disk.Path(), fmt.Sprint("loose", n)))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if !bytes.Equal(got, content("loose", n)) {
				lost++
			}
		}
	}
	t.Logf("%d files with fsync: none lost; %d without: %d lost or damaged", synced, synced, lost)
	if lost < synced/10 {
		t.Errorf("only %d of %d files without fsync were lost: the disk keeps what it should not", lost, synced)
	}
}

// TestOverwriteInPlaceTears: blocks of a file that exist already are written
// without the journal, and each may survive or not.
func TestOverwriteInPlaceTears(t *testing.T) {
	disk := newDisk(t, 64<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	name := filepath.Join(disk.Path(), "log")
	const size = 1 << 20
	if err := put(name, bytes.Repeat([]byte("old\n"), size/4), true); err != nil {
		t.Fatal(err)
	}
	mixed := 0
	for range 20 {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte("old\n"), size/4), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte("new\n"), size/4), 0); err != nil {
			t.Fatal(err)
		}
		// Push it to the disk without a flush: what a busy kernel does by itself.
		syncRange(t, f)
		f.Close()
		disk.Freeze()
		if _, err := disk.Lose(rng); err != nil {
			t.Fatal(err)
		}
		if err := disk.Restart(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || len(got) != size {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		olds, news := bytes.Count(got, []byte("old\n")), bytes.Count(got, []byte("new\n"))
		if olds+news != size/4 {
			t.Errorf("%d bytes are neither old nor new", size-4*(olds+news))
		}
		if olds > 0 && news > 0 {
			mixed++
		}
	}
	t.Logf("%d of 20 overwrites survived in part", mixed)
	if mixed == 0 {
		t.Error("nothing was ever torn")
	}
}
