package repl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

const (
	// gather is how long entries that nobody waits for may be held back so that
	// several share a frame, a record and a wake-up on both nodes.
	gather = 5 * time.Millisecond
	// gatherEntries is how many entries are enough to send them without waiting.
	gatherEntries = 64
	// markDelay is how long the committed mark waits for entries to travel with.
	markDelay = 20 * time.Millisecond
)

// sender streams this log's entries to one replica. Two goroutines: run writes,
// hear reads the acknowledgements.
type sender struct {
	r     *Member
	l     *link
	slot  op.SlotID
	conn  uint64
	node  string
	local bool
	next  uint64 // of run alone: the first entry not yet sent

	ackMu    sync.Mutex // so that the log hears acknowledgements in order
	received atomic.Uint64
	durable  atomic.Uint64
	applied  atomic.Uint64
	heard    atomic.Int64 // Member.clock

	toPrepare chan uint64 // cap 1: the epoch to be prepared

	mu  sync.Mutex
	why string // of the end
}

// serveStream answers a replica that asks for the entries after its own, and
// streams until the connection or the leading ends.
func (r *Member) serveStream(ctx context.Context, l *link, h hello) {
	s := &sender{r: r, l: l, slot: h.Slot, node: h.Node, local: h.Local, toPrepare: make(chan uint64, 1)}
	s.heard.Store(int64(r.clock()))
	w, err := r.admit(s, h)
	if err != nil {
		r.turnAway(l, h, err)
		return
	}
	defer l.closeOn(ctx)()
	defer r.dismiss(s)
	l.deadline(0)
	if err := l.sendJSON(frameWelcome, w); err != nil {
		s.end(err.Error())
		return
	}
	r.post(evJoin{slot: s.slot, conn: s.conn, node: s.node, local: s.local, at: w.Common.Seq})
	var wg sync.WaitGroup
	wg.Go(func() { s.end(text(s.hear())) })
	s.end(text(s.run()))
	wg.Wait()
}

func text(err error) string {
	if err == nil {
		return "done"
	}
	return err.Error()
}

// admit finds where the replica's history leaves ours, and registers s.
func (r *Member) admit(s *sender, h hello) (welcome, error) {
	r.refresh()
	r.mu.Lock()
	hist := r.hist
	r.mu.Unlock()
	if !r.leading.Load() {
		return welcome{}, &PeerError{r.Node, CodeNotPrimary, "the slot on " + r.Node + " is not primary"}
	}
	if epoch := r.Log.Last().Epoch; r.Register != nil && h.Sealed >= epoch {
		// It was about to become primary. The machine begins another epoch for it.
		return welcome{}, &PeerError{r.Node, CodeSealed, fmt.Sprintf("the slot on %s has sealed off epoch %d, in which %s is primary: it is let in with the next one", h.Node, epoch, r.Node)}
	}
	if had := r.Log.Committed.Get(); r.Register != nil && hist.last().has(h.Slot) && h.Last.Seq < had {
		r.post(evWentBack{h.Slot, h.Node, h.Last.Seq, had})
		return welcome{}, &PeerError{r.Node, CodeSealed, fmt.Sprintf("the slot on %s ends at seq %d, and had acknowledged up to %d: it is let in when it has left the in-sync set", h.Node, h.Last.Seq, had)}
	}
	if err := r.faulted(); err != nil {
		return welcome{}, &PeerError{r.Node, CodeFailed, fmt.Sprintf("the slot on %s is faulted: %v", r.Node, err)}
	}
	common, err := r.meet(hist, h)
	if err != nil {
		return welcome{}, err
	}
	s.next = common.Seq + 1
	r.mu.Lock()
	old := r.senders[s.slot]
	// stepDown clears leading before it closes the senders: whoever gets in here
	// is closed by it.
	ok := r.leading.Load()
	if ok {
		r.conns++
		s.conn = r.conns
		r.senders[s.slot] = s
	}
	r.mu.Unlock()
	if !ok {
		return welcome{}, &PeerError{r.Node, CodeNotPrimary, "the slot on " + r.Node + " is not primary"}
	}
	if old != nil {
		old.end("the replica connected anew")
	}
	return welcome{
		Protocol: Protocol, Node: r.Node, StoreID: r.storeID(), Slot: r.ID, Common: common,
		Committed: r.Log.Committed.Get(), Last: r.Log.Last(), History: hist, TimeoutMS: r.Timeout.Milliseconds(),
	}, nil
}

// meet finds the last common point of the other's history and ours.
func (r *Member) meet(hist history, h hello) (op.Pos, error) {
	last := r.Log.Last()
	seq, v, why := hist.meet(last, h.History, h.Last, h.Yield)
	switch v {
	case vDiverged:
		return op.Pos{}, &PeerError{r.Node, CodeDiverged, fmt.Sprintf("%s (slots on %s and %s); choose whose branch survives, and run \"slotfs rejoin STORE\" on the other node", why, r.Node, h.Node)}
	case vBehind:
		return op.Pos{}, &PeerError{r.Node, CodeBehind, why}
	case vResync:
		return op.Pos{}, &PeerError{r.Node, CodeResync, why}
	}
	if next := r.damaged.Load(); seq+1 < next {
		return op.Pos{}, &PeerError{r.Node, CodeResync, fmt.Sprintf("the log is damaged before seq %d, the replica needs %d", next, seq+1)}
	}
	if seq+1 < r.Log.First() {
		return op.Pos{}, &PeerError{r.Node, CodeResync, fmt.Sprintf("the log begins at seq %d, the replica needs %d", r.Log.First(), seq+1)}
	}
	pos, err := r.Log.PosAt(seq)
	if err != nil {
		var trimmed *oplog.TrimmedError
		if errors.As(err, &trimmed) || r.noteDamage(err) {
			return op.Pos{}, &PeerError{r.Node, CodeResync, err.Error()}
		}
		return op.Pos{}, &PeerError{r.Node, CodeFailed, err.Error()}
	}
	if seq == h.Last.Seq && pos.Chain != h.Last.Chain {
		return op.Pos{}, &PeerError{r.Node, CodeDiverged, fmt.Sprintf("seq %d of epoch %d differs on %s and %s", seq, pos.Epoch, r.Node, h.Node)}
	}
	return pos, nil
}

