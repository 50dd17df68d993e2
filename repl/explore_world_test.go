package repl

import (
	"fmt"
	"slices"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// The world that the explorer runs machines in: slots with disks, a network
// that loses and delays, a register that answers late or never. Everything is
// driven by actions (see act in explore_test.go), so that a run can be repeated
// and shortened.

const (
	xTimeout  = 400 * time.Millisecond
	xFailover = 800 * time.Millisecond
	xPause    = time.Second
)

// xentry is an entry: what it is, and the chain up to it.
type xentry struct {
	epoch uint64
	chain uint64
	begin *epochStart // of an EpochBegin
}

// xdisk is what survives a crash.
type xdisk struct {
	log       []xentry // entry seq is log[seq-1]; beyond durable it is memory
	durable   uint64
	committed uint64 // as the last batch told
	sealed    uint64
	demoted   uint64
	drained   bool
	prepared  []preparation
}

type xnode struct {
	xdisk
	i     int
	id    op.SlotID
	local bool
	up    bool
	still bool // the process stands still
	stale bool // its disk was emptied or restored
	life  int  // of the process
	m     *machine
	in    []event
	hist  history
	snap  *xdisk

	committed uint64
	told      uint64
	applied   uint64
	heardAt   time.Time
	reach     Reach
	fault     string

	// Of a leading log, as oplog keeps it.
	leading     bool
	peers, next []op.SlotID
	nextAt      uint64
	beginSeq    uint64
	acks        map[op.SlotID][2]uint64
	received    uint64
	mounted     bool
	latest      map[int]uint64 // of each replica: the number of its connection
	waits       []xwait        // events that are due when the log has come so far
	draining    bool
	ours        uint64 // acknowledged up to here by this process
	control     uint64 // and as received
}

type xwait struct {
	seq     uint64
	applied bool
	e       event
}

// xconn is a stream of a replica from a primary: reliable and in order, until
// one end closes it.
type xconn struct {
	rep, pri           *xnode
	repLife, priLife   int
	session, number    uint64
	open               bool // welcomed
	repClosed, priGone bool
	epoch              uint64 // of the primary when it welcomed
	sent               uint64
	down               []xdata
	up                 [][2]uint64
	acked              [2]uint64 // as the primary has heard
	heard              time.Time
}

type xdata struct {
	first     uint64
	entries   []xentry
	committed uint64
}

// xmsg is a question to another slot, then its answer.
type xmsg struct {
	from, to *xnode
	life     int
	what     effect
	reply    event
	number   uint64 // of a handover: the command's, over there
	asked    int    // the process there that has it; 0: none yet
}

// xreg is a request to the register.
type xreg struct {
	n     *xnode
	life  int
	get   *effGet
	swap  *effSwap
	reply event
	mute  bool // the asker has given up; a Swap may still happen
}

type xworld struct {
	now   time.Time
	nodes []*xnode
	conns []*xconn
	msgs  []*xmsg
	regs  []*xreg
	cut   map[[2]int]bool // links that are cut, by the lower index first; len(nodes) is the register
	rec   Record
	found bool
	store meta.StoreID
	bug   bug

	nonces, chains, numbers uint64
	acked                   []uint64         // the chains of all that was acknowledged
	applied                 []uint64         // the same of what any slot has applied
	begun                   map[uint64]Nonce // epoch: how it began
	controls                []xcontrol       // acknowledged as received, not yet committed
	commits                 int
	failed                  error
	healing                 bool                             // the end of a walk
	say                     func(format string, args ...any) // nil: nobody listens
}

// xcontrol is an entry that was answered when received: who had it then.
type xcontrol struct {
	seq, chain uint64
	lives      map[int]int // slot: its process
}

func newXworld(nodes int, local bool, b bug) *xworld {
	w := &xworld{now: time.Unix(1e6, 0), cut: map[[2]int]bool{}, bug: b, begun: map[uint64]Nonce{}}
	for i := range nodes {
		n := &xnode{i: i, local: local && i == nodes-1}
		n.id = slotOf(string(rune('a' + i)))
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		w.start(n)
	}
	return w
}

func (w *xworld) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = fmt.Errorf(format, args...)
	}
}

func (w *xworld) tell(format string, args ...any) {
	if w.say != nil {
		w.say(format, args...)
	}
}

func (w *xworld) node(id op.SlotID) *xnode { return w.nodes[int(id[0]-'a')] }

func (w *xworld) linked(i, j int) bool { return !w.cut[[2]int{min(i, j), max(i, j)}] }

func (w *xworld) nonce() (n Nonce) {
	w.nonces++
	n[0], n[1], n[2], n[15] = byte(w.nonces), byte(w.nonces>>8), byte(w.nonces>>16), 1
	return n
}

