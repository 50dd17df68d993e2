package loop_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/integration/loop"
	"slotfs/integration/scratch"
)

func TestMain(m *testing.M) {
	scratch.Guard()
	os.Exit(m.Run())
}

func TestDiskFillsUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	d, err := scratch.New("", "slotfs-loop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	img, mnt := filepath.Join(d.Path, "img"), filepath.Join(d.Path, "mnt")
	if err := errors.Join(loop.Mkfs(img, 16<<20), os.Mkdir(mnt, 0o755)); err != nil {
		t.Fatal(err)
	}
	dev, err := loop.Attach(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := loop.Mount(dev, mnt); err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(filepath.Join(mnt, "big"), make([]byte, 17<<20), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("17 MiB on a disk of 16: %v", err)
	}
	if err := errors.Join(loop.Unmount(mnt), loop.Detach(dev)); err != nil {
		t.Error(err)
	}
	if found, err := d.Left(); err != nil || len(found) > 0 {
		t.Errorf("left: %q, %v", found, err)
	}
}
