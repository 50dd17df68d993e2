package repl

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfs/meta/op"
)

// BenchmarkStream measures one entry's way from Append on the primary to the
// mark that its caller waits for, with both nodes in this process.
func BenchmarkStream(b *testing.B) {
	for _, size := range []int{100, 20000} {
		for _, callers := range []int{1, 8} {
			for _, mark := range []string{"received", "committed"} {
				b.Run(fmt.Sprintf("%s/%d bytes/%d callers", mark, size, callers), func(b *testing.B) { benchStream(b, size, callers, mark) })
			}
		}
	}
}

func benchStream(b *testing.B, size, callers int, mark string) {
	w := newFakeWorld(b)
	patient := func(o *Options) { o.Timeout = 30 * time.Second }
	p, r := w.add("a", patient), w.add("b", patient)
	w.promote(p, PromoteOptions{})
	w.inSync(p, r)
	ctx := context.Background()
	data := make([]byte, size)
	var wg sync.WaitGroup
	each := b.N/callers + 1
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime()
	for range callers {
		wg.Go(func() {
			for range each {
				if err := p.log.Reserve(ctx, size); err != nil {
					b.Error(err)
					return
				}
				e, err := p.log.Append(&op.Write{ID: 2, Data: data})
				if err != nil {
					b.Error(err)
					return
				}
				if mark == "received" {
					err = p.log.WaitReceived(ctx, e.Seq)
				} else {
					err = p.log.Barrier(ctx, e.Seq)
				}
				if err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// cpuTime is what this process, both nodes, has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
