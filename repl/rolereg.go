package repl

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"slotfs/meta/op"
)

// What the machine knows of the register, and how it reads and changes it.
//
// Whatever is decided rests on a Get that began after the question arose, and
// on a Swap that the register refuses if the record has moved meanwhile. So an
// answer that comes late can cost an attempt, never a message.

// registry is what the machine knows of the register.
type registry struct {
	failover time.Duration // silence of the primary after which a replica promotes itself
	pause    time.Duration // after an automatic promotion none for this long; doubles
	nonce    func() Nonce  // makes one up

	gets   uint64 // number of the last Get begun
	asking bool   // it has not ended
	again  bool   // another one must begin after it
	floor  uint64 // highest epoch known of when it began
	whose  string // of what floor is the epoch
	seen   uint64 // number of the last Get that was answered
	failed uint64 // number of the last that was not
	asked  time.Time
	swaps  uint64 // number of the last Swap begun

	found   bool
	rec     Record
	at      time.Time // of the last answer; zero: none yet
	err     error     // of the last Get or Swap; nil: it was answered
	trouble string    // why the record cannot be acted upon; empty: it can
	changed time.Time // when another epoch was first seen
	reached time.Time // when the register was last known to answer

	heardPrimary time.Time // when a primary was last known to lead, beside its stream
	heardMember  time.Time // while leading: when another member was last heard

	// So that a flapping network does not make the primary flap.
	auto  uint64        // highest epoch known to have begun by an automatic failover
	moved time.Time     // when that was heard of
	rest  time.Duration // for which there is none after that
}

const (
	maxPause   = 10 * time.Minute
	isolatedIn = 5 * time.Second        // without members and register a primary demotes itself
	swapAgain  = 200 * time.Millisecond // after a Swap without answer
	readAgain  = time.Second            // after a Get without answer
	askBriefly = 300 * time.Millisecond // for which an automatic failover waits for other slots' answers
)

// MarshalText implements encoding.TextMarshaler.
func (n Nonce) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Nonce) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(n) {
		return fmt.Errorf("a nonce of %d characters", len(b))
	}
	_, err := hex.Decode(n[:], b)
	return err
}

// preparation is a slot's durable note that it may join an epoch. What it has
// then, everything committed before that epoch, the note proves later.
type preparation struct {
	Epoch uint64 `json:"epoch"`
	Nonce Nonce  `json:"nonce"` // of the record to come
}

// read asks for a linearizable read that begins now or later, and returns its
// number.
func (m *machine) read() uint64 {
	g := m.reg
	if g.asking {
		g.again = true
		return g.gets + 1
	}
	g.gets++
	g.asking, g.asked = true, m.now
	g.floor, g.whose = m.ownEpoch(), "this slot"
	for _, p := range m.others() {
		if !p.answered.IsZero() && p.info.hasStore && p.info.last.Epoch > g.floor {
			g.floor, g.whose = p.info.last.Epoch, "the slot on "+m.label(p.slot)
		}
	}
	m.do(effGet{g.gets})
	return g.gets
}

// ownEpoch is the highest epoch that this slot has a part of.
func (m *machine) ownEpoch() uint64 {
	e := max(m.v.hist.last().Pos.Epoch, m.v.last.Epoch)
	if m.leading {
		e = max(e, m.epoch)
	}
	return e
}

func (m *machine) onHint() {
	if m.reg != nil {
		m.read()
	}
}

func (m *machine) onRecord(e evRecord) {
	g := m.reg
	if g == nil || !g.asking || e.id != g.gets {
		return
	}
	g.asking = false
	g.err = e.err
	switch {
	case e.err == nil:
		g.seen, g.at, g.reached = e.id, m.now, m.now
		m.observe(e.rec, e.found)
	case errors.Is(e.err, ErrRecord):
		g.failed, g.reached = e.id, m.now
		m.distrust(fmt.Sprintf("%v: see \"slotfs register status\"; \"slotfs register restore\" writes it anew", e.err))
	default:
		g.failed = e.id
	}
	if g.again {
		g.again = false
		m.read()
	}
}

// distrust notes why the record cannot be acted upon; with empty text it can.
func (m *machine) distrust(text string) {
	if m.reg.trouble == text {
		return
	}
	m.reg.trouble = text
	if text != "" {
		m.event(true, "register: %s", text)
	} else {
		m.event(false, "register: the record can be acted upon again")
	}
}

