package repl

import (
	"fmt"
	"slices"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// The path to primary with a register: when a replica takes it by itself, and its
// steps up to the register's word. By what it is judged: rolejudge.go.

// elect starts the path to primary if this slot should be primary by itself.
func (m *machine) elect() {
	g := m.reg
	if m.ending || m.now.Before(m.resumes) || !m.v.hasStore && len(m.v.prepared) == 0 {
		return
	}
	if m.unfit() != "" {
		m.keepReading()
		return
	}
	first := !g.found && g.trouble == "" && m.founded()
	if g.at.IsZero() || !g.found && !first {
		m.keepReading()
		switch {
		case g.trouble != "":
			m.doing = g.trouble
		case g.at.IsZero():
			m.doing = "waiting for the register: roles cannot change before it answers"
		}
		return
	}
	reason := "resumed after the store was adopted"
	if !first {
		reason = m.due()
	}
	if reason == "" || !m.v.hasStore && !m.unborn() {
		return
	}
	m.op = &operation{kind: opPromote, auto: true, started: m.now, phase: phaseAsk, reason: reason, commits: m.v.committed}
	m.op.read = m.read()
	m.askAll()
}

// keepReading keeps the record from getting old while nobody leads.
func (m *machine) keepReading() {
	if g := m.reg; !g.asking && m.now.Sub(g.asked) >= readAgain && (m.target.IsZero() || g.at.IsZero()) {
		m.read()
	}
}

// unfitFaulted is what a faulted slot says of itself.
const unfitFaulted = "faulted"

// unfit says why this slot does not become primary by itself, whatever the
// register says; others are told. Empty: it may.
func (m *machine) unfit() string {
	switch {
	case m.v.faulted != "":
		return unfitFaulted
	case m.local:
		return "its durability is \"local\": it is never in the in-sync set"
	case m.v.restored && m.shared():
		return restoredText
	case m.v.drained:
		return "drained by an operator"
	case m.v.resync:
		return "in the middle of a resync"
	case m.v.yield:
		return "its branch was given up by an operator"
	case m.split != "":
		return "diverged"
	case m.v.demoted > 0 && m.v.demoted >= m.v.hist.last().Pos.Epoch:
		return fmt.Sprintf("demoted in epoch %d, by an operator or because it could not be mounted", m.v.demoted)
	}
	return ""
}

// due says why it is time to become primary; empty if it is not.
func (m *machine) due() string {
	g := m.reg
	if best := m.primary(); best != nil && best.info.last.Epoch >= g.rec.Epoch && m.now.Sub(best.answered) < g.failover && m.target.IsZero() {
		return "" // there is one; this slot is about to follow it
	}
	if g.rec.Primary == m.self {
		return m.dueAgain()
	}
	heard := latest(m.booted, m.pardon, m.v.heardAt, g.changed, g.heardPrimary)
	silent := m.now.Sub(heard)
	var why string
	p := m.peers[g.rec.Primary]
	switch {
	case silent >= g.failover:
		why = fmt.Sprintf("silent for %v", silent.Round(time.Millisecond))
	case p == nil || m.v.heardAt.IsZero():
		// Both may be starting: the primary goes first.
	case p.refused.After(heard):
		why = "connection refused"
	case p.answered.After(heard) && !p.info.leading && p.info.Unfit != "":
		why = p.info.Unfit
	}
	if silent > g.failover/2 && m.now.Sub(m.probed) >= probeEvery {
		m.askAll() // so that its answer, or that there is none, is known in time; or who is primary now
	}
	if why == "" {
		return ""
	}
	if until := g.moved.Add(g.rest); g.rest > 0 && m.now.Before(until) {
		m.doing = fmt.Sprintf("the primary on %s is lost, but the last automatic failover was at %s: there is no other one before %s",
			m.label(g.rec.Primary), g.moved.UTC().Format(time.TimeOnly), until.UTC().Format("15:04:05 UTC"))
		if m.said != m.doing {
			m.said = m.doing
			m.event(true, "%s", m.doing)
		}
		return ""
	}
	return fmt.Sprintf("failover: the primary on %s is lost: %s", m.label(g.rec.Primary), why)
}

// dueAgain is due of the slot that the register names: at once, but others of
// the set get a moment to be heard of, so that they stay in it.
func (m *machine) dueAgain() string {
	g := m.reg
	switch {
	case !m.target.IsZero():
		return "" // it follows somebody whom the register will name shortly
	case m.now.Sub(m.booted) >= m.timeout:
	default:
		for _, s := range g.rec.InSync {
			if p := m.peers[s]; s != m.self && (p == nil || p.answered.Before(m.booted) && p.failed.Before(m.booted)) {
				m.doing = "waiting for the other members of the in-sync set before resuming as primary"
				return ""
			}
		}
	}
	return "resumed as the register's primary"
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, time.Time.Compare)
}

