package repl

import (
	"fmt"
	"slices"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// By what a slot is judged that wants to become primary, with a register.

// judgeRecord decides by the record whether this slot may become primary, and
// with which in-sync set.
func (m *machine) judgeRecord() error {
	o, g := m.op, m.reg
	rec := g.rec
	if g.trouble != "" {
		return &refusal{"register: " + g.trouble}
	}
	var reached []*peer
	for _, p := range m.others() {
		if p.answered.Before(o.started) || p.failed.After(p.answered) {
			continue
		}
		reached = append(reached, p)
		if err := m.judgeReached(p); err != nil {
			return err
		}
	}
	o.expect, o.epoch = 0, 1
	if !g.found {
		return m.judgeCreation(reached)
	}
	o.expect, o.epoch, o.store = rec.Epoch, rec.Epoch+1, m.v.store
	if err := m.judgeSelf(); err != nil {
		return err
	}
	if err := m.judgeAge(reached); err != nil {
		return err
	}
	o.members = []op.SlotID{m.self}
	for _, p := range reached {
		if !rec.Has(p.slot) || !p.info.hasStore || p.info.leading || p.info.Unfit == unfitFaulted || p.info.last.Seq < o.commits {
			// The last: it had acknowledged more once, so its disk has gone back.
			continue
		}
		m.takeIn(p)
	}
	return nil
}

// judgeReached looks for a reason in another slot that forbids the promotion.
func (m *machine) judgeReached(p *peer) error {
	g := m.reg
	if p.info.leading && (!g.found || p.info.last.Epoch >= g.rec.Epoch) {
		return &refusal{fmt.Sprintf("%s is primary, in epoch %d: to move the store run \"slotfs switch\"", m.label(p.slot), p.info.last.Epoch)}
	}
	if !p.info.hasStore || m.op.opts.Force {
		return nil
	}
	if text := m.contradicts(p); text != "" {
		return &refusal{text + "; or use --force"}
	}
	return nil
}

// judgeCreation: there is no record, and this slot is empty, or was just adopted.
func (m *machine) judgeCreation(reached []*peer) error {
	o := m.op
	if m.local {
		return &refusal{"this slot's durability is \"local\": it is never in the in-sync set; create the store on another one"}
	}
	for _, p := range m.others() {
		if p.info.hasStore {
			return &refusal{fmt.Sprintf("the store exists already: a slot on %s holds it, though the register has no record of it; this empty one cannot become primary", m.label(p.slot))}
		}
	}
	o.members = []op.SlotID{m.self}
	if m.founded() {
		o.epoch, o.store = m.v.last.Epoch+1, m.v.store
		return nil
	}
	o.create, o.reason = true, "store created by operator"
	o.store = meta.StoreID(m.reg.nonce())
	return nil
}

// founded is whether this slot has just been adopted, and never led: it holds the
// store's whole history, and that is one entry, the beginning of its first epoch,
// after the objects that were there (a store that was not adopted begins with seq
// 1). Nobody else can have heard of the store, so that there is no record says
// nothing against this slot: it makes the record.
func (m *machine) founded() bool {
	h := m.v.hist
	return len(h) == 1 && h[0].Pos == m.v.last && h[0].Pos.Seq > 1 && h[0].Pos.Epoch == 1 &&
		h[0].Primary == m.self && len(h[0].Members) == 1 && h[0].has(m.self) && !m.v.restored
}

// judgeSelf: what the record and this slot's own durable state say of it.
func (m *machine) judgeSelf() error {
	o, rec := m.op, m.reg.rec
	switch {
	case m.v.adopted:
		return &refusal{"this slot belongs to a store that exists already, and is still empty: it cannot become primary before it has been filled"}
	case m.unborn():
		o.create, o.store = true, rec.Store
	case !m.v.hasStore:
		return &refusal{fmt.Sprintf("the store exists already: the register names %s its primary in epoch %d; this empty slot cannot become primary before that one has filled it",
			m.label(rec.Primary), rec.Epoch)}
	case o.opts.Force:
		return m.judgeForce()
	case m.local:
		return &refusal{"this slot's durability is \"local\": it may lack acknowledged mail, and is promoted by --force only"}
	case !rec.Has(m.self):
		return &refusal{fmt.Sprintf("this slot is not in the in-sync set of epoch %d (%s): it may lack acknowledged mail; "+
			"promote one of those, or use --force to go on without what is missing here", rec.Epoch, m.labels(rec.InSync))}
	case !m.holds(rec):
		return &refusal{fmt.Sprintf("the register has this slot in the in-sync set of epoch %d, but neither the beginning of that epoch nor a note about it is on its disk: "+
			"the disk was emptied, or restored from an older state; it may lack acknowledged mail", rec.Epoch)}
	}
	return nil
}

// staleAfter is how old the last sign of life on a slot's disk may be at its
// start for it to become primary by itself without having heard the others.
const staleAfter = 6 * time.Hour

// longAway is whether this slot's disk was without a sign of life for long before
// its start, and no primary has been heard since.
func (m *machine) longAway() bool {
	return m.v.asleep >= staleAfter && m.v.heardAt.IsZero() && m.reg.heardPrimary.IsZero()
}

// judgeAge: a disk that was restored from a backup of the present epoch looks
// like one whose node was off. Who has been away for long does not become
// primary by itself before the others of the set have answered. The wall clock
// decides here, but only that an operator is asked.
func (m *machine) judgeAge(reached []*peer) error {
	o, rec := m.op, m.reg.rec
	if !o.auto || !m.longAway() {
		return nil
	}
	for _, s := range rec.InSync {
		if s != m.self && !slices.ContainsFunc(reached, func(p *peer) bool { return p.slot == s }) {
			return &refusal{fmt.Sprintf("the last sign of life on this slot's disk was %v older than its start, and %s, in sync with it, does not answer: "+
				"if the disk was restored from a backup, acknowledged mail is missing here; bring %s back, or run \"slotfs promote\"",
				m.v.asleep.Round(time.Minute), m.label(s), m.label(s))}
		}
	}
	return nil
}

// unborn is whether this slot created the store in the register, and stopped
// before the first entry was in its log: nobody can have written anything yet.
func (m *machine) unborn() bool {
	rec := m.reg.rec
	return m.reg.found && !m.v.hasStore && !m.v.adopted && len(m.v.hist) == 0 && len(rec.InSync) == 1 && rec.Has(m.self) && m.holds(rec)
}

// judgeForce: with --force this slot may lack acknowledged mail. A primary that
// is the only member of its set is fenced by nobody but the operator.
func (m *machine) judgeForce() error {
	o, rec := m.op, m.reg.rec
	if rec.Has(m.self) && m.holds(rec) || o.opts.OldPrimaryIsDown {
		return nil
	}
	for _, s := range rec.InSync {
		p := m.peers[s]
		if s == m.self || p != nil && !p.answered.Before(o.started) {
			continue
		}
		return &refusal{fmt.Sprintf("%s cannot be reached and may be serving alone; %s. Make sure that it is down and stays down, "+
			"then repeat with --old-primary-is-down", m.label(s), m.lastHeard())}
	}
	return nil
}

// barred says for people why this slot would not become primary now.
func (m *machine) barred() string {
	if m.reg == nil || m.leading {
		return ""
	}
	if why := m.unfit(); why != "" {
		return why
	}
	g := m.reg
	switch {
	case g.trouble != "":
		return "register: " + g.trouble
	case !m.v.hasStore:
		return "it is empty"
	case g.at.IsZero():
		return "the register has not answered yet"
	case !g.found && !m.founded():
		return "the register has no record of the store"
	case !g.found:
		return ""
	case !g.rec.Has(m.self):
		return fmt.Sprintf("it is not in the in-sync set of epoch %d", g.rec.Epoch)
	case !m.holds(g.rec):
		return fmt.Sprintf("it cannot prove that it belongs to epoch %d", g.rec.Epoch)
	}
	return ""
}
