package meta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"slotfs/meta/op"
)

// testStore is the store of test slots.
var testStore = StoreID{7}

// newSlot makes a slot and fills its log with the entries up to seq.
func newSlot(t testing.TB, dir string, entries []*op.Entry) *Slot {
	t.Helper()
	if _, err := Create(dir, Identity{Store: "m"}); err != nil {
		t.Fatal(err)
	}
	s := openSlot(t, dir, Options{})
	follow(t, s, entries)
	return s
}

func openSlot(t testing.TB, dir string, o Options) *Slot {
	t.Helper()
	s, err := tryOpen(t, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tryOpen(t testing.TB, dir string, o Options) (*Slot, error) {
	o.Reserve = -1
	o.Log.SegmentSize = 1 << 20
	s, err := Open(dir, o)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { s.Close() })
	return s, nil
}

// follow gives a slot entries, as a replica gets them, and waits until they are
// applied.
func follow(t testing.TB, s *Slot, entries []*op.Entry) {
	t.Helper()
	s.Start()
	if len(entries) == 0 {
		return
	}
	last := entries[len(entries)-1].Seq
	for len(entries) > 0 && entries[0].Seq <= s.Log.Last().Seq {
		entries = entries[1:]
	}
	if len(entries) > 0 {
		if err := s.Log.AppendEntries(entries); err != nil {
			t.Fatal(err)
		}
	}
	s.Log.Flush(last)
	s.Log.Commit(last)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := s.Log.Applied.Wait(ctx, last); err != nil {
		t.Fatalf("apply up to %d: %v (%v)", last, err, s.Faulted())
	}
}

// source answers a resync from a slot, as repl does.
type source struct {
	s  *Slot
	sn *Snapshot
}

// resync drives a whole one; stop is asked before each step.
func resync(t testing.TB, dst *Slot, src source, common uint64, stop func() error) error {
	t.Helper()
	err := dst.ResyncBegin(ResyncTarget{Store: src.s.StoreID(), State: src.sn.State(), Common: common, From: "n1"})
	if err != nil {
		return err
	}
	todo := []op.ID{op.Root}
	for len(todo) > 0 {
		id := todo[0]
		todo = todo[1:]
		if err := stop(); err != nil {
			return err
		}
		d, err := src.sn.DirDigest(id)
		if err != nil {
			return err
		}
		if same, err := dst.ResyncSame(id, d); err != nil {
			return err
		} else if same {
			continue
		}
		dir, err := src.sn.Inode(id)
		if err != nil {
			return err
		}
		children, err := src.sn.Children(id)
		if err != nil {
			return err
		}
		var inodes []*Inode
		for _, c := range children {
			if c.Type == typeDir {
				todo = append(todo, c.ID)
				continue
			}
			in, err := src.sn.Inode(c.ID)
			if err != nil {
				return err
			}
			inodes = append(inodes, overWire(t, in))
		}
		if err := dst.ResyncDir(overWire(t, dir), children, inodes); err != nil {
			return err
		}
	}
	for {
		list, err := dst.ResyncWanted(7)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			break
		}
		for _, in := range list {
			if err := stop(); err != nil {
				return err
			}
			if err := sendContent(t, dst, src.s, in.ID); err != nil {
				return err
			}
		}
	}
	if err := stop(); err != nil {
		return err
	}
	return dst.ResyncEnd(t.Context())
}

func overWire(t testing.TB, in *Inode) *Inode {
	t.Helper()
	b, err := in.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got Inode
	if err := got.UnmarshalBinary(b); err != nil {
		t.Fatal(err)
	}
	return &got
}

func sendContent(t testing.TB, dst, src *Slot, id op.ID) error {
	t.Helper()
	now, err := src.Inode(id)
	if errors.Is(err, ErrNotExist) {
		return dst.ResyncSkip(id)
	}
	if err != nil {
		return err
	}
	data := make([]byte, now.Size)
	if _, err := src.ReadAt(t.Context(), id, data, 0); err != nil {
		return err
	}
	return dst.ResyncContent(now, bytes.NewReader(data))
}

