package powerloss_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// syncRange starts and awaits the writing of f's pages, without a flush of
// the disk's cache: sync_file_range(2) says what it does not do.
func syncRange(t *testing.T, f *os.File) {
	t.Helper()
	err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	if err != nil {
		t.Fatal(err)
	}
}
