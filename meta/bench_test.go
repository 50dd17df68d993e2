package meta

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// putEntries makes entries that publish n messages of 16 KB, in the manner of
// deliveries: 20 mailboxes in turn.
func putEntries(n int) []*op.Entry {
	var entries []*op.Entry
	var prev op.Pos
	now := time.Now().UnixNano()
	add := func(o op.Op) op.ID {
		now++
		e := op.NewEntry(prev, 1, now, o)
		prev = e.Pos()
		entries = append(entries, e)
		return op.ID(e.Seq)
	}
	add(&op.EpochBegin{Epoch: 1})
	var dirs []op.ID
	for i := range 20 {
		dirs = append(dirs, add(&op.Mkdir{Parent: op.Root, Name: fmt.Sprint("user", i), Attr: op.Attr{Mode: typeDir | 0o700, UID: 5000, GID: 5000}}))
	}
	data := pattern(16 << 10)
	sum := op.SumOf(data)
	for i := range n {
		add(&op.Put{
			Parent: dirs[i%len(dirs)], Name: fmt.Sprintf("%d.M%dP123.host,S=16384,W=16700", now, i),
			Attr: op.Attr{Mode: typeRegular | 0o600, UID: 5000, GID: 5000, Mtime: now},
			Sum:  sum, Sealed: true, Data: data,
		})
	}
	return entries
}

// cpuTime is what the process has used, in seconds: on a busy machine it says
// more than the clock.
func cpuTime(b *testing.B) float64 {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkApplyPut applies messages of 16 KB to index and tree, without the
// log: what one slot's applier can do.
func BenchmarkApplyPut(b *testing.B) {
	entries := putEntries(b.N)
	s := newTestSlot(b, Options{})
	s.stopApplier()
	apply := func(e *op.Entry) {
		if err := s.applyEntry(e); err != nil {
			b.Fatal(err)
		}
	}
	for _, e := range entries[:len(entries)-b.N] {
		apply(e)
	}
	b.ReportAllocs()
	b.SetBytes(16 << 10)
	cpu := 0.0
	b.ResetTimer()
	from := cpuTime(b)
	for i, e := range entries[len(entries)-b.N:] {
		apply(e)
		if i%64 == 63 {
			if err := s.tree.setTimes(); err != nil {
				b.Fatal(err)
			}
		}
		if s.ix.full() {
			b.StopTimer()
			cpu += cpuTime(b) - from
			if err := s.checkpoint(); err != nil {
				b.Fatal(err)
			}
			from = cpuTime(b)
			b.StartTimer()
		}
	}
	b.StopTimer()
	cpu += cpuTime(b) - from
	b.ReportMetric(cpu/float64(b.N)*1e6, "cpu-µs/op")
	s.Log.Reset(s.ix.current().Pos)
}

// BenchmarkIndexPut is the index's share of that.
func BenchmarkIndexPut(b *testing.B) {
	entries := putEntries(b.N)
	x := testIndex(b, b.TempDir())
	for _, e := range entries[:len(entries)-b.N] {
		if _, err := x.apply(e); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	cpu := 0.0
	b.ResetTimer()
	from := cpuTime(b)
	for _, e := range entries[len(entries)-b.N:] {
		if _, err := x.apply(e); err != nil {
			b.Fatal(err)
		}
		if x.full() {
			b.StopTimer()
			cpu += cpuTime(b) - from
			st, err := x.freeze()
			if err != nil {
				b.Fatal(err)
			}
			if err := x.commit(st); err != nil {
				b.Fatal(err)
			}
			from = cpuTime(b)
			b.StartTimer()
		}
	}
	b.StopTimer()
	cpu += cpuTime(b) - from
	b.ReportMetric(cpu/float64(b.N)*1e6, "cpu-µs/op")
}

// BenchmarkReadMessage reads a message of 16 KB whole, verified.
func BenchmarkReadMessage(b *testing.B) {
	s := newMailSlot(b, Options{})
	id := s.put("m", pattern(16<<10))
	p := make([]byte, 128<<10)
	b.ReportAllocs()
	b.SetBytes(16 << 10)
	for b.Loop() {
		if _, err := s.ReadAt(b.Context(), id, p, 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkScrub is a scrub of everything: what one message costs.
func BenchmarkScrub(b *testing.B) {
	const count = 1000
	s := newMailSlot(b, Options{})
	for i := range count {
		s.put(fmt.Sprint("m", i), pattern(16<<10))
	}
	b.ReportAllocs()
	b.SetBytes(count * 16 << 10)
	b.ResetTimer()
	from := cpuTime(b)
	for b.Loop() {
		p, err := s.Scrub(b.Context(), ScrubOptions{}, ScrubReport{})
		if err != nil || !p.Clean() {
			b.Fatal(p.Found, err)
		}
	}
	b.ReportMetric((cpuTime(b)-from)*1e6/float64(b.N*count), "cpu-µs/message")
}
