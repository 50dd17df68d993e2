package meta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"slotfs/meta/op"
)

// testSlot is a slot that follows: the test feeds it entries.
type testSlot struct {
	*Slot
	t   testing.TB
	dir string
	opt Options
}

func newTestSlot(t testing.TB, opt Options) *testSlot {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := Create(dir, Identity{Store: "test"}); err != nil {
		t.Fatal(err)
	}
	opt.Reserve = -1
	if opt.CheckpointEvery == 0 {
		opt.CheckpointEvery = time.Hour
	}
	s := &testSlot{t: t, dir: dir, opt: opt}
	s.open()
	t.Cleanup(func() {
		if err := s.Close(); err != nil && s.Faulted() == nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func (s *testSlot) open() {
	s.t.Helper()
	slot, err := Open(s.dir, s.opt)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Slot = slot
	s.Start()
}

// reopen closes the slot, which makes a checkpoint, and opens it again.
func (s *testSlot) reopen() {
	s.t.Helper()
	if err := s.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.open()
}

// feed appends entries and has them committed, without waiting.
func (s *testSlot) feed(entries []*op.Entry) {
	s.t.Helper()
	if len(entries) == 0 {
		return
	}
	if err := s.Log.AppendEntries(entries); err != nil {
		s.t.Fatal(err)
	}
	last := entries[len(entries)-1].Seq
	s.Log.Flush(last)
	s.Log.Commit(last)
}

// settle waits until everything fed is applied.
func (s *testSlot) settle() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := s.Log.Applied.Wait(ctx, s.Log.Last().Seq); err != nil {
		s.t.Fatalf("%v; fault: %v", err, s.Faulted())
	}
}

func (s *testSlot) treeState() map[string]string {
	s.t.Helper()
	return treeState(s.t, filepath.Join(s.dir, dirTree))
}

// noEvents fails the test if the slot found anything.
func (s *testSlot) noEvents() {
	s.t.Helper()
	for _, e := range s.Events.List() {
		if e.Kind != EventRecovery {
			s.t.Errorf("event: %+v", e)
		}
	}
}

// Any history gives what the model gives: index, tree and reads.
func TestApplyMatchesModel(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := newWorld(t, seed)
			for range 400 {
				w.step()
			}
			s := newTestSlot(t, Options{})
			m := newModel()
			rnd := rand.New(rand.NewPCG(seed, 3))
			for rest := w.log.entries; len(rest) > 0; {
				n := min(len(rest), 1+rnd.IntN(60))
				s.feed(rest[:n])
				for _, e := range rest[:n] {
					m.apply(e)
				}
				rest = rest[n:]
				if rnd.IntN(3) > 0 {
					continue
				}
				s.settle()
				if rnd.IntN(3) == 0 {
					s.reopen()
				}
				m.compareIndex(t, s.ix)
				sameState(t, "tree", s.treeState(), m.treeState())
				if t.Failed() {
					return
				}
			}
			s.settle()
			m.compareIndex(t, s.ix)
			sameState(t, "tree", s.treeState(), m.treeState())
			compareReads(t, s.Slot, m)
			s.noEvents()
		})
	}
}

func compareReads(t testing.TB, s *Slot, m *model) {
	t.Helper()
	for id, o := range m.objects {
		if o.mode&typeMask != typeRegular {
			continue
		}
		for _, r := range [][2]int{{0, len(o.data) + 10}, {0, len(o.data)}, {len(o.data) / 2, 100}, {len(o.data), 10}, {1, 7}} {
			p := make([]byte, r[1])
			n, err := s.ReadAt(t.Context(), id, p, int64(r[0]))
			want := o.data[min(r[0], len(o.data)):min(r[0]+r[1], len(o.data))]
			if err != nil || !bytes.Equal(p[:n], want) {
				t.Errorf("read id %d at %d: %d bytes, %v; want %d", id, r[0], n, err, len(want))
			}
		}
	}
}

