package repl

import "sync"

// queue holds events for the loop without a bound: whoever posts must never
// wait for the loop, which may be waiting for him.
type queue struct {
	mu   sync.Mutex
	list []event
	wake chan struct{} // cap 1
}

func (q *queue) put(e event) {
	q.mu.Lock()
	q.list = append(q.list, e)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) take() []event {
	q.mu.Lock()
	defer q.mu.Unlock()
	l := q.list
	q.list = nil
	return l
}

// notifier closes a channel at every change.
type notifier struct {
	mu sync.Mutex
	c  chan struct{}
}

func (n *notifier) changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.c == nil {
		n.c = make(chan struct{})
	}
	return n.c
}

func (n *notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.c != nil {
		close(n.c)
		n.c = nil
	}
}
