package repl

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"slotfs/meta/op"
)

// The one path to primary, and the way back.

func (m *machine) onPromote(e evPromote) {
	refuse := func(format string, args ...any) {
		m.do(effReply{e.id, &refusal{fmt.Sprintf(format, args...)}})
	}
	switch {
	case m.v.faulted != "":
		refuse("this slot is faulted (%s): restart the process to recover it first", m.v.faulted)
	case m.role == Primary:
		refuse("this slot already is primary, in epoch %d", m.epoch)
	case m.op != nil && !(m.op.auto && m.op.phase == phaseAsk):
		refuse("busy: %s", m.doing)
	case m.v.restored && m.shared() && !e.opts.Force:
		refuse("%s; promote another slot, or use --force to go on without what may be missing here", restoredText)
	case m.v.resync:
		refuse("this slot is in the middle of a resync: its tree is not complete")
	default:
		reason := "promoted by operator"
		switch {
		case e.opts.handover != "":
			reason = "switched over from " + e.opts.handover
		case e.opts.Force:
			reason = "forced by operator"
		}
		m.op = &operation{id: e.id, kind: opPromote, opts: e.opts, started: m.now, phase: phaseAsk, reason: reason, commits: m.v.committed}
		if m.reg != nil {
			m.op.read = m.read()
		}
		m.askAll()
	}
}

// advance moves the operation on as far as it can go now.
func (m *machine) advance() {
	if m.op.kind == opSwitch {
		m.advanceSwitch()
		return
	}
	if m.reg != nil && m.op.kind == opPromote {
		m.advanceRegister()
		return
	}
	if m.op.kind != opPromote || m.op.phase != phaseAsk {
		return
	}
	m.doing = "asking the other slots before becoming primary"
	for _, p := range m.peers {
		if p.asking {
			return
		}
	}
	if m.contested() {
		return
	}
	if err := m.judge(); err != nil {
		m.finish(err)
		if m.role == Replica {
			m.doing = err.Error()
		}
		return
	}
	m.split = ""
	m.unfollow() // from here on this slot acknowledges nothing to anybody
	m.setRole(Promoting)
	if m.op.from == nil {
		m.begin()
		return
	}
	m.fetchTail()
}

// fetchTail asks the member with the longest tail for it.
func (m *machine) fetchTail() {
	from := m.op.from
	m.op.phase = phaseTail
	m.doing = "fetching the last entries from " + m.label(from.slot)
	m.do(effTail{from.slot})
}

// contested is whether another slot is on its path to primary, too, and will
// yield to this one: each tells its intent when it asks, and at least one of two
// hears of the other's. The one that goes on asks again until the other has
// yielded, so that it cannot be that neither knew.
func (m *machine) contested() bool {
	for _, p := range m.others() {
		if p.answered.Before(m.op.started) || p.info.intent != intentAuto && p.info.intent != intentAsking {
			continue
		}
		if m.yieldsTo(p) {
			m.finish(&refusal{fmt.Sprintf("the slot on %s is becoming primary at this moment", m.label(p.slot))})
			return true
		}
		if m.now.Sub(p.answered) >= askAgain {
			m.ask(p)
		}
		return true
	}
	return false
}

// askAgain is the pause before a peer that has to yield is asked again.
const askAgain = 20 * time.Millisecond

// yieldsTo is whether this slot's attempt gives way to p's: an automatic one to
// an operator's, else the higher slot id to the lower.
func (m *machine) yieldsTo(p *peer) bool {
	if mine := m.intent(); mine != p.info.intent {
		return mine < p.info.intent
	}
	return slices.Compare(m.self[:], p.slot[:]) > 0
}

// intent is what this slot tells others about its path to primary.
func (m *machine) intent() intent {
	switch {
	case m.op == nil || m.op.kind != opPromote:
		return intentNone
	case m.op.phase != phaseAsk:
		return intentBound
	case m.op.auto:
		return intentAuto
	}
	return intentAsking
}

