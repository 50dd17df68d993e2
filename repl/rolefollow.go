package repl

import (
	"fmt"
	"time"

	"slotfs/meta/op"
)

// What a replica does: follow the primary, or look for it, or resume.

const (
	retryJoined   = 100 * time.Millisecond // after a stream that had run
	retryFollow   = 300 * time.Millisecond // after a stream ended
	retryRefused  = 2 * time.Second        // after a refusal, which seldom changes soon
	retryDiverged = 10 * time.Second
)

// primary is whom to follow: the leading peer with the highest epoch.
func (m *machine) primary() *peer {
	var best *peer
	for _, p := range m.others() {
		if !p.info.leading || !p.info.hasStore {
			continue
		}
		if best == nil || p.info.last.Epoch > best.info.last.Epoch {
			best = p
		}
	}
	return best
}

func (m *machine) follow() {
	if m.reg != nil {
		m.doing = ""
		if m.elect(); m.op != nil {
			return
		}
	}
	best := m.primary()
	if !m.target.IsZero() {
		if best == nil || best.slot == m.target || best.info.last.Epoch <= m.peer(m.target).info.last.Epoch {
			m.doing = ""
			return
		}
		m.do(effUnfollow{}) // a newer primary; its end is an event
		return
	}
	if best != nil {
		m.said = ""
		m.doing = "following " + m.label(best.slot)
		if m.split != "" {
			m.doing = "diverged"
		}
		m.followBest(best)
		return
	}
	if m.now.Sub(m.probed) >= probeEvery {
		m.askAll()
	}
	switch {
	case m.reg != nil && m.doing != "":
	case m.said != "" && (m.reg != nil || m.v.hist.last().Primary == m.self):
		m.doing = m.said
	default:
		m.doing = "looking for the primary"
	}
	if !m.v.hasStore {
		m.doing = "waiting for the primary to fill this slot, or for \"slotfs promote\" to create the store"
	}
	if m.v.bereft != "" {
		m.doing = m.v.bereft + "; waiting for another slot to refill this one"
	} else if m.reg == nil {
		m.resume()
	}
}

// followBest begins to follow best, unless it is too early, or somebody is
// followed.
func (m *machine) followBest(best *peer) {
	if !m.target.IsZero() || m.now.Before(m.retry) {
		return
	}
	m.target = best.slot
	m.session++
	m.do(effFollow{best.slot, m.session})
}

// unfollow ends following, if anybody is followed; its end is no event then.
func (m *machine) unfollow() {
	if m.target.IsZero() {
		return
	}
	m.do(effUnfollow{})
	m.target = op.SlotID{}
}

func (m *machine) onFollowEnded(e evFollowEnded) {
	if e.session != m.session || m.target.IsZero() {
		return
	}
	m.target = op.SlotID{}
	wait := retryFollow
	p := m.peer(e.slot)
	switch {
	case e.stale:
		// It is no longer what it was: ask anew.
		p.info.leading = false
		m.ask(p)
	case e.diverged != "":
		wait = retryDiverged
		if m.split != e.diverged {
			m.split = e.diverged
			m.event(true, "diverged: %s", e.diverged)
		}
	case e.unreachable:
		p.info.leading = false
		p.failed = m.now
		if e.nobody {
			p.refused = m.now
		}
	case e.refused:
		wait = retryRefused
	}
	if e.joined {
		m.split, wait = "", retryJoined
	}
	if !e.again {
		m.retry = m.now.Add(wait)
	}
	if m.reg != nil && !e.stale && !e.again {
		m.ask(p) // it may have ended, or be faulted
	}
}

// resume is the boot rule: a slot whose own last epoch names it primary becomes
// primary again by itself if it is alone in the in-sync set, or if every other
// member can be reached and none knows of a later epoch.
func (m *machine) resume() {
	last := m.v.hist.last()
	if m.ending || m.now.Before(m.resumes) || !m.v.hasStore || last.Primary != m.self || m.v.demoted >= last.Pos.Epoch || m.v.yield || m.v.resync || m.split != "" {
		return
	}
	if m.v.restored && m.shared() {
		m.doing = restoredText
		return
	}
	if m.v.drained {
		m.doing = "drained: this slot was primary last, and does not resume by itself (\"slotfs undrain NODE\", or \"slotfs promote STORE\")"
		return
	}
	// Give gossip a moment to name peers that once were members, so that one
	// that was promoted meanwhile is heard of. A slot that always was alone need
	// not wait.
	if m.now.Sub(m.booted) < m.timeout && !m.formerMembersAsked() {
		m.doing = "waiting for peers before resuming as primary"
		return
	}
	m.op = &operation{kind: opPromote, auto: true, started: m.now, phase: phaseAsk, reason: "resumed after a start"}
	m.askAll()
}

// formerMembersAsked is whether every slot that ever was in the in-sync set, as
// far as the history goes, has answered since the start, or failed to.
func (m *machine) formerMembersAsked() bool {
	for _, e := range m.v.hist {
		for _, s := range e.Members {
			if p := m.peers[s]; s != m.self && (p == nil || p.answered.Before(m.booted) && p.failed.Before(m.booted)) {
				return false
			}
		}
	}
	return true
}

// onRejoin is the operator's choice after a split: this slot's branch goes.
func (m *machine) onRejoin(e evRejoin) {
	switch {
	case !e.giveUp:
		m.do(effReply{e.id, &refusal{"nothing to do here: to keep this slot's branch, run \"slotfs rejoin STORE\" on the other node"}})
	case m.op != nil:
		m.do(effReply{e.id, &refusal{"busy: " + m.doing}})
	case m.leading || m.role != Replica:
		m.do(effReply{e.id, &refusal{"this slot is primary: run \"slotfs demote\" first, then give up its branch"}})
	case !m.v.hasStore:
		m.do(effReply{e.id, &refusal{"this slot has no store yet: it has nothing to give up"}})
	default:
		m.split = ""
		m.v.yield = true
		m.retry = time.Time{}
		m.do(effNote{yield: true})
		m.event(false, "the operator gave up this slot's branch at %s: it is kept in rescue/, and this slot follows the primary", m.v.last)
		m.do(effReply{e.id, nil})
		m.askAll()
	}
}

// superseded is whether a peer holds a later history that ours is a part of.
func (m *machine) superseded(p *peer) bool {
	if !p.info.hasStore || p.info.hist.last().Pos.Epoch <= m.epoch {
		return false
	}
	if _, ok := m.v.hist.conflict(p.info.hist); ok {
		return false
	}
	return p.info.hist.extends(m.v.hist)
}

// look is a primary's watch for a successor: somebody who was promoted while
// this slot could not be reached.
func (m *machine) look() {
	if m.reg != nil {
		return // see watchOut
	}
	if m.now.Sub(m.probed) >= 2*probeEvery {
		m.probed = m.now
		for _, p := range m.others() {
			if !p.joined && p.alive {
				m.ask(p)
			}
		}
	}
	for _, p := range m.others() {
		if m.giveWay(p) {
			return
		}
	}
}

// giveWay ends leading if p is its successor.
func (m *machine) giveWay(p *peer) bool {
	if p.answered.IsZero() || !m.superseded(p) {
		return false
	}
	m.abdicate(fmt.Sprintf("superseded: %s is in epoch %d, this slot was primary in %d", m.label(p.slot), p.info.last.Epoch, m.epoch))
	return true
}

func (m *machine) setRole(r Role) {
	m.role = r
	m.do(effRole{r})
}
