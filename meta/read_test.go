package meta

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// mailSlot is a slot that leads, with a mailbox cur/, as a primary alone has it.
type mailSlot struct {
	*testSlot
	cur op.ID
}

func newMailSlot(t testing.TB, opt Options) *mailSlot {
	t.Helper()
	s := &mailSlot{testSlot: newTestSlot(t, opt)}
	s.Log.Lead(1, nil)
	s.add(&op.EpochBegin{Epoch: 1, Primary: s.ID, Members: []op.SlotID{s.ID}, Store: [16]byte{1}})
	s.cur = s.add(&op.Mkdir{Parent: op.Root, Name: "cur", Attr: op.Attr{Mode: typeDir | 0o755, UID: 5, GID: 6}})
	return s
}

// add appends an operation and waits until it is applied.
func (s *mailSlot) add(o op.Op) op.ID {
	s.t.Helper()
	e, err := s.Log.Append(o)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.Log.Flush(e.Seq)
	if err := s.Log.Applied.Wait(ctx, e.Seq); err != nil {
		s.t.Fatalf("entry %d (%T): %v; fault: %v", e.Seq, o, err, s.Faulted())
	}
	return op.ID(e.Seq)
}

// put publishes a message, in chunks if it is large.
func (s *mailSlot) put(name string, data []byte) op.ID {
	s.t.Helper()
	o := &op.Put{Parent: s.cur, Name: name, Attr: op.Attr{Mode: typeRegular | 0o600, UID: 5, GID: 6, Mtime: 1_600_000_000_000_000_001}, Sum: op.SumOf(data), Sealed: true}
	if len(data) <= op.ChunkSize {
		o.Data = data
		return s.add(o)
	}
	for off := 0; off < len(data); off += op.ChunkSize {
		id := s.add(&op.Chunk{Stage: o.Stage, Off: int64(off), Data: data[off:min(off+op.ChunkSize, len(data))]})
		if off == 0 {
			o.Stage = uint64(id)
		}
	}
	return s.add(o)
}

func (s *mailSlot) file(name string) string { return filepath.Join(s.dir, dirTree, "cur", name) }

// read reads all of id in pieces of the given size.
func (s *mailSlot) read(id op.ID, piece int) ([]byte, error) {
	var all []byte
	for {
		p := make([]byte, piece)
		n, err := s.ReadAt(s.t.Context(), id, p, int64(len(all)))
		all = append(all, p[:n]...)
		if err != nil || n < piece {
			return all, err
		}
	}
}

// flip changes one byte behind the slot's back, and keeps the times.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	if err := futimens(int(f.Fd()), st.ModTime().UnixNano()); err != nil {
		t.Fatal(err)
	}
}

// pattern makes content that differs everywhere.
func pattern(n int) []byte {
	b := make([]byte, n)
	x := uint32(n)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func TestReadMessages(t *testing.T) {
	s := newMailSlot(t, Options{VerifiedCache: 2 << 20})
	for i, size := range []int{0, 1, 4095, 100_000, op.BlockSize - 1, op.BlockSize, op.BlockSize + 1, 3*op.BlockSize + 7, op.ChunkSize + 5, 9 << 20} {
		data := pattern(size)
		id := s.put(string(rune('a'+i)), data)
		for _, piece := range []int{128 << 10, 1 << 20, 16 << 20, 100_001} {
			got, err := s.read(id, piece)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("message of %d in pieces of %d: %d bytes, %v", size, piece, len(got), err)
			}
		}
	}
	s.verified.mu.Lock()
	defer s.verified.mu.Unlock()
	if s.verified.bytes > s.verified.max || len(s.verified.blocks) != s.verified.recent.Len() {
		t.Errorf("cache holds %d bytes, %d blocks, %d in order", s.verified.bytes, len(s.verified.blocks), s.verified.recent.Len())
	}
}

