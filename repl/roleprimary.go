package repl

import (
	"fmt"
	"slices"
	"time"

	"slotfs/meta/op"
)

// What a slot does while its log leads: it watches its replicas, drops the
// silent ones from the in-sync set and takes back those that caught up.

func (m *machine) onJoin(e evJoin) {
	p := m.peer(e.slot)
	p.node, p.alive = e.node, true
	p.joined, p.conn, p.local = true, e.conn, e.local
	p.entry, p.again, p.backoff = entryNone, time.Time{}, 0
	p.acks = acks{heard: m.now}
	p.gone = ""
	p.target, p.targetAt = 0, m.now
	p.info.leading = false
	m.split = ""
	m.event(false, "replica on %s connected at seq %d", m.label(e.slot), e.at)
}

// onWentBack: a member lacks what it had acknowledged. It gets nothing before it
// has left the set: with the epoch's first entry it could prove that it belongs.
func (m *machine) onWentBack(e evWentBack) {
	p := m.peer(e.slot)
	p.node = e.node
	if m.reg == nil || !m.leading || !m.isMember(e.slot) || p.wentBack {
		return
	}
	p.wentBack = true
	m.event(true, "the slot on %s ends at seq %d, and had acknowledged up to %d at least: its disk was emptied or restored from an older state", m.label(e.slot), e.last, e.had)
}

func (m *machine) onLeave(e evLeave) {
	p := m.peer(e.slot)
	if !p.joined || p.conn != e.conn {
		return // it has connected anew
	}
	p.joined = false
	p.left = m.now
	m.abandon(p)
	if m.leading {
		m.event(false, "replica on %s disconnected: %s", m.label(e.slot), e.why)
		// Is there a process at all? A refused connection is a sure sign.
		m.ask(p)
	}
}

func (m *machine) onAcks(e evAcks) {
	for slot, a := range e.acks {
		p := m.peer(slot)
		if !p.joined {
			continue
		}
		if a.received > p.acks.received || a.durable > p.acks.durable {
			p.targetAt = m.now
		}
		p.acks = a
		if a.durable >= p.target {
			p.target, p.targetAt = m.v.last.Seq, m.now
		}
	}
}

// lead runs after every event while the log leads.
func (m *machine) lead() {
	if m.reg != nil {
		m.leadRegister()
		return
	}
	if m.changes {
		return
	}
	for _, p := range m.others() {
		why := m.lost(p)
		if why == "" {
			continue
		}
		m.hangUp(p, why)
		if m.isMember(p.slot) && !m.stop {
			m.drop(p, why)
			return
		}
	}
	for _, p := range m.others() {
		if m.reenter(p) {
			return
		}
	}
}

// lost says why p must be taken for lost; empty if it need not be.
func (m *machine) lost(p *peer) string {
	since := func(t time.Time) time.Duration {
		if t.Before(m.pardon) {
			t = m.pardon
		}
		return m.now.Sub(t).Round(time.Millisecond)
	}
	switch {
	case p.wentBack && m.isMember(p.slot):
		return "its disk has gone back"
	case p.gone != "":
		return p.gone
	case p.joined && since(p.acks.heard) > m.timeout:
		return fmt.Sprintf("silent for %v", since(p.acks.heard))
	case p.joined && m.waitsFor(p) && since(p.targetAt) > m.timeout:
		return fmt.Sprintf("acknowledged nothing for %v", since(p.targetAt))
	case p.joined:
		return ""
	case !p.refused.IsZero() && !p.refused.Before(p.left):
		return "connection refused"
	case since(p.left) > m.timeout:
		return fmt.Sprintf("not connected for %v", since(p.left))
	case !p.acks.heard.IsZero() && since(p.acks.heard) > m.timeout:
		// Its stream was ended because it was silent: that it has not come back
		// since is no reason to wait as long once more.
		return fmt.Sprintf("silent for %v", since(p.acks.heard))
	}
	return ""
}

// hangUp ends p's stream, if it has one.
func (m *machine) hangUp(p *peer, why string) {
	if !p.joined {
		return
	}
	m.do(effHangUp{p.slot, why})
	p.joined, p.left = false, m.now
	m.abandon(p)
}

// waitsFor is whether commits wait for p.
func (m *machine) waitsFor(p *peer) bool {
	return (m.isMember(p.slot) || p.entry != entryNone) && p.acks.durable < p.target
}

// drop leaves p behind: a new epoch without it.
func (m *machine) drop(p *peer, why string) {
	members := slices.DeleteFunc(slices.Clone(m.members), func(s op.SlotID) bool { return s == p.slot })
	reason := fmt.Sprintf("replica on %s lost: %s", m.label(p.slot), why)
	m.changeTo(members, reason)
	m.tellLost(reason, len(members))
}

// tellLost says that a replica was left behind, and how many copies there are now.
func (m *machine) tellLost(reason string, copies int) {
	if copies == 1 {
		m.event(true, "%s; one copy left", reason)
	} else {
		m.event(true, "%s; %d copies left", reason, copies)
	}
}

