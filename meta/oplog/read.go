package oplog

import (
	"fmt"
	"slices"
	"sort"

	"slotfs/meta/op"
)

// First returns the seq of the first entry that the log still holds; Last + 1
// if it holds none.
func (l *Log) First() uint64 {
	l.mu.Lock()
	defer l.unlock()
	return l.segs[0].first()
}

// Last returns where the log ends.
func (l *Log) Last() op.Pos {
	l.mu.Lock()
	defer l.unlock()
	return l.last
}

// Size returns how many bytes of segments are in use.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.unlock()
	var n int64
	for _, s := range l.segs {
		n += s.end
	}
	return n
}

// Epochs returns the beginnings of epochs that the log still holds.
func (l *Log) Epochs() []EpochStart {
	l.mu.Lock()
	defer l.unlock()
	return slices.Clone(l.epochs)
}

// RecoveredCommitted returns the committed mark that Open found: everything up
// to it had been committed for certain, and perhaps more.
func (l *Log) RecoveredCommitted() uint64 {
	l.mu.Lock()
	defer l.unlock()
	return l.recovered
}

// Err returns why the log stopped; nil if it runs.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.unlock()
	return l.err
}

// NotBefore makes entries appended later have a time after t: for what the log
// itself no longer knows, after Reset.
func (l *Log) NotBefore(t int64) {
	l.mu.Lock()
	defer l.unlock()
	l.lastTime = max(l.lastTime, t)
}

// PosAt returns the point in history at seq, from the one before First on. Seq
// 0 is always known.
func (l *Log) PosAt(seq uint64) (op.Pos, error) {
	if seq == 0 {
		return op.Pos{}, nil
	}
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	l.mu.Lock()
	if seq == l.last.Seq {
		defer l.unlock()
		return l.last, nil
	}
	if r := l.recordLocked(seq); r != nil {
		defer l.unlock()
		return r.e.Pos(), nil
	}
	s, err := l.segmentLocked(seq)
	if s == nil && err == nil && seq+1 == l.segs[0].first() {
		s = l.segs[0]
	}
	if s == nil {
		defer l.unlock()
		if err == nil {
			err = &TrimmedError{seq, l.segs[0].first()}
		}
		return op.Pos{}, err
	}
	c := *s
	l.unlock()
	return c.posAt(seq)
}

// segmentLocked returns the segment that holds the entry seq; nil if it has
// been trimmed.
func (l *Log) segmentLocked(seq uint64) (*segment, error) {
	if seq > l.written {
		return nil, fmt.Errorf("seq %d: log ends at %d", seq, l.last.Seq)
	}
	i := sort.Search(len(l.segs), func(i int) bool { return l.segs[i].last >= seq })
	if i == len(l.segs) || l.segs[i].first() > seq {
		return nil, nil
	}
	return l.segs[i], nil
}

// Read returns entries from seq from on: as many as fit into maxBytes, at
// least one, unless the log ends there. They may not be durable yet.
func (l *Log) Read(from uint64, maxBytes int) ([]*op.Entry, error) {
	if es, ok, err := l.readMemory(from, maxBytes); ok || err != nil {
		return es, err
	}
	l.segMu.RLock()
	defer l.segMu.RUnlock()
	l.mu.Lock()
	s, err := l.segmentLocked(from)
	if s == nil {
		defer l.unlock()
		if err == nil {
			err = &TrimmedError{from, l.segs[0].first()}
		}
		return nil, err
	}
	c := *s
	off := c.placeOf(from)
	if l.cursor.num == c.num && l.cursor.first == from {
		off = l.cursor.off
	}
	l.unlock()
	var es []*op.Entry
	n, at := 0, off
	err = c.walk(off, from, c.last, func(e *op.Entry, off int64) bool {
		if len(es) > 0 && n+len(e.Raw) > maxBytes {
			return false
		}
		es, n, at = append(es, e), n+len(e.Raw), off
		return true
	})
	if len(es) == 0 {
		return nil, err
	}
	// A streamer goes on where it stopped, in this batch or the next.
	l.mu.Lock()
	l.cursor = cursor{c.num, place{es[len(es)-1].Seq + 1, at}}
	l.unlock()
	return es, nil
}

// cursor remembers where the last Read ended.
type cursor struct {
	num uint64 // of the segment
	place
}

// readMemory is Read of what is in memory.
func (l *Log) readMemory(from uint64, maxBytes int) (es []*op.Entry, ok bool, err error) {
	l.mu.Lock()
	defer l.unlock()
	switch {
	case from == l.last.Seq+1:
		return nil, true, nil
	case from > l.last.Seq:
		return nil, false, fmt.Errorf("read seq %d: log ends at %d", from, l.last.Seq)
	case l.recordLocked(from) == nil:
		return nil, false, nil
	}
	n := 0
	for _, r := range l.recs[from-l.recs[0].e.Seq:] {
		if len(es) > 0 && n+len(r.e.Raw) > maxBytes {
			break
		}
		es, n = append(es, r.e), n+len(r.e.Raw)
	}
	return es, true, nil
}
