package repl

import (
	"fmt"
	"slices"
	"time"

	"slotfs/meta/op"
)

// Changes of the in-sync set by a primary with a register. In this order:
//
//  1. Get: the register answers, and the record is still this slot's epoch.
//  2. Every slot of the next set notes durably that it may join.
//  3. Swap. Until its outcome is known, commits wait for the old set and, if
//     one enters, for that slot, too.
//  4. EpochBegin; when it is durable here commits wait for the new set alone.
//
// Up to the Swap a change is given up when its reason has gone; from then on
// only the register ends it.

// change is a change of the in-sync set on its way.
type change struct {
	members []op.SlotID
	reason  string
	alert   bool
	wanted  func() bool // whether the reason still holds
	enters  *peer       // who gets in; nil: nobody
	read    uint64      // number of the Get that it waits for
	again   time.Time   // no other Get before this
	prepare *preparing
	swap    *swapping
	told    bool // that it waits for the register
}

// leadRegister is lead with a register.
func (m *machine) leadRegister() {
	if m.op == nil {
		m.doing = ""
	}
	m.watchOut()
	if !m.leading || m.changes {
		return
	}
	lost := m.hangUpLost()
	if m.change != nil {
		m.advanceChange()
		return
	}
	if len(lost) > 0 {
		m.dropAll(lost)
		return
	}
	for _, p := range m.others() {
		if m.isMember(p.slot) && p.info.Sealed >= m.epoch && !p.answered.IsZero() {
			m.renew(p)
			return
		}
	}
	for _, p := range m.others() {
		if m.reenter(p) {
			return
		}
	}
}

// hangUpLost ends the streams of replicas that are lost, and returns those of
// them that are to be dropped from the set.
func (m *machine) hangUpLost() (drop []*peer) {
	for _, p := range m.others() {
		p.why = m.lost(p)
		if p.why == "" {
			continue
		}
		m.hangUp(p, p.why)
		if m.isMember(p.slot) && (!m.stop || p.wentBack) {
			drop = append(drop, p)
		}
	}
	return drop
}

func (m *machine) startChange(c *change) {
	c.read = m.read()
	m.change = c
}

// dropAll leaves the lost ones behind.
func (m *machine) dropAll(lost []*peer) {
	c := &change{alert: true, wanted: func() bool {
		return !slices.ContainsFunc(lost, func(p *peer) bool { return m.lost(p) == "" })
	}}
	c.members = slices.DeleteFunc(slices.Clone(m.members), func(s op.SlotID) bool {
		return slices.ContainsFunc(lost, func(p *peer) bool { return p.slot == s })
	})
	for _, p := range lost {
		if c.reason != "" {
			c.reason += "; "
		}
		c.reason += fmt.Sprintf("replica on %s lost: %s", m.label(p.slot), p.why)
	}
	m.startChange(c)
}

// renew begins an epoch with the same set: p has sealed off this one, because
// it was about to become primary, and can take nothing of it any more.
func (m *machine) renew(p *peer) {
	m.startChange(&change{
		members: slices.Clone(m.members), reason: fmt.Sprintf("the slot on %s had sealed off epoch %d", m.label(p.slot), m.epoch),
		wanted: func() bool { return m.isMember(p.slot) && p.info.Sealed >= m.epoch },
	})
}

// enter takes p into the set.
func (m *machine) enter(p *peer) {
	m.startChange(&change{
		members: append(slices.Clone(m.members), p.slot), reason: fmt.Sprintf("replica on %s caught up", m.label(p.slot)), enters: p,
		wanted: func() bool { return p.joined && p.entry != entryNone && m.now.Sub(p.entryAt) <= 2*m.timeout },
	})
}

