package oplog

import (
	"context"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"slotfs/meta/op"
)

// Flush makes the log durable up to upTo soon, without waiting for FlushDelay.
// It never blocks.
func (l *Log) Flush(upTo uint64) {
	l.mu.Lock()
	more := l.wantLocked(upTo)
	l.unlock()
	if more {
		signal(l.kick)
	}
}

// wantLocked asks for durability up to upTo; false if that is there already.
func (l *Log) wantLocked(upTo uint64) bool {
	l.wanted = max(l.wanted, min(upTo, l.last.Seq))
	if l.Wanted.advance(l.wanted) {
		l.stirred = true
	}
	return l.wanted > l.written && l.err == nil
}

// Barrier returns once everything up to seq, which the caller has appended, is
// committed. It fails with ErrNotLeading if that can no longer be known,
// because the log has ceased to lead.
func (l *Log) Barrier(ctx context.Context, seq uint64) error {
	w, err := l.enlist(l.Committed, seq, nil)
	if w == nil {
		return err
	}
	l.mu.Lock()
	more := l.wantLocked(seq)
	l.unlock()
	if more {
		// Flushing here, when nobody else is at it, spares two changes of
		// goroutine. Otherwise this barrier shares the next flush.
		select {
		case l.token <- struct{}{}:
			l.flushBatch(false)
			l.release()
		default:
		}
	}
	return l.Committed.wait(ctx, w)
}

// WaitReceived returns once every peer of the in-sync set has everything up to
// seq, which the caller has appended, in memory. ErrNotLeading as Barrier.
func (l *Log) WaitReceived(ctx context.Context, seq uint64) error {
	w, err := l.enlist(l.Received, seq, nil)
	if w == nil {
		return err
	}
	l.await(seq)
	return l.Received.wait(ctx, w)
}

// AfterBarrier is Barrier for who does not wait: w is told when it would have
// returned, maybe before AfterBarrier returns.
func (l *Log) AfterBarrier(seq uint64, w Waiter) {
	x, err := l.enlist(l.Committed, seq, w)
	if x == nil {
		w.Waited(err)
		return
	}
	l.Flush(seq)
}

// AfterReceived is WaitReceived for who does not wait, like AfterBarrier.
func (l *Log) AfterReceived(seq uint64, w Waiter) {
	x, err := l.enlist(l.Received, seq, w)
	if x == nil {
		w.Waited(err)
		return
	}
	l.await(seq)
}

// await notes that somebody waits for the receipt of seq.
func (l *Log) await(seq uint64) {
	if l.Awaited.advance(seq) {
		l.notice()
	}
}

// OnFlush has f called after each flush, by whoever flushed; nil ends that. Of
// what is durable a follower tells his primary without a change of goroutines.
func (l *Log) OnFlush(f func()) {
	if f == nil {
		l.flushed.Store(nil)
		return
	}
	l.flushed.Store(&f)
}

// enlist makes a waiter on m that Follow is certain to end; nil if there is
// no need to wait.
func (l *Log) enlist(m *Mark, seq uint64, then Waiter) (*waiter, error) {
	// The order of these two reads matters: a mark that has passed seq on
	// another branch has done so after leads became false.
	if m.Get() >= seq && l.leads.Load() {
		return nil, nil
	}
	l.mu.Lock()
	defer l.unlock()
	if l.err != nil {
		return nil, l.err
	}
	if !l.leading {
		return nil, ErrNotLeading
	}
	return m.enlist(seq, then), nil
}

// release gives the token back, and sees to what was wanted meanwhile.
func (l *Log) release() {
	<-l.token
	l.mu.Lock()
	more := l.wantLocked(0)
	l.unlock()
	if more {
		signal(l.kick)
	}
}

// flushLoop writes what Barriers don't write by themselves.
func (l *Log) flushLoop() {
	defer l.wg.Done()
	for {
		select {
		case <-l.closed:
			return
		case <-l.kick:
		}
		// Whoever streams the entries, or takes in more of them, goes first: the
		// flush blocks a thread, with one processor all of them for a while.
		runtime.Gosched()
		l.token <- struct{}{}
		for !l.flushBatch(true) {
		}
		l.release()
	}
}

