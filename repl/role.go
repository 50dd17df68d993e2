package repl

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// machine decides what a slot does for its store. It is pure: it has no clock,
// goroutine or socket. The driver (Member) calls step with the time, what is
// true of the slot, and one event; it carries out the effects in order and
// reports what came of them as further events.
type machine struct {
	self    op.SlotID
	name    func(op.SlotID) string // for messages: the slot's node
	timeout time.Duration          // silence after which a peer is lost
	stop    bool                   // on_replica_loss = "stop": never drop one
	reg     *registry              // what is known of the register; nil: register mode none

	now      time.Time
	v        view
	role     Role
	leading  bool      // the log leads: from the epoch's begin until the step down
	since    time.Time // when that began
	nonce    Nonce     // of the epoch, with a register
	change   *change   // of the in-sync set, with a register, until it is decided
	local    bool      // durability = "local"
	tookOver uint64    // last epoch that it began by an automatic failover
	epoch    uint64    // while leading: the epoch; may be ahead of v.hist for a moment
	members  []op.SlotID
	peers    map[op.SlotID]*peer
	op       *operation // what an operator, or the boot rule, asked for
	target   op.SlotID  // while following: whom
	session  uint64     // number of the last effFollow
	retry    time.Time  // no attempt to follow before this
	resumes  time.Time  // no attempt to resume before this
	said     string     // why the last attempt to resume failed
	probed   time.Time  // when all peers were asked last
	booted   time.Time
	pardon   time.Time // nobody's silence before this counts
	doing    string
	split    string // diverged: why; empty if not
	changes  bool   // an EpochBegin of ours is on its way to the disk
	ending   bool   // the process ends: take no role any more
	// owesRequire: the log is to be told anew for whom commits wait, afterwards.
	owesRequire bool
	refilling   bool // it has left everything, to be refilled

	fx []effect
}

// view is what the driver knows of its own slot at the time of an event.
type view struct {
	last      op.Pos
	hist      history
	sealed    uint64
	durable   uint64
	committed uint64
	applied   uint64
	hasStore  bool // its log is not empty
	store     meta.StoreID
	prepared  []preparation // epochs that it durably noted it may join
	adopted   bool          // it is empty, but known to belong to a store
	demoted   uint64        // epoch that an operator ended here
	yield     bool
	resync    bool // a resync is unfinished, or its control files are ahead of the log
	restored  bool // its data directory is a copy, and has not caught up since
	drained   bool // it is not to become primary by itself
	faulted   string
	bereft    string    // why it has to be refilled before it is of any use
	heard     time.Time // when a primary was last heard; by the wall clock, for people
	heardFrom string
	heardAt   time.Time     // the same since the start, monotonic; zero: not since
	reach     Reach         // of the register
	asleep    time.Duration // between the last sign of life on its disk and its start; by the wall clock
}

// peer is another slot of the store.
type peer struct {
	slot  op.SlotID
	node  string
	alive bool // says gossip
	info  answer
	// When info was proven by the peer itself; zero: gossip only.
	answered time.Time
	heardOf  time.Time // last answer or poke
	failed   time.Time // last question without answer
	refused  time.Time // last refused connection: no process there
	asking   bool

	// Of a replica that streams from us.
	joined   bool
	conn     uint64 // number of the connection
	local    bool
	left     time.Time // when it was last seen to go, or we began to lead
	acks     acks
	targetAt time.Time // since when acks.durable is below target without progress
	target   uint64
	entry    entryStage
	entryAt  time.Time
	mark     uint64    // entryRequired: what must be durable there
	markPos  op.Pos    // the same
	again    time.Time // no new attempt at re-entry before this
	backoff  time.Duration
	why      string // why it is lost; empty if it is not
	gone     string // why it is lost whatever it says, until it connects anew
	wentBack bool   // it lacks what it had acknowledged
}

// acks is what a replica last said, and when.
type acks struct {
	received, durable, applied uint64
	heard                      time.Time
}

