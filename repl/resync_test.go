package repl

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// metaSlot is a real slot.
type metaSlot struct{ *meta.Slot }

func (s *metaSlot) close() error { return s.Slot.Close() }

func (n *node) openMeta() (testSlot, *oplog.Log) {
	t := n.w.t
	t.Helper()
	s, err := meta.Open(n.dir, meta.Options{
		Store: "mail", Reserve: -1, Logger: logger(t, n.name), Log: oplog.Options{SegmentSize: 1 << 20}, CheckpointEvery: 200 * time.Millisecond,
		Fetch: func(ctx context.Context, id op.ID, want op.Sum) (meta.Copy, error) { return n.m.Fetch(ctx, id, want) },
	})
	if err != nil {
		t.Fatalf("open %s: %v", n.name, err)
	}
	s.Start()
	return &metaSlot{s}, s.Log
}

// mailbox fills a store through the log of its primary.
type mailbox struct {
	t    testing.TB
	rng  *rand.Rand
	dirs []op.ID
	msgs []message
	n    int
}

type message struct {
	id   op.ID
	dir  op.ID
	name string
	data []byte
}

func newMailbox(t testing.TB) *mailbox {
	return &mailbox{t: t, rng: rand.New(rand.NewPCG(1, 2))}
}

func (b *mailbox) append(n *node, o op.Op) *op.Entry {
	b.t.Helper()
	e, err := n.log.Append(o)
	if err != nil {
		b.t.Fatalf("append %v: %v", o.Kind(), err)
	}
	return e
}

// fill makes folders and messages, and changes and removes some.
func (b *mailbox) fill(n *node, dirs, msgs, size int) {
	b.t.Helper()
	for range dirs {
		parent := op.Root
		if len(b.dirs) > 0 && b.rng.IntN(2) == 0 {
			parent = b.dirs[b.rng.IntN(len(b.dirs))]
		}
		b.n++
		e := b.append(n, &op.Mkdir{Parent: parent, Name: fmt.Sprintf("dir \xff%d", b.n), Attr: op.Attr{Mode: 0o40755}})
		b.dirs = append(b.dirs, op.ID(e.Seq))
	}
	for range msgs {
		data := make([]byte, b.rng.IntN(size)+1)
		for i := range data {
			data[i] = byte(b.rng.Uint32())
		}
		b.n++
		m := message{dir: b.dirs[b.rng.IntN(len(b.dirs))], name: fmt.Sprintf("msg %d:2,S", b.n), data: data}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		if err := n.log.Reserve(ctx, len(data)); err != nil {
			b.t.Fatal(err)
		}
		cancel()
		e := b.append(n, &op.Put{Parent: m.dir, Name: m.name, Attr: op.Attr{Mode: 0o100600}, Sum: op.SumOf(data), Sealed: true, Data: data})
		m.id = op.ID(e.Seq)
		b.msgs = append(b.msgs, m)
		if b.rng.IntN(8) == 0 {
			i := b.rng.IntN(len(b.msgs))
			x := b.msgs[i]
			b.append(n, &op.Unlink{ID: x.id, Parent: x.dir, Name: x.name})
			b.msgs = append(b.msgs[:i], b.msgs[i+1:]...)
		}
	}
	c := b.append(n, &op.Create{Parent: op.Root, Name: fmt.Sprint("control", b.n), Attr: op.Attr{Mode: 0o100600}})
	b.append(n, &op.Write{ID: op.ID(c.Seq), Off: 3, Data: []byte("some bytes")})
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if err := n.log.Barrier(ctx, n.log.Last().Seq); err != nil {
		b.t.Fatal(err)
	}
}

// trim makes n's log forget all that it can.
func (n *node) trim() {
	n.w.t.Helper()
	last := n.log.Last().Seq
	n.w.wait("all applied on "+n.name, func() bool { return n.log.Applied.Get() >= last })
	n.w.wait("a checkpoint that lets the log be trimmed", func() bool {
		sn, err := n.slot.(*metaSlot).Snapshot(context.Background())
		if err != nil {
			n.w.t.Fatal(err)
		}
		at := sn.Pos().Seq
		sn.Close()
		if err := n.log.Trim(at); err != nil {
			n.w.t.Fatal(err)
		}
		return n.log.First() > 10
	})
}