// flushBatch writes the next batch, if one is wanted, and reports whether
// nothing more is. If mayWait is false it gives up, returning false, when the
// batch needs another segment. Needs the token.
func (l *Log) flushBatch(mayWait bool) (done bool) {
	l.mu.Lock()
	if l.err != nil || l.wanted <= l.written {
		l.unlock()
		return true
	}
	h, batch := l.takeLocked()
	fits := l.active().end+h.extent() <= l.active().size
	l.unlock()
	if !fits {
		if !mayWait {
			return false
		}
		if !l.rotate(h.extent()) {
			return true
		}
	}
	err := l.write(&h, batch)
	done = l.wrote(&h, batch, err)
	if f := l.flushed.Load(); f != nil {
		(*f)()
	}
	return done
}

// wrote takes note of a batch that was written, or was not.
func (l *Log) wrote(h *batchHeader, batch []*op.Entry, err error) (done bool) {
	l.mu.Lock()
	defer l.unlock()
	if err != nil {
		l.faultLocked(err)
		return true
	}
	l.noteLocked(h)
	for _, e := range batch {
		l.pending -= int64(len(e.Raw))
	}
	l.evictLocked()
	l.advanceLocked()
	l.wakeLocked()
	return l.wanted <= l.written
}

// takeLocked makes up the next batch from what is not yet written.
func (l *Log) takeLocked() (h batchHeader, batch []*op.Entry) {
	i := len(l.recs) - int(l.last.Seq-l.written)
	for _, r := range l.recs[i:] {
		if len(batch) > 0 && int(h.bytes)+len(r.e.Raw) > batchBytes {
			break
		}
		batch = append(batch, r.e)
		h.bytes += uint32(len(r.e.Raw))
	}
	e := batch[0]
	h.first, h.count = e.Seq, uint32(len(batch))
	h.base = op.Pos{Epoch: l.writtenEpoch, Seq: e.Seq - 1, Chain: e.Before}
	h.chain = batch[len(batch)-1].After
	h.time = l.writtenTime
	h.durable, h.committed = l.Durable.Get(), l.Committed.Get()
	return h, batch
}

// write puts the batch at the end of the active segment, durably.
func (l *Log) write(h *batchHeader, batch []*op.Entry) error {
	s := l.activeOf()
	l.buf = assemble(l.buf, h, batch, s)
	if err := s.f.CommitAt(l.buf, s.end); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if cap(l.buf) > 2*batchBytes {
		l.buf = nil // an exceptionally long entry
	}
	return nil
}

// assemble encodes a batch for the end of s.
func assemble(buf []byte, h *batchHeader, batch []*op.Entry, s *segment) []byte {
	n := int(h.extent())
	if cap(buf) < n {
		buf = aligned(n)
	}
	buf = buf[:n]
	h.encode(buf, s.id, s.end)
	at := batchHeaderSize
	for _, e := range batch {
		at += copy(buf[at:], e.Raw)
	}
	clear(buf[at:])
	return buf
}

// aligned makes n bytes that begin at a multiple of page.
func aligned(n int) []byte {
	b := make([]byte, n+page)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (page - 1)
	return b[skip:][:n:n]
}

// activeOf is active for the holder of the token, who alone changes it.
func (l *Log) activeOf() *segment {
	l.mu.Lock()
	defer l.unlock()
	return l.active()
}

// noteLocked records that a batch is durable at the end of the active segment.
func (l *Log) noteLocked(h *batchHeader) {
	s := l.active()
	s.note(h, s.end)
	l.written = h.last()
	l.writtenEpoch, l.writtenTime = h.base.Epoch, h.time
	if h.count > 0 {
		if r := l.recordLocked(l.written); r != nil {
			l.writtenEpoch, l.writtenTime = r.e.Epoch, r.e.Time
		}
	}
	l.Durable.advance(l.written)
}

// rotate makes the spare segment the active one, waiting for it if there is
// none, and for space on the disk if there is none; false if the log stopped.
// Needs the token.
func (l *Log) rotate(extent int64) bool {
	retry := time.NewTicker(prepareRetry)
	defer retry.Stop()
	for {
		l.mu.Lock()
		if l.err != nil {
			l.unlock()
			return false
		}
		if s := l.spare; s != nil && s.size < page+extent {
			// Too small for an exceptionally long entry: skip it.
			l.spare = nil
			s.f.Close()
			l.remove(s.path)
		}
		if s := l.spare; s != nil {
			s.base = op.Pos{Seq: l.written}
			s.last = l.written
			l.segs = append(l.segs, s)
			l.spare, l.needed = nil, 0
			l.unlock()
			signal(l.prep)
			return true
		}
		if l.closing && l.prepErr != nil {
			l.unlock()
			return false
		}
		l.needed = page + extent
		l.retryLocked()
		room := l.roomLocked()
		l.unlock()
		select {
		case <-room:
		case <-retry.C:
		}
	}
}