func sameSlots(t testing.TB, got, want *Slot) {
	t.Helper()
	g, w := got.Stats(), want.Stats()
	g.Checkpoint, w.Checkpoint = op.Pos{}, op.Pos{}
	if g != w {
		t.Errorf("slot is %+v, should be %+v", g, w)
	}
	sameState(t, "tree", treeState(t, filepath.Join(got.dir, dirTree)), treeState(t, filepath.Join(want.dir, dirTree)))
	if err := errors.Join(got.Faulted(), want.Faulted()); err != nil {
		t.Error(err)
	}
}

func history(t testing.TB, seed uint64, n int) []*op.Entry {
	w := newWorld(t, seed)
	w.log.entries = nil
	// The store id must be the slots'.
	w.ix = testIndex(t, t.TempDir())
	w.add(&op.EpochBegin{Epoch: 1, Store: testStore, Reason: "test"})
	for range n {
		w.step()
	}
	return w.log.entries
}

// staged reports whether entries end between a Chunk and its Put.
func staged(entries []*op.Entry) bool {
	open := map[uint64]bool{}
	for _, e := range entries {
		switch o := e.Op.(type) {
		case *op.Chunk:
			open[stageOf(o, e.Seq)] = true
		case *op.Put:
			delete(open, o.Stage)
		}
	}
	return len(open) > 0
}

func never() error { return nil }

func TestResyncEmpty(t *testing.T) {
	entries := history(t, 1, 400)
	src := newSlot(t, filepath.Join(t.TempDir(), "a"), entries)
	dst := newSlot(t, filepath.Join(t.TempDir(), "b"), nil)
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, dst, source{src, sn}, 0, never); err != nil {
		t.Fatal(err)
	}
	sameSlots(t, dst, src)
}

// A stale slot, a source that goes on meanwhile, a resync that is killed again
// and again.
func TestResyncStaleKilled(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 5))
			entries := history(t, 100+seed, 300+rnd.IntN(300))
			old := rnd.IntN(len(entries))
			mid := old + rnd.IntN(len(entries)-old)
			for staged(entries[:mid+1]) {
				mid--
			}
			old = min(old, mid)
			src := newSlot(t, filepath.Join(t.TempDir(), "a"), entries[:mid+1])
			dstDir := filepath.Join(t.TempDir(), "b")
			dst := newSlot(t, dstDir, entries[:old+1])
			sn, err := src.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer sn.Close()
			follow(t, src, entries) // beyond the snapshot
			for limit := 1; ; limit += 1 + rnd.IntN(limit+1) {
				steps := 0
				stop := func() error {
					if steps++; steps > limit {
						return errStopped
					}
					return nil
				}
				dst.opt.hold = func(string, string) error { return stop() }
				err := resync(t, dst, source{src, sn}, uint64(old+1), stop)
				if err == nil {
					break
				}
				if !errors.Is(err, errStopped) {
					t.Fatal(err)
				}
				crashSlot(t, dst)
				again, err := tryOpen(t, dstDir, Options{hold: func(string, string) error { return stop() }})
				if errors.Is(err, errStopped) {
					again = openSlot(t, dstDir, Options{})
				} else if err != nil {
					t.Fatal(err)
				}
				dst = again
				dst.Start()
				if !dst.Resyncing() {
					break // it was placing: finished by itself
				}
			}
			if dst.Resyncing() {
				t.Fatal("still resyncing")
			}
			dst.Start()
			rest := entries[sn.Pos().Seq:]
			follow(t, dst, rest)
			sameSlots(t, dst, src)
			checkClean(t, dst)
			for _, e := range dst.Events.List() {
				if e.Kind != EventRecovery {
					t.Errorf("event %+v", e)
				}
			}
			left, _ := os.ReadDir(filepath.Join(dstDir, dirQuarantine))
			if len(left) > 0 {
				t.Errorf("quarantine: %v %+v", left, dst.Events.List())
			}
		})
		if t.Failed() {
			return
		}
	}
}

