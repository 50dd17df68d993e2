package oplog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"slotfs/meta/op"
)

// Lead makes this log the primary's. From now on Append works, and an entry is
// committed when it is durable here and on all peers, which are the other
// members of the in-sync set.
//
// The caller then appends the EpochBegin of epoch. Lead may be called again
// while leading, when the set changes: until that EpochBegin is durable here,
// both the old and the new peers count; so nothing is ever acknowledged under
// a rule that this log does not know.
func (l *Log) Lead(epoch uint64, peers []op.SlotID) {
	l.mu.Lock()
	defer l.unlock()
	peers = slices.Clone(peers)
	switch {
	case !l.leading:
		l.acks = make(map[op.SlotID]ack)
		l.peers, l.next, l.nextAt, l.begin = peers, nil, 0, 0
		l.Received.set(l.Committed.Get(), nil) // what peers have is not known yet
	case epoch <= l.last.Epoch && l.last.Epoch == l.writtenEpoch:
		l.peers, l.next, l.nextAt, l.begin = peers, nil, 0, 0
	default:
		// A change that was under way goes on counting, too.
		l.peers = union(l.peers, l.next)
		l.next, l.nextAt, l.begin = peers, epoch, 0
		if n := len(l.epochs); n > 0 && epoch <= l.last.Epoch {
			l.begin = l.epochs[n-1].Seq // appended already, but not durable
		}
	}
	l.leading = true
	l.leads.Store(true)
	l.advanceLocked()
	l.wakeLocked()
}

func union(a, b []op.SlotID) []op.SlotID {
	u := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(u, s) {
			u = append(u, s)
		}
	}
	return u
}

// Follow makes this log a replica's. Every Barrier and WaitReceived fails with
// ErrNotLeading from now on, and so does every wait for Received or Committed
// that is under way.
func (l *Log) Follow() {
	l.mu.Lock()
	defer l.unlock()
	l.leads.Store(false)
	l.leading = false
	l.peers, l.next, l.nextAt, l.begin, l.acks = nil, nil, 0, 0, nil
	l.told = l.Committed.Get()
	l.Received.reject(ErrNotLeading)
	l.Committed.reject(ErrNotLeading)
	l.wakeLocked()
}

// Leading reports whether the log leads.
func (l *Log) Leading() bool { return l.leads.Load() }

// Ack records what peer has: everything up to received in memory, everything
// up to durable on stable storage.
func (l *Log) Ack(peer op.SlotID, received, durable uint64) {
	l.mu.Lock()
	defer l.unlock()
	if !l.leading {
		return
	}
	l.acks[peer] = ack{received, durable}
	l.advanceLocked()
}

// Commit tells a following log what the primary has committed. The committed
// mark does not pass what is durable here: tree and index must not get ahead
// of the log. Of what this log does not have yet nothing is remembered: the
// entry that it gets in that place may be another primary's.
func (l *Log) Commit(seq uint64) {
	l.mu.Lock()
	defer l.unlock()
	if l.leading {
		return
	}
	l.told = max(l.told, min(seq, l.last.Seq))
	l.advanceLocked()
}

// advanceLocked recomputes the marks that depend on peers.
func (l *Log) advanceLocked() {
	if l.err != nil {
		return
	}
	if !l.leading {
		l.Committed.advance(min(l.told, l.written))
		return
	}
	if l.begin != 0 && l.written >= l.begin {
		l.peers, l.next, l.nextAt, l.begin = l.next, nil, 0, 0
	}
	received, committed := l.last.Seq, l.written
	for _, set := range [2][]op.SlotID{l.peers, l.next} {
		for _, p := range set {
			a := l.acks[p]
			received, committed = min(received, a.received), min(committed, a.durable)
		}
	}
	if l.Committed.advance(committed) {
		l.stirred = true
	}
	if l.Received.advance(max(received, committed)) {
		l.wakeLocked()
	}
}

// SetApplied records that tree and index hold everything up to seq.
func (l *Log) SetApplied(seq uint64) {
	l.mu.Lock()
	defer l.unlock()
	at := l.Applied.Get() + 1
	if len(l.recs) > 0 {
		at = max(at, l.recs[0].e.Seq)
	}
	for ; at <= seq; at++ {
		r := l.recordLocked(at)
		if r == nil {
			break
		}
		l.unapplied -= int64(len(r.e.Raw))
	}
	l.Applied.advance(seq)
	l.evictLocked()
	l.wakeLocked()
}