// answer is what a slot says about itself.
type answer struct {
	hasStore bool
	leading  bool
	intent   intent
	yield    bool // it gives its branch up
	Condition
	last op.Pos
	hist history
}

// intent is how far a slot is on its path to primary.
type intent uint8

const (
	intentNone   intent = iota
	intentAuto          // asking others before it resumes by itself
	intentAsking        // asking others because an operator wants it
	intentBound         // past asking
)

// entryStage is how far a replica is on the way into the in-sync set.
type entryStage uint8

const (
	entryNone     entryStage = iota // follows
	entryRequired                   // barriers wait for it too
	entryPrepared                   // asked to note that it may join the next epoch
	entryBegin                      // its EpochBegin is on the way
)

// The order of re-entry starts when a replica is at most this far behind.
const (
	windowEntries = 1024
	retryEntry    = 2 * time.Second // after a failed re-entry; doubles
	maxRetryEntry = time.Minute
	probeEvery    = time.Second
)

// operation is a change of role that takes several steps.
type operation struct {
	id      uint64 // of the caller who waits; 0: nobody
	kind    opKind
	auto    bool // resuming at boot: no operator's word
	opts    PromoteOptions
	reason  string
	started time.Time
	phase   opPhase
	epoch   uint64 // of the epoch that it begins
	members []op.SlotID
	create  bool
	from    *peer // whose tail is to be fetched; may be nil

	// With a register only.
	read    uint64       // number of the Get that it waits for, or has seen
	expect  uint64       // epoch of the record that it was judged by; 0: there is none
	commits uint64       // what was committed here when the others were asked
	prepare *preparing   // who has yet to note the epoch
	swap    *swapping    // the register's word
	store   meta.StoreID // of the store
	doomed  string       // while mounting: why the mount must end again

	// Of a switchover.
	successor *peer
	failed    error // why it failed; then this slot becomes primary again
}

type opKind uint8

const (
	opPromote opKind = iota + 1
	opDemote
	opSupersede
	opSwitch
)

type opPhase uint8

const (
	phaseAsk      opPhase = iota + 1 // peers are being asked
	phaseSeal                        // sealing off the record's epoch
	phaseTail                        // a member's longer tail is being fetched
	phasePrepare                     // the next set notes that it may join
	phaseSwap                        // the register decides
	phaseBegin                       // EpochBegin appended; waiting until it is applied
	phaseMount                       // mounting
	phaseUnmount                     // unmounting
	phaseDrain                       // committing what was accepted
	phaseCheck                       // of a switchover: is the target fit?
	phaseHandover                    // the target is becoming primary
	phaseBack                        // it has not: is it certain?
)

func newMachine(self op.SlotID, timeout time.Duration, stop bool, name func(op.SlotID) string, now time.Time) *machine {
	return &machine{self: self, name: name, timeout: timeout, stop: stop, now: now, booted: now,
		role: Replica, peers: map[op.SlotID]*peer{}}
}

// step takes one event and gives the effects that follow from it.
func (m *machine) step(now time.Time, v view, e event) []effect {
	if now.Sub(m.now) > m.timeout/2 {
		// Ticks come far more often: it is this process that stood still. What its
		// peers said meanwhile has not been read yet.
		m.pardon = now
	}
	m.now, m.v, m.fx = now, v, nil
	switch e := e.(type) {
	case evTick:
	case evPeers:
		m.onPeers(e)
	case evAnswer:
		m.onAnswer(e)
	case evNoAnswer:
		m.onNoAnswer(e)
	case evJoin:
		m.onJoin(e)
	case evLeave:
		m.onLeave(e)
	case evAcks:
		m.onAcks(e)
	case evPrepared:
		m.onPrepared(e)
	case evBegun:
		m.onBegun(e)
	case evFollowEnded:
		m.onFollowEnded(e)
	case evTail:
		m.onTail(e)
	case evReady:
		m.onReady(e)
	case evMounted:
		m.onMounted(e)
	case evUnmounted:
		m.onUnmounted(e)
	case evDrained:
		m.onDrained(e)
	case evPromote:
		m.onPromote(e)
	case evDemote:
		m.onDemote(e)
	case evSwitch:
		m.onSwitch(e)
	case evHandover:
		m.onHandover(e)
	case evRejoin:
		m.onRejoin(e)
	case evWentBack:
		m.onWentBack(e)
	case evHint:
		m.onHint()
	case evRecord:
		m.onRecord(e)
	case evSwapped:
		m.onSwapped(e)
	case evSealed:
		m.onSealed(e)
	}
	m.think()
	return m.fx
}