// A slot that went its own way, with things in its tree that nothing explains,
// becomes the source's; what only it had is kept.
func TestResyncDiverged(t *testing.T) {
	entries := history(t, 60, 400)
	const common = 150
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	// The other branch: the same beginning, then another history.
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(61, 1)), log: &memLog{}, ix: testIndex(t, t.TempDir()),
		dirs: []op.ID{op.Root}, names: []string{"x", "y", "z"}, time: entries[common-1].Time, epoch: 1,
	}
	for _, e := range entries[:common] {
		if _, err := w.ix.apply(e); err != nil {
			t.Fatal(err)
		}
		w.log.entries = append(w.log.entries, e)
	}
	lost := []byte("only here")
	for range 150 {
		w.step()
	}
	w.add(&op.Put{Parent: op.Root, Name: "lost", Attr: w.attr(typeRegular), Sealed: true, Sum: op.SumOf(lost), Data: lost})
	dir := filepath.Join(t.TempDir(), "dst")
	dst := newSlot(t, dir, w.log.entries)
	if err := os.WriteFile(filepath.Join(dir, dirTree, "stray"), []byte("stray"), 0o600); err != nil {
		t.Fatal(err)
	}
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, dst, source{src, sn}, common, never); err != nil {
		t.Fatal(err)
	}
	sameSlots(t, dst, src)
	checkClean(t, dst)
	kept := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(dir, dirQuarantine, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			kept[string(b)] = true
		}
	}
	if !kept["only here"] || !kept["stray"] {
		t.Errorf("not in quarantine: %v", files)
	}
	if rescued, _ := os.ReadDir(filepath.Join(dir, dirRescue)); len(rescued) != 3 { // record, log, list of messages
		t.Errorf("rescue: %v", rescued)
	}
}

// A member never empties its peer.
func TestResyncFromEmptied(t *testing.T) {
	w := newWorld(t, 3)
	var entries []*op.Entry
	for i := range 40 {
		data := fmt.Appendf(nil, "message %d", i)
		w.add(&op.Put{Parent: op.Root, Name: fmt.Sprint(i), Attr: op.Attr{Mode: typeRegular | 0o600}, Sealed: true, Sum: op.SumOf(data), Data: data})
	}
	entries = rechain(w.log.entries[1:])
	dir := filepath.Join(t.TempDir(), "dst")
	dst := newSlot(t, dir, entries)
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), rechain(nil))
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, dst, source{src, sn}, uint64(len(entries)), never); err != nil {
		t.Fatal(err)
	}
	sameSlots(t, dst, src)
	if files, _ := filepath.Glob(filepath.Join(dir, dirQuarantine, "*.json")); len(files) != 40 {
		t.Errorf("%d of 40 messages are in quarantine", len(files))
	}
}

// Content that the source has no longer is done without until the log says so.
func TestResyncSkip(t *testing.T) {
	entries := history(t, 62, 300)
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	dst := newSlot(t, filepath.Join(t.TempDir(), "dst"), nil)
	target := ResyncTarget{Store: testStore, State: sn.State()}
	n, _ := pick(t, src, isMessage)
	rm := op.NewEntry(src.Log.Last(), 1, entries[len(entries)-1].Time+1, &op.Unlink{ID: n.ID, Parent: n.Names[0].Dir, Name: n.Names[0].Name})
	follow(t, src, []*op.Entry{rm})
	if err := resync(t, dst, source{src, sn}, 0, never); err != nil {
		t.Fatal(err)
	}
	if dst.Log.Last() != target.State.Pos {
		t.Errorf("log is at %v, should be at %v", dst.Log.Last(), target.State.Pos)
	}
	follow(t, dst, []*op.Entry{rm})
	sameSlots(t, dst, src)
	checkClean(t, dst)
}

