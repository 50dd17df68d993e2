package meta

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// branchWorld is a history with a mailbox, in which messages of some size come
// after the fork, one of them in pieces.
func branchWorld(t *testing.T) (w *world, fork uint64, want map[uint64][]byte) {
	w = newWorld(t, 1)
	w.dirs = nil
	attr := op.Attr{Mode: typeDir | 0o755}
	box := w.add(&op.Mkdir{Parent: op.Root, Name: "ann", Attr: attr})
	var cur op.ID
	for _, name := range []string{"tmp", "new", "cur"} {
		cur = w.add(&op.Mkdir{Parent: box, Name: name, Attr: attr})
	}
	put := func(name string, data []byte) op.ID {
		return w.add(&op.Put{Parent: cur, Name: name, Attr: op.Attr{Mode: typeRegular | 0o600, Mtime: 5}, Sum: op.SumOf(data), Sealed: true, Data: data})
	}
	both := put("both:2,", []byte("both"))
	old := put("old:2,", []byte("old"))
	fork = w.log.last()
	want = map[uint64][]byte{}
	w.add(&op.EpochBegin{Epoch: 2, Reason: "alone"})
	for i := range 12 {
		data := bytes.Repeat(fmt.Appendf(nil, "message %d\n", i), 40_000)
		want[uint64(put(fmt.Sprintf("m%d:2,S", i), data))] = data
	}
	large := bytes.Repeat([]byte("large\n"), 1_000_000)
	stage := uint64(0)
	for off := 0; off < len(large); off += op.ChunkSize {
		id := w.add(&op.Chunk{Stage: stage, Off: int64(off), Data: large[off:min(len(large), off+op.ChunkSize)]})
		if stage == 0 {
			stage = uint64(id)
		}
	}
	want[uint64(w.add(&op.Put{Parent: cur, Name: "large", Attr: op.Attr{Mode: typeRegular | 0o600}, Sum: op.SumOf(large), Sealed: true, Stage: stage}))] = large
	w.add(&op.Rename{ID: both, OldParent: cur, OldName: "both:2,", NewParent: cur, NewName: "both:2,S"})
	w.add(&op.Unlink{ID: old, Parent: cur, Name: "old:2,"})
	gone := put("gone:2,", []byte("gone"))
	w.add(&op.Unlink{ID: gone, Parent: cur, Name: "gone:2,"})
	return w, fork, want
}

// TestBranch: what is kept of a branch is all of its messages, with their
// content, also of those whose entries the log no longer has; and keeping it
// again changes nothing.
func TestBranch(t *testing.T) {
	for _, trim := range []bool{false, true} {
		w, fork, want := branchWorld(t)
		s := newSlot(t, t.TempDir()+"/d", w.log.entries)
		if trim {
			restore := s.pauseApplier()
			if err := s.checkpoint(); err != nil {
				t.Fatal(err)
			}
			restore()
			if err := s.Log.Trim(fork + 8); err != nil {
				t.Fatal(err)
			}
			if s.Log.First() <= fork+1 {
				t.Fatalf("the log still begins at %d", s.Log.First())
			}
		}
		info := BranchInfo{Fork: fork, Acked: fork + 10, From: "n2", Epochs: []BranchEpoch{{Epoch: 2, From: fork + 1}}}
		b, err := s.KeepBranch(t.Context(), info)
		if err != nil {
			t.Fatal(err)
		}
		if b.Messages != uint64(len(want)) || b.Offered != 9 || b.Changes.Flags != 1 || b.Changes.Removed != 1 {
			t.Errorf("branch: %+v", b)
		}
		again, err := s.KeepBranch(t.Context(), info)
		if err != nil || again.Time != b.Time {
			t.Errorf("kept again: %+v, %v", again, err)
		}
		// The slot may be anything now.
		if err := os.RemoveAll(filepath.Join(s.dir, dirTree, "ann")); err != nil {
			t.Fatal(err)
		}
		offered := uint64(0)
		err = s.OfferBranch(t.Context(), b.Name, func(*Lost) bool { return true }, func(l *Lost, content []byte, damaged error) error {
			if damaged != nil || !bytes.Equal(content, want[l.Seq]) || l.Seq <= offered {
				t.Errorf("seq %d after %d: %d bytes, want %d; %v", l.Seq, offered, len(content), len(want[l.Seq]), damaged)
			}
			if l.Mailbox != "ann" || l.Epoch != 2 || l.Offer != (l.Seq <= info.Acked) || l.Origin().Seq != l.Seq {
				t.Errorf("seq %d: %+v", l.Seq, l)
			}
			offered = l.Seq
			delete(want, l.Seq)
			return s.Decide(b.Name, Decision{Seq: l.Seq, Outcome: Delivered})
		})
		if err != nil || len(want) > 0 {
			t.Errorf("not offered: %d, %v", len(want), err)
		}
		done, err := s.Decisions(b.Name)
		if err != nil || uint64(len(done)) != b.Messages {
			t.Errorf("%d decisions, %v", len(done), err)
		}
		if err := s.DropBranch(b.Name); err != nil {
			t.Fatal(err)
		}
		if list, err := s.Branches(); err != nil || len(list) != 0 {
			t.Errorf("after drop: %v, %v", list, err)
		}
		if left, _ := os.ReadDir(filepath.Join(s.dir, dirRescue)); len(left) != 0 {
			t.Errorf("after drop: %v", left)
		}
	}
}

