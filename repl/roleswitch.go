package repl

import (
	"fmt"
	"time"

	"slotfs/meta/op"
)

// Switchover: a primary hands over to a replica in sync, on purpose. In this
// order:
//
//  1. Checks, which change nothing: the target is connected, in the in-sync
//     set, not far behind, fit, and says so when it is asked; with a register,
//     that answers.
//  2. Unmount: on_demote, calls in flight complete, later ones are refused.
//  3. Drain: everything accepted is committed, hence durable on the target.
//  4. Step down, and ask the target to take over. It goes the one path to
//     primary, and this slot follows it as soon as it leads.
//
// If 3 fails this slot, which still leads, mounts again. If 4 fails it becomes
// primary again by the one path, unless the target leads after all. A stop in
// the middle leaves what a stop of a primary leaves: it resumes at its start,
// unless the target took over.

const (
	// switchLag is how many entries a target may lack, or have unapplied.
	switchLag = 4096
	// handoverTimeout is how long a target may take to become primary.
	handoverTimeout = 20 * time.Second
)

// evSwitch asks this primary to hand over; to may be zero: to the best replica.
type evSwitch struct {
	id uint64
	to op.SlotID
}

// evHandover: the target has become primary, or said why not.
type evHandover struct {
	slot op.SlotID
	err  error
}

func (evSwitch) isEvent()   {}
func (evHandover) isEvent() {}

// effHandover asks a replica to become primary: evHandover.
type effHandover struct{ slot op.SlotID }

func (e effHandover) text(n func(op.SlotID) string) string { return "hand over to " + n(e.slot) }

func (m *machine) onSwitch(e evSwitch) {
	refuse := func(err error) { m.do(effReply{e.id, err}) }
	switch {
	case m.v.faulted != "":
		refuse(&refusal{fmt.Sprintf("this slot is faulted (%s): its log cannot be completed; promote another slot", m.v.faulted)})
		return
	case m.op != nil:
		refuse(&refusal{"busy: " + m.doing})
		return
	case m.role != Primary:
		refuse(&refusal{"this slot is not primary"})
		return
	}
	p, err := m.successor(e.to)
	if err != nil {
		refuse(err)
		return
	}
	m.op = &operation{id: e.id, kind: opSwitch, started: m.now, phase: phaseCheck, successor: p,
		reason: fmt.Sprintf("switchover to %s", m.label(p.slot))}
	if m.reg != nil {
		m.op.read = m.read()
	}
	m.ask(p)
}

// successor is the replica to hand over to: the one that is named, or the one
// that lacks least.
func (m *machine) successor(to op.SlotID) (*peer, error) {
	var best *peer
	var why error
	for _, p := range m.others() {
		if !to.IsZero() && p.slot != to {
			continue
		}
		if err := m.unsuited(p, false); err != nil {
			why = err
			continue
		}
		if best == nil || p.acks.applied > best.acks.applied {
			best = p
		}
	}
	switch {
	case best != nil:
		return best, nil
	case why != nil:
		return nil, why
	}
	return nil, &refusal{"there is no other slot to switch over to"}
}

// unsuited says why p cannot take over; fresh: it has just been asked, so that
// what it says of itself counts.
func (m *machine) unsuited(p *peer, fresh bool) error {
	lag := func(has uint64) uint64 { return m.v.last.Seq - min(has, m.v.last.Seq) }
	no := func(format string, args ...any) error {
		return &refusal{fmt.Sprintf("the slot on %s cannot take over: %s", m.label(p.slot), fmt.Sprintf(format, args...))}
	}
	switch {
	case p.local:
		return no("its durability is \"local\": it may lack acknowledged mail")
	case !p.joined:
		return no("it is not connected to this primary")
	case !m.isMember(p.slot):
		return no("it is not in the in-sync set; it lacks %d entries", lag(p.acks.durable))
	case lag(p.acks.received) > switchLag:
		return no("it lacks %d entries, at most %d are allowed", lag(p.acks.received), switchLag)
	case lag(p.acks.applied) > switchLag:
		return no("it has %d entries to apply, at most %d are allowed", lag(p.acks.applied), switchLag)
	case !fresh:
		return nil
	case p.info.Drained:
		return no("it is drained (\"slotfs undrain\")")
	case p.info.Resyncing:
		return no("it is being resynced")
	case p.info.Unready != "":
		return no("%s", p.info.Unready)
	case p.info.Unfit != "":
		return no("%s", p.info.Unfit)
	}
	return nil
}