func TestDamageWithoutAnotherCopy(t *testing.T) {
	s := newMailSlot(t, Options{})
	data := pattern(3 << 20)
	id := s.put("m", data)
	flip(t, s.file("m"), 2<<20+5)
	p := make([]byte, 4096)
	if n, err := s.ReadAt(t.Context(), id, p, 0); err != nil || n != len(p) {
		t.Errorf("intact block: %d, %v", n, err)
	}
	for range 2 {
		n, err := s.ReadAt(t.Context(), id, p, 2<<20+10)
		var damaged *DamagedError
		if n != 0 || !errors.As(err, &damaged) || damaged.ID != id || damaged.Path != "cur/m" || !errors.Is(err, errNobody) {
			t.Errorf("damaged block: %d, %v", n, err)
		}
	}
	if got := s.Events.Counts()[EventDamaged]; got != 1 {
		t.Errorf("%d events, want 1", got)
	}
}

func TestRepairOnRead(t *testing.T) {
	data := pattern(70_000)
	var asked []op.ID
	s := newMailSlot(t, Options{Fetch: func(_ context.Context, id op.ID, want op.Sum) (Copy, error) {
		asked = append(asked, id)
		if !want.Equal(op.SumOf(data)) {
			t.Error("asked for another checksum")
		}
		return Copy{Data: data, From: "n2"}, nil
	}})
	id := s.put("m", data)
	s.add(&op.Link{ID: id, Parent: op.Root, Name: "second"})
	s.add(&op.SetXattr{ID: id, Name: "user.x", Value: []byte("v")})
	want := s.treeState()
	for _, damage := range []func(){
		func() { flip(t, s.file("m"), 1) },
		func() { flip(t, s.file("m"), 69_999) },
		func() {
			if err := os.Truncate(s.file("m"), 69_998); err != nil {
				t.Fatal(err)
			}
		},
		func() {
			if err := os.Remove(s.file("m")); err != nil { // the other name stays
				t.Fatal(err)
			}
		},
	} {
		damage()
		got, err := s.read(id, 1<<20)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		sameState(t, "tree after repair", s.treeState(), want)
	}
	if s.Events.Counts()[EventRepaired] != 4 || len(asked) != 4 {
		t.Errorf("events %v, asked %v", s.Events.List(), asked)
	}
	kept, err := filepath.Glob(filepath.Join(s.dir, dirQuarantine, "*.json"))
	if err != nil || len(kept) != 3 {
		t.Fatalf("quarantine: %v, %v", kept, err)
	}
	var rec QuarantineRecord
	text, err := os.ReadFile(kept[0])
	if err != nil || json.Unmarshal(text, &rec) != nil || rec.ID != id || rec.Want == nil || rec.Have == nil || rec.Want.Equal(*rec.Have) {
		t.Errorf("record %s, %v", text, err)
	}
	bad, err := os.ReadFile(strings.TrimSuffix(kept[0], ".json"))
	if err != nil || bytes.Equal(bad, data) || len(bad) != len(data) {
		t.Errorf("the bad copy: %d bytes, %v", len(bad), err)
	}
}

func TestRepairRefusesBadCopy(t *testing.T) {
	s := newMailSlot(t, Options{Fetch: func(context.Context, op.ID, op.Sum) (Copy, error) { return Copy{Data: []byte("other")}, nil }})
	id := s.put("m", []byte("right"))
	flip(t, s.file("m"), 0)
	var damaged *DamagedError
	if _, err := s.read(id, 100); !errors.As(err, &damaged) {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(s.file("m")); err != nil || string(b) == "right" || len(b) != 5 {
		t.Errorf("file changed: %q, %v", b, err)
	}
}

// Many readers of one damaged message cause one repair.
func TestRepairOnce(t *testing.T) {
	data := pattern(200_000)
	var mu sync.Mutex
	fetched := 0
	s := newMailSlot(t, Options{Fetch: func(context.Context, op.ID, op.Sum) (Copy, error) {
		mu.Lock()
		defer mu.Unlock()
		fetched++
		return Copy{Data: data}, nil
	}})
	id := s.put("m", data)
	flip(t, s.file("m"), 150_000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			p := make([]byte, 1000)
			off := int64(i * 20_000)
			if n, err := s.ReadAt(t.Context(), id, p, off); err != nil || !bytes.Equal(p[:n], data[off:off+1000]) {
				t.Errorf("reader %d: %d, %v", i, n, err)
			}
		})
	}
	wg.Wait()
	if fetched != 1 {
		t.Errorf("fetched %d times", fetched)
	}
}

