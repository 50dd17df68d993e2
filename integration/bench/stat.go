package main

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// sample is one phase of one round on one target.
type sample struct {
	ops   int
	errs  int
	first string // the first error
	wall  time.Duration
	lat   []time.Duration // of each operation, where it is timed alone
	cost                  // of the target's processes, from the start of the phase until they were quiet
	drain time.Duration   // how long they went on working after the phase
}

// cost is what processes have used.
type cost struct {
	cpu      time.Duration
	nodes    []time.Duration // the part of it that is slotfs's, by node, the primary first
	switches int64           // changes of threads, of all nodes
}

func (c cost) since(b cost) cost {
	c.cpu -= b.cpu
	c.switches -= b.switches
	for i := range c.nodes {
		c.nodes[i] -= b.nodes[i]
	}
	return c
}

func (s *sample) rate() float64 {
	if s.wall <= 0 {
		return 0
	}
	return float64(s.ops) / s.wall.Seconds()
}

// fail notes an error.
func (s *sample) fail(err error) {
	s.errs++
	if s.first == "" {
		s.first = err.Error()
	}
}

// add puts a further pass of the same phase into s.
func (s *sample) add(r *sample) {
	s.ops += r.ops
	s.errs += r.errs
	s.wall += r.wall
	s.lat = append(s.lat, r.lat...)
	if s.first == "" {
		s.first = r.first
	}
}

// timer times operations for one worker.
type timer struct{ s sample }

// do times f as one operation.
func (t *timer) do(f func() error) bool {
	start := time.Now()
	if err := f(); err != nil {
		t.s.fail(err)
		return false
	}
	t.s.ops++
	t.s.lat = append(t.s.lat, time.Since(start))
	return true
}

// parallel runs fn on the numbers 0..n-1 with at most workers goroutines. An
// error that fn returns counts like that of an operation.
func parallel(workers, n int, fn func(worker, i int, t *timer) error) *sample {
	all := &sample{}
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for w := range min(workers, n) {
		wg.Go(func() {
			var t timer
			for {
				i := int(next.Add(1)) - 1
				if i >= n || t.s.errs > 20 {
					break
				}
				if err := fn(w, i, &t); err != nil {
					t.s.fail(err)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all.add(&t.s)
		})
	}
	wg.Wait()
	all.wall = time.Since(start)
	return all
}

// passes repeats a pass until it has lasted long enough to be measured.
func passes(atLeast time.Duration, pass func(k int) *sample) *sample {
	all := &sample{}
	for k := 0; ; k++ {
		all.add(pass(k))
		if all.wall >= atLeast || all.errs > 0 {
			return all
		}
	}
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	v := slices.Clone(values)
	slices.Sort(v)
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m]
	}
	return (v[m-1] + v[m]) / 2
}

// quantile of latencies, in milliseconds.
func quantile(lat []time.Duration, q float64) float64 {
	if len(lat) == 0 {
		return 0
	}
	v := slices.Clone(lat)
	slices.Sort(v)
	return float64(v[int(q*float64(len(v)-1))].Microseconds()) / 1e3
}
