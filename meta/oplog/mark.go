package oplog

import (
	"context"
	"sync"
	"sync/atomic"
)

// Mark is a seq that normally only grows, and that can be waited for.
type Mark struct {
	v atomic.Uint64

	mu      sync.Mutex
	err     error
	waiters []*waiter     // ascending by seq
	over    []ended       // waits with a Waiter that have ended and who is not told yet
	some    atomic.Bool   // there are some in over
	changed chan struct{} // nil: nobody asked
	hurry   chan struct{} // cap 1: somebody waits; nil: of no interest
}

type waiter struct {
	seq  uint64
	c    chan error // cap 1
	then Waiter     // is told instead, unless nil
}

// Waiter waits for a Mark without a goroutine. Waited is called once, by whoever
// moves the mark, without any lock of the log: it must not block, and not
// append.
type Waiter interface {
	Waited(err error)
}

type ended struct {
	w   Waiter
	err error
}

var waiterPool = sync.Pool{New: func() any { return &waiter{c: make(chan error, 1)} }}

// Get returns the mark.
func (m *Mark) Get() uint64 { return m.v.Load() }

// Wait returns nil once the mark is at v or past it, and an error if ctx ends
// first, the log stops (ErrFaulted, ErrClosed), or v leaves the log (ErrCut).
// A Wait for Received or Committed that is under way when the log ceases to
// lead ends with ErrNotLeading.
func (m *Mark) Wait(ctx context.Context, v uint64) error {
	if m.v.Load() >= v {
		return nil
	}
	return m.wait(ctx, m.enlist(v, nil))
}

// enlist returns a waiter for v. If there is nothing to wait for, its answer
// is there already.
func (m *Mark) enlist(v uint64, then Waiter) *waiter {
	w := waiterPool.Get().(*waiter)
	w.seq, w.then = v, then
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.v.Load() >= v:
		m.endLocked(w, nil)
	case m.err != nil:
		m.endLocked(w, m.err)
	default:
		// Waiters come nearly in order, so that this is an append.
		i := len(m.waiters)
		m.waiters = append(m.waiters, w)
		for ; i > 0 && m.waiters[i-1].seq > v; i-- {
			m.waiters[i] = m.waiters[i-1]
		}
		m.waiters[i] = w
		if m.hurry != nil {
			signal(m.hurry)
		}
	}
	return w
}

func (m *Mark) wait(ctx context.Context, w *waiter) error {
	var err error
	select {
	case err = <-w.c:
	case <-ctx.Done():
		if m.delist(w) {
			err = ctx.Err()
		} else {
			err = <-w.c
		}
	}
	waiterPool.Put(w)
	return err
}

// delist takes w off the list; false: its answer has been given.
func (m *Mark) delist(w *waiter) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, x := range m.waiters {
		if x == w {
			m.waiters = append(m.waiters[:i], m.waiters[i+1:]...)
			return true
		}
	}
	return false
}

// Changed returns a channel that closes at the next change of the mark, or
// when the log stops. Get the channel first, then the mark.
func (m *Mark) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.changed == nil {
		m.changed = make(chan struct{})
		if m.err != nil {
			close(m.changed)
		}
	}
	return m.changed
}

// Err returns why the mark will not advance any more; nil if it may.
func (m *Mark) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// advance moves the mark up to v, never down.
func (m *Mark) advance(v uint64) bool {
	if m.v.Load() >= v {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil || m.v.Load() >= v {
		return false
	}
	m.v.Store(v)
	n := 0
	for n < len(m.waiters) && m.waiters[n].seq <= v {
		m.endLocked(m.waiters[n], nil)
		n++
	}
	m.dropLocked(n)
	m.notifyLocked()
	return true
}

// endLocked ends w's wait.
func (m *Mark) endLocked(w *waiter, err error) {
	if w.then == nil {
		w.c <- err
		return
	}
	m.over = append(m.over, ended{w.then, err})
	m.some.Store(true)
	w.then = nil
	waiterPool.Put(w)
}

// tell tells those Waiters whose waits are over. No lock may be held that one of
// them could need.
func (m *Mark) tell() {
	if !m.some.Load() {
		return
	}
	m.mu.Lock()
	over := m.over
	m.over = nil
	m.some.Store(false)
	m.mu.Unlock()
	for _, e := range over {
		e.w.Waited(e.err)
	}
}

// dropLocked takes the first n waiters, who have their answers, off the list.
func (m *Mark) dropLocked(n int) {
	k := copy(m.waiters, m.waiters[n:])
	clear(m.waiters[k:])
	m.waiters = m.waiters[:k]
}

func (m *Mark) notifyLocked() {
	if m.changed != nil && m.err == nil {
		close(m.changed)
		m.changed = nil
	}
}

// set moves the mark to v, down too. Whoever waits for more than v gets err,
// unless err is nil.
func (m *Mark) set(v uint64, err error) {
	m.advance(v)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil && m.v.Load() != v {
		m.v.Store(v)
		m.notifyLocked()
	}
	if err != nil {
		m.rejectLocked(err)
	}
}

// reject ends every wait with err; later ones are not affected.
func (m *Mark) reject(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rejectLocked(err)
}

func (m *Mark) rejectLocked(err error) {
	for _, w := range m.waiters {
		m.endLocked(w, err)
	}
	m.dropLocked(len(m.waiters))
}

// fail ends every wait with err, now and from now on.
func (m *Mark) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return
	}
	m.rejectLocked(err)
	m.notifyLocked()
	m.err = err
	if m.changed != nil {
		close(m.changed)
	}
}