// An interrupted reader does not break the others.
func TestRepairInterrupted(t *testing.T) {
	data := pattern(1000)
	entered := make(chan struct{})
	var once sync.Once
	s := newMailSlot(t, Options{Fetch: func(ctx context.Context, _ op.ID, _ op.Sum) (Copy, error) {
		first := false
		once.Do(func() { first = true })
		if first {
			close(entered)
			<-ctx.Done()
			return Copy{}, ctx.Err()
		}
		return Copy{Data: data}, nil
	}})
	id := s.put("m", data)
	flip(t, s.file("m"), 3)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := s.ReadAt(ctx, id, make([]byte, 10), 0)
		done <- err
	}()
	<-entered
	cancel()
	if err := <-done; err == nil {
		t.Error("interrupted reader got content")
	}
	if got, err := s.read(id, 10_000); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestReadUnlinked(t *testing.T) {
	s := newMailSlot(t, Options{Brake: BrakeOptions{Window: 1}})
	pinned := map[op.ID]bool{}
	s.Keep(func(id op.ID) bool { return pinned[id] })
	data := pattern(300_000)
	id := s.put("m", data)
	c := s.add(&op.Create{Parent: s.cur, Name: "control", Attr: op.Attr{Mode: typeRegular | 0o600}})
	s.add(&op.Write{ID: c, Data: []byte("before")})
	s.add(&op.Unlink{ID: id, Parent: s.cur, Name: "m"})
	s.add(&op.Unlink{ID: c, Parent: s.cur, Name: "control"})
	s.add(&op.Write{ID: c, Off: 6, Data: []byte(" and after")})
	s.add(&op.SetAttr{ID: c, Valid: op.SetMode, Mode: 0o640})
	if _, err := s.Inode(id); !errors.Is(err, ErrNotExist) {
		t.Errorf("inode of an unlinked file: %v", err)
	}
	if got, err := s.read(id, 128<<10); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	pinned[id] = true
	trash := func() (n int) {
		names, err := os.ReadDir(filepath.Join(s.dir, dirTrash))
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	for i, want := range []int{2, 1, 1} {
		s.add(&op.Checkpoint{})
		s.stopApplier()
		if err := s.checkpoint(); err != nil {
			t.Fatal(err)
		}
		s.startApplier()
		if got := trash(); got != want {
			t.Errorf("after checkpoint %d: %d in trash, want %d", i+1, got, want)
		}
	}
	if got, err := s.read(id, 1<<20); err != nil || !bytes.Equal(got, data) {
		t.Errorf("kept: %d bytes, %v", len(got), err)
	}
	delete(pinned, id)
	s.add(&op.Checkpoint{})
	s.stopApplier()
	if err := s.checkpoint(); err != nil {
		t.Fatal(err)
	}
	s.startApplier()
	if got := trash(); got != 0 {
		t.Errorf("%d in trash at last", got)
	}
	if _, err := s.read(id, 100); !errors.Is(err, ErrNotExist) {
		t.Errorf("read after freeing: %v", err)
	}
}

func TestControlFiles(t *testing.T) {
	s := newMailSlot(t, Options{})
	id := s.add(&op.Create{Parent: s.cur, Name: "dovecot-uidlist", Attr: op.Attr{Mode: typeRegular | 0o600}})
	want := []byte{}
	for i := range 50 {
		line := pattern(10 + i)
		s.add(&op.Write{ID: id, Off: int64(len(want)), Data: line})
		want = append(want, line...)
	}
	if got, err := s.read(id, 100); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if ids, err := s.Unsealed(); err != nil || len(ids) != 1 || ids[0] != id {
		t.Errorf("unsealed: %v, %v", ids, err)
	}
	seal := func() *op.Seal {
		n, err := s.Inode(id)
		if err != nil {
			t.Fatal(err)
		}
		return &op.Seal{ID: id, Of: n.Changed, Sum: op.BlockSumOf(want)}
	}
	void := seal()
	s.add(&op.Write{ID: id, Off: 0, Data: []byte("x")})
	want[0] = 'x'
	s.add(void)
	if n, err := s.Inode(id); err != nil || n.Sum != nil {
		t.Errorf("void seal: %+v, %v", n, err)
	}
	s.add(seal())
	if n, err := s.Inode(id); err != nil || n.Sum == nil {
		t.Errorf("seal: %+v, %v", n, err)
	}
	if ids, err := s.Unsealed(); err != nil || len(ids) != 0 {
		t.Errorf("unsealed: %v, %v", ids, err)
	}
	// Sealed, it is verified like a message; and changed again, it is not.
	flip(t, s.file("dovecot-uidlist"), 5)
	var damaged *DamagedError
	if _, err := s.read(id, 100); !errors.As(err, &damaged) {
		t.Errorf("read of damage: %v", err)
	}
	s.add(&op.Truncate{ID: id, Size: 3})
	if got, err := s.read(id, 100); err != nil || string(got) != "x"+string(want[1:3]) {
		t.Errorf("%q, %v", got, err)
	}
	s.noDamageBut(id)
}

func (s *mailSlot) noDamageBut(id op.ID) {
	s.t.Helper()
	for _, e := range s.Events.List() {
		if e.ID != id {
			s.t.Errorf("event %+v", e)
		}
	}
}

// A seal that finds another content on this slot repairs it.
func TestSealVerifies(t *testing.T) {
	want := []byte("what the primary has")
	repaired := make(chan Event, 1)
	s := newMailSlot(t, Options{
		Fetch:   func(context.Context, op.ID, op.Sum) (Copy, error) { return Copy{Data: want}, nil },
		OnEvent: func(e Event) { repaired <- e },
	})
	id := s.add(&op.Create{Parent: s.cur, Name: "c", Attr: op.Attr{Mode: typeRegular | 0o600}})
	of := s.add(&op.Write{ID: id, Data: want})
	flip(t, s.file("c"), 0)
	s.add(&op.Seal{ID: id, Of: uint64(of), Sum: op.BlockSumOf(want)})
	if e := <-repaired; e.Kind != EventRepaired || e.ID != id {
		t.Errorf("event %+v", e)
	}
	if got, err := os.ReadFile(s.file("c")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// Reads go on while what they read is renamed, changed, sealed and unlinked.
func TestReadWhileApplying(t *testing.T) {
	s := newMailSlot(t, Options{CheckpointEvery: 20 * time.Millisecond})
	data := pattern(20_000)
	id := s.put("m0", data)
	c := s.add(&op.Create{Parent: s.cur, Name: "c", Attr: op.Attr{Mode: typeRegular | 0o600}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			p := make([]byte, 30_000)
			for ctx.Err() == nil {
				if n, err := s.ReadAt(t.Context(), id, p, 0); err != nil || !bytes.Equal(p[:n], data) {
					t.Errorf("message: %d, %v", n, err)
					return
				}
				if n, err := s.ReadAt(t.Context(), c, p, 0); err != nil || n != 0 && n != 500 {
					t.Errorf("control file: %d, %v", n, err)
					return
				}
				if _, err := s.Children(s.cur); err != nil {
					t.Error(err)
				}
			}
		})
	}
	names := []string{"m0", "m1"}
	d := s.add(&op.Mkdir{Parent: op.Root, Name: "d", Attr: op.Attr{Mode: typeDir | 0o755}})
	for i := range 300 {
		from, to := s.cur, d
		if i%2 == 1 {
			from, to = to, from
		}
		s.add(&op.Rename{ID: id, OldParent: from, OldName: names[i%2], NewParent: to, NewName: names[(i+1)%2]})
		of := s.add(&op.Write{ID: c, Data: bytes.Repeat([]byte{byte(i)}, 500)})
		if i%3 == 0 {
			s.add(&op.Seal{ID: c, Of: uint64(of), Sum: op.BlockSumOf(bytes.Repeat([]byte{byte(i)}, 500))})
		}
	}
	cancel()
	wg.Wait()
	s.noEvents()
}

func TestLookupAndPath(t *testing.T) {
	s := newMailSlot(t, Options{})
	id := s.put("name:2,S", []byte("x"))
	for path, want := range map[string]op.ID{"": op.Root, "/": op.Root, "cur": s.cur, "/cur/name:2,S": id, "cur//name:2,S": id} {
		if got, err := s.Lookup(path); err != nil || got != want {
			t.Errorf("look up %q: %d, %v", path, got, err)
		}
	}
	if _, err := s.Lookup("cur/none"); !errors.Is(err, ErrNotExist) {
		t.Errorf("look up nothing: %v", err)
	}
	if path, err := s.Path(id); err != nil || path != "cur/name:2,S" {
		t.Errorf("path %q, %v", path, err)
	}
	if _, err := s.Children(id); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("children of a file: %v", err)
	}
	if _, err := s.ReadAt(t.Context(), s.cur, make([]byte, 1), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("read a directory: %v", err)
	}
}

// A digest that differs from the primary's at a Checkpoint entry is an event.
func TestCheckpointEntry(t *testing.T) {
	s := newMailSlot(t, Options{})
	s.put("m", []byte("x"))
	seq, digest := s.Digest()
	good := &op.Checkpoint{At: seq, Digest: digest}
	s.put("n", []byte("y"))
	s.add(good)
	s.noEvents()
	s.add(&op.Checkpoint{At: good.At, Digest: op.Digest{1, 2}})
	s.add(&op.Checkpoint{At: 1 << 40, Digest: op.Digest{1, 2}}) // long ago or unknown: says nothing
	if got := s.Events.Counts()[EventDigest]; got != 1 {
		t.Errorf("%d events", got)
	}
}

// The primary attests what was applied, once, with its checkpoints.
func TestAttest(t *testing.T) {
	s := newMailSlot(t, Options{CheckpointEvery: 20 * time.Millisecond})
	last := uint64(s.put("m", []byte("x")))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	attested := func(at uint64) bool {
		entries, err := s.Log.Read(1, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if c, ok := e.Op.(*op.Checkpoint); ok && c.At >= at {
				if d, known := s.DigestAt(c.At); !known || d != c.Digest {
					t.Errorf("%+v, the digest there is %v", c, d)
				}
				return true
			}
		}
		return false
	}
	for changed := s.Log.Appended.Changed(); !attested(last); changed = s.Log.Appended.Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("nothing attested")
		}
	}
	end := s.Log.Last().Seq
	if err := s.Log.Applied.Wait(ctx, end); err != nil {
		t.Fatal(err)
	}
	s.stopApplier()
	if err := s.checkpoint(); err != nil { // what the next one would begin with
		t.Fatal(err)
	}
	s.attest(s.ix.current())
	if got := s.Log.Last().Seq; got != end {
		t.Errorf("log ends at %d, want %d: attested again with nothing new", got, end)
	}
	s.noEvents()
}

