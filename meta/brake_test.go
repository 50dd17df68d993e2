package meta

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"slotfs/meta/op"
)

// burst feeds losses to a brake: n messages of each of users, one a second.
type burst struct {
	b     *brake
	at    int64
	total uint64
	all   map[string]uint64 // what users have left
}

func newBurst(t *testing.T, total uint64) *burst {
	b, err := openBrake(t.TempDir(), BrakeOptions{Min: 30, Share: 0.2, Window: 10 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	return &burst{b: b, at: 1_700_000_000_000_000_000, total: total, all: map[string]uint64{}}
}

func (x *burst) lose(user string, dir op.ID, n int, every time.Duration) (engaged int) {
	for range n {
		x.at += int64(every)
		x.total--
		x.all[user]--
		if x.b.lost(loss{x.at, user, dir}, x.total, func(u string) uint64 { return x.all[u] }) != nil {
			engaged++
		}
	}
	return engaged
}

func TestBrakeEngages(t *testing.T) {
	t.Run("one user empties the largest folder", func(t *testing.T) {
		x := newBurst(t, 1000)
		x.all["ann"] = 700
		if x.lose("ann", 1, 600, time.Millisecond) > 0 {
			t.Error("engaged")
		}
	})
	t.Run("two users empty folders", func(t *testing.T) {
		x := newBurst(t, 1000)
		x.all["ann"], x.all["bob"] = 400, 400
		if x.lose("ann", 1, 300, time.Millisecond)+x.lose("bob", 2, 300, time.Millisecond) > 0 {
			t.Error("engaged")
		}
	})
	t.Run("everybody expunges a little all day", func(t *testing.T) {
		x := newBurst(t, 10_000)
		for i := range 3000 {
			u := fmt.Sprint("user", i%50)
			x.all[u] = 100
			if x.lose(u, op.ID(i%50), 1, time.Second) > 0 {
				t.Fatal("engaged")
			}
		}
	})
	t.Run("many users lose much", func(t *testing.T) {
		x := newBurst(t, 1000)
		n := 0
		for i := range 10 {
			u := fmt.Sprint("user", i)
			x.all[u] = 100
			n += x.lose(u, op.ID(i), 30, time.Second)
		}
		if n != 1 || len(x.b.engaged) != 1 || x.b.engaged[0].User != "" {
			t.Errorf("engaged %d times: %+v", n, x.b.engaged)
		}
		// What went before it engaged is held, too, and of everybody.
		first, now := int64(1_700_000_000_000_000_000)+int64(time.Second), time.Unix(0, x.at).Add(time.Hour)
		if !x.b.holds(first, "anybody", now) || !x.b.holds(x.at, "user9", now) {
			t.Error("not held")
		}
		if x.b.holds(first, "user1", now.Add(8*24*time.Hour)) {
			t.Error("held for ever")
		}
	})
	t.Run("all of one user", func(t *testing.T) {
		x := newBurst(t, 100_000)
		x.all["ann"] = 100
		n := x.lose("ann", 1, 50, time.Millisecond)
		if n > 0 {
			t.Error("engaged at half")
		}
		if n = x.lose("ann", 2, 50, time.Millisecond); n != 1 || x.b.engaged[0].User != "ann" {
			t.Errorf("engaged %d times: %+v", n, x.b.engaged)
		}
		now := time.Unix(0, x.at).Add(time.Hour)
		if !x.b.holds(x.at, "ann", now) || x.b.holds(x.at, "bob", now) {
			t.Error("holds the wrong ones")
		}
	})
	t.Run("off", func(t *testing.T) {
		x := newBurst(t, 1000)
		x.b.opt.Share = -1
		for i := range 10 {
			if x.lose(fmt.Sprint(i), op.ID(i), 90, time.Millisecond) > 0 {
				t.Error("engaged")
			}
		}
	})
}

// mailUsers is a slot with some users, whose messages are told by number.
func mailUsers(t *testing.T, o Options, users, each int) (*mailSlot, map[string]op.ID, map[string]op.ID) {
	t.Helper()
	s := newMailSlot(t, o)
	dirs, ids := map[string]op.ID{}, map[string]op.ID{}
	for u := range users {
		user := fmt.Sprint("user", u)
		home := s.add(&op.Mkdir{Parent: op.Root, Name: user, Attr: op.Attr{Mode: typeDir | 0o700}})
		for _, d := range []string{"tmp", "new", "cur"} {
			dirs[user+"/"+d] = s.add(&op.Mkdir{Parent: home, Name: d, Attr: op.Attr{Mode: typeDir | 0o700}})
		}
		for i := range each {
			data := []byte(fmt.Sprintf("message %d of %s\n", i, user))
			name := fmt.Sprintf("%d:2,S", i)
			ids[user+"/cur/"+name] = s.add(&op.Put{Parent: dirs[user+"/cur"], Name: name, Attr: op.Attr{Mode: typeRegular | 0o600, Mtime: int64(i + 1)},
				Sealed: true, Sum: op.SumOf(data), Data: data})
		}
	}
	return s, dirs, ids
}

// What a burst removes stays over checkpoints and starts, with its record, until
// it is undeleted or its time is over.
func TestBrakeKeeps(t *testing.T) {
	s, dirs, ids := mailUsers(t, Options{Brake: BrakeOptions{Min: 20, Window: time.Second, Keep: time.Hour}}, 5, 20)
	for path, id := range ids {
		if strings.HasSuffix(path, "7:2,S") {
			continue
		}
		s.add(&op.Unlink{ID: id, Parent: dirs[filepath.Dir(path)], Name: filepath.Base(path)})
	}
	if st := s.Brake(); len(st.Engaged) != 1 || s.Events.Counts()[EventBrake] != 1 {
		t.Fatalf("%+v, %+v", st, s.Events.List())
	}
	checkpointNow := func() {
		s.add(&op.Checkpoint{})
		s.stopApplier()
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		s.startApplier()
	}
	reopen := func() {
		s.reopen()
		epoch := s.Log.Last().Epoch + 1
		s.Log.Lead(epoch, nil)
		s.add(&op.EpochBegin{Epoch: epoch, Primary: s.ID, Members: []op.SlotID{s.ID}, Store: [16]byte{1}})
	}
	time.Sleep(1100 * time.Millisecond) // past the window
	for range 3 {
		checkpointNow()
	}
	reopen()
	for range 3 {
		checkpointNow()
	}
	kept, err := s.Deletions(0)
	if st := s.Brake(); err != nil || len(kept) != 90 && len(kept) != 95 || st.Kept != len(kept) || len(st.Engaged) != 1 {
		t.Fatalf("%d deletions kept, %+v, %v", len(kept), st, err)
	}
	for _, d := range kept {
		want := fmt.Sprintf("message %s of %s\n", strings.TrimSuffix(filepath.Base(d.Path), ":2,S"), d.User)
		b := make([]byte, d.Inode.Size)
		if _, err := s.ReadAt(t.Context(), d.Inode.ID, b, 0); err != nil || string(b) != want || ids[d.Path] != d.Inode.ID {
			t.Errorf("%s: %q, %v", d.Path, b, err)
		}
	}
	// One comes back: it is not offered again, here and after a start.
	d := kept[0]
	data := make([]byte, d.Inode.Size)
	if _, err := s.ReadAt(t.Context(), d.Inode.ID, data, 0); err != nil {
		t.Fatal(err)
	}
	s.add(&op.Put{Parent: dirs[filepath.Dir(d.Path)], Name: filepath.Base(d.Path), Sealed: true, Sum: op.SumOf(data), Data: data,
		Attr: op.Attr{Mode: typeRegular | 0o600, Xattr: map[string][]byte{UndeletedXattr: []byte(strconv.FormatUint(uint64(d.Inode.ID), 10))}}})
	for range 2 {
		if again, err := s.Deletions(0); err != nil || len(again) != len(kept)-1 {
			t.Errorf("%d deletions afterwards, %v", len(again), err)
		}
		checkpointNow()
		reopen()
	}
	// A full disk takes them.
	for range 3 {
		checkpointNow()
	}
	n, err := s.trash.makeRoom(func() bool { return false })
	if left, e := s.Deletions(0); err != nil || e != nil || n != len(kept)-1 || len(left) > 0 {
		t.Errorf("made room by %d, %d left, %v, %v", n, len(left), err, e)
	}
	if names, err := os.ReadDir(filepath.Join(s.dir, dirTrash)); err != nil || len(names) > 1 {
		t.Errorf("%d in trash, %v", len(names), err)
	}
}
