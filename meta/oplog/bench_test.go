package oplog

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"slotfs/meta/op"
)

// BenchmarkBarrier appends an entry and waits until it is committed, which one
// slot alone does by itself. "bare" is the floor: as many bytes, durably,
// to a file written before, by each writer for itself.
func BenchmarkBarrier(b *testing.B) {
	const size = 3900
	for _, writers := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("bare/%d", writers), func(b *testing.B) {
			var files []file
			for i := range writers {
				f, err := osFS{}.Create(filepath.Join(b.TempDir(), fmt.Sprint(i)))
				if err != nil {
					b.Fatal(err)
				}
				defer f.Close()
				if _, err := f.WriteAt(make([]byte, 16<<20), 0); err != nil {
					b.Fatal(err)
				}
				if err := f.Sync(); err != nil {
					b.Fatal(err)
				}
				files = append(files, f)
			}
			buf := aligned(page)
			var at [16]int64
			run(b, writers, func(w int) error {
				at[w] += page
				return files[w].CommitAt(buf, at[w]%(16<<20))
			})
		})
		b.Run(fmt.Sprintf("log/%d", writers), func(b *testing.B) {
			l := openBench(b)
			data := make([]byte, size)
			run(b, writers, func(int) error {
				e, err := l.Append(&op.Write{ID: 2, Data: data})
				if err != nil {
					return err
				}
				err = l.Barrier(context.Background(), e.Seq)
				if e.Seq%64 == 0 {
					l.SetApplied(e.Seq - 63)
				}
				return err
			})
		})
	}
}

// BenchmarkAppend is the part under the file system's lock.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{100, 20 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			l := openBench(b)
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				e, err := l.Append(&op.Write{ID: 2, Data: data})
				if err != nil {
					b.Fatal(err)
				}
				if e.Seq%64 == 0 {
					b.StopTimer()
					if err := l.Barrier(context.Background(), e.Seq); err != nil {
						b.Fatal(err)
					}
					l.SetApplied(e.Seq)
					if err := l.Trim(e.Seq); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			}
		})
	}
}

// BenchmarkOpen reads a log of 64 MiB of messages of 20 KiB.
func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	l, err := Open(dir, Options{})
	if err != nil {
		b.Fatal(err)
	}
	l.Lead(1, nil)
	e, err := l.Append(&op.EpochBegin{Epoch: 1})
	for data := make([]byte, 20<<10); err == nil && l.Appended.Get() < 3200; {
		e, err = l.Append(&op.Write{ID: 2, Data: data})
	}
	if err == nil {
		err = l.Barrier(context.Background(), e.Seq)
	}
	if err != nil {
		b.Fatal(err)
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(64 << 20)
	for b.Loop() {
		ld, err := load(osFS{}, dir, false, nil)
		if err != nil {
			b.Fatal(err)
		}
		ld.close()
	}
}

func openBench(b *testing.B) *Log {
	b.Helper()
	l, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	l.Lead(1, nil)
	e, err := l.Append(&op.EpochBegin{Epoch: 1})
	if err == nil {
		err = l.Barrier(context.Background(), e.Seq)
	}
	if err != nil {
		b.Fatal(err)
	}
	// The segments of a log that has been in use for a while.
	s, err := l.makeSegment(1000, DefaultSegmentSize)
	if err != nil {
		b.Fatal(err)
	}
	l.mu.Lock()
	s.base, s.last = op.Pos{Seq: l.written}, l.written
	l.segs, l.nextSeg = append(l.segs, s), 1001
	if l.spare != nil {
		l.poolLocked(l.spare)
		l.spare = nil
	}
	for l.spare == nil {
		l.retryLocked()
		room := l.roomLocked()
		l.mu.Unlock()
		<-room
		l.mu.Lock()
	}
	l.mu.Unlock()
	return l
}

// run shares b.N calls of fn among writers.
func run(b *testing.B, writers int, fn func(w int) error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := fn(w); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
}
