package oplog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cespare/xxhash/v2"

	"slotfs/meta/op"
)

// files returns the segments in dir, in order.
func files(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.log"))
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	slices.Sort(all)
	return all
}

// copyDir returns a copy of dir, in which one byte may be changed.
func copyDir(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	des, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, de := range des {
		b, err := os.ReadFile(filepath.Join(dir, de.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // a segment in the making
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, de.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// batch is where a batch is.
type batch struct {
	path   string
	off    int64
	header batchHeader
}

func batches(t testing.TB, dir string) (all []batch) {
	t.Helper()
	for _, path := range files(t, dir) {
		s, err := openSegment(osFS{}, dir, filepath.Base(path), false)
		if err != nil {
			t.Fatal(err)
		}
		off := int64(page)
		if _, err := s.scan(func(h *batchHeader, _ []*op.Entry) {
			all = append(all, batch{path, off, *h})
			off += h.extent()
		}); err != nil {
			t.Fatal(err)
		}
		s.f.Close()
	}
	return all
}

func flip(t testing.TB, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// sample makes a log of a few segments and batches, cleanly closed if clean,
// else as after kill -9, and returns its entries.
func sample(t testing.TB, clean bool) (dir string, want []*op.Entry) {
	t.Helper()
	dir = t.TempDir()
	l := primary(t, dir, Options{SegmentSize: 32 << 10})
	for i := range 40 {
		add(t, l, write(i*37%5000))
		if i%3 == 0 {
			durable(t, l)
		}
	}
	durable(t, l)
	for seq := uint64(1); seq <= l.Last().Seq; {
		es, err := l.Read(seq, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, es...)
		seq += uint64(len(es))
	}
	if clean {
		closeLog(t, l)
		return dir, want
	}
	return copyDir(t, dir), want
}

// TestDamage flips a byte in every batch. What a later header proves to have
// been durable is never cut, only reported.
func TestDamage(t *testing.T) {
	dir, want := sample(t, false)
	all := batches(t, dir)
	for i, b := range all {
		last := i == len(all)-1
		for _, at := range []int64{0, 50, batchHeaderSize + 8, batchHeaderSize + int64(b.header.bytes) - 1} {
			if at >= batchHeaderSize+int64(b.header.bytes) {
				continue
			}
			c := copyDir(t, dir)
			flip(t, filepath.Join(c, filepath.Base(b.path)), b.off+at)
			l, err := Open(c, Options{})
			if last {
				// Nothing proves that the last batch had been durable.
				if err != nil || l.Last().Seq != b.header.base.Seq {
					t.Fatalf("last batch, byte %d: %v", at, err)
				}
				l.Close()
				continue
			}
			var d *DamageError
			if !errors.As(err, &d) {
				if l != nil {
					err = errors.Join(err, l.Close())
				}
				if b.header.count == 0 {
					continue // a restart without entries holds nothing that could be lost
				}
				t.Fatalf("batch %d, byte %d: opened to %v: %v", i, at, l.Last(), err)
			}
			if d.From != b.header.first || d.Next < b.header.last()+1 || !strings.HasPrefix(d.Path, c) || d.Offset != b.off {
				if b.header.count > 0 {
					t.Errorf("batch %d of seq %d to %d at %d, byte %d: %v", i, b.header.first, b.header.last(), b.off, at, err)
				}
			}
			checkPast(t, c, d, want)
		}
	}
}

// checkPast opens a damaged log past its damage.
func checkPast(t *testing.T, dir string, d *DamageError, want []*op.Entry) {
	t.Helper()
	asked := 0
	l, err := Open(dir, Options{PastDamage: func(g *DamageError) bool { asked++; return g.Next == d.Next }})
	if err != nil || asked != 1 {
		t.Fatalf("open past %v: asked %d times: %v", d, asked, err)
	}
	defer l.Close()
	if l.First() != d.Next || l.Last() != want[len(want)-1].Pos() {
		t.Fatalf("past %v: log from %d to %v", d, l.First(), l.Last())
	}
	for seq := l.First(); seq <= l.Last().Seq; {
		es, err := l.Read(seq, 10000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range es {
			if !bytes.Equal(e.Raw, want[e.Seq-1].Raw) {
				t.Fatalf("seq %d differs", e.Seq)
			}
			seq++
		}
	}
	if d.Next == 1 {
		return
	}
	if pos, err := l.PosAt(d.Next - 1); err != nil || pos != want[d.Next-2].Pos() {
		t.Errorf("PosAt(%d): %v, %v", d.Next-1, pos, err)
	}
}

// TestMissingSegment: a segment that is gone is damage.
func TestMissingSegment(t *testing.T) {
	dir, want := sample(t, true)
	all := files(t, dir)
	for i, path := range all[1 : len(all)-2] {
		c := copyDir(t, dir)
		if err := os.Remove(filepath.Join(c, filepath.Base(path))); err != nil {
			t.Fatal(err)
		}
		_, err := Open(c, Options{})
		var d *DamageError
		if !errors.As(err, &d) {
			t.Fatalf("segment %d of %d is missing: %v", i+1, len(all), err)
		}
		if err := Scan(c, 0, func(*op.Entry) error { return nil }); !errors.As(err, &d) {
			t.Errorf("scan: %v", err)
		}
		checkPast(t, c, d, want)
	}
}

// TestReadDamage: what rots while the log is open is found when it is read.
func TestReadDamage(t *testing.T) {
	dir, _ := sample(t, true)
	l := open(t, dir, Options{})
	for _, b := range batches(t, dir) {
		if b.header.count == 0 {
			continue
		}
		flip(t, b.path, b.off+batchHeaderSize+50)
		var d *DamageError
		if _, err := l.Read(b.header.first, 1); !errors.As(err, &d) || d.From != b.header.first {
			t.Fatalf("read: %v", err)
		}
		if _, err := l.PosAt(b.header.first); !errors.As(err, &d) {
			t.Fatalf("PosAt: %v", err)
		}
		flip(t, b.path, b.off+batchHeaderSize+50)
	}
}

// TestTorn: a torn tail is cut, kept aside until the next start, and reported.
func TestTorn(t *testing.T) {
	dir, _ := sample(t, false)
	all := batches(t, dir)
	b := all[len(all)-1]
	flip(t, b.path, b.off+batchHeaderSize+8)
	var logged bytes.Buffer
	l, err := Open(dir, Options{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
	if err != nil || l.Last().Seq != b.header.base.Seq {
		t.Fatal(err)
	}
	if !strings.Contains(logged.String(), "torn") {
		t.Errorf("logged %q", logged.String())
	}
	torn, err := filepath.Glob(filepath.Join(dir, "*.torn"))
	if err != nil || len(torn) != 1 {
		t.Fatal(torn, err)
	}
	if saved, err := os.ReadFile(torn[0]); err != nil || int64(len(saved)) != b.header.extent() {
		t.Errorf("%d bytes kept, %v", len(saved), err)
	}
	last := l.Last()
	closeLog(t, l)
	l = open(t, dir, Options{})
	if torn, _ := filepath.Glob(filepath.Join(dir, "*.torn")); len(torn) != 0 || l.Last() != last {
		t.Error(torn, l.Last())
	}
}

// TestUnreadable: sectors that cannot be read are damage in the middle of the
// log. At its end they keep it from opening: they are no torn tail.
func TestUnreadable(t *testing.T) {
	dir, want := sample(t, false)
	all := batches(t, dir)
	for i, b := range all {
		if b.header.count == 0 {
			continue
		}
		fs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
		for _, path := range files(t, dir) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fs.names[path] = &crashFile{cur: data, disk: data, dirty: map[int64]bool{}}
		}
		bad := (b.off + int64(i%2)*b.header.extent() - int64(i%2)) / sector // the first or the last
		fs.names[b.path].bad = map[int64]bool{bad: true}
		_, err := Open(dir, Options{fs: fs})
		var d *DamageError
		filling := bad*sector >= b.off+batchHeaderSize+int64(b.header.bytes) // nothing of it need be read
		if i == len(all)-1 {
			if errors.As(err, &d) || !errors.Is(err, syscall.EIO) && !filling {
				t.Errorf("unreadable end: %v", err)
			}
			continue
		}
		if !errors.As(err, &d) || !errors.Is(err, syscall.EIO) || d.From != b.header.first {
			if b.off == page && i > 0 && all[i-1].path == b.path || filling {
				continue
			}
			t.Errorf("seq %d is unreadable: %v", b.header.first, err)
			continue
		}
		l, err := Open(dir, Options{fs: fs, PastDamage: func(*DamageError) bool { return true }})
		if err != nil || l.First() != d.Next || l.Last() != want[len(want)-1].Pos() {
			t.Errorf("past %v: %v", d, err)
			continue
		}
		l.Close()
	}
}

// TestStaleBatches: a file used again is full of good entries of the log's
// past. None of them is ever taken for a new one.
func TestStaleBatches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	fs := newCrashFS(rnd)
	dir := t.TempDir()
	o := Options{SegmentSize: 32 << 10, fs: fs, Logger: discard}
	l := primary(t, dir, o)
	for range 30 {
		add(t, l, write(3000))
		durable(t, l)
	}
	// The same seqs again, on another branch, in the same files.
	l.Follow()
	at := op.Pos{Epoch: 1, Seq: 1, Chain: l.recs[0].e.After}
	for round := range 20 {
		if err := l.Reset(at); err != nil {
			t.Fatal(err)
		}
		l.Lead(l.Last().Epoch+1, nil)
		add(t, l, &op.EpochBegin{Epoch: l.Last().Epoch + 1})
		for range 25 {
			add(t, l, write(3000))
			durable(t, l)
		}
		good := l.Last()
		soon(t, "the spare segment", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.spare != nil })
		add(t, l, write(9000+round)) // not waited for
		l.Flush(l.Last().Seq)
		fs.mu.Lock()
		fs.fault = func(string, string) error { return errKilled }
		fs.mu.Unlock()
		end := l.Last()
		l.Close()
		fs.power()
		l = open(t, dir, o)
		if l.Last() != good && l.Last() != end {
			t.Fatalf("round %d: log ends at %v, want %v or %v", round, l.Last(), good, end)
		}
	}
}

func TestNewerVersion(t *testing.T) {
	dir, _ := sample(t, true)
	b := batches(t, dir)[3]
	s, err := openSegment(osFS{}, dir, filepath.Base(b.path), true)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, batchHeaderSize)
	b.header.encode(buf, s.id, b.off)
	buf[4] = formatVersion + 1
	rehash(buf)
	if _, err := s.f.WriteAt(buf, b.off); err != nil {
		t.Fatal(err)
	}
	s.f.Close()
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}

	dir, _ = sample(t, true)
	path := files(t, dir)[1]
	h := encodeSegmentHeader(1, 1, 1)
	h[11]++
	binary.BigEndian.PutUint64(h[40:], xxhash.Sum64(h[:40]))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(h, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, ErrVersion) {
		t.Fatal(err)
	}
	// A header that is merely damaged takes nothing away.
	flip(t, path, 3)
	open(t, dir, Options{})
}

// FuzzSegment reads segments that somebody has made up: nothing panics, and
// what is read is a chain of good entries.
func FuzzSegment(f *testing.F) {
	dir, _ := sample(f, true)
	for _, path := range files(f, dir)[:3] {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[page:min(len(b), 8*page)], true)
		f.Add(b[page:min(len(b), 8*page)], false)
	}
	dir = f.TempDir()
	path := filepath.Join(dir, segmentName(1, 2))
	f.Fuzz(func(t *testing.T, b []byte, good bool) {
		fs := newCrashFS(rand.New(rand.NewPCG(1, 1)))
		b = append(make([]byte, page), b...)
		if good {
			// The header is as its place demands: so the fuzzer gets past it.
			for off := page; off+batchHeaderSize <= len(b); off += page {
				if bytes.HasPrefix(b[off:], []byte("SlBa")) {
					h := b[off : off+batchHeaderSize]
					rebind(h, 2, int64(off))
				}
			}
		}
		fs.names[path] = &crashFile{cur: b, disk: b, dirty: map[int64]bool{}}
		var last *op.Entry
		err := scanDir(fs, dir, 0, func(e *op.Entry) error {
			if last != nil && (e.Seq != last.Seq+1 || e.Before != last.After) {
				t.Fatalf("%v after %v", e.Pos(), last.Pos())
			}
			last = e
			return nil
		})
		l, err2 := Open(dir, Options{SegmentSize: 32 << 10, fs: fs})
		if (err == nil) != (err2 == nil) {
			t.Fatalf("Scan: %v; Open: %v", err, err2)
		}
		if err2 != nil {
			return
		}
		if last != nil && l.Last() != last.Pos() {
			t.Fatalf("Scan ends at %v, Open at %v", last.Pos(), l.Last())
		}
		l.Close()
	})
}

// rehash makes a batch header's checksum right.
func rehash(h []byte) {
	binary.BigEndian.PutUint64(h[88:], xxhash.Sum64(h[:88]))
}

// rebind makes a batch header one of the segment id, at off.
func rebind(h []byte, id uint64, off int64) {
	binary.BigEndian.PutUint64(h[8:], id)
	binary.BigEndian.PutUint64(h[16:], uint64(off))
	rehash(h)
}