// automatic notes that epoch began by an automatic failover, some time ago.
func (m *machine) automatic(epoch uint64, ago time.Duration) {
	g := m.reg
	if g == nil || epoch <= g.auto {
		return
	}
	g.auto = epoch
	at := m.now.Add(-max(ago, 0))
	switch quiet := at.Sub(g.moved); {
	case g.moved.IsZero() || quiet > g.rest+10*g.pause:
		g.rest = g.pause
	default:
		g.rest = min(2*g.rest, maxPause)
	}
	g.moved = at
}

// advanceRegister moves an operation on the path to primary on.
func (m *machine) advanceRegister() {
	switch o := m.op; o.phase {
	case phaseAsk:
		m.asked()
	case phasePrepare:
		m.prepared()
	case phaseSwap:
		m.doing = fmt.Sprintf("asking the register for epoch %d", o.swap.next.Epoch)
		if o.swap.doubt {
			m.doing += "; an attempt had no answer, and only the register knows its outcome"
		}
		m.pursue(o.swap)
	}
}

// asked goes on when the register and the other slots have answered.
func (m *machine) asked() {
	o, g := m.op, m.reg
	m.doing = "asking the register and the other slots before becoming primary"
	if g.failed >= o.read {
		m.refuse(&refusal{fmt.Sprintf("the register cannot be read, and without it no role changes: %v", g.err)})
		return
	}
	patience := m.timeout
	if o.auto {
		patience = min(patience, askBriefly)
	}
	for _, p := range m.peers {
		if p.asking && m.now.Sub(o.started) < patience {
			return
		}
	}
	if g.seen < o.read {
		return
	}
	if err := m.judgeRecord(); err != nil {
		m.refuse(err)
		return
	}
	m.split = ""
	m.unfollow() // from here on this slot acknowledges nothing to anybody
	m.setRole(Promoting)
	o.phase = phaseSeal
	m.doing = fmt.Sprintf("sealing off epoch %d", o.expect)
	m.do(effSeal{o.expect})
}

// refuse ends an operation that has changed nothing yet.
func (m *machine) refuse(err error) {
	m.finish(err)
	m.doing = err.Error()
}

// onSealed: nothing of the old epochs is accepted any more.
func (m *machine) onSealed(e evSealed) {
	o := m.op
	if m.reg == nil || o == nil || o.phase != phaseSeal || e.epoch != o.expect {
		return
	}
	if e.err != nil {
		m.fail(fmt.Errorf("seal epoch %d: %w", e.epoch, e.err))
		return
	}
	if o.from == nil {
		m.prepareEpoch()
		return
	}
	m.fetchTail()
}

// withoutTail goes on when a longer tail could not be had. It held nothing
// that was committed: that is here.
func (m *machine) withoutTail(e evTail) {
	o := m.op
	if m.longAway() {
		m.fail(fmt.Errorf("fetch the last entries from %s: %w", m.label(e.slot), e.err))
		return
	}
	m.event(false, "becoming primary without the last entries of %s, none of which was committed: %v", m.label(e.slot), e.err)
	o.members = slices.DeleteFunc(o.members, func(s op.SlotID) bool {
		p := m.peers[s]
		return s != m.self && (p == nil || p.info.last.Seq > m.v.last.Seq)
	})
	m.prepareEpoch()
}

// prepareEpoch has the members of the next epoch note that they may join it.
func (m *machine) prepareEpoch() {
	o := m.op
	o.phase = phasePrepare
	m.doing = fmt.Sprintf("preparing epoch %d", o.epoch)
	o.prepare = m.prepareAll(o.epoch, o.members, op.SlotID{})
}

// prepared goes on when the members have noted the epoch; those that could not
// are none.
func (m *machine) prepared() {
	o := m.op
	p := o.prepare
	if slices.Contains(p.failed, m.self) {
		m.fail(fmt.Errorf("note that this slot may join epoch %d", o.epoch))
		return
	}
	if len(p.waiting) > 0 && (slices.Contains(p.waiting, m.self) || m.now.Sub(p.since) < m.timeout) {
		return
	}
	o.members = slices.DeleteFunc(o.members, func(s op.SlotID) bool { return slices.Contains(p.failed, s) || slices.Contains(p.waiting, s) })
	o.phase = phaseSwap
	o.swap = &swapping{expect: o.expect, next: m.record(o.epoch, o.members, o.store, p.nonce, o.reason)}
	m.swap(o.swap)
}

// record is what the register shall hold.
func (m *machine) record(epoch uint64, members []op.SlotID, store meta.StoreID, nonce Nonce, reason string) Record {
	r := Record{Version: RecordVersion, Store: store, Epoch: epoch, Primary: m.self, InSync: members, Nonce: nonce,
		Nodes: map[op.SlotID]string{}, Reason: reason, Time: m.now.UTC()}
	for _, s := range members {
		r.Nodes[s] = m.label(s)
	}
	return r
}