// changeTo begins the next epoch with another in-sync set.
func (m *machine) changeTo(members []op.SlotID, reason string) {
	m.epoch++
	m.members = members
	m.changes = true
	m.do(effChange{epoch: m.epoch, members: members, peers: m.needed(), reason: reason})
}

// onBegun: the EpochBegin of a change is durable here, and the commit rule is
// the new one.
func (m *machine) onBegun(e evBegun) {
	if !m.leading || e.epoch != m.epoch {
		return
	}
	m.changes = false
	for _, p := range m.peers {
		if p.entry == entryBegin && m.isMember(p.slot) {
			p.entry = entryNone
			p.target, p.targetAt = m.v.last.Seq, m.now
			m.event(false, "replica on %s is in sync again", m.label(p.slot))
		}
	}
	if m.owesRequire {
		m.owesRequire = false
		m.require()
	}
}

// reenter takes p along the order of re-entry; true if the set is changing.
func (m *machine) reenter(p *peer) bool {
	if !p.joined || p.local || m.isMember(p.slot) || m.now.Before(p.again) {
		return false
	}
	if p.entry != entryNone && m.now.Sub(p.entryAt) > 2*m.timeout {
		m.tooSlow(p)
		return false
	}
	switch p.entry {
	case entryNone:
		// 1. Its lag is within the window.
		if m.v.last.Seq-min(p.acks.received, m.v.last.Seq) > windowEntries || m.anyEntering() {
			return false
		}
		// 2. Every new barrier also waits for it.
		p.entry, p.entryAt, p.mark, p.markPos = entryRequired, m.now, m.v.last.Seq, m.v.last
		p.target, p.targetAt = m.v.last.Seq, m.now
		m.require()
	case entryRequired:
		// 3. It has fsynced everything acknowledged: up to mark here; what came
		// later was acknowledged by it, too. So has this slot: a store that two
		// slots share does not depend on one disk for its beginning.
		if min(p.acks.durable, m.v.durable) < p.mark {
			return false
		}
		// 4. It notes durably that it may join the next epoch.
		p.entry = entryPrepared
		if m.reg != nil {
			m.enter(p)
			return true
		}
		m.do(effPrepare{slot: p.slot, epoch: m.epoch + 1})
	}
	return false
}

// tooSlow ends p's way into the set for a while, which doubles.
func (m *machine) tooSlow(p *peer) {
	m.event(false, "replica on %s is too slow to be in sync", m.label(p.slot))
	p.backoff = min(max(2*p.backoff, retryEntry), maxRetryEntry)
	p.again = m.now.Add(p.backoff)
	m.abandon(p)
}

func (m *machine) anyEntering() bool {
	for _, p := range m.peers {
		if p.entry != entryNone {
			return true
		}
	}
	return false
}

// onPrepared: 5. the epoch that has it in its set begins.
func (m *machine) onPrepared(e evPrepared) {
	if m.reg != nil {
		m.onNoted(e)
		return
	}
	p := m.peer(e.slot)
	if p.entry != entryPrepared || !m.leading || m.changes {
		return
	}
	if e.epoch != m.epoch+1 {
		// Another change came between: prepare for the right one.
		m.do(effPrepare{slot: p.slot, epoch: m.epoch + 1})
		return
	}
	p.entry = entryBegin
	m.changeTo(append(slices.Clone(m.members), p.slot), fmt.Sprintf("replica on %s caught up", m.label(p.slot)))
}

// onNoted is onPrepared with a register.
func (m *machine) onNoted(e evPrepared) {
	if m.op != nil && m.op.prepare.noted(e) || m.change == nil {
		return
	}
	m.change.prepare.noted(e)
}

// abandon ends p's way into the set; barriers wait for it no longer.
func (m *machine) abandon(p *peer) {
	was := p.entry
	p.entry = entryNone
	if c := m.change; c != nil && c.enters == p && c.swap == nil {
		m.change = nil
	}
	if (was == entryRequired || was == entryPrepared) && m.leading {
		m.require()
	}
}

// require tells the log for whom commits wait.
func (m *machine) require() {
	if m.changes {
		// The log counts old and new members until the EpochBegin is durable;
		// telling it now would end that early.
		m.owesRequire = true
		return
	}
	need := m.needed()
	if m.change != nil && m.change.swap != nil {
		// The register may have decided for that set already.
		for _, s := range m.change.members {
			if s != m.self && !slices.Contains(need, s) {
				need = append(need, s)
			}
		}
	}
	m.do(effRequire{m.epoch, need})
}

// needed is for whom commits wait: the other members, and who is on its way into
// the set, without a gap: that it has what was acknowledged since its way began
// is what makes it a member.
func (m *machine) needed() []op.SlotID {
	need := slices.DeleteFunc(slices.Clone(m.members), func(s op.SlotID) bool { return s == m.self })
	for _, p := range m.others() {
		if p.entry != entryNone && !slices.Contains(need, p.slot) {
			need = append(need, p.slot)
		}
	}
	return need
}