// advanceChange moves the change on as far as it can go now.
func (m *machine) advanceChange() {
	c, g := m.change, m.reg
	if c.swap != nil {
		m.pursue(c.swap)
		return
	}
	if !c.wanted() {
		m.cancelChange()
		return
	}
	if c.prepare != nil {
		m.changePrepared()
		return
	}
	if c.told && m.op == nil {
		m.doing = c.reason + "; changes wait for the register"
	}
	if g.failed >= c.read || g.seen >= c.read && g.trouble != "" {
		if !c.told {
			c.told = true
			m.event(c.alert, "%s; that waits for the register, %s", c.reason, m.registerIs())
			c.again = m.now.Add(readAgain / 2)
		}
		if !m.now.Before(c.again) {
			c.again = m.now.Add(readAgain)
			c.read = m.read()
		}
		return
	}
	if g.seen >= c.read && g.rec.Epoch == m.epoch {
		var enters op.SlotID
		if c.enters != nil {
			enters = c.enters.slot
		}
		c.prepare = m.prepareAll(m.epoch+1, c.members, enters)
	}
}

// registerIs says in words what is wrong with the register.
func (m *machine) registerIs() string {
	if m.reg.trouble != "" {
		return "whose record cannot be acted upon: " + m.reg.trouble
	}
	return fmt.Sprintf("which does not answer (%v)", m.reg.err)
}

// cancelChange gives up a change that the register has not been asked for.
func (m *machine) cancelChange() {
	p := m.change.enters
	m.change = nil
	if p == nil || p.entry == entryNone {
		return
	}
	m.tooSlow(p)
}

// changePrepared goes on when every slot of the next set has noted it. One that
// has not is lost, too.
func (m *machine) changePrepared() {
	c := m.change
	p := c.prepare
	if len(p.waiting) > 0 && m.now.Sub(p.since) <= m.timeout {
		return
	}
	failed := append(slices.Clone(p.failed), p.waiting...)
	if len(failed) == 0 {
		c.swap = &swapping{expect: m.epoch, next: m.record(m.epoch+1, c.members, m.v.store, p.nonce, c.reason)}
		m.swap(c.swap)
		return
	}
	if c.enters != nil || m.stop || slices.Contains(failed, m.self) {
		if c.enters != nil {
			m.cancelChange()
			return
		}
		c.prepare, c.read = nil, m.read()
		return
	}
	m.change = nil
	for _, s := range failed {
		p := m.peer(s)
		p.gone = "it did not note the next epoch"
		m.hangUp(p, p.gone)
	}
}

// begunChange: the record is changed; the epoch begins.
func (m *machine) begunChange() {
	c := m.change
	m.change = nil
	n := c.swap.next
	m.epoch, m.members, m.nonce, m.changes = n.Epoch, c.members, n.Nonce, true
	for _, p := range m.peers {
		p.wentBack = false
		if p == c.enters && p.entry != entryNone {
			p.entry = entryBegin
		}
	}
	m.do(effChange{epoch: n.Epoch, members: c.members, peers: m.needed(), reason: c.reason, nonce: n.Nonce})
	if c.alert {
		m.tellLost(c.reason, len(c.members))
	}
}

// watchOut is a primary's watch for a successor, and for being cut off.
func (m *machine) watchOut() {
	g := m.reg
	if m.v.reach.OK() {
		g.reached = m.now
	}
	absent := false
	for _, p := range m.others() {
		switch {
		case p.joined && m.now.Sub(p.acks.heard) < isolatedIn && m.isMember(p.slot):
			g.heardMember = latest(g.heardMember, p.acks.heard)
		case m.isMember(p.slot):
			absent = true
			g.heardMember = latest(g.heardMember, p.answered)
		}
		if m.giveWay(p) {
			return
		}
	}
	if absent && m.now.Sub(m.probed) >= 2*probeEvery {
		m.probed = m.now
		for _, p := range m.others() {
			if !p.joined && (p.alive || m.isMember(p.slot)) {
				m.ask(p)
			}
		}
		if m.change == nil {
			m.read()
		}
	}
	if m.role != Primary || m.op != nil || len(m.members) < 2 {
		return
	}
	if alone := m.now.Sub(latest(g.reached, g.heardMember, m.pardon, m.since)); alone >= isolatedIn {
		m.abdicate(fmt.Sprintf("isolated: neither another member nor the register was heard for %v; what this mount shows could be old", alone.Round(time.Millisecond)))
	}
}
