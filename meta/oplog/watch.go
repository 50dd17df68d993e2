package oplog

import "sync/atomic"

// Watcher is who streams the log to a peer. After every change of Appended,
// Wanted, Awaited and Committed it is decided here whether that concerns it,
// which costs less than a change of goroutines to find that it does not.
type Watcher struct {
	// C gets a signal when the watcher should look at the marks.
	C chan struct{}

	log  *Log
	many uint64 // so many entries are too many to wait with

	// What the watcher has done.
	next, wanted, awaited atomic.Uint64
	idle                  atomic.Bool
}

// Watch makes a Watcher, to be ended with Unwatch. It gets a signal at once when
// there are many entries that it has not sent.
func (l *Log) Watch(many uint64) *Watcher {
	w := &Watcher{C: make(chan struct{}, 1), log: l, many: many}
	w.idle.Store(true)
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	l.watchers[w] = struct{}{}
	l.watched.Store(true)
	return w
}

// Unwatch ends w.
func (l *Log) Unwatch(w *Watcher) {
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	delete(l.watchers, w)
	l.watched.Store(len(l.watchers) > 0)
}

// Done says what the watcher has done: sent the entries before next, and passed
// on wanted and awaited. If it is idle any change concerns it; otherwise it looks
// again by itself before long, and only what cannot wait does. Look at the marks
// after that, before waiting for C.
func (w *Watcher) Done(next, wanted, awaited uint64, idle bool) {
	w.next.Store(next)
	w.wanted.Store(wanted)
	w.awaited.Store(awaited)
	w.idle.Store(idle)
}

// notice gives a signal to those whom a change concerns.
func (l *Log) notice() {
	if !l.watched.Load() {
		return
	}
	l.watchMu.Lock()
	defer l.watchMu.Unlock()
	for w := range l.watchers {
		if w.idle.Load() || l.stopped.Load() || l.Wanted.Get() > w.wanted.Load() || l.Awaited.Get() > w.awaited.Load() ||
			l.Appended.Get()+1 >= w.next.Load()+w.many {
			signal(w.C)
		}
	}
}