// Reserve returns when there is room to append an operation with n bytes of
// content. Call it before Append, without locks. It waits while too much is
// unapplied, or not yet received by the peers. With n 0 the disks are not asked:
// what adds nothing (to remove a file, above all) must work on a full one.
func (l *Log) Reserve(ctx context.Context, n int) error {
	if l.o.Reserve != nil && n > 0 {
		if err := l.o.Reserve(int64(n)); err != nil {
			return err
		}
	}
	for {
		l.mu.Lock()
		wait, err := l.admitLocked(int64(n))
		var room <-chan struct{}
		if wait {
			room = l.roomLocked()
		}
		l.unlock()
		if !wait {
			return err
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TryReserve is Reserve that does not block: wait says that Reserve would.
func (l *Log) TryReserve(n int) (wait bool, err error) {
	if l.o.Reserve != nil && n > 0 {
		if err := l.o.Reserve(int64(n)); err != nil {
			return false, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.admitLocked(int64(n))
}

// admitLocked decides about one Reserve.
func (l *Log) admitLocked(n int64) (wait bool, err error) {
	switch received := l.Received.Get(); {
	case l.err != nil:
		return false, l.err
	case !l.leading:
		return false, ErrNotLeading
	case l.unapplied > l.o.MaxUncommitted:
		return true, nil
	case l.last.Seq > received+maxUnreceived:
		return true, nil
	case l.last.Seq > received:
		if r := l.recordLocked(received + 1); r != nil && l.now()-r.at > maxUnreceivedAge {
			return true, nil
		}
	}
	s := l.active()
	free := s.size - s.end
	if l.spare != nil {
		free += l.spare.size - page
	}
	// What is not written yet goes first, a batch may leave up to its own
	// length unused at the end of a segment, and others reserve meanwhile.
	need := l.pending + n + batchBytes
	switch {
	case free >= need:
		return false, nil
	case l.spare == nil:
		if !l.retryLocked() {
			return false, l.prepErr
		}
		return true, nil
	case l.pending > 0:
		if l.wantLocked(l.last.Seq) {
			signal(l.kick)
		}
		return true, nil
	}
	return false, nil
}

// Append puts o into the log, in memory, and returns its entry. It never
// blocks and does no I/O. An EpochBegin begins its epoch. It tells no Waiter by
// itself: the caller may hold locks.
func (l *Log) Append(o op.Op) (*op.Entry, error) {
	d, err := op.NewDraft(o)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.unlockQuietly()
	if l.err != nil {
		return nil, l.err
	}
	if l.closing {
		return nil, ErrClosed
	}
	if !l.leading {
		return nil, ErrNotLeading
	}
	epoch := l.last.Epoch
	begin, isBegin := d.Op().(*op.EpochBegin)
	if isBegin {
		epoch = begin.Epoch
	}
	if err := l.checkEpochLocked(l.last, epoch, isBegin); err != nil {
		return nil, err
	}
	if epoch <= l.sealed {
		return nil, fmt.Errorf("%w: %d", ErrSealed, epoch)
	}
	e := d.Entry(l.last, epoch, max(time.Now().UnixNano(), l.lastTime+1))
	l.addLocked(e)
	if isBegin {
		if l.nextAt == epoch {
			l.begin = e.Seq
		}
		l.wantLocked(e.Seq)
		signal(l.kick)
	}
	l.advanceLocked()
	return e, nil
}

// checkEpochLocked checks the epoch of an entry right after prev.
func (l *Log) checkEpochLocked(prev op.Pos, epoch uint64, begins bool) error {
	if begins && epoch <= prev.Epoch || !begins && (epoch != prev.Epoch || prev.Epoch == 0) {
		return fmt.Errorf("%w: %d after %d", ErrEpoch, epoch, prev.Epoch)
	}
	return nil
}

// addLocked puts an entry that fits into the log.
func (l *Log) addLocked(e *op.Entry) {
	l.recs = append(l.recs, record{e, l.now()})
	n := int64(len(e.Raw))
	l.recBytes += n + entryOverhead
	l.unapplied += n
	l.pending += n
	l.last, l.lastTime = e.Pos(), max(l.lastTime, e.Time)
	if b, ok := e.Op.(*op.EpochBegin); ok {
		l.epochs = append(l.epochs, EpochStart{e.Pos(), b})
	}
	l.Appended.advance(e.Seq)
	l.stirred = true
	switch {
	case l.pending >= batchBytes:
		// A full batch: waiting any longer would gather nothing more.
		if l.wantLocked(e.Seq) {
			signal(l.kick)
		}
	case !l.timerArmed:
		l.timerArmed = true
		l.timer.Reset(l.o.FlushDelay)
	}
}

// delayed runs FlushDelay after the first entry since it ran last.
func (l *Log) delayed() {
	l.mu.Lock()
	l.timerArmed = false
	more := false
	if n := int(l.last.Seq - l.written); n > 0 && l.err == nil {
		// Others may have flushed what the timer was set for.
		if left := l.o.FlushDelay - (l.now() - l.recs[len(l.recs)-n].at); left > 0 {
			l.timerArmed = true
			l.timer.Reset(left)
		} else {
			more = l.wantLocked(l.last.Seq)
		}
	}
	l.unlock()
	if more {
		signal(l.kick)
	}
}

// AppendEntries puts a primary's entries into a following log: all or none of
// them. They must continue it exactly, or the error is a *ForkError. Entries
// of sealed epochs are refused; see AppendFrom.
func (l *Log) AppendEntries(es []*op.Entry) error {
	l.mu.Lock()
	defer l.unlock()
	for _, e := range es {
		if e.Epoch <= l.sealed {
			return fmt.Errorf("%w: %d", ErrSealed, e.Epoch)
		}
	}
	return l.acceptLocked(es)
}

// AppendFrom is AppendEntries for what a primary of the given epoch streams.
// The seal applies to that epoch, not to the entries': a slot that had sealed
// epoch 5 while it tried to get promoted may well get the rest of epoch 5 as
// history from the primary of epoch 6, and from nobody else.
func (l *Log) AppendFrom(epoch uint64, es []*op.Entry) error {
	l.mu.Lock()
	defer l.unlock()
	if epoch <= l.sealed {
		return fmt.Errorf("%w: %d", ErrSealed, epoch)
	}
	for _, e := range es {
		if e.Epoch > epoch {
			return fmt.Errorf("%w: entry of %d from the primary of %d", ErrEpoch, e.Epoch, epoch)
		}
	}
	return l.acceptLocked(es)
}

func (l *Log) acceptLocked(es []*op.Entry) error {
	if l.err != nil {
		return l.err
	}
	if l.closing {
		return ErrClosed
	}
	if l.leading {
		return errors.New("append entries: the log leads")
	}
	pos := l.last
	for _, e := range es {
		if e.Seq != pos.Seq+1 || e.Before != pos.Chain {
			return &ForkError{Have: pos, Got: op.Pos{Epoch: e.Epoch, Seq: e.Seq - 1, Chain: e.Before}}
		}
		begin, isBegin := e.Op.(*op.EpochBegin)
		if err := l.checkEpochLocked(pos, e.Epoch, isBegin); err != nil {
			return err
		}
		if isBegin && begin.Epoch != e.Epoch {
			return fmt.Errorf("%w: begin of %d in %d", ErrEpoch, begin.Epoch, e.Epoch)
		}
		pos = e.Pos()
	}
	for _, e := range es {
		l.addLocked(e)
	}
	return nil
}

// recordLocked returns the record of seq, nil if it is not in memory.
func (l *Log) recordLocked(seq uint64) *record {
	if len(l.recs) == 0 || seq < l.recs[0].e.Seq || seq > l.last.Seq {
		return nil
	}
	return &l.recs[seq-l.recs[0].e.Seq]
}

// evictLocked forgets old entries that are durable and applied, down to
// cacheBytes.
func (l *Log) evictLocked() {
	n, done := 0, min(l.written, l.Applied.Get())
	for n < len(l.recs) && l.recBytes > cacheBytes && l.recs[n].e.Seq <= done {
		l.recBytes -= int64(len(l.recs[n].e.Raw)) + entryOverhead
		l.recs[n] = record{}
		n++
	}
	l.recs = l.recs[n:]
}