// judge decides whether this slot may become primary, in which epoch, with which
// in-sync set, and from which peer it must first fetch a longer tail.
func (m *machine) judge() error {
	o := m.op
	var reached []*peer
	epoch, last := max(m.v.hist.last().Pos.Epoch, m.v.last.Epoch, m.v.sealed), m.v.hist.last()
	for _, p := range m.others() {
		if p.answered.Before(o.started) {
			if p.info.hasStore && !m.v.hasStore {
				return m.heldBy(p)
			}
			continue
		}
		reached = append(reached, p)
		if err := m.judgePeer(p); err != nil {
			return err
		}
		if h := p.info.hist.last(); h.Pos.Epoch > last.Pos.Epoch {
			last = h
		}
		epoch = max(epoch, p.info.last.Epoch)
	}
	o.epoch = epoch + 1
	if m.v.adopted {
		return &refusal{"this slot belongs to a store that exists already, and is still empty: it cannot become primary before it has been filled"}
	}
	if !m.v.hasStore {
		o.create, o.epoch, o.members, o.reason = true, 1, []op.SlotID{m.self}, "store created by operator"
		return nil
	}
	if err := m.judgeMembers(last, reached); err != nil {
		return err
	}
	o.members = []op.SlotID{m.self}
	for _, p := range reached {
		if last.has(p.slot) && p.info.hasStore {
			m.takeIn(p)
		}
	}
	return nil
}

// takeIn makes p a member of the epoch to come if its log is the beginning of
// what this slot's will be, and the one to fetch from if its tail is the longest.
// Others rejoin later, and cut or resync what is theirs alone.
func (m *machine) takeIn(p *peer) {
	o := m.op
	_, mine, _ := m.v.hist.meet(m.v.last, p.info.hist, p.info.last, false)
	_, its, _ := p.info.hist.meet(p.info.last, m.v.hist, m.v.last, false)
	ahead := its == vStream && p.info.last.Seq > m.v.last.Seq
	if mine == vStream || ahead {
		o.members = append(o.members, p.slot)
	}
	if ahead && (o.from == nil || p.info.last.Seq > o.from.info.last.Seq) {
		o.from = p
	}
}

// heldBy is why an empty slot is not promoted: p holds the store.
func (m *machine) heldBy(p *peer) error {
	return &refusal{fmt.Sprintf("the store exists already: a slot on %s holds it; this empty one cannot become primary before that one has filled it", m.label(p.slot))}
}

// judgePeer looks for a reason in one peer that forbids the promotion.
func (m *machine) judgePeer(p *peer) error {
	switch {
	case p.info.leading:
		return &refusal{fmt.Sprintf("%s is primary, in epoch %d: demote it there first", m.label(p.slot), p.info.last.Epoch)}
	case p.info.intent == intentBound:
		return &refusal{fmt.Sprintf("the slot on %s is becoming primary at this moment", m.label(p.slot))}
	case !m.v.hasStore && p.info.hasStore:
		return m.heldBy(p)
	case m.op.opts.Force || !p.info.hasStore:
		return nil
	}
	if text := m.contradicts(p); text != "" {
		return &refusal{text + "; or use --force"}
	}
	return nil
}

