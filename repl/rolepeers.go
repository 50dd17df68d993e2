package repl

import (
	"fmt"
	"time"

	"slotfs/meta/op"
)

// What the machine learns of other slots: from gossip, and from themselves.

func (m *machine) onPeers(e evPeers) {
	was := map[op.SlotID]bool{}
	for _, p := range m.peers {
		was[p.slot] = p.alive
		p.alive = false
	}
	for _, s := range e.slots {
		if s.Slot.IsZero() || s.Slot == m.self {
			continue
		}
		p := m.peer(s.Slot)
		p.node, p.alive = s.Node, s.Alive
		if s.Alive && !was[s.Slot] {
			m.resumes = time.Time{} // it may be the one that was waited for
		}
		if p.answered.IsZero() {
			p.info.hasStore = !s.Store.IsZero()
		}
		if m.reg != nil && s.Alive && p.answered.IsZero() && p.failed.IsZero() && !m.leading {
			m.ask(p)
		}
		// Gossip is a reason to ask, not an answer.
		if s.Alive && (s.Role == Primary || s.Role == Demoting) && !p.info.leading && !m.leading {
			m.ask(p)
		}
		if s.Alive && m.leading && s.Epoch > m.epoch {
			m.ask(p)
		}
	}
}

// ask sends a question about the peer's state; the answer is an event.
func (m *machine) ask(p *peer) {
	if !p.asking {
		p.asking = true
		m.do(effAsk{p.slot})
	}
}

func (m *machine) askAll() {
	m.probed = m.now
	for _, p := range m.others() {
		m.ask(p)
	}
}

func (m *machine) onAnswer(e evAnswer) {
	p := m.peer(e.slot)
	if !e.poke {
		p.asking = false
	}
	news := e.leading && !p.info.leading
	p.answered, p.info, p.alive = m.now, e.answer, true
	if e.node != "" {
		p.node = e.node
	}
	if e.poke && m.op == nil && p.failed.After(p.heardOf) {
		m.resumes = time.Time{} // it is back
	}
	p.heardOf = m.now
	if m.reg != nil {
		if e.leading && e.last.Epoch >= m.reg.rec.Epoch {
			m.reg.heardPrimary = m.now
		}
		m.automatic(e.Auto, e.AutoAgo)
	}
	if news && !m.leading && m.op == nil && m.target != e.slot {
		m.retry = time.Time{} // follow at once
	}
	m.compare(p)
}

// compare judges the history of a peer that has just told it.
func (m *machine) compare(p *peer) {
	if !p.info.hasStore || !m.v.hasStore || m.v.yield || p.info.yield {
		return
	}
	if text := m.contradicts(p); text != "" && m.split != text {
		m.split = text
		m.event(true, "diverged: %s", text)
	}
}

// contradicts says for people that p's history and this slot's have an epoch of
// one number that began differently; empty: they have none.
func (m *machine) contradicts(p *peer) string {
	epoch, ok := m.v.hist.conflict(p.info.hist)
	if !ok {
		return ""
	}
	return fmt.Sprintf("this slot and the one on %s both have an epoch %d that began differently: two primaries were made independently; "+
		"choose whose branch survives, and run \"slotfs rejoin STORE\" on the other node", m.label(p.slot), epoch)
}

func (m *machine) onNoAnswer(e evNoAnswer) {
	p := m.peer(e.slot)
	p.asking = false
	p.failed = m.now
	p.info.leading = false
	if e.refused {
		p.refused = m.now
	}
}
