package repl

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"slotfs/meta/op"
)

// How the member carries out what the machine wants of the register, and the
// notes that go with it. Nothing here is waited for by the loop but the disk.

// maxPreparations bounds the notes kept about epochs to come.
const maxPreparations = 64

// newNonce makes up a nonce. crypto/rand never fails: it ends the process.
func newNonce() (n Nonce) {
	_, _ = rand.Read(n[:])
	return n
}

// watchRegister passes on that the register may have changed.
func (r *Member) watchRegister() {
	if r.Register == nil {
		return
	}
	r.spawn(func(ctx context.Context) {
		r.Register.Watch(ctx, r.Store, func(Record, bool) { r.post(evHint{}) })
	})
}

func (r *Member) getRecord(f effGet) {
	r.spawn(func(ctx context.Context) {
		rec, found, err := r.Register.Get(ctx, r.Store)
		r.post(evRecord{f.id, rec, found, err})
	})
}

func (r *Member) swapRecord(f effSwap) {
	r.logger.Info("ask the register", "expect", f.expect, keyEpoch, f.next.Epoch, "in_sync", list(f.next.InSync, r.m.label), "nonce", f.next.Nonce.String(), "reason", f.next.Reason)
	r.spawn(func(ctx context.Context) {
		now, won, err := r.Register.Swap(ctx, r.Store, f.expect, f.next)
		r.post(evSwapped{f.id, now, won, err})
	})
}

// prepare has a slot note the epoch to come: this one, or another.
func (r *Member) prepare(f effPrepare) {
	e := evPrepared{slot: f.slot, epoch: f.epoch, nonce: f.nonce}
	want := preparation{f.epoch, f.nonce}
	if f.slot == r.ID {
		if e.err = r.notePreparation(want); e.err != nil {
			r.fail(e.err)
		}
		r.post(e)
		return
	}
	p, ok := r.address(f.slot)
	if !ok {
		e.err = fmt.Errorf("no address of slot %s", f.slot)
		r.post(e)
		return
	}
	r.spawn(func(ctx context.Context) {
		h := r.hello(forNote)
		h.Prepare = &want
		if f.of.Epoch > 0 {
			h.Of = &f.of
		}
		if f.mark.Seq > 0 {
			h.Mark = &f.mark
		}
		ctx, cancel := context.WithTimeout(ctx, max(r.Timeout, time.Second))
		defer cancel()
		w, err := askNode(ctx, p.Addr, r.TLS, h)
		if err == nil && w.Slot != f.slot {
			err = fmt.Errorf("slot %s answers", w.Slot)
		}
		if e.err = err; err != nil && ctx.Err() == nil && !absent(err) {
			r.fail(fmt.Errorf("prepare %s for epoch %d: %w", p.Node, f.epoch, err))
		}
		r.post(e)
	})
}

// notePreparation notes durably that this slot may join an epoch.
func (r *Member) notePreparation(p preparation) error {
	reached := r.Log.Last().Epoch
	return r.note(func(n *notes) {
		// The record is at the log's last epoch at least, for good.
		kept := slices.DeleteFunc(slices.Clone(n.Preparations), func(o preparation) bool { return o.Epoch < reached })
		if extra := len(kept) + 1 - maxPreparations; extra > 0 {
			kept = slices.Delete(kept, 0, extra)
		}
		n.Preparations = append(kept, p)
	})
}

// holds reports whether this slot's disk proves that it belongs to the epoch.
func (r *Member) holds(of preparation) bool {
	r.refresh()
	r.mu.Lock()
	defer r.mu.Unlock()
	return holds(of, r.hist, r.Log.Durable.Get(), r.notes.Preparations)
}

// reaches reports whether the entry is in this slot's log for certain, and with
// it all before.
func (r *Member) reaches(mark op.Pos) bool {
	if r.Log.Durable.Get() < mark.Seq {
		return false
	}
	have, err := r.Log.PosAt(mark.Seq)
	return err == nil && have.Seq == mark.Seq && have.Chain == mark.Chain
}

// serveNote answers a primary, or a slot about to be, that wants this slot in
// its next set.
func (r *Member) serveNote(l *link, h hello) {
	refuse := func(format string, args ...any) {
		l.turnAway(CodeFailed, fmt.Sprintf(format, args...))
	}
	switch {
	case h.Prepare == nil || h.Prepare.Epoch == 0 || h.Prepare.Nonce == Nonce{}:
		l.turnAway(CodeProtocol, "no epoch to note")
		return
	case r.faulted() != nil:
		refuse("the slot on %s is faulted: %v", r.Node, r.faulted())
		return
	case r.leading.Load():
		refuse("the slot on %s is primary", r.Node)
		return
	case r.resyncing() || r.incomplete() || r.storeID().IsZero():
		refuse("the slot on %s is not complete", r.Node)
		return
	case h.Of != nil && !r.holds(*h.Of):
		refuse("the slot on %s cannot prove that it belongs to epoch %d: its disk was emptied or restored from an older state", r.Node, h.Of.Epoch)
		return
	case h.Mark != nil && !r.reaches(*h.Mark):
		refuse("the slot on %s does not have seq %d durably, which it had acknowledged", r.Node, h.Mark.Seq)
		return
	}
	if err := r.notePreparation(*h.Prepare); err != nil {
		r.fail(err)
		refuse("%v", err)
		return
	}
	l.deadline(handshakeTimeout)
	if l.sendJSON(frameWelcome, r.identity()) == nil {
		_, _ = l.next() // until the asker hangs up
	}
}

// registerState is what the machine knows of the register, for people.
func (r *Member) registerState() *RegisterState {
	m := r.m
	if m.reg == nil {
		return nil
	}
	g := m.reg
	s := &RegisterState{Found: g.found, Read: g.at.Round(0), Trouble: g.trouble}
	if g.found {
		s.Epoch, s.Primary, s.Nonce, s.Reason = g.rec.Epoch, m.label(g.rec.Primary), g.rec.Nonce, g.rec.Reason
		for _, slot := range g.rec.InSync {
			s.InSync = append(s.InSync, m.label(slot))
		}
	}
	if reach := m.v.reach; !reach.OK() {
		s.Unreachable, s.Error = reach.Since, reach.Error
		if s.Trouble == "" {
			s.Trouble = "register unreachable since the start: roles cannot change"
			if !reach.Since.IsZero() {
				s.Trouble = fmt.Sprintf("register unreachable since %s: roles cannot change", reach.Since.Format(time.DateTime))
			}
		}
	}
	return s
}