func TestDirDigest(t *testing.T) {
	s := newMailSlot(t, Options{})
	s.put("a", pattern(10))
	d, files, size, err := s.DirDigest(s.cur)
	if err != nil || files != 1 || size != 10 {
		t.Errorf("%d files, %d bytes, %v", files, size, err)
	}
	sub := s.add(&op.Mkdir{Parent: s.cur, Name: "sub", Attr: op.Attr{Mode: typeDir | 0o755}})
	id := s.add(&op.Create{Parent: sub, Name: "c", Attr: op.Attr{Mode: typeRegular}})
	s.add(&op.Write{ID: id, Data: pattern(5)})
	all, files, size, err := s.DirDigest(op.Root)
	if err != nil || files != 2 || size != 15 {
		t.Errorf("%d files, %d bytes, %v", files, size, err)
	}
	root, err := s.Inode(op.Root)
	if err != nil {
		t.Fatal(err)
	}
	all.Add(element(Name{}, root))
	if _, slot := s.Digest(); slot != all {
		t.Errorf("slot %v, all directories and the root %v", slot, all)
	}
	s.add(&op.Unlink{ID: id, Parent: sub, Name: "c"})
	s.add(&op.Unlink{ID: sub, Parent: s.cur, Name: "sub"})
	if again, _, _, err := s.DirDigest(s.cur); err != nil || again != d {
		t.Errorf("digest %v after adding and removing, was %v", again, d)
	}
}
