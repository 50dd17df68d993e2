package repl

import (
	"fmt"
	"slices"
	"time"

	"slotfs/meta/op"
)

// common is the last entry that x's log is known to hold as ours does: what it
// acknowledged, what it said of its history, or what was noted before a start.
// The loop calls it.
func (r *Member) common(x *peer) uint64 {
	r.mu.Lock()
	seq := r.copies[x.slot]
	r.mu.Unlock()
	switch {
	case x.info.Resyncing:
		seq = 0 // a mixture, and no copy of anything
	case x.joined || x.acks.heard.After(x.answered):
		seq = max(seq, x.acks.durable)
	case !x.answered.IsZero() && x.info.hasStore:
		// An epoch that both have counts, whatever came after it.
		seq, _, _ = r.m.v.hist.meet(r.m.v.last, x.info.hist, x.info.last, true)
	case !x.answered.IsZero():
		seq = 0 // it is empty
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if seq == 0 {
		delete(r.copies, x.slot)
		return 0
	}
	r.keepCopied(x.slot, seq)
	return seq
}

// keepCopied notes that a slot has our log up to seq; mu is held.
func (r *Member) keepCopied(slot op.SlotID, seq uint64) {
	if r.copies == nil {
		r.copies = map[op.SlotID]uint64{}
	}
	r.copies[slot] = seq
}

// Copied is the last entry that is durable on another node, too, as far as this
// slot knows, and why nothing after it is.
func (r *Member) Copied() (seq uint64, why string) {
	s := r.State()
	s.Peers = append(s.Peers, r.remembered(&s)...)
	var best *PeerState
	for i := range s.Peers {
		p := &s.Peers[i]
		if r.replaced(s.Peers, p) {
			continue
		}
		if best == nil || p.Common > best.Common {
			best = p
		}
	}
	if best == nil {
		return 0, "no other slot of this store is known"
	}
	switch {
	case best.Resyncing:
		why = fmt.Sprintf("the slot on %s is being resynced, and is no copy before that has ended", best.Node)
	case best.Connected && best.InSync:
		why = fmt.Sprintf("on its way to %s", best.Node)
	case best.Connected:
		why = fmt.Sprintf("%s is catching up", best.Node)
	case best.Heard.IsZero():
		why = fmt.Sprintf("%s has not answered since this node's start", best.Node)
	default:
		why = fmt.Sprintf("%s is away; it was last heard at %s", best.Node, best.Heard.UTC().Format(time.DateTime))
	}
	return best.Common, why
}

// remembered are the slots that the notes know and gossip does not.
func (r *Member) remembered(s *State) (list []PeerState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for slot, seq := range r.copies {
		if !slices.ContainsFunc(s.Peers, func(p PeerState) bool { return p.Slot == slot }) {
			list = append(list, PeerState{Node: "slot " + slot.String()[:8], Slot: slot, Common: seq})
		}
	}
	return list
}

// replaced is whether p's node has another slot now: then p's disk is gone.
func (r *Member) replaced(all []PeerState, p *PeerState) bool {
	if p.Alive {
		return false
	}
	for i := range all {
		if o := &all[i]; o.Slot != p.Slot && o.Alive && o.Node == p.Node {
			return true
		}
	}
	return false
}

// Drain notes, durably, whether this slot may become primary by itself.
func (r *Member) Drain(on bool) error {
	if err := r.note(func(n *notes) { n.Drained = on }); err != nil {
		return err
	}
	if on {
		r.tell(false, "drained by operator: this slot does not become primary by itself")
	} else {
		r.tell(false, "undrained by operator")
	}
	r.post(evTick{})
	return nil
}