// noteDamage remembers up to where the log cannot be read, if that is what err
// says: what comes before can only be had by a resync.
func (r *Member) noteDamage(err error) bool {
	var d *oplog.DamageError
	if !errors.As(err, &d) {
		return false
	}
	if s, ok := r.Slot.(*meta.Slot); ok {
		s.LogDamaged()
	}
	if d.Next > r.damaged.Load() {
		r.damaged.Store(d.Next)
		r.tell(true, fmt.Sprintf("entries %d to %d of the log cannot be read: replicas that need them are resynced: %v", d.From, d.Next-1, d))
	}
	return true
}

// turnAway refuses a connection, with a word to the machine and the log.
func (r *Member) turnAway(l *link, h hello, err error) {
	p := &PeerError{Node: r.Node, Code: CodeFailed, Text: err.Error()}
	errors.As(err, &p)
	if p.Code != CodeNotPrimary && p.Code != CodeResync && p.Code != CodeSealed {
		r.fail(fmt.Errorf("refused %s: %s", h.Node, p.Text))
	}
	l.turnAway(p.Code, p.Text)
}

func (r *Member) dismiss(s *sender) {
	s.l.close()
	r.mu.Lock()
	if r.senders[s.slot] == s {
		delete(r.senders, s.slot)
	}
	if durable := s.durable.Load(); durable > 0 {
		r.keepCopied(s.slot, durable)
	}
	r.mu.Unlock()
	s.mu.Lock()
	why := s.why
	s.mu.Unlock()
	r.post(evLeave{s.slot, s.conn, why})
}

func (r *Member) sender(slot op.SlotID) *sender {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.senders[slot]
}

func (r *Member) allSenders() []*sender {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*sender, 0, len(r.senders))
	for _, s := range r.senders {
		out = append(out, s)
	}
	return out
}

func (r *Member) closeSenders(why string) {
	for _, s := range r.allSenders() {
		s.end(why)
	}
}

// takeAcks is what the replicas have said, for the machine.
func (r *Member) takeAcks() map[op.SlotID]acks {
	all := r.allSenders()
	if len(all) == 0 {
		return nil
	}
	m := make(map[op.SlotID]acks, len(all))
	for _, s := range all {
		m[s.slot] = s.acks()
	}
	return m
}

func (s *sender) acks() acks {
	return acks{s.received.Load(), s.durable.Load(), s.applied.Load(), s.r.start.Add(time.Duration(s.heard.Load()))}
}

// end closes the stream; the first reason counts.
func (s *sender) end(why string) {
	s.mu.Lock()
	if s.why == "" {
		s.why = why
	}
	s.mu.Unlock()
	s.l.close()
}

// prepare asks the replica to note durably that it may join epoch.
func (s *sender) prepare(epoch uint64) {
	select {
	case s.toPrepare <- epoch:
	default: // one is on its way; the machine asks again if it was the wrong one
	}
}

// hear reads what the replica says.
func (s *sender) hear() error {
	for {
		f, err := s.l.next()
		if err != nil {
			return err
		}
		s.heard.Store(int64(s.r.clock()))
		switch f.typ {
		case frameAck:
			if len(f.body) != 24 {
				return fmt.Errorf("%w: acknowledgement of %d bytes", ErrWire, len(f.body))
			}
			s.acked(binary.BigEndian.Uint64(f.body), binary.BigEndian.Uint64(f.body[8:]), binary.BigEndian.Uint64(f.body[16:]))
		case framePrepared:
			if len(f.body) != 8 {
				return fmt.Errorf("%w: prepared of %d bytes", ErrWire, len(f.body))
			}
			s.r.post(evPrepared{slot: s.slot, epoch: binary.BigEndian.Uint64(f.body)})
		case frameRefuse:
			err := s.l.refused(f)
			s.r.fail(fmt.Errorf("replica refuses: %w", err))
			return err
		default:
			return fmt.Errorf("%w: type %d from a replica", ErrWire, f.typ)
		}
	}
}

// acked takes an acknowledgement in. One that claims more than was sent is of a
// peer that is out of its mind.
func (s *sender) acked(received, durable, applied uint64) {
	if last := s.r.Log.Appended.Get(); received > last || durable > received {
		s.r.fail(fmt.Errorf("replica on %s acknowledged seq %d/%d, the log ends at %d", s.node, received, durable, last))
		s.end("impossible acknowledgement")
		return
	}
	s.ackMu.Lock()
	defer s.ackMu.Unlock()
	s.received.Store(received)
	s.durable.Store(durable)
	s.applied.Store(applied)
	s.r.Log.Ack(s.slot, received, durable)
}