// Two slots that get the same entries in different pieces are the same.
func TestBatchesDoNotMatter(t *testing.T) {
	for seed := range uint64(4) {
		w := newWorld(t, 100+seed)
		for range 600 {
			w.step()
		}
		rnd := rand.New(rand.NewPCG(seed, 4))
		a := newTestSlot(t, Options{})
		a.feed(w.log.entries)
		a.settle()
		b := newTestSlot(t, Options{CheckpointEvery: time.Millisecond})
		for rest := w.log.entries; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(3))
			b.feed(rest[:n])
			if rnd.IntN(4) == 0 {
				b.settle()
			}
			rest = rest[n:]
		}
		b.settle()
		sameState(t, "tree", b.treeState(), a.treeState())
		if x, y := a.Stats(), b.Stats(); x.Pos != y.Pos || x.Digest != y.Digest || x.Bytes != y.Bytes || x.Objects != y.Objects {
			t.Errorf("stats %+v and %+v", x, y)
		}
		b.reopen()
		sameState(t, "tree after a restart", b.treeState(), a.treeState())
		a.noEvents()
		b.noEvents()
	}
}

// The index alone, with checkpoints at any point, gives what the model gives.
func TestIndexMatchesModel(t *testing.T) {
	x := testIndex(t, t.TempDir())
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		steps := rapid.IntRange(1, 120).Draw(rt, "steps")
		commits := rapid.SliceOfNDistinct(rapid.IntRange(0, steps), 0, 3, rapid.ID).Draw(rt, "commits")
		if err := x.clear(); err != nil {
			t.Fatal(err)
		}
		w := newWorld(t, seed)
		for range steps {
			w.step()
		}
		m := newModel()
		var frozen state
		for i, e := range w.log.entries {
			if _, err := x.apply(e); err != nil {
				rt.Fatal(err)
			}
			m.apply(e)
			for _, at := range commits { // frozen at one entry, written some later
				switch i {
				case at:
					if x.frozen == nil {
						frozen, _ = x.freeze()
					}
				case at + 5:
					if x.frozen != nil {
						if err := x.commit(frozen); err != nil {
							rt.Fatal(err)
						}
					}
				}
			}
		}
		if x.frozen != nil {
			m.compareIndex(t, x)
			if err := x.commit(frozen); err != nil {
				rt.Fatal(err)
			}
		}
		m.compareIndex(t, x)
		if w.ix.current().Digest != x.current().Digest {
			rt.Errorf("digest %v, elsewhere %v", x.current().Digest, w.ix.current().Digest)
		}
		w.ix.close()
		if t.Failed() {
			rt.FailNow()
		}
	})
}