// start begins a process on what the disk holds.
func (w *xworld) start(n *xnode) {
	n.up, n.still = true, false
	n.life++
	n.in, n.waits, n.acks, n.latest = nil, nil, nil, map[int]uint64{}
	n.leading, n.mounted, n.draining = false, false, false
	n.durable = uint64(len(n.log))
	n.committed = min(n.xdisk.committed, n.durable)
	n.told, n.applied, n.fault = n.committed, n.committed, ""
	n.heardAt, n.reach = time.Time{}, Reach{}
	n.rehist()
	n.m = newMachine(n.id, xTimeout, false, nameOf, w.now)
	n.m.local = n.local
	n.m.reg = &registry{failover: xFailover, pause: xPause, nonce: w.nonce}
	e := evPeers{}
	for _, o := range w.nodes {
		if o != n {
			e.slots = append(e.slots, PeerSlot{Node: nameOf(o.id), Slot: o.id, Alive: true, Store: meta.StoreID{1}})
		}
	}
	n.in = append(n.in, e)
	w.tell("%s starts at seq %d, committed %d", nameOf(n.id), n.durable, n.committed)
}

// crash ends a process; keep says how much of what was not durable is on the
// disk by chance.
func (w *xworld) crash(n *xnode, keep uint64) {
	extra := uint64(len(n.log)) - n.durable
	n.log = n.log[:n.durable+keep%(extra+1)]
	n.durable = uint64(len(n.log))
	n.up = false
	for _, c := range w.conns {
		if c.rep == n {
			c.repClosed = true
		}
		if c.pri == n {
			c.priGone, c.up = true, nil
		}
	}
	w.tell("%s crashes, seq %d is left", nameOf(n.id), n.durable)
}

func (n *xnode) rehist() {
	n.hist = nil
	for _, e := range n.log {
		if e.begin != nil {
			n.hist = append(n.hist, *e.begin)
		}
	}
}

func (n *xnode) pos() op.Pos {
	if len(n.log) == 0 {
		return op.Pos{}
	}
	e := n.log[len(n.log)-1]
	return op.Pos{Epoch: e.epoch, Seq: uint64(len(n.log)), Chain: e.chain}
}

func (n *xnode) view(w *xworld) view {
	v := view{
		last: n.pos(), hist: n.hist, sealed: n.sealed, durable: n.durable, committed: n.committed, applied: n.applied,
		hasStore: len(n.log) > 0, adopted: len(n.log) == 0 && n.stale, store: w.store,
		prepared: n.prepared, demoted: n.demoted, drained: n.drained, faulted: n.fault, heardAt: n.heardAt, heard: n.heardAt, reach: n.reach,
	}
	if len(n.log) == 0 && !n.stale {
		v.store = meta.StoreID{} // it is told by whom it follows
	}
	if w.bug == bugNoProof && w.found {
		v.prepared = append(slices.Clone(v.prepared), preparation{w.rec.Epoch, w.rec.Nonce})
	}
	return v
}

func (n *xnode) answer(w *xworld) answer {
	a := answer{hasStore: len(n.log) > 0, leading: n.leading, intent: n.m.intent(), last: n.pos(), hist: slices.Clone(n.hist)}
	n.m.v = n.view(w)
	a.Condition = Condition{Drained: n.drained, Sealed: n.sealed, Auto: n.m.tookOver, Unfit: n.m.unfit()}
	return a
}

func (n *xnode) post(e event) {
	if n.up {
		n.in = append(n.in, e)
	}
}

// step has the machine take one event.
func (w *xworld) step(n *xnode, e event) {
	for _, f := range n.m.step(w.now, n.view(w), e) {
		if w.say != nil {
			w.tell("    %s: %s", nameOf(n.id), f.text(nameOf))
		}
		w.execute(n, f)
	}
}

func (w *xworld) execute(n *xnode, f effect) {
	switch f := f.(type) {
	case effAsk:
		w.msgs = append(w.msgs, &xmsg{from: n, to: w.node(f.slot), life: n.life, what: f})
	case effTail:
		w.msgs = append(w.msgs, &xmsg{from: n, to: w.node(f.slot), life: n.life, what: f})
	case effPrepare:
		if f.slot == n.id {
			w.note(n, f)
			n.post(evPrepared{slot: f.slot, epoch: f.epoch, nonce: f.nonce})
			break
		}
		w.msgs = append(w.msgs, &xmsg{from: n, to: w.node(f.slot), life: n.life, what: f})
	case effFollow:
		w.numbers++
		w.conns = append(w.conns, &xconn{rep: n, pri: w.node(f.slot), repLife: n.life, session: f.session, number: w.numbers})
	case effUnfollow:
		if w.bug != bugAcksOn {
			w.unfollow(n)
		}
	case effSeal:
		n.sealed = max(n.sealed, f.epoch)
		n.post(evSealed{epoch: f.epoch})
	case effGet:
		w.regs = append(w.regs, &xreg{n: n, life: n.life, get: &f})
	case effSwap:
		w.ask(n, f)
	case effBegin:
		w.begin(n, f)
	case effChange:
		peers := f.peers
		if w.bug == bugGap {
			peers = without(f.members, n.id)
		}
		w.lead(n, f.epoch, peers)
		seq := w.appendEpoch(n, f.epoch, f.members, f.nonce)
		w.reack(n)
		n.waits = append(n.waits, xwait{seq: seq, e: evBegun{f.epoch}})
	case effRequire:
		w.lead(n, f.epoch, f.peers)
		w.reack(n)
	case effHangUp:
		for _, c := range w.conns {
			if c.pri == n && c.rep.id == f.slot {
				c.priGone = true
			}
		}
	case effStepDown:
		w.follow(n, f)
	case effMount:
		n.mounted = true
		n.post(evMounted{})
	case effUnmount:
		n.mounted = false
		n.post(evUnmounted{})
	case effDrain:
		n.draining = true
	case effHandover:
		w.numbers++
		w.msgs = append(w.msgs, &xmsg{from: n, to: w.node(f.slot), life: n.life, what: f, number: w.numbers})
	case effReply:
		for _, q := range w.msgs {
			if h, ok := q.what.(effHandover); ok && q.number == f.id && q.to == n {
				q.reply = evHandover{h.slot, f.err}
			}
		}
	}
}

