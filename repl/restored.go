package repl

import (
	"slotfs/meta"
	"slotfs/meta/op"
)

// A data directory that was copied or restored from a backup is a former state
// of the slot: its log, its epochs and its notes are all from then, and nothing
// in it says what it had acknowledged since. So it is no candidate for primary
// until it is a member of an epoch that began later: which it becomes by catching
// up, as any replica does.

const restoredText = "this slot's data directory is a copy, or was restored from a backup: it may lack acknowledged mail, and has to catch up with another slot first"

// shared reports whether there is, or was, another slot that may have what this
// one lacks.
func (m *machine) shared() bool {
	for _, e := range m.v.hist {
		for _, s := range e.Members {
			if s != m.self {
				return true
			}
		}
	}
	for _, p := range m.peers {
		if p.info.hasStore {
			return true
		}
	}
	return false
}

// noteCopied notes that the data directory is a copy, if it is.
func (r *Member) noteCopied() error {
	s, ok := r.Slot.(*meta.Slot)
	if !ok || !s.Copied() {
		return nil
	}
	last := r.Log.Last()
	err := r.note(func(n *notes) { n.Restored = max(1, last.Epoch, n.Restored, n.Epochs.last().Pos.Epoch) })
	if err == nil {
		err = s.Settle()
	}
	if err == nil && last != (op.Pos{}) {
		r.tell(true, "the data directory was copied or restored: "+restoredText)
	}
	return err
}
