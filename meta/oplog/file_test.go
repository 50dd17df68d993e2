package oplog

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestCommitAt: what is committed is read by everybody, whether or not the file
// system writes it around its cache.
func TestCommitAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, err := osFS{}.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 4*page), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	b := aligned(page)
	commit := func(p []byte, off int64) {
		t.Helper()
		if err := f.CommitAt(p, off); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, page)
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("read after commit at %d: %v, %q", off, err, got[:8])
		}
		all, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(all[off:][:page], p) {
			t.Fatalf("file after commit at %d: %v", off, err)
		}
	}
	copy(b, "first")
	commit(b, page)
	// Its name may change: a segment gets its own only when it is ready.
	if err := os.Rename(path, path+".log"); err != nil {
		t.Fatal(err)
	}
	path += ".log"
	copy(b, "second")
	commit(b, 2*page)
	// A file system that cannot: none takes memory at an odd address.
	odd := make([]byte, page+1)[1:]
	copy(odd, "third")
	commit(odd, 3*page)
	commit(b, page)
}