func (w *xworld) note(n *xnode, f effPrepare) {
	if w.bug == bugNoProof {
		return
	}
	n.prepared = slices.DeleteFunc(slices.Clone(n.prepared), func(p preparation) bool { return p.Epoch < n.pos().Epoch })
	n.prepared = append(n.prepared, preparation{f.epoch, f.nonce})
}

func without(slots []op.SlotID, x op.SlotID) []op.SlotID {
	return slices.DeleteFunc(slices.Clone(slots), func(s op.SlotID) bool { return s == x })
}

func (w *xworld) unfollow(n *xnode) {
	for _, c := range w.conns {
		if c.rep == n && !c.repClosed {
			c.repClosed = true
			n.post(evFollowEnded{slot: c.pri.id, session: c.session, joined: c.open})
		}
	}
}

func (w *xworld) begin(n *xnode, f effBegin) {
	if f.create {
		w.store = f.store
	}
	n.demoted = 0
	n.sealed = max(n.sealed, f.epoch-1)
	w.lead(n, f.epoch, without(f.members, n.id))
	seq := w.appendEpoch(n, f.epoch, f.members, f.nonce)
	n.waits = append(n.waits, xwait{seq: seq, applied: true, e: evReady{epoch: f.epoch}})
	w.checkBegin(n)
}

// lead is oplog.Log.Lead.
func (w *xworld) lead(n *xnode, epoch uint64, peers []op.SlotID) {
	switch last := n.pos(); {
	case !n.leading:
		n.acks = map[op.SlotID][2]uint64{}
		n.peers, n.next, n.nextAt, n.beginSeq = peers, nil, 0, 0
		n.received, n.ours, n.control = n.committed, n.committed, n.committed
	case epoch <= last.Epoch && n.durable >= n.hist.last().Pos.Seq:
		n.peers, n.next, n.nextAt, n.beginSeq = peers, nil, 0, 0
	default:
		for _, s := range n.next {
			if !slices.Contains(n.peers, s) {
				n.peers = append(slices.Clone(n.peers), s)
			}
		}
		n.next, n.nextAt, n.beginSeq = peers, epoch, 0
		if epoch <= last.Epoch {
			n.beginSeq = n.hist.last().Pos.Seq
		}
	}
	n.leading = true
	w.advance(n)
}

func (w *xworld) appendEpoch(n *xnode, epoch uint64, members []op.SlotID, nonce Nonce) uint64 {
	if was, ok := w.begun[epoch]; ok && was != nonce {
		w.fail("two primaries in epoch %d", epoch)
	}
	w.begun[epoch] = nonce
	if n.pos().Epoch >= epoch {
		w.fail("%s begins epoch %d after %v", nameOf(n.id), epoch, n.pos())
	}
	w.chains++
	s := &epochStart{Pos: op.Pos{Epoch: epoch, Seq: uint64(len(n.log)) + 1, Chain: w.chains}, Primary: n.id, Members: slices.Clone(members), Nonce: nonce}
	n.log = append(n.log[:len(n.log):len(n.log)], xentry{epoch: epoch, chain: w.chains, begin: s})
	n.hist = append(n.hist[:len(n.hist):len(n.hist)], *s)
	if n.nextAt == epoch {
		n.beginSeq = s.Pos.Seq
	}
	w.advance(n)
	return s.Pos.Seq
}

func (w *xworld) reack(n *xnode) {
	for _, c := range w.conns {
		if c.pri == n && c.open && !c.priGone && c.acked[0] > 0 {
			n.acks[c.rep.id] = c.acked
		}
	}
	w.advance(n)
}

// follow is oplog.Log.Follow, and the end of all streams.
func (w *xworld) follow(n *xnode, f effStepDown) {
	n.leading = false
	n.peers, n.next, n.acks, n.waits = nil, nil, nil, nil
	n.told = n.committed
	for _, c := range w.conns {
		if c.pri == n {
			c.priGone = true
		}
	}
	if f.keepDown {
		n.demoted = n.pos().Epoch
	}
}