// TestBranchDamaged: a message whose kept content is not what it was is not
// offered as good, and the others are.
func TestBranchDamaged(t *testing.T) {
	w, fork, _ := branchWorld(t)
	s := newSlot(t, t.TempDir()+"/d", w.log.entries)
	b, err := s.KeepBranch(t.Context(), BranchInfo{Fork: fork, Acked: w.log.last(), From: "n2"})
	if err != nil {
		t.Fatal(err)
	}
	// Swap the list's checksums of two messages.
	name := s.branchFile(b.Name, ".mail")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	a, c := fmt.Sprintf("%x", op.SumOf(bytes.Repeat([]byte("message 0\n"), 40_000)).SHA256), fmt.Sprintf("%064x", 0)
	if err := os.WriteFile(name, bytes.Replace(text, []byte(a), []byte(c), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	bad, good := 0, 0
	err = s.OfferBranch(t.Context(), b.Name, func(*Lost) bool { return true }, func(_ *Lost, _ []byte, damaged error) error {
		if damaged != nil {
			bad++
		} else {
			good++
		}
		return nil
	})
	if err != nil || bad != 1 || good != int(b.Messages)-1 {
		t.Errorf("%d damaged, %d good of %d: %v", bad, good, b.Messages, err)
	}
}

// TestDecisionsTorn: a crash in the middle of a decision costs that one.
func TestDecisionsTorn(t *testing.T) {
	w, _, _ := branchWorld(t)
	s := newSlot(t, t.TempDir()+"/d", w.log.entries)
	for i := range uint64(3) {
		if err := s.Decide("x", Decision{Seq: i, Outcome: Delivered}); err != nil {
			t.Fatal(err)
		}
	}
	name := s.branchFile("x", ".done")
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, st.Size()-5); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Decisions("x"); err != nil || len(done) != 2 {
		t.Errorf("%v, %v", done, err)
	}
	if err := s.Decide("x", Decision{Seq: 7, Outcome: Present}); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Decisions("x"); err != nil || len(done) != 3 || done[7].Outcome != Present {
		t.Errorf("%v, %v", done, err)
	}
}

// TestRescuedSet: what was delivered again is known after a stop, with a torn
// list, and to a slot that was resynced.
func TestRescuedSet(t *testing.T) {
	w, _, _ := branchWorld(t)
	cur, err := w.ix.child(2, "cur")
	if err != nil {
		t.Fatal(err)
	}
	var origins []Origin
	for i := range 5 {
		o := Origin{Epoch: 9, Seq: uint64(i), Content: [8]byte{1, byte(i)}}
		origins = append(origins, o)
		data := fmt.Appendf(nil, "rescued %d", i)
		id := w.add(&op.Put{Parent: cur.ID, Name: fmt.Sprint("r", i), Sum: op.SumOf(data), Sealed: true, Data: data,
			Attr: op.Attr{Mode: typeRegular | 0o600, Xattr: map[string][]byte{RescuedXattr: []byte(o.String())}}})
		w.add(&op.Unlink{ID: id, Parent: cur.ID, Name: fmt.Sprint("r", i)}) // a user may delete it
	}
	dir := t.TempDir() + "/d"
	s := newSlot(t, dir, w.log.entries)
	known := func(s *Slot, when string) {
		t.Helper()
		for _, o := range origins {
			if id, ok := s.Rescued(o); !ok || id == 0 {
				t.Errorf("%s: %v is not known", when, o)
			}
		}
		if _, ok := s.Rescued(Origin{Epoch: 9, Seq: 77}); ok || s.RescuedCount() != len(origins) {
			t.Errorf("%s: %d are known", when, s.RescuedCount())
		}
	}
	known(s, "applied")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openSlot(t, dir, Options{})
	known(s, "opened again")
	other := newSlot(t, t.TempDir()+"/other", nil)
	if err := other.AddRescued(s.RescuedFrom(0, 2)); err != nil {
		t.Fatal(err)
	}
	if err := other.AddRescued(s.RescuedFrom(1, 100)); err != nil {
		t.Fatal(err)
	}
	known(other, "handed over")
	s.Close()
	// A torn line comes again with the log; here it is cut.
	file := filepath.Join(dir, dirRescue, fileDelivered)
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("9.5.0102"); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s = openSlot(t, dir, Options{})
	known(s, "torn")
	s.Close()
	if err := os.WriteFile(file, []byte("garbage\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(dir, Options{Reserve: -1, Log: oplog.Options{SegmentSize: 1 << 20}}); err == nil {
		s.Close()
		t.Error("a damaged list was accepted")
	}
}

// TestRescuePlace: where a message goes.
func TestRescuePlace(t *testing.T) {
	w := newWorld(t, 1)
	attr := op.Attr{Mode: typeDir | 0o755}
	box := func(parent op.ID, name string) op.ID {
		id := w.add(&op.Mkdir{Parent: parent, Name: name, Attr: attr})
		for _, sub := range []string{"tmp", "new", "cur"} {
			w.add(&op.Mkdir{Parent: id, Name: sub, Attr: attr})
		}
		return id
	}
	ann := box(op.Root, "ann")
	work := box(ann, ".Work")
	fork := w.log.last()
	w.add(&op.Rename{ID: work, OldParent: ann, OldName: ".Work", NewParent: ann, NewName: ".Job"})
	later := box(ann, ".Later")
	s := newSlot(t, t.TempDir()+"/d", w.log.entries)
	for _, c := range []struct {
		mailbox string
		dir     op.ID
		into    string
		want    string
		text    bool
	}{
		{"ann", ann, "", "ann", false},
		{"ann/.Work", work, "", "ann/.Job", true},
		{"ann/.Gone", 9999, "", "ann", true},
		{"ann/.Later", later + 100, "", "ann/.Later", false}, // another object of that path
		{"bob", 9999, "", "", false},
		{"bob/.Sent", 9999, "", "", false},
		{"", 0, "", "", false},
		{"bob", 9999, "ann/.Job", "ann/.Job", false},
		{"bob", 9999, "ann/cur", "", false},
		{"bob", 9999, "nobody", "", false},
	} {
		l := &Lost{Fork: fork, Mailbox: c.mailbox, Dir: c.dir}
		p, err := s.RescuePlace(l, c.into)
		if c.want == "" {
			if !errors.Is(err, ErrNoMailbox) && !errors.Is(err, ErrNotExist) {
				t.Errorf("%+v: %+v, %v", c, p, err)
			}
			continue
		}
		if err != nil || p.Mailbox != c.want || (p.Text != "") != c.text || p.New == 0 || p.Cur == 0 {
			t.Errorf("%+v: %+v, %v", c, p, err)
		}
	}
}

func TestRescueName(t *testing.T) {
	l := &Lost{Base: "1700000000.M1P2.host,S=1234,W=1250:2,FSTab", Cur: true}
	l.Epoch, l.Seq, l.SHA256 = 3, 17, "0102030405060708ff"
	if got, want := l.RescueName("n1.x", time.Unix(5, 0)), "5.R3S17C0102030405060708.n1-x,S=1234,W=1250"; got != want {
		t.Errorf("name %q, want %q", got, want)
	}
	if l.Flags() != "FS" {
		t.Errorf("flags %q", l.Flags())
	}
	if l.Cur = false; l.Flags() != "" {
		t.Errorf("flags in new/: %q", l.Flags())
	}
}

func FuzzOrigin(f *testing.F) {
	f.Add("3.17.0102030405060708")
	f.Add("3.17.01")
	f.Fuzz(func(t *testing.T, text string) {
		if o, err := parseOrigin(text); err == nil && o.String() != text {
			t.Errorf("%q is %q", text, o)
		}
	})
}