// advanceSwitch moves a switchover on as far as it can go now.
func (m *machine) advanceSwitch() {
	switch m.op.phase {
	case phaseCheck:
		m.checkSwitch()
	case phaseHandover, phaseBack:
		if best := m.primary(); best != nil {
			m.followBest(best) // its epoch waits for this slot, too
		}
		if m.op.phase == phaseBack {
			m.switchBack()
		}
	}
}

// checkSwitch begins the switchover once all has been checked.
func (m *machine) checkSwitch() {
	o, p := m.op, m.op.successor
	m.doing = "checking whether " + m.label(p.slot) + " can take over"
	if m.role != Primary || !m.leading {
		m.finish(&refusal{"this slot is no longer primary"})
		return
	}
	if p.asking && m.now.Sub(o.started) < m.timeout {
		return
	}
	if p.answered.Before(o.started) {
		m.finish(&refusal{fmt.Sprintf("the slot on %s does not answer", m.label(p.slot))})
		return
	}
	if m.reg != nil {
		switch {
		case m.reg.failed >= o.read:
			m.finish(&refusal{fmt.Sprintf("the register cannot be read, and without it no role changes: %v", m.reg.err)})
			return
		case m.reg.trouble != "":
			m.finish(&refusal{"register: " + m.reg.trouble})
			return
		case m.reg.seen < o.read || m.change != nil || m.changes:
			if m.now.Sub(o.started) > 4*m.timeout {
				m.finish(&refusal{"the in-sync set is changing: try again"})
			}
			return
		}
	}
	if err := m.unsuited(p, true); err != nil {
		m.finish(err)
		return
	}
	o.phase = phaseUnmount
	m.setRole(Demoting)
	m.doing = "unmounting, to hand over to " + m.label(p.slot)
	m.do(effUnmount{o.reason})
}

// drainedSwitch: everything accepted is committed, or could not be.
func (m *machine) drainedSwitch(err error) {
	o := m.op
	if err == nil && !m.leading {
		m.setRole(Replica)
		m.finish(&refusal{"this slot was superseded during the switchover"})
		return
	}
	if err != nil {
		// It still leads: nothing was handed over.
		o.failed = fmt.Errorf("not all could be committed before the handover: %w", err)
		o.kind, o.phase, o.reason = opPromote, phaseMount, "resumed: "+o.reason+" failed"
		m.doing = "mounting again"
		m.do(effMount{m.epoch})
		return
	}
	m.stepDown(o.reason, false)
	o.phase = phaseHandover
	m.doing = fmt.Sprintf("handing over to %s", m.label(o.successor.slot))
	m.do(effHandover{o.successor.slot})
}

func (m *machine) onHandover(e evHandover) {
	o := m.op
	if o == nil || o.kind != opSwitch || o.phase != phaseHandover || o.successor.slot != e.slot {
		return
	}
	if e.err == nil {
		m.handedOver()
		return
	}
	// Perhaps it leads all the same, and only the answer was lost.
	o.failed, o.phase, o.started = e.err, phaseBack, m.now
	m.ask(o.successor)
}

func (m *machine) handedOver() {
	m.op.failed = nil
	m.event(false, "handed over to %s", m.label(m.op.successor.slot))
	m.setRole(Replica)
	m.finish(nil)
}

// switchBack makes this slot primary again, unless the target is.
func (m *machine) switchBack() {
	o, p := m.op, m.op.successor
	m.doing = fmt.Sprintf("the handover to %s failed: %v", m.label(p.slot), o.failed)
	if p.asking && m.now.Sub(o.started) < m.timeout {
		return
	}
	if !p.answered.Before(o.started) && p.info.leading {
		m.handedOver()
		return
	}
	m.event(true, "the switchover to %s failed, so this slot becomes primary again: %v", m.label(p.slot), o.failed)
	m.setRole(Replica)
	m.op = &operation{id: o.id, kind: opPromote, started: m.now, phase: phaseAsk, commits: m.v.committed, failed: o.failed,
		reason: "resumed: " + o.reason + " failed"}
	if m.reg != nil {
		m.op.read = m.read()
	}
	m.askAll()
}

// switchError is the answer to a switchover that failed; err is what came of
// becoming primary again.
func switchError(failed, err error) error {
	if err == nil {
		return &refusal{fmt.Sprintf("nothing was switched, this slot is primary again: %v", failed)}
	}
	return &refusal{fmt.Sprintf("the switchover failed: %v; and this slot did not become primary again: %v", failed, err)}
}
