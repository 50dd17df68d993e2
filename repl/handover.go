package repl

import (
	"context"
	"errors"

	"slotfs/meta/op"
)

// Switch makes the replica to, or the best one if to is zero, primary in this
// slot's place. The error of a refusal is a full sentence and wraps ErrRefused.
func (r *Member) Switch(ctx context.Context, to op.SlotID) error {
	return r.command(ctx, func(id uint64) event { return evSwitch{id, to} })
}

// handoverReply answers a primary that hands over.
type handoverReply struct {
	Error string `json:"error,omitempty"` // why this slot has not become primary
}

// handOver asks a replica to become primary, and waits until it is.
func (r *Member) handOver(ctx context.Context, slot op.SlotID) error {
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	h := r.hello(forHandover)
	h.Leading = false // as of now; what the log said may be a moment old
	l, _, err := r.openSlot(ctx, slot, h)
	if err != nil {
		return err
	}
	defer l.close()
	defer l.closeOn(ctx)()
	l.deadline(handoverTimeout)
	var a handoverReply
	if err := l.expect(frameReply, &a); err != nil {
		return noEOF(err)
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// serveHandover becomes primary because the primary wants it.
func (r *Member) serveHandover(ctx context.Context, l *link, h hello) {
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	defer l.closeOn(ctx)()
	l.deadline(handoverTimeout)
	if r.Slot.StoreID() != h.StoreID {
		r.turnAway(l, h, &PeerError{r.Node, CodeStoreID, "another store"})
		return
	}
	r.heardOf(h) // it does not lead any more
	if l.sendJSON(frameWelcome, r.identity()) != nil {
		return
	}
	var a handoverReply
	if err := r.Promote(ctx, PromoteOptions{handover: h.Node}); err != nil {
		a.Error = err.Error()
	}
	if l.sendJSON(frameReply, a) == nil {
		_, _ = l.next() // until the asker hangs up
	}
}