// observe takes in what a Get has read.
func (m *machine) observe(rec Record, found bool) {
	g := m.reg
	if found && g.found && rec.Epoch < g.rec.Epoch && rec.Epoch >= g.floor {
		return // an answer that was overtaken by that to a Swap
	}
	if !found && g.found && g.floor == 0 {
		return // it was read before this slot made the record
	}
	if s := m.pending(); found && s != nil && rec.Nonce == s.next.Nonce {
		m.noteRecord(rec)
		m.won(s)
		return
	}
	m.distrust(m.doubt(rec, found))
	if g.trouble == "" && found {
		m.noteRecord(rec)
	} else {
		g.found, g.rec = found, rec
	}
	if m.leading && found && g.trouble == "" && rec.Epoch > m.epoch {
		m.supersede(rec)
	}
}

// noteRecord remembers a record that is good.
func (m *machine) noteRecord(rec Record) {
	g := m.reg
	if !g.found || rec.Epoch != g.rec.Epoch {
		g.changed = m.now
	}
	g.found, g.rec = true, rec
}

// doubt says what is wrong with a record beside what this slot knows.
func (m *machine) doubt(rec Record, found bool) string {
	own := m.ownEpoch()
	switch {
	case !found && (m.v.hasStore || m.v.adopted) && !m.founded():
		return fmt.Sprintf("it has no record of this store, though this slot holds its history up to epoch %d: the register is another one, or was emptied; "+
			"\"slotfs register restore\" makes the record again", own)
	case !found:
		return ""
	case !m.v.store.IsZero() && rec.Store != m.v.store:
		return fmt.Sprintf("its record is of another store of the same name (store id %s; this one is %s): rename one of them", rec.Store, m.v.store)
	case rec.Epoch < m.reg.floor:
		return fmt.Sprintf("its record is of epoch %d, while %s is in epoch %d: the register was restored from an older state; "+
			"\"slotfs register restore\" sets that right", rec.Epoch, m.reg.whose, m.reg.floor)
	}
	if n, ok := m.nonceOf(rec.Epoch); ok && n != rec.Nonce {
		return fmt.Sprintf("its record says that epoch %d began with nonce %s, this slot's log with %s: two histories with one epoch number; "+
			"\"slotfs register restore\" on the right slot, \"slotfs rejoin\" on the other", rec.Epoch, rec.Nonce, n)
	}
	return ""
}

// nonceOf is the nonce with which epoch began, if this slot knows.
func (m *machine) nonceOf(epoch uint64) (Nonce, bool) {
	if m.leading && epoch == m.epoch {
		return m.nonce, true
	}
	for _, e := range m.v.hist {
		if e.Pos.Epoch == epoch && e.Nonce != (Nonce{}) {
			return e.Nonce, true
		}
	}
	return Nonce{}, false
}

// holds reports whether this slot's durable state proves that it holds all that
// was committed before the record's epoch and belongs to it: its log has the
// epoch's first entry, or it noted that it may join. A disk that was emptied or
// restored has neither.
func (m *machine) holds(rec Record) bool {
	return holds(preparation{rec.Epoch, rec.Nonce}, m.v.hist, m.v.durable, m.v.prepared)
}

// holds is machine.holds for a slot with this history, durable up to durable,
// and these notes.
func holds(of preparation, hist history, durable uint64, noted []preparation) bool {
	for _, e := range hist {
		if e.Pos.Epoch == of.Epoch && e.Pos.Seq <= durable && (e.Nonce == of.Nonce || e.Nonce == Nonce{}) {
			return true
		}
	}
	return slices.Contains(noted, of)
}

// preparing is the round in which every slot of the next set, this one too,
// notes durably that it may join: before the Swap, so that each of them can
// prove its membership whatever happens right after it.
type preparing struct {
	epoch   uint64
	nonce   Nonce
	waiting []op.SlotID
	failed  []op.SlotID
	since   time.Time
}

