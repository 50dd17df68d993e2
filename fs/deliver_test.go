package fs_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta"
	"slotfs/meta/op"
)

// TestDeliver: a message that does not come through the mount is seen there at
// once, whatever the kernel had cached, and is a message like any other.
func TestDeliver(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/tmp/m", "first")
	w.must(os.Rename(w.path("u/tmp/m"), w.path("u/new/first")))
	list := func() []string {
		t.Helper()
		entries, err := os.ReadDir(w.path("u/new"))
		w.must(err)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		slices.Sort(names)
		return names
	}
	stat := func() time.Time {
		t.Helper()
		st, err := os.Stat(w.path("u/new"))
		w.must(err)
		return st.ModTime()
	}
	// The kernel caches the listing, the times, and that the name is free.
	list()
	before := stat()
	if _, err := os.Stat(w.path("u/new/rescued")); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	w.applied()
	dir, err := w.slot.Lookup("u/new")
	w.must(err)
	for name, size := range map[string]int{"rescued": 100, "large": 9 << 20} {
		content := bytes.Repeat([]byte("x"), size)
		mtime := time.Date(2020, 1, 2, 3, 4, 5, 6, time.UTC)
		o := meta.Origin{Epoch: 3, Seq: uint64(size)}
		attr := op.Attr{Mode: unix.S_IFREG | 0o640, UID: 1, GID: 2, Mtime: mtime.UnixNano(),
			Xattr: map[string][]byte{meta.RescuedXattr: []byte(o.String())}}
		id, err := w.fs.Deliver(t.Context(), dir, name, attr, content)
		w.must(err)
		if got := list(); !slices.Contains(got, name) {
			t.Errorf("listing: %q", got)
		}
		if now := stat(); !now.After(before) {
			t.Errorf("mtime of the directory: %v, before %v", now, before)
		}
		got, err := os.ReadFile(w.path("u/new/" + name))
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		st, err := os.Stat(w.path("u/new/" + name))
		w.must(err)
		if !st.ModTime().Equal(mtime) || st.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v", name, st)
		}
		if n, err := unix.Listxattr(w.path("u/new/"+name), make([]byte, 100)); err != nil || n != 0 {
			t.Errorf("attributes of %s: %d bytes, %v", name, n, err)
		}
		if err := unix.Setxattr(w.path("u/new/"+name), meta.RescuedXattr, []byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("set the origin: %v", err)
		}
		w.must(os.Rename(w.path("u/new/"+name), w.path("u/cur/"+name+":2,S")))
		w.must(os.Remove(w.path("u/cur/" + name + ":2,S")))
		w.applied()
		if have, ok := w.slot.Rescued(o); !ok || have != id {
			t.Errorf("delivered as %d, noted %d, %t", id, have, ok)
		}
		if _, err := w.fs.Deliver(t.Context(), dir, "first", attr, content); !errors.Is(err, unix.EEXIST) {
			t.Errorf("a name that is taken: %v", err)
		}
	}
	if _, err := w.fs.Deliver(t.Context(), 12345, "x", op.Attr{Mode: unix.S_IFREG}, nil); !errors.Is(err, meta.ErrNotExist) {
		t.Errorf("no such directory: %v", err)
	}
	top, err := w.slot.Lookup("u")
	w.must(err)
	if _, err := w.fs.Deliver(t.Context(), top, "x", op.Attr{Mode: unix.S_IFREG}, nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no mailbox: %v", err)
	}
}
