package powerloss_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSpoil: a spoiled file cannot be read, another one can.
func TestSpoil(t *testing.T) {
	disk := newDisk(t, 64<<20)
	data := bytes.Repeat([]byte("sector "), 3000)
	for _, name := range []string{"a", "b"} {
		if err := put(filepath.Join(disk.Path(), name), data, true); err != nil {
			t.Fatal(err)
		}
	}
	a := filepath.Join(disk.Path(), "a")
	if err := disk.Spoil(a); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(a); !errors.Is(err, syscall.EIO) {
		t.Errorf("spoiled: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(disk.Path(), "b")); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the other one: %d bytes, %v", len(got), err)
	}
	disk.Unspoil()
	if got, err := os.ReadFile(a); err != nil || !bytes.Equal(got, data) {
		t.Errorf("not spoiled any more: %d bytes, %v", len(got), err)
	}
}
