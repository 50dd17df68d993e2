package repl

import "slotfs/meta"

// A slot that has lost its tree, or entries of its log, has to be refilled from
// another one (meta.Options.Refill). It neither serves nor acknowledges: as
// primary it ends its mount, so that another member can serve; as replica it
// leaves the stream, which takes it out of the in-sync set. Then it follows
// whoever is primary, which means a resync.

// stopForRefill runs while the slot is bereft of it; after it the slot is a replica
// without a stream.
func (m *machine) stopForRefill() {
	switch {
	case m.leading:
		m.abdicate(m.v.bereft)
	case m.op != nil && m.op.kind == opPromote && m.op.phase < phaseBegin:
		if m.role != Replica {
			m.setRole(Replica)
		}
		m.finish(&refusal{m.v.bereft})
	}
	if m.refilling {
		return // what it follows is a resync
	}
	m.refilling = true
	m.unfollow()
	m.retry = m.now
}

// bereft is why the slot has to be refilled; empty if it need not be.
func (r *Member) bereft() string {
	if s, ok := r.Slot.(*meta.Slot); ok {
		if err := s.Unfit(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// Look makes the member look at its slot now: something has happened to it.
func (r *Member) Look() { r.post(evTick{}) }