func TestIndexReopensAtCheckpoint(t *testing.T) {
	dir := t.TempDir()
	x, err := openIndex(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 7)
	m := newModel()
	for i := range 300 {
		if i > 0 {
			w.step()
		}
	}
	half := len(w.log.entries) / 2
	for _, e := range w.log.entries[:half] {
		if _, err := x.apply(e); err != nil {
			t.Fatal(err)
		}
		m.apply(e)
	}
	st, err := x.freeze()
	if err != nil {
		t.Fatal(err)
	}
	if err := x.commit(st); err != nil {
		t.Fatal(err)
	}
	for _, e := range w.log.entries[half:] { // in memory only: must not survive
		if _, err := x.apply(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.close(); err != nil {
		t.Fatal(err)
	}
	if x, err = openIndex(dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	defer x.close()
	if got := x.current(); got.Pos != st.Pos || got.Digest != st.Digest || got.Time != st.Time {
		t.Errorf("state %+v, want %+v", got, st)
	}
	m.compareIndex(t, x)
	for _, e := range w.log.entries[half:] {
		if _, err := x.apply(e); err != nil {
			t.Fatal(err)
		}
		m.apply(e)
	}
	m.compareIndex(t, x)
}

// A replay may gather more than one transaction of badger takes.
func TestIndexWritesLargeDelta(t *testing.T) {
	x := testIndex(t, t.TempDir())
	w := &world{t: t, log: &memLog{}, ix: x, rnd: rand.New(rand.NewPCG(1, 1))}
	w.add(&op.EpochBegin{Epoch: 1})
	long := strings.Repeat("x", 200)
	for i := range 20000 {
		w.add(&op.Create{Parent: op.Root, Name: fmt.Sprint(long, i), Attr: op.Attr{Mode: typeRegular}})
	}
	if !x.full() {
		t.Fatal("the delta is not full")
	}
	st, err := x.freeze()
	if err != nil {
		t.Fatal(err)
	}
	if err := x.commit(st); err != nil {
		t.Fatal(err)
	}
	children, err := x.children(op.Root)
	if err != nil || len(children) != 20000 {
		t.Errorf("%d children, %v", len(children), err)
	}
}

func TestEntryMustContinueIndex(t *testing.T) {
	w := newWorld(t, 1)
	e := op.NewEntry(w.log.entries[0].Pos(), 1, 1e18, &op.Unlink{ID: 77, Parent: op.Root, Name: "x"})
	if _, err := w.ix.apply(e); !errors.Is(err, ErrNotExist) {
		t.Errorf("unlink of nothing: %v", err)
	}
	e = op.NewEntry(op.Pos{Epoch: 1, Seq: 5}, 1, 1e18, &op.Checkpoint{})
	if _, err := w.ix.apply(e); !errors.Is(err, errIndex) {
		t.Errorf("entry after a gap: %v", err)
	}
}

// A contradiction faults the slot, and who waits for the log learns it.
func TestFault(t *testing.T) {
	told := make(chan error, 1)
	s := newTestSlot(t, Options{OnFault: func(err error) { told <- err }})
	w := newWorld(t, 1)
	bad := op.NewEntry(w.log.entries[0].Pos(), 1, w.time+1, &op.Unlink{ID: 77, Parent: op.Root, Name: "x"})
	s.feed([]*op.Entry{w.log.entries[0], bad})
	if err := s.Log.Applied.Wait(t.Context(), 2); err == nil {
		t.Error("applied a contradiction")
	}
	if err := <-told; !errors.Is(err, ErrFaulted) || !errors.Is(s.Faulted(), ErrFaulted) {
		t.Errorf("fault %v, %v", err, s.Faulted())
	}
	if s.Events.Counts()[EventFault] != 1 {
		t.Errorf("events %v", s.Events.Counts())
	}
}

func TestStrayInTheWay(t *testing.T) {
	s := newTestSlot(t, Options{})
	w := newWorld(t, 1)
	s.feed(w.log.entries)
	s.settle()
	if err := os.WriteFile(filepath.Join(s.dir, dirTree, "m"), []byte("stray"), 0o644); err != nil {
		t.Fatal(err)
	}
	data := []byte("message")
	id := w.add(&op.Put{Parent: op.Root, Name: "m", Attr: op.Attr{Mode: typeRegular | 0o600}, Sum: op.SumOf(data), Sealed: true, Data: data})
	s.feed(w.log.entries[1:])
	s.settle()
	got, err := os.ReadFile(filepath.Join(s.dir, dirTree, "m"))
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("id %d: %q, %v", id, got, err)
	}
	if s.Events.Counts()[EventUnexpected] != 1 {
		t.Errorf("events %v", s.Events.List())
	}
	kept, err := filepath.Glob(filepath.Join(s.dir, dirQuarantine, "*"))
	if err != nil || len(kept) != 2 {
		t.Errorf("quarantine holds %v", kept)
	}
}

// Damage in log that the checkpoint has passed costs history only.
func TestDamagedLog(t *testing.T) {
	w := newWorld(t, 5)
	for range 300 {
		w.step()
	}
	s := newTestSlot(t, Options{})
	half := len(w.log.entries) / 2
	s.feed(w.log.entries[:half])
	s.settle()
	s.feed(w.log.entries[half:])
	s.settle()
	want := s.treeState()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(s.dir, dirLog, "*"))
	if err != nil {
		t.Fatal(err)
	}
	raw := w.log.entries[half/2].Raw
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if i := bytes.Index(b, raw); i >= 0 {
			flip(t, path, int64(i+len(raw)/2))
		}
	}
	s.open()
	sameState(t, "tree", s.treeState(), want)
	if s.Events.Counts()[EventDamaged] != 1 || s.Log.First() <= uint64(half/2) {
		t.Errorf("log begins at %d, events %v", s.Log.First(), s.Events.List())
	}
}