// think does what the passing of time and the present state ask for; it runs
// after every event.
func (m *machine) think() {
	if m.v.faulted != "" {
		m.stopForFault()
		return
	}
	if m.v.bereft != "" {
		m.stopForRefill()
	} else {
		m.refilling = false
	}
	if m.leading {
		m.lead()
	}
	switch {
	case m.op != nil:
		m.advance()
	case m.role == Replica:
		if m.follow(); m.op != nil {
			m.advance()
		}
	case m.role == Primary:
		m.look()
	}
}

// stopForFault: a faulted slot neither follows nor acknowledges; the driver has
// closed its streams. It recovers at the next start.
func (m *machine) stopForFault() {
	m.doing = "faulted: restart the process to recover"
	if m.reg != nil {
		m.handOver()
		return
	}
	if m.op != nil {
		m.finish(fmt.Errorf("slot is faulted: %s", m.v.faulted))
	}
	m.unfollow()
}

// handOver is what a faulted slot does with a register: as primary it ends its
// mount, so that another slot can serve in its place. Alone in its set it stays
// mounted: what can be read can be read nowhere else.
func (m *machine) handOver() {
	switch {
	case m.leading && (len(m.members) > 1 || m.role != Primary):
		m.abdicate("faulted: " + m.v.faulted)
	case m.op != nil && m.op.kind == opPromote && m.op.phase < phaseBegin:
		if m.role != Replica {
			m.setRole(Replica)
		}
		m.finish(fmt.Errorf("slot is faulted: %s", m.v.faulted))
	}
	m.unfollow()
}

func (m *machine) do(e effect) { m.fx = append(m.fx, e) }

func (m *machine) event(alert bool, format string, args ...any) {
	m.do(effEvent{alert: alert, words: fmt.Sprintf(format, args...)})
}

func (m *machine) peer(slot op.SlotID) *peer {
	p := m.peers[slot]
	if p == nil {
		p = &peer{slot: slot}
		m.peers[slot] = p
	}
	return p
}

// others lists the peers in a fixed order, so that a run can be repeated.
func (m *machine) others() []*peer {
	out := make([]*peer, 0, len(m.peers))
	for _, p := range m.peers {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *peer) int { return slices.Compare(a.slot[:], b.slot[:]) })
	return out
}

func (m *machine) isMember(slot op.SlotID) bool { return slices.Contains(m.members, slot) }

// label names a slot for people.
func (m *machine) label(slot op.SlotID) string {
	if p := m.peers[slot]; p != nil && p.node != "" {
		return p.node
	}
	if m.reg != nil && m.reg.rec.Nodes[slot] != "" {
		return m.reg.rec.Nodes[slot]
	}
	return m.name(slot)
}

func (m *machine) labels(slots []op.SlotID) string {
	out := make([]string, len(slots))
	for i, s := range slots {
		out[i] = m.label(s)
	}
	return strings.Join(out, ", ")
}

// finish answers whoever waits for the operation, and ends it.
func (m *machine) finish(err error) {
	o := m.op
	m.op = nil
	m.doing = ""
	if o.failed != nil {
		err = switchError(o.failed, err)
	}
	if o.id != 0 {
		m.do(effReply{o.id, err})
	}
	if err != nil && o.auto {
		m.resumes = m.now.Add(probeEvery)
		if m.said != err.Error() {
			m.said = err.Error()
			m.event(false, "did not become primary: %v", err)
		}
	}
}
