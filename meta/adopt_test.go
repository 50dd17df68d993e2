package meta

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// spool writes a Maildir tree without slotfs, and returns what it holds.
func spool(t *testing.T, tree string) map[string]string {
	t.Helper()
	want := map[string]string{}
	write := func(rel, text string) {
		path := filepath.Join(tree, rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1_400_000_000, int64(len(rel)))
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		want[rel] = text
	}
	for _, user := range []string{"ann", "bob"} {
		for _, box := range []string{"", ".Sent/", ".\xff\xfe/"} {
			for _, d := range []string{"cur", "new", "tmp"} {
				if err := os.MkdirAll(filepath.Join(tree, user, box, d), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 40 {
				write(fmt.Sprintf("%s/%scur/%d.M1.host:2,S", user, box, i), strings.Repeat(fmt.Sprint("message ", i, " "), 10*i))
			}
			write(user+"/"+box+"dovecot-uidlist", "3 V1 N41\n")
		}
		write(user+"/subscriptions", "Sent\n")
	}
	if err := os.Link(filepath.Join(tree, "ann/cur/1.M1.host:2,S"), filepath.Join(tree, "ann/.Sent/cur/copy:2,")); err != nil {
		t.Fatal(err)
	}
	want["ann/.Sent/cur/copy:2,"] = want["ann/cur/1.M1.host:2,S"]
	if err := os.Symlink("ann", filepath.Join(tree, "alias")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(filepath.Join(tree, "bob/cur/2.M1.host:2,S"), "user.note", []byte("kept"), 0); err != nil {
		t.Fatal(err)
	}
	write("ann/tmp/half", "half a message")
	write("ann/dovecot.index.cache", "cache")
	delete(want, "ann/tmp/half")
	delete(want, "ann/dovecot.index.cache")
	if err := unix.Mknod(filepath.Join(tree, "ann/socket"), unix.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	return want
}

// A tree is adopted, interrupted again and again, as it is; the slot is whole,
// goes on from there, and another one is filled from it.
func TestAdopt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(dir, dirTree)
	if _, err := Adopt(t.Context(), dir, AdoptOptions{}); err == nil {
		t.Fatal("adopted nothing")
	}
	want := spool(t, tree)
	if _, err := tryOpen(t, dir, Options{}); !errors.Is(err, ErrNotAdopted) {
		t.Fatalf("opened before: %v", err)
	}
	inode := inodeOf(t, filepath.Join(tree, "ann/cur/1.M1.host:2,S"))
	var rep *AdoptReport
	for limit := 20; ; limit *= 2 {
		ctx := &countdown{Context: t.Context(), n: limit}
		var err error
		rep, err = Adopt(ctx, dir, AdoptOptions{})
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if _, err := tryOpen(t, dir, Options{}); !errors.Is(err, ErrNotAdopted) {
			t.Fatalf("opened in between: %v", err)
		}
	}
	if rep.Messages != 240 || rep.Resumed == 0 || len(rep.Left) != 3 || rep.Lost() != 1 {
		t.Errorf("%+v", rep)
	}
	s := openSlot(t, dir, Options{})
	s.Start()
	checkClean(t, s)
	for rel, text := range want {
		id, err := s.Lookup(rel)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Inode(id)
		if err != nil || n.Sealed != strings.Contains(rel, "/cur/") || n.Mode&permMask != 0o640 || n.Mtime/1e9 != 1_400_000_000 {
			t.Errorf("%s: %+v, %v", rel, n, err)
		}
		b := make([]byte, len(text)+1)
		if k, err := s.ReadAt(t.Context(), id, b, 0); err != nil || string(b[:k]) != text {
			t.Errorf("%s: %q, %v", rel, b[:k], err)
		}
	}
	if inodeOf(t, filepath.Join(tree, "ann/cur/1.M1.host:2,S")) != inode {
		t.Error("a file was copied")
	}
	if upTo, at := s.Adopted(); upTo == 0 || time.Since(at) > time.Minute || s.StoreID().IsZero() || len(s.Log.Epochs()) != 1 {
		t.Errorf("adopted up to %d at %v, store %v", upTo, at, s.StoreID())
	}
	if _, err := Adopt(t.Context(), dir, AdoptOptions{}); err == nil {
		t.Error("adopted again")
	}
	// The index can be made again from the tree.
	stats := s.Stats()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, dirIndex)); err != nil {
		t.Fatal(err)
	}
	s = openSlot(t, dir, Options{})
	if got := s.Stats(); got.Digest != stats.Digest || got.Messages != 240 {
		t.Errorf("rebuilt: %+v, was %+v", got, stats)
	}
}

func inodeOf(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// countdown is a context that is canceled when it was asked n times.
type countdown struct {
	context.Context
	n int
}

func (c *countdown) Err() error {
	if c.n--; c.n < 0 {
		return context.Canceled
	}
	return c.Context.Err()
}
