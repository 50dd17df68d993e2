package repl

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"slotfs/meta/op"
)

// serveTail sends another slot, which is on its path to primary, the entries
// that this one has after the other's last.
func (r *Member) serveTail(ctx context.Context, l *link, h hello) {
	defer l.closeOn(ctx)()
	r.refresh()
	r.mu.Lock()
	hist := r.hist
	r.mu.Unlock()
	pos, err := r.meet(hist, h)
	if err == nil && pos.Seq != h.Last.Seq {
		err = &PeerError{r.Node, CodeDiverged, fmt.Sprintf("the log of %s leaves that of %s after seq %d", h.Node, r.Node, pos.Seq)}
	}
	if err == nil && r.leading.Load() {
		err = &PeerError{r.Node, CodeBusy, "the slot on " + r.Node + " is primary"}
	}
	if err != nil {
		r.turnAway(l, h, err)
		return
	}
	l.deadline(fetchIdle)
	last := r.Log.Last()
	w := r.identity()
	w.Common, w.Last, w.History = pos, last, hist
	if l.sendJSON(frameWelcome, w) != nil {
		return
	}
	for next := pos.Seq + 1; next <= last.Seq; {
		list, err := r.Log.Read(next, batchBytes)
		if err != nil || len(list) == 0 {
			return // without the mark: the other side sees that it ended early
		}
		l.deadline(fetchIdle)
		if l.entries(marks{}, list) != nil || l.flush() != nil {
			return
		}
		next = list[len(list)-1].Seq + 1
	}
	if l.numbers(frameMark, last.Seq, 0, 0) == nil {
		_, _ = l.next()
	}
}

// fetchTail gets what a member of the in-sync set has after this slot's last
// entry. The epoch about to begin is above every seal.
func (r *Member) fetchTail(ctx context.Context, slot op.SlotID) error {
	h := r.hello(forTail)
	l, w, err := r.openSlot(ctx, slot, h)
	if err != nil {
		return err
	}
	defer l.close()
	defer l.closeOn(ctx)()
	if w.StoreID != r.storeID() {
		return &PeerError{w.Node, CodeStoreID, "another slot answers"}
	}
	if w.Common != h.Last {
		return fmt.Errorf("%w: tail from %s, this log ends at %s", ErrWire, w.Common, h.Last)
	}
	epoch := max(r.Log.Sealed(), w.Last.Epoch, h.Last.Epoch) + 1
	idle := fetchIdle
	if r.Register != nil {
		idle = max(r.Timeout, time.Second) // it is a help only, and somebody waits
	}
	for {
		l.deadline(idle)
		f, err := l.next()
		switch {
		case err != nil:
			return noEOF(err)
		case f.typ == frameRefuse:
			return l.refused(f)
		case f.typ == frameMark:
			if got := r.Log.Last(); len(f.body) != marksSize || got.Seq != binary.BigEndian.Uint64(f.body) {
				return fmt.Errorf("%w: tail ends at seq %d", ErrWire, got.Seq)
			}
			r.logger.Info("fetched a tail", keyPeer, w.Node, "from", h.Last.Seq, "to", r.Log.Last().Seq)
			return nil
		case f.typ != frameEntries:
			return fmt.Errorf("%w: type %d within a tail", ErrWire, f.typ)
		}
		list, err := splitEntries(f.body[marksSize:], nil)
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := verifyContent(e.Op); err != nil {
				return fmt.Errorf("seq %d: %w", e.Seq, err)
			}
		}
		if err := r.Log.AppendFrom(epoch, list); err != nil {
			return err
		}
	}
}