// What was fetched and is removed at the source before the resync that goes on
// after a stop, does not stay in stage/.
func TestResyncRemovedMeanwhile(t *testing.T) {
	entries := history(t, 62, 300)
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	dir := filepath.Join(t.TempDir(), "dst")
	dst := newSlot(t, dir, nil)
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = resync(t, dst, source{src, sn}, 0, func() error {
		if names, err = readNames(dir, dirStage); err != nil {
			return err
		}
		for _, name := range names {
			if id, ok := syncID(name); ok {
				if in, err := src.Inode(id); err == nil && isMessage(in) && len(in.Names) == 1 {
					return errStopped
				}
			}
		}
		return nil
	})
	sn.Close()
	if !errors.Is(err, errStopped) {
		t.Fatalf("got %v, stage has %q", err, names)
	}
	crashSlot(t, dst)
	dst = openSlot(t, dir, Options{})
	dst.Start()
	last := src.Log.Last()
	for _, name := range names {
		id, ok := syncID(name)
		if !ok {
			continue
		}
		in, err := src.Inode(id)
		if err != nil || len(in.Names) != 1 {
			continue
		}
		rm := op.NewEntry(last, 1, entries[len(entries)-1].Time+1, &op.Unlink{ID: id, Parent: in.Names[0].Dir, Name: in.Names[0].Name})
		follow(t, src, []*op.Entry{rm})
		last = rm.Pos()
	}
	if sn, err = src.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	if err := resync(t, dst, source{src, sn}, 0, never); err != nil {
		t.Fatal(err)
	}
	sameSlots(t, dst, src)
	checkClean(t, dst)
}

// What does not add up is not used; the next resync starts from nothing, and
// keeps what was fetched.
func TestResyncProves(t *testing.T) {
	entries := history(t, 63, 300)
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	dst := newSlot(t, filepath.Join(t.TempDir(), "dst"), entries[:100])
	before := treeState(t, filepath.Join(dst.dir, dirTree))
	real := sn.state
	sn.state.Digest[1]++
	var re *ResyncError
	if err := resync(t, dst, source{src, sn}, 100, never); !errors.As(err, &re) || !re.Restart {
		t.Fatalf("a wrong digest was taken: %v", err)
	}
	sameState(t, "tree", treeState(t, filepath.Join(dst.dir, dirTree)), before)
	sn.state = real
	if err := resync(t, dst, source{src, sn}, 100, never); err != nil {
		t.Fatal(err)
	}
	sameSlots(t, dst, src)
	checkClean(t, dst)
	// Wrong content is refused.
	if err := dst.ResyncBegin(ResyncTarget{Store: testStore, State: sn.State()}); err != nil {
		t.Fatal(err)
	}
	n, _ := pick(t, src, isMessage)
	if err := dst.ResyncContent(n, bytes.NewReader([]byte("something else"))); err == nil {
		t.Error("wrong content was taken")
	}
	if err := dst.ResyncBegin(ResyncTarget{Store: StoreID{9}, State: sn.State()}); !errors.Is(err, ErrOtherStore) {
		t.Errorf("resync from another store: %v", err)
	}
}

// The index can be lost in the middle of a resync, whatever it is at.
func TestResyncIndexLost(t *testing.T) {
	entries := history(t, 64, 300)
	src := newSlot(t, filepath.Join(t.TempDir(), "src"), entries)
	sn, err := src.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sn.Close()
	for _, limit := range []int{10, 30, 70, 90} {
		dir := filepath.Join(t.TempDir(), "dst")
		dst := newSlot(t, dir, entries[:100])
		steps := 0
		stop := func() error {
			if steps++; steps > limit {
				return errStopped
			}
			return nil
		}
		dst.opt.hold = func(string, string) error { return stop() }
		if err := resync(t, dst, source{src, sn}, 100, stop); !errors.Is(err, errStopped) {
			t.Fatalf("after %d steps: %v", limit, err)
		}
		crashSlot(t, dst)
		if err := emptyDir(filepath.Join(dir, dirIndex)); err != nil {
			t.Fatal(err)
		}
		dst = openSlot(t, dir, Options{})
		dst.Start()
		if err := resync(t, dst, source{src, sn}, 100, never); err != nil {
			t.Fatalf("after %d steps: %v", limit, err)
		}
		sameSlots(t, dst, src)
		checkClean(t, dst)
		for _, e := range dst.Events.List() {
			if e.Kind != EventRecovery {
				t.Errorf("after %d steps: %+v", limit, e)
			}
		}
	}
}

// crashSlot drops a slot without the last words of Close.
func crashSlot(t testing.TB, s *Slot) {
	t.Helper()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stopApplier()
	s.cancel(ErrClosed)
	s.work.Wait()
	s.closeFiles()
}