// equal waits until b has applied all of a, and compares digests and trees.
func (w *world) equal(a, b *node) {
	w.t.Helper()
	w.same(a, b)
	at, da := a.slot.(*metaSlot).Digest()
	bt, db := b.slot.(*metaSlot).Digest()
	for range 20 { // a checkpoint of the primary's may have come between the two
		if at == bt {
			break
		}
		w.same(a, b)
		at, da = a.slot.(*metaSlot).Digest()
		bt, db = b.slot.(*metaSlot).Digest()
	}
	if at != bt || da != db {
		w.t.Errorf("digests differ: %s %d %v, %s %d %v", a.name, at, da, b.name, bt, db)
	}
	ta, tb := tree(w.t, a), tree(w.t, b)
	for name, x := range ta {
		if y, ok := tb[name]; !ok || x.mode != y.mode || !x.mtime.Equal(y.mtime) || !bytes.Equal(x.data, y.data) {
			w.t.Errorf("%q differs (there: %v)", name, ok)
		}
	}
	if len(ta) != len(tb) {
		w.t.Errorf("%d objects on %s, %d on %s", len(ta), a.name, len(tb), b.name)
	}
}

type object struct {
	mode  os.FileMode
	mtime time.Time
	data  []byte
}

func tree(t testing.TB, n *node) map[string]object {
	t.Helper()
	all := map[string]object{}
	root := filepath.Join(n.dir, "tree")
	err := filepath.Walk(root, func(path string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		o := object{mode: fi.Mode(), mtime: fi.ModTime()}
		if fi.Mode().IsRegular() {
			if o.data, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		rel, _ := filepath.Rel(root, path)
		all[rel] = o
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestMetaPair(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", nil), w.add("b", nil)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	m := newMailbox(t)
	m.fill(a, 10, 200, 5000)
	w.equal(a, b)
	if err := a.m.Demote(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.promote(b, PromoteOptions{})
	w.inSync(b, a)
	m.fill(b, 10, 200, 5000)
	w.equal(b, a)
}

func TestResyncEmpty(t *testing.T) {
	w := newWorld(t)
	a := w.add("a", nil)
	w.promote(a, PromoteOptions{})
	m := newMailbox(t)
	m.fill(a, 20, 400, 20000)
	a.trim()
	b := w.add("b", nil)
	m.fill(a, 2, 20, 20000) // while it is resynced
	w.inSync(a, b)
	w.equal(a, b)
	m.fill(a, 2, 20, 20000)
	w.equal(a, b)
	// It is a slot like any other now.
	if err := a.m.Demote(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.promote(b, PromoteOptions{})
	w.inSync(b, a)
	m.fill(b, 2, 20, 20000)
	w.equal(b, a)
}

func TestResyncStale(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", nil), w.add("b", nil)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	m := newMailbox(t)
	m.fill(a, 20, 300, 20000)
	b.stop()
	m.fill(a, 5, 100, 20000)
	a.trim()
	b.start()
	w.inSync(a, b)
	w.equal(a, b)
	if r := b.m.State().LastError; r != "" {
		t.Logf("last error: %s", r)
	}
}

// The primary's log has rotted where a replica needs it: the replica is
// resynced instead.
func TestResyncDamagedLog(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", nil), w.add("b", nil)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	m := newMailbox(t)
	m.fill(a, 5, 20, 2000)
	w.same(a, b)
	b.stop()
	from := a.log.Last().Seq
	m.fill(a, 2, 1500, 20000) // more than is kept in memory
	w.same(a, a)
	// Where the entry lies that comes first after what the replica has and is in
	// memory no longer, only the files can tell.
	list, err := a.log.Read(from+20, 1)
	if err != nil {
		t.Fatal(err)
	}
	hit := false
	files, err := filepath.Glob(filepath.Join(a.dir, "oplog", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(raw, list[0].Raw); at >= 0 {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 200), int64(at)); err != nil {
				t.Fatal(err)
			}
			_ = f.Close()
			hit = true
		}
	}
	if !hit {
		t.Fatal("the entry is in no file")
	}
	b.start()
	w.inSync(a, b)
	w.equal(a, b)
	w.wait("an alert", func() bool {
		for _, e := range a.m.State().Events {
			if e.Alert && strings.Contains(e.Text, "cannot be read") {
				return true
			}
		}
		return false
	})
}

// Both went on alone; one gives up, is resynced, and its branch is in rescue/.
func TestResyncDiverged(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", nil), w.add("b", nil)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	m := newMailbox(t)
	m.fill(a, 20, 300, 20000)
	w.same(a, b)
	a.cable.set(true, false)
	b.cable.set(true, false)
	mine := *m
	m.fill(a, 2, 50, 20000)
	w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
	mine.fill(b, 2, 50, 20000)
	a.cable.set(false, false)
	b.cable.set(false, false)
	w.bell.notify()
	w.wait("both to say so", func() bool { return a.m.State().Diverged != "" && b.m.State().Diverged != "" })
	ctx := context.Background()
	if err := a.m.Demote(ctx); err != nil {
		t.Fatal(err)
	}
	if err := a.m.Rejoin(ctx, true); err != nil {
		t.Fatal(err)
	}
	w.inSync(b, a)
	w.equal(b, a)
	if n := rescued(t, a); n < 50 {
		t.Errorf("%d entries in rescue/", n)
	}
	if s := a.m.State(); s.Diverged != "" {
		t.Errorf("still diverged: %s", s.Diverged)
	}
	a.stop()
	a.start()
	w.inSync(b, a)
	w.equal(b, a)
}

// Either side is stopped at random moments of a resync.
func TestResyncInterrupted(t *testing.T) {
	w := newWorld(t)
	a := w.add("a", nil)
	w.promote(a, PromoteOptions{})
	m := newMailbox(t)
	m.fill(a, 60, 1500, 20000)
	a.trim()
	b := w.add("b", nil)
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for i := range 6 {
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond) // a moment of no significance
		switch i % 3 {
		case 0:
			b.stop()
			b.start()
		case 1:
			a.cable.drop()
		case 2:
			a.stop()
			a.start()
		}
	}
	w.wait("a to be primary", func() bool { return a.m.State().Role == Primary })
	w.inSync(a, b)
	m.fill(a, 2, 20, 20000)
	w.equal(a, b)
}

// Damage found by reading is repaired from the other side, in both directions.
func TestFetchRepairs(t *testing.T) {
	w := newWorld(t)
	a, b := w.add("a", nil), w.add("b", nil)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	m := newMailbox(t)
	m.fill(a, 3, 40, 20000)
	w.equal(a, b)
	for i, n := range []*node{a, b} {
		x := m.msgs[i]
		s := n.slot.(*metaSlot)
		path, err := s.Path(x.id)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(n.dir, "tree", path)
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(x.data)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(file, bad, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(x.data)+1)
		k, err := s.ReadAt(context.Background(), x.id, got, 0)
		if err != nil || !bytes.Equal(got[:k], x.data) {
			t.Errorf("read on %s: %d bytes, %v", n.name, k, err)
		}
	}
	w.equal(a, b)
	in, err := a.slot.Find(m.msgs[2].id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.m.Fetch(context.Background(), in.ID, *in.Sum)
	if err != nil || !bytes.Equal(got.Data, m.msgs[2].data) || got.From != b.name {
		t.Errorf("fetch: %d bytes, %v", len(got.Data), err)
	}
	// Gossip may not have heard yet that a slot is back.
	w.mu.Lock()
	b.up = false
	w.mu.Unlock()
	if got, err = a.m.Fetch(context.Background(), in.ID, *in.Sum); err != nil || !bytes.Equal(got.Data, m.msgs[2].data) {
		t.Errorf("from a slot taken for dead: %d bytes, %v", len(got.Data), err)
	}
	w.mu.Lock()
	b.up = true
	w.mu.Unlock()
	if _, err := a.m.Fetch(context.Background(), 999999, *in.Sum); err == nil {
		t.Error("fetched what does not exist")
	}
}
