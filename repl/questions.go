package repl

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"slotfs/meta/op"
)

// identity is a welcome that says who answers, and nothing more.
func (r *Member) identity() welcome {
	return welcome{Protocol: Protocol, Node: r.Node, StoreID: r.storeID(), Slot: r.ID}
}

// connect opens a connection for questions.
func (r *Member) connect(ctx context.Context, p PeerSlot, f purpose) (*link, welcome, error) {
	l, w, err := r.open(ctx, p, r.hello(f))
	if err == nil && !r.storeID().IsZero() && w.StoreID != r.storeID() {
		l.close()
		return nil, w, &PeerError{p.Node, CodeStoreID, "another store of the same name"}
	}
	return l, w, err
}

// open connects to a slot, says hello and gets its welcome.
func (r *Member) open(ctx context.Context, p PeerSlot, h hello) (*link, welcome, error) {
	var w welcome
	l, err := dial(ctx, p.Addr, r.TLS)
	if err != nil {
		return nil, w, err
	}
	defer l.closeOn(ctx)()
	l.deadline(fetchIdle)
	if err = l.sendJSON(frameHello, h); err == nil {
		err = noEOF(l.expect(frameWelcome, &w))
	}
	if err == nil && w.Slot != p.Slot {
		err = fmt.Errorf("slot %s answers for %s", w.Slot, p.Slot)
	}
	if err != nil {
		l.close()
		return nil, w, err
	}
	return l, w, nil
}

// openSlot is open for a slot of which only the id is known.
func (r *Member) openSlot(ctx context.Context, slot op.SlotID, h hello) (*link, welcome, error) {
	p, ok := r.address(slot)
	if !ok {
		return nil, welcome{}, fmt.Errorf("no address of slot %s", slot)
	}
	return r.open(ctx, p, h)
}

// questions has the questions of another slot answered, one after another,
// until it hangs up, is silent for longer than idle, or answer fails.
func questions[Q any](l *link, idle time.Duration, answer func(*Q) error) {
	for {
		l.deadline(idle)
		f, err := l.next()
		if err != nil {
			return
		}
		q := new(Q)
		if f.typ != frameRequest || json.Unmarshal(f.body, q) != nil {
			l.turnAway(CodeProtocol, "not a question")
			return
		}
		l.deadline(fetchIdle)
		if answer(q) != nil {
			return
		}
	}
}
