package meta

import (
	"slices"

	"slotfs/meta/op"
)

// abandons reports whether nobody is left who could publish what was staged
// before b; prev is the epoch before it, nil if that is not known.
//
// A primary that loses a replica, or gets one back, begins an epoch with other
// members in the middle of its work: a large message may have some of its
// Chunks before that entry and its Put after it, and the stage must stay. What
// is staged is lost with the process that staged it: when another slot becomes
// primary, or when the same one begins again, which it does with the members
// that it had. If those differ, too, the stage is kept in vain until the next
// such epoch; that costs space, where the opposite mistake costs mail.
func abandons(prev, b *op.EpochBegin) bool {
	if prev == nil {
		return false
	}
	return prev.Primary != b.Primary || sameMembers(prev.Members, b.Members)
}

func sameMembers(a, b []op.SlotID) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

// epochAt is the epoch of entry seq, as far as the log still knows.
func (s *Slot) epochAt(seq uint64) *op.EpochBegin {
	var found *op.EpochBegin
	for _, e := range s.Log.Epochs() {
		if e.Seq <= seq {
			found = e.Begin
		}
	}
	return found
}