// judgeMembers applies the last known in-sync set.
func (m *machine) judgeMembers(last epochStart, reached []*peer) error {
	if m.op.opts.Force {
		return nil
	}
	if !last.has(m.self) {
		return &refusal{fmt.Sprintf("this slot is not in the in-sync set of epoch %d (%s): it may lack acknowledged mail; "+
			"promote one of those, or use --force to go on without what is missing here", last.Pos.Epoch, m.labels(last.Members))}
	}
	if m.op.opts.OldPrimaryIsDown {
		return nil
	}
	if m.op.auto && last.Primary != m.self {
		return &refusal{fmt.Sprintf("%s was primary in epoch %d, after this slot", m.label(last.Primary), last.Pos.Epoch)}
	}
	var missing []string
	for _, s := range last.Members {
		if s != m.self && !slices.ContainsFunc(reached, func(p *peer) bool { return p.slot == s }) {
			text := m.label(s)
			if s == last.Primary {
				text += " (the primary of epoch " + fmt.Sprint(last.Pos.Epoch) + ")"
			}
			missing = append(missing, text)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	who := strings.Join(missing, ", ")
	if m.op.auto {
		return &refusal{fmt.Sprintf("waiting for %s to be reachable before resuming as primary (or \"slotfs promote --old-primary-is-down\")", who)}
	}
	return &refusal{fmt.Sprintf("%s cannot be reached and may be serving alone; %s. Make sure that it is down and stays down, "+
		"then repeat with --old-primary-is-down", who, m.lastHeard())}
}

// lastHeard says when the primary was last heard.
func (m *machine) lastHeard() string {
	if m.v.heard.IsZero() {
		return "this slot has not heard a primary"
	}
	if m.v.heard.Before(m.booted) {
		return fmt.Sprintf("this slot has not heard a primary since its start %v ago; before that it heard %s, at least until %s",
			m.now.Sub(m.booted).Round(time.Second), m.v.heardFrom, m.v.heard.UTC().Format(time.DateTime))
	}
	return fmt.Sprintf("this slot last heard the primary (%s) %v ago, at %s",
		m.v.heardFrom, m.now.Sub(m.v.heard).Round(100*time.Millisecond), m.v.heard.UTC().Format(time.DateTime))
}

func (m *machine) onTail(e evTail) {
	if m.op == nil || m.op.phase != phaseTail {
		return
	}
	switch {
	case m.reg != nil && e.err != nil:
		m.withoutTail(e)
	case m.reg != nil:
		m.prepareEpoch()
	case e.err != nil:
		m.fail(fmt.Errorf("fetch the last entries from %s: %w", m.label(e.slot), e.err))
	default:
		m.begin()
	}
}

// begin starts the epoch.
func (m *machine) begin() {
	o := m.op
	o.phase = phaseBegin
	m.epoch, m.members, m.leading, m.since = o.epoch, o.members, true, m.now
	begin := effBegin{epoch: o.epoch, members: o.members, reason: o.reason, create: o.create}
	if m.reg != nil {
		begin.nonce, begin.store = o.swap.next.Nonce, o.store
		m.nonce = begin.nonce
		if o.auto && !strings.HasPrefix(o.reason, "resumed") {
			m.tookOver = o.epoch
			m.automatic(o.epoch, 0)
		}
	}
	for _, p := range m.peers {
		// Members get the time to find out who is primary.
		p.joined, p.left, p.refused = false, m.now.Add(m.timeout), time.Time{}
		p.entry, p.again, p.backoff = entryNone, time.Time{}, 0
		p.acks = acks{} // what was heard when this slot led before means nothing
	}
	m.doing = fmt.Sprintf("beginning epoch %d", m.epoch)
	m.do(begin)
	m.askAll() // tells them, too
}

// onReady: the EpochBegin is applied.
func (m *machine) onReady(e evReady) {
	if m.op == nil || m.op.phase != phaseBegin || m.op.epoch != e.epoch {
		return
	}
	if e.err != nil {
		m.stepDown("begin of epoch failed", false)
		m.fail(fmt.Errorf("begin epoch %d: %w", m.op.epoch, e.err))
		return
	}
	m.op.phase = phaseMount
	m.doing = "mounting"
	m.do(effMount{m.epoch})
}

func (m *machine) onMounted(e evMounted) {
	if m.op == nil || m.op.phase != phaseMount {
		return
	}
	if m.op.doomed != "" && e.err == nil {
		// It was superseded meanwhile.
		reason := m.op.doomed
		m.finish(&refusal{reason})
		m.setRole(Demoting)
		m.op = &operation{kind: opSupersede, started: m.now, phase: phaseUnmount, reason: reason}
		m.do(effUnmount{reason})
		return
	}
	if e.err != nil {
		m.stepDown("mount failed", true)
		m.fail(fmt.Errorf("mount: %w", e.err))
		return
	}
	m.setRole(Primary)
	m.event(false, "primary in epoch %d (%s); in-sync set: %s", m.epoch, m.op.reason, m.labels(m.members))
	m.finish(nil)
}

// fail ends the operation and goes back to being a replica.
func (m *machine) fail(err error) {
	m.setRole(Replica)
	if text := err.Error(); !m.op.auto || m.said != text {
		m.event(true, "did not become primary: %v", err)
		if m.op.auto {
			m.said = text // it will be tried again
		}
	}
	m.retry = m.now.Add(retryFollow)
	m.resumes = m.now.Add(probeEvery)
	m.op.auto = false // said already
	m.finish(err)
}

// stepDown ends leading. byOperator: this slot shall not resume by itself.
func (m *machine) stepDown(reason string, byOperator bool) {
	m.leading = false
	m.changes = false
	m.change = nil
	for _, p := range m.peers {
		p.joined, p.entry = false, entryNone
	}
	if byOperator {
		m.v.demoted = m.v.last.Epoch // as effStepDown notes; think runs before that
	}
	m.do(effStepDown{reason: reason, keepDown: byOperator})
	if byOperator {
		m.v.demoted = m.epoch
	}
}

func (m *machine) onDemote(e evDemote) {
	switch {
	case m.op != nil && m.op.kind == opPromote && m.op.phase == phaseBegin:
		// It may be waiting for a member that has gone, for ever if it must not
		// be dropped.
		m.stepDown(e.reason, !e.stopping)
		m.fail(&refusal{"demoted before its epoch had begun"})
		m.do(effReply{e.id, nil})
	case m.op != nil:
		m.do(effReply{e.id, &refusal{"busy: " + m.doing}})
	case m.role != Primary:
		m.do(effReply{e.id, &refusal{"this slot is not primary"}})
	default:
		m.op = &operation{id: e.id, kind: opDemote, started: m.now, phase: phaseUnmount, reason: e.reason, auto: e.stopping}
		m.setRole(Demoting)
		m.doing = "unmounting"
		m.do(effUnmount{e.reason})
	}
}

func (m *machine) onUnmounted(e evUnmounted) {
	o := m.op
	if o == nil || o.phase != phaseUnmount {
		return
	}
	if e.err != nil {
		m.event(true, "unmount: %v", e.err)
	}
	if o.kind == opSupersede {
		m.setRole(Replica)
		m.retry = time.Time{}
		m.finish(nil)
		return
	}
	if !m.leading && m.reg != nil {
		// It stopped leading meanwhile: nothing can be committed any more.
		m.setRole(Replica)
		var err error
		if o.kind == opSwitch {
			err = &refusal{"this slot was superseded during the switchover"}
		}
		m.finish(err)
		return
	}
	o.phase = phaseDrain
	m.doing = "committing what was accepted"
	m.do(effDrain{})
}

func (m *machine) onDrained(e evDrained) {
	if m.op == nil || m.op.phase != phaseDrain {
		return
	}
	if m.op.kind == opSwitch {
		m.drainedSwitch(e.err)
		return
	}
	if e.err != nil {
		m.event(true, "demoted with uncommitted entries: %v", e.err)
	}
	stopping := m.op.auto
	m.stepDown(m.op.reason, !stopping)
	m.setRole(Replica)
	m.op.auto = false
	m.event(false, "demoted: %s", m.op.reason)
	// The role has changed even if not all could be committed: what is left is
	// in the log, and whoever is promoted next fetches it.
	m.finish(nil)
}
