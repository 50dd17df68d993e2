package fs_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestRefresh: what a corrected record says is seen at once, and what the mount
// then changes is not written into the index's own record.
func TestRefresh(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	w.must(unix.Setxattr(w.path("f"), "user.a", []byte("1"), 0))
	w.applied()
	id, err := w.slot.Lookup("f")
	w.must(err)
	in, err := w.slot.Inode(id)
	w.must(err)
	w.fs.Refresh(id)
	w.must(unix.Setxattr(w.path("f"), "user.b", []byte("2"), 0))
	if _, shared := in.Xattr["user.b"]; shared || len(in.Xattr) != 1 {
		t.Errorf("the record that was read before has %q now", in.Xattr)
	}
	value := make([]byte, 10)
	if n, err := unix.Getxattr(w.path("f"), "user.a", value); err != nil || string(value[:n]) != "1" {
		t.Errorf("user.a: %q, %v", value[:max(n, 0)], err)
	}
}
