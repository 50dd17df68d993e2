package repl

import (
	"fmt"
	"slices"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// maxHistory is how many epochs a slot remembers and tells. A peer that has
// seen none of them is resynced.
const maxHistory = 64

// epochStart is one epoch of a store's history.
type epochStart struct {
	Pos     op.Pos      `json:"pos"` // of its EpochBegin entry
	Primary op.SlotID   `json:"primary"`
	Members []op.SlotID `json:"members"`
	Reason  string      `json:"reason,omitempty"`
	Nonce   Nonce       `json:"nonce,omitzero"`
}

// history is a slot's epochs in order, as far as it remembers.
type history []epochStart

func startOf(pos op.Pos, b *op.EpochBegin) epochStart {
	return epochStart{Pos: pos, Primary: b.Primary, Members: slices.Clone(b.Members), Reason: b.Reason, Nonce: b.Nonce}
}

// last is the present epoch; zero in an empty history.
func (h history) last() epochStart {
	if len(h) == 0 {
		return epochStart{}
	}
	return h[len(h)-1]
}

// until is the part of h that began up to seq.
func (h history) until(seq uint64) history {
	i := len(h)
	for i > 0 && h[i-1].Pos.Seq > seq {
		i--
	}
	return slices.Clone(h[:i])
}

// has reports whether slot is in the epoch's in-sync set.
func (e epochStart) has(slot op.SlotID) bool { return slices.Contains(e.Members, slot) }

// memberAfter reports whether slot is in the set of an epoch after epoch that
// began up to seq.
func (h history) memberAfter(slot op.SlotID, epoch, seq uint64) bool {
	for _, e := range h {
		if e.Pos.Epoch > epoch && e.Pos.Seq <= seq && e.has(slot) {
			return true
		}
	}
	return false
}

// with is h continued by what the log still holds. Epochs of h that the log's
// replace (a branch that was cut) are forgotten.
func (h history) with(starts []oplog.EpochStart, last op.Pos) history {
	out := make(history, 0, len(h)+len(starts))
	first := last.Seq + 1
	if len(starts) > 0 {
		first = starts[0].Pos.Seq
	}
	for _, e := range h {
		if e.Pos.Seq < first {
			out = append(out, e)
		}
	}
	for _, s := range starts {
		out = append(out, startOf(s.Pos, s.Begin))
	}
	if n := len(out) - maxHistory; n > 0 {
		out = slices.Delete(out, 0, n)
	}
	return out
}

// conflict finds an epoch number that both histories have and that began
// differently: two primaries were made independently.
func (h history) conflict(o history) (epoch uint64, ok bool) {
	for _, a := range h {
		for _, b := range o {
			if a.Pos.Epoch == b.Pos.Epoch && a.Pos != b.Pos {
				return a.Pos.Epoch, true
			}
		}
	}
	return 0, false
}

// extends reports whether everything of o up to its end is part of h, as far
// as the epochs tell.
func (h history) extends(o history) bool {
	if len(o) == 0 {
		return true
	}
	_, ok := h.find(o.last().Pos)
	return ok
}

func (h history) find(start op.Pos) (int, bool) {
	i := slices.IndexFunc(h, func(e epochStart) bool { return e.Pos == start })
	return i, i >= 0
}

// end is the last seq of h's epoch i, when the log ends at last.
func (h history) end(i int, last op.Pos) uint64 {
	if i+1 < len(h) {
		return h[i+1].Pos.Seq - 1
	}
	return last.Seq
}

// verdict is how a slot gets from its own history to another one's.
type verdict uint8

const (
	vStream   verdict = iota + 1 // it is a prefix: stream on
	vCut                         // its tail after the meeting point is not in ours: cut, then stream
	vResync                      // no common point is known
	vBehind                      // it has a higher epoch than ours
	vDiverged                    // two histories with one epoch number
)

func (v verdict) String() string {
	return [...]string{"", "stream", "cut", "resync", "behind", "diverged"}[v]
}

// meet says where the other slot's history leaves ours: the last seq that both
// hold the same entry of, as far as the epochs can tell. yield: the other side's
// operator gave its branch up, so conflicts and higher epochs count for nothing.
func (h history) meet(last op.Pos, o history, oLast op.Pos, yield bool) (seq uint64, v verdict, why string) {
	if oLast.Seq == 0 {
		return 0, vStream, ""
	}
	if !yield {
		if e, ok := h.conflict(o); ok {
			return 0, vDiverged, fmt.Sprintf("two histories have an epoch %d that began differently: two primaries were made independently", e)
		}
		if oLast.Epoch > last.Epoch {
			return 0, vBehind, fmt.Sprintf("the other slot is in epoch %d, this one in %d", oLast.Epoch, last.Epoch)
		}
	}
	// Within an epoch there is one primary, hence one sequence of entries: the
	// histories part at the end of the last epoch that both have, or where the
	// shorter one ends.
	for i := len(o) - 1; i >= 0; i-- {
		j, ok := h.find(o[i].Pos)
		if !ok {
			continue
		}
		seq = min(o.end(i, oLast), h.end(j, last))
		if seq == oLast.Seq {
			return seq, vStream, ""
		}
		return seq, vCut, ""
	}
	return 0, vResync, "no epoch is known to both"
}