func (m *machine) prepareAll(epoch uint64, members []op.SlotID, enters op.SlotID) *preparing {
	p := &preparing{epoch: epoch, nonce: m.reg.nonce(), waiting: slices.Clone(members), since: m.now}
	for _, s := range members {
		e := effPrepare{slot: s, epoch: epoch, nonce: p.nonce}
		if s != enters && s != m.self && m.reg.found {
			e.of = preparation{m.reg.rec.Epoch, m.reg.rec.Nonce}
		}
		if s == enters {
			e.mark = m.peer(s).markPos
		}
		m.do(e)
	}
	return p
}

// noted takes in one slot's answer; false if it is not of this round.
func (p *preparing) noted(e evPrepared) bool {
	if p == nil || e.nonce != p.nonce {
		return false
	}
	i := slices.Index(p.waiting, e.slot)
	if i < 0 {
		return true
	}
	p.waiting = slices.Delete(p.waiting, i, i+1)
	if e.err != nil {
		p.failed = append(p.failed, e.slot)
	}
	return true
}

// swapping is one change of the record, from the first attempt until it is
// known who won.
type swapping struct {
	id     uint64
	expect uint64
	next   Record
	flight bool      // an attempt is under way
	again  time.Time // no further attempt before this
	doubt  bool      // an attempt had no answer: it may have happened
}

func (m *machine) swap(s *swapping) {
	m.reg.swaps++
	s.id, s.flight = m.reg.swaps, true
	m.do(effSwap{s.id, s.expect, s.next})
}

// pending is the Swap that is not decided yet, if there is one.
func (m *machine) pending() *swapping {
	switch {
	case m.op != nil && m.op.phase == phaseSwap:
		return m.op.swap
	case m.change != nil:
		return m.change.swap
	}
	return nil
}

// pursue repeats a Swap whose outcome is unknown: only an answer ends it.
func (m *machine) pursue(s *swapping) {
	if !s.flight && !m.now.Before(s.again) {
		m.swap(s)
	}
}

func (m *machine) onSwapped(e evSwapped) {
	s := m.pending()
	if m.reg == nil || s == nil || s.id != e.id {
		return
	}
	s.flight = false
	m.reg.err = e.err
	if e.err != nil {
		s.doubt, s.again = true, m.now.Add(swapAgain)
		return
	}
	m.reg.reached = m.now
	switch {
	case e.won || e.now.Nonce == s.next.Nonce:
		m.noteRecord(s.next)
		m.won(s)
	case e.now.Epoch > s.expect:
		m.lostSwap(s, e.now)
	default:
		// The record is gone, or older than it was: that decides nothing.
		s.again = m.now.Add(readAgain)
		m.read()
	}
}

// won: the record is what this slot proposed.
func (m *machine) won(s *swapping) {
	if m.op != nil && m.op.swap == s {
		m.begin()
		return
	}
	m.begunChange()
}

// lostSwap: the record has left the expected epoch by another hand.
func (m *machine) lostSwap(s *swapping, now Record) {
	m.noteRecord(now)
	m.read() // what it says is judged by a Get
	if m.op != nil && m.op.swap == s {
		m.fail(&refusal{fmt.Sprintf("the register has decided otherwise: %s is primary in epoch %d", m.label(now.Primary), now.Epoch)})
		return
	}
	m.supersede(now)
}

// supersede: the store's epoch is above the one in which this slot leads.
func (m *machine) supersede(rec Record) {
	m.abdicate(fmt.Sprintf("superseded: the register names %s primary in epoch %d, this slot was primary in %d", m.label(rec.Primary), rec.Epoch, m.epoch))
}

// abdicate ends leading: from this moment nothing is acknowledged, and then the
// mount is ended.
func (m *machine) abdicate(reason string) {
	m.event(true, "%s", reason)
	m.change = nil
	if m.op != nil && m.op.kind == opSwitch && m.op.phase == phaseCheck {
		m.finish(&refusal{reason}) // nothing was begun
	}
	m.stepDown(reason, false)
	o := m.op
	switch {
	case o == nil:
		m.setRole(Demoting)
		m.op = &operation{kind: opSupersede, started: m.now, phase: phaseUnmount, reason: reason}
		m.do(effUnmount{reason})
	case o.kind == opPromote && o.phase == phaseBegin:
		m.fail(&refusal{reason})
	case o.kind == opPromote && o.phase == phaseMount:
		o.doomed = reason
	}
	// Otherwise the mount is being ended already.
}
