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

	"slotfs/meta/op"
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
		if limit == 80 { // as if killed while badger wrote a table
			if err := os.WriteFile(filepath.Join(dir, dirIndex, "000009.sst"), []byte("half"), 0o600); err != nil {
				t.Fatal(err)
			}
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
	if a := s.Adopted(); a == nil || a.UpTo == 0 || time.Since(a.Begun) > time.Minute || !a.Verified.IsZero() || s.StoreID().IsZero() || len(s.Log.Epochs()) != 1 {
		t.Errorf("adopted %+v, store %v", a, s.StoreID())
	}
	if st := s.Stats(); st.Unverified != 240 || st.UnverifiedBytes == 0 {
		t.Errorf("%+v", st)
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
	if got := s.Stats(); got.Digest != stats.Digest || got.Messages != 240 || got.Unverified != 240 {
		t.Errorf("rebuilt: %+v, was %+v", got, stats)
	}
}

// adopted opens a slot whose spool was adopted.
func adopted(t *testing.T) (s *Slot, dir string, want map[string]string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "a")
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	want = spool(t, filepath.Join(dir, dirTree))
	if _, err := Adopt(t.Context(), dir, AdoptOptions{}); err != nil {
		t.Fatal(err)
	}
	return openSlot(t, dir, Options{}), dir, want
}

// lead makes s a primary that is alone, in its next epoch.
func lead(t *testing.T, s *Slot) {
	t.Helper()
	epoch := s.Log.Last().Epoch + 1
	s.Log.Lead(epoch, nil)
	if _, err := s.Log.Append(&op.EpochBegin{Epoch: epoch, Primary: s.ID, Members: []op.SlotID{s.ID}, Store: s.StoreID()}); err != nil {
		t.Fatal(err)
	}
	s.Start()
}

// until waits for a state that entries bring about.
func until(t *testing.T, s *Slot, ok func() bool) {
	t.Helper()
	end := time.After(30 * time.Second)
	for {
		applied := s.Log.Applied.Changed()
		if ok() {
			return
		}
		select {
		case <-applied:
		case <-end:
			t.Fatalf("not reached: %+v", s.Adoption())
		}
	}
}

// takeAll has s read its adopted messages until ok.
func takeAll(t *testing.T, s *Slot, ok func() bool) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.AdoptLoop(ctx) }()
	until(t, s, ok)
	stop()
	<-done
}

// An adopted store is served, and copied, before it was read. The primary takes the
// checksums, replicas compare their copies; then it is a store like every other.
func TestAdoptedIsVerified(t *testing.T) {
	s, _, want := adopted(t)
	lead(t, s)
	other := filepath.Join(t.TempDir(), "b")
	if _, err := Create(other, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	repaired := make(chan string, 10)
	r := openSlot(t, other, Options{Fetch: func(ctx context.Context, id op.ID, want op.Sum) (Copy, error) {
		b := make([]byte, want.Size)
		_, err := s.ReadAt(ctx, id, b, 0)
		return Copy{Data: b, From: "s"}, err
	}, OnEvent: func(e Event) {
		if e.Kind == EventRepaired {
			repaired <- e.Path
		}
	}})
	sn, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, r, source{s, sn}, 0, never); err != nil {
		t.Fatal(err)
	}
	if st := r.Stats(); st.Unverified != 240 || r.Adopted() == nil {
		t.Errorf("the replica: %+v", st)
	}
	checkClean(t, s)
	checkClean(t, r)
	const rotten = "bob/cur/7.M1.host:2,S"
	rewrite(t, filepath.Join(other, dirTree, rotten), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })

	takeAll(t, s, func() bool { return !s.unread() })
	if a := s.Adoption(); a.Unverified != 0 || a.BadCount != 0 || time.Since(a.Verified) > time.Minute {
		t.Errorf("%+v", a)
	}
	entries, err := s.Log.Read(r.Log.Last().Seq+1, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	follow(t, r, entries)
	select {
	case path := <-repaired:
		if path != rotten {
			t.Errorf("repaired %q", path)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the replica did not compare its copies")
	}
	sameSlots(t, r, s)
	for _, x := range []*Slot{s, r} {
		checkClean(t, x)
		for rel, text := range want {
			id, err := x.Lookup(rel)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, len(text)+1)
			if k, err := x.ReadAt(t.Context(), id, b, 0); err != nil || string(b[:k]) != text {
				t.Errorf("%s: %q, %v", rel, b[:k], err)
			}
			n, err := x.Inode(id)
			if err != nil || n.Sealed && !n.Sum.Equal(op.SumOf([]byte(text))) {
				t.Errorf("%s: %+v, %v", rel, n, err)
			}
		}
	}
	// The index can be made again from the tree and the log.
	stats := r.Stats()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(other, dirIndex)); err != nil {
		t.Fatal(err)
	}
	r = openSlot(t, other, Options{})
	if got := r.Stats(); got.Digest != stats.Digest || got.Unverified != 0 {
		t.Errorf("rebuilt: %+v, was %+v", got, stats)
	}
}

// A message that cannot be read stays unverified and is reported, until it can be;
// one that is removed before it was read can be brought back.
func TestAdoptedUnreadable(t *testing.T) {
	s, dir, want := adopted(t)
	const bad, removed = "bob/cur/7.M1.host:2,S", "ann/cur/9.M1.host:2,S"
	path := filepath.Join(dir, dirTree, bad)
	rewrite(t, path, func([]byte) []byte { return []byte("short") })
	lead(t, s)
	gone, err := s.Lookup(removed)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Inode(gone)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Log.Append(&op.Unlink{ID: gone, Parent: n.Names[0].Dir, Name: n.Names[0].Name}); err != nil {
		t.Fatal(err)
	}
	takeAll(t, s, func() bool { a := s.Adoption(); return a.Unverified == 1 && a.BadCount == 1 })
	a := s.Adoption()
	if a.Bad[0].Path != bad || !a.Verified.IsZero() || s.ScrubStatus().Damaged != 1 || s.Events.Counts()[EventDamaged] != 1 {
		t.Errorf("%+v, %v", a, s.Events.List())
	}
	if d, err := s.Deletion(gone); err != nil || d.Inode.Size != n.Size || d.Path != removed {
		t.Errorf("%+v, %v", d, err)
	}
	b := make([]byte, n.Size)
	if k, err := s.ReadAt(t.Context(), gone, b, 0); err != nil || string(b[:k]) != want[removed] {
		t.Errorf("%q, %v", b[:k], err)
	}
	rewrite(t, path, func([]byte) []byte { return []byte(want[bad]) })
	takeAll(t, s, func() bool { return !s.unread() })
	if a := s.Adoption(); a.Unverified != 0 || a.BadCount != 0 || a.Verified.IsZero() || s.ScrubStatus().Damaged != 0 {
		t.Errorf("%+v", a)
	}
	checkClean(t, s)
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
