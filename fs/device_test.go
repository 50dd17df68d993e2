package fs

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The end of a connection that comes while nobody reads it is its end, and no
// failure to read.
func TestDeviceEndsUnread(t *testing.T) {
	dir := t.TempDir()
	fd, err := mountFUSE(dir, "test", []string{"max_read=4096"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDevice(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	// Until the poller knows.
	for end := time.Now().Add(10 * time.Second); d.conn.Read(func(uintptr) bool { return true }) == nil; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the poller does not hear of the end")
		}
	}
	if _, err := d.read(); err != unix.ENODEV {
		t.Errorf("got %v", err)
	}
}
