package repl

import (
	"errors"
	"slices"

	"slotfs/meta/op"
)

// What can happen in the explorer's world, and what must be true after it.

// advance is oplog's rule: what is committed, and what follows from that.
func (w *xworld) advance(n *xnode) {
	was := n.committed
	if n.leading {
		if n.beginSeq != 0 && n.durable >= n.beginSeq {
			n.peers, n.next, n.nextAt, n.beginSeq = n.next, nil, 0, 0
		}
		received, committed := uint64(len(n.log)), n.durable
		for _, set := range [2][]op.SlotID{n.peers, n.next} {
			for _, p := range set {
				a := n.acks[p]
				received, committed = min(received, a[0]), min(committed, a[1])
			}
		}
		n.committed = max(n.committed, committed)
		n.received = max(n.received, received, n.committed)
		w.acknowledge(n)
	} else {
		n.committed = max(n.committed, min(n.told, n.durable))
	}
	if n.committed != was || n.applied != n.committed {
		w.apply(n)
	}
	n.waits = slices.DeleteFunc(n.waits, func(x xwait) bool {
		if x.applied && n.applied < x.seq || n.durable < x.seq {
			return false
		}
		n.post(x.e)
		return true
	})
	if n.draining && (n.applied == uint64(len(n.log)) || !n.leading) {
		n.draining = false
		n.post(evDrained{})
	}
}

// apply brings tree and index up to what is committed: they cannot be undone,
// so all slots must agree.
func (w *xworld) apply(n *xnode) {
	for n.applied < n.committed {
		c := n.log[n.applied].chain
		if n.applied < uint64(len(w.applied)) {
			if w.applied[n.applied] != c {
				w.fail("%s applies another entry %d than a slot before it", nameOf(n.id), n.applied+1)
			}
		} else {
			w.applied = append(w.applied, c)
		}
		n.applied++
	}
}

// acknowledge answers the calls that wait at a primary.
func (w *xworld) acknowledge(n *xnode) {
	for seq := n.ours + 1; seq <= n.committed; seq++ {
		c := n.log[seq-1].chain
		if seq <= uint64(len(w.acked)) {
			if w.acked[seq-1] != c {
				w.fail("%s acknowledges an entry %d that is another one in the history", nameOf(n.id), seq)
			}
			continue
		}
		w.acked = append(w.acked, c)
		w.commits++
	}
	n.ours = max(n.ours, n.committed)
	w.controls = slices.DeleteFunc(w.controls, func(x xcontrol) bool { return x.seq <= uint64(len(w.acked)) })
	for seq := n.control + 1; seq <= n.received; seq++ {
		if seq <= uint64(len(w.acked)) {
			continue
		}
		x := xcontrol{seq: seq, chain: n.log[seq-1].chain, lives: map[int]int{}}
		for _, o := range w.nodes {
			if o.up && uint64(len(o.log)) >= seq && o.log[seq-1].chain == x.chain {
				x.lives[o.i] = o.life
			}
		}
		w.controls = append(w.controls, x)
	}
	n.control = max(n.control, n.received)
}

// checkBegin: who begins an epoch has all that was acknowledged, also what was
// answered when received, if it had that and has not lost its memory since.
//
// One that begins late, when the register has moved on, may lack something: it
// needs its successor for every commit, and never gets one.
func (w *xworld) checkBegin(n *xnode) {
	if n.pos().Epoch < w.rec.Epoch {
		return
	}
	if !w.hasAcked(n, uint64(len(n.log))) {
		w.fail("%s begins epoch %d without all that was acknowledged (%d entries, it has %d)", nameOf(n.id), n.pos().Epoch, len(w.acked), len(n.log))
	}
	w.controls = slices.DeleteFunc(w.controls, func(x xcontrol) bool {
		if x.lives[n.i] == n.life && (uint64(len(n.log)) < x.seq || n.log[x.seq-1].chain != x.chain) {
			w.fail("%s begins an epoch without entry %d, which was answered when it had received it", nameOf(n.id), x.seq)
		}
		return x.lives[n.i] != n.life // it is lost with the memories that held it
	})
}

// hasAcked is whether the first `upto` entries of n's log have all that was
// acknowledged.
func (w *xworld) hasAcked(n *xnode, upto uint64) bool {
	k := uint64(len(w.acked))
	return k == 0 || upto >= k && n.log[k-1].chain == w.acked[k-1]
}

// check is what must be true after every step: every slot that the register
// names in sync has, durably, all that was ever acknowledged; one whose disk
// was emptied or restored since is let off, but must not begin an epoch.
func (w *xworld) check() {
	if !w.found {
		return
	}
	for _, s := range w.rec.InSync {
		if n := w.node(s); !n.stale && !w.hasAcked(n, n.durable) {
			w.fail("%s is in sync in epoch %d, and lacks acknowledged entries: %d, durable there %d", nameOf(s), w.rec.Epoch, len(w.acked), n.durable)
		}
	}
	for _, n := range w.nodes {
		if n.up && n.leading && n.stale {
			w.fail("%s leads, though its disk was emptied or restored", nameOf(n.id))
		}
		if n.local && w.rec.Has(n.id) {
			w.fail("%s is in sync, and its durability is local", nameOf(n.id))
		}
	}
}

// ask takes a Swap to the register.
func (w *xworld) ask(n *xnode, f effSwap) {
	changing := n.leading
	if changing && w.bug == bugNoSwap && len(f.next.InSync) < len(n.m.members) {
		n.post(evSwapped{id: f.id, now: f.next, won: true})
		return
	}
	if changing && w.bug == bugRuleFirst {
		n.peers, n.next = without(f.next.InSync, n.id), nil
		w.advance(n)
	}
	w.regs = append(w.regs, &xreg{n: n, life: n.life, swap: &f})
}

// carryOut is the register's moment.
func (w *xworld) carryOut(q *xreg) {
	if q.get != nil {
		q.reply = evRecord{id: q.get.id, rec: w.rec, found: w.found}
		return
	}
	f := q.swap
	won := w.found && w.rec.Nonce == f.next.Nonce
	if !won && (!w.found && f.expect == 0 || w.found && w.rec.Epoch == f.expect) {
		won = true
		w.rec, w.found = f.next, true
		w.tell("register: epoch %d, primary %s, in sync %s", f.next.Epoch, nameOf(f.next.Primary), list(f.next.InSync, nameOf))
		for _, s := range f.next.InSync {
			n := w.node(s)
			switch has := w.hasAcked(n, n.durable); {
			case has && holds(preparation{f.next.Epoch, f.next.Nonce}, n.hist, n.durable, n.prepared):
				n.stale = false
			case !has && !n.stale: // one that lost its disk meanwhile cannot prove its membership
				w.fail("%s becomes a member of epoch %d without all that was acknowledged", nameOf(s), f.next.Epoch)
			}
		}
	}
	q.reply = evSwapped{id: f.id, now: w.rec, won: won}
}

// forget has the asker give up on an answer, so that the outcome is unknown.
func (w *xworld) forget(q *xreg) {
	err := errors.New("no answer")
	switch {
	case q.life != q.n.life || !q.n.up:
	case q.get != nil:
		q.n.post(evRecord{id: q.get.id, err: err})
	case w.bug == bugUnknownWon:
		q.n.post(evSwapped{id: q.swap.id, now: q.swap.next, won: true})
	default:
		q.n.post(evSwapped{id: q.swap.id, err: err})
	}
	q.mute = true
}

// deliver moves a question on: to the other slot, then back. It returns whether
// the message is done with.
func (w *xworld) deliver(q *xmsg) bool {
	alive := q.from.up && q.from.life == q.life
	if !alive {
		return true
	}
	if q.from.still || !w.linked(q.from.i, q.to.i) {
		return false
	}
	if q.reply != nil {
		q.from.post(q.reply)
		return true
	}
	if !q.to.up {
		w.unanswered(q, true)
		return true
	}
	if q.to.still {
		return false
	}
	switch f := q.what.(type) {
	case effAsk:
		q.reply = evAnswer{slot: q.to.id, node: nameOf(q.to.id), answer: q.to.answer(w)}
		q.to.post(evAnswer{slot: q.from.id, node: nameOf(q.from.id), poke: true, answer: q.from.answer(w)})
	case effHandover:
		switch q.asked {
		case 0:
			q.asked = q.to.life
			q.to.post(evPromote{id: q.number, opts: PromoteOptions{handover: "another"}})
		case q.to.life:
		default: // the one that was asked is gone, and the connection with it
			w.unanswered(q, false)
			return true
		}
	case effTail:
		q.reply = evTail{q.to.id, w.tail(q.from, q.to)}
	case effPrepare:
		e := evPrepared{slot: f.slot, epoch: f.epoch, nonce: f.nonce}
		prepared := q.to.prepared
		if w.bug == bugNoProof {
			prepared = append(slices.Clone(prepared), f.of)
		}
		switch {
		case q.to.leading || len(q.to.log) == 0 || q.to.fault != "":
			e.err = errors.New("not now")
		case f.of.Epoch > 0 && !holds(f.of, q.to.hist, q.to.durable, prepared):
			e.err = errors.New("no proof")
		case f.mark.Seq > 0 && (q.to.durable < f.mark.Seq || q.to.log[f.mark.Seq-1].chain != f.mark.Chain):
			e.err = errors.New("it does not reach the mark")
		default:
			w.note(q.to, f)
		}
		q.reply = e
	}
	return false
}

func (w *xworld) unanswered(q *xmsg, refused bool) {
	if !q.from.up || q.from.life != q.life {
		return
	}
	err := errors.New("no answer")
	switch f := q.what.(type) {
	case effAsk:
		q.from.post(evNoAnswer{slot: f.slot, refused: refused})
	case effHandover:
		q.from.post(evHandover{f.slot, err})
	case effTail:
		q.from.post(evTail{f.slot, err})
	case effPrepare:
		q.from.post(evPrepared{slot: f.slot, epoch: f.epoch, nonce: f.nonce, err: err})
	}
}

// tail copies what b has after a's last entry.
func (w *xworld) tail(a, b *xnode) error {
	seq, v, _ := b.hist.meet(b.pos(), a.hist, a.pos(), false)
	if v != vStream || seq != uint64(len(a.log)) || b.leading || a.leading {
		return errors.New("no tail of ours")
	}
	if len(b.log) > len(a.log) {
		a.log = append(a.log[:len(a.log):len(a.log)], b.log[len(a.log):]...)
		a.rehist()
	}
	return nil
}

// stream moves a connection on by one step; what chooses which.
func (w *xworld) stream(c *xconn, what uint16) {
	switch {
	case !c.open:
		w.welcome(c)
	case what%4 == 0:
		w.send(c, int(what>>2)%3)
	case what%4 == 1:
		w.receive(c)
	case what%4 == 2:
		if c.rep.up && !c.rep.still && !c.repClosed && !c.priGone {
			d := c.rep.durable
			if w.bug == bugAckMemory {
				d = uint64(len(c.rep.log))
			}
			c.up = append(c.up, [2]uint64{uint64(len(c.rep.log)), d})
		}
	default:
		w.hear(c)
	}
}

func (w *xworld) welcome(c *xconn) {
	a, b := c.rep, c.pri
	end := func(e evFollowEnded) {
		e.slot, e.session = b.id, c.session
		c.repClosed, c.priGone = true, true
		a.post(e)
	}
	switch {
	case c.repClosed || !w.linked(a.i, b.i) || a.still || b.still:
		return
	case !b.up:
		end(evFollowEnded{unreachable: true, nobody: true})
		return
	case !b.leading:
		end(evFollowEnded{stale: true})
		return
	case b.fault != "":
		end(evFollowEnded{refused: true})
		return
	case a.sealed >= b.pos().Epoch:
		b.post(evAnswer{slot: a.id, node: nameOf(a.id), poke: true, answer: a.answer(w)})
		end(evFollowEnded{unready: true})
		return
	}
	if b.hist.last().has(a.id) && uint64(len(a.log)) < b.committed {
		b.post(evWentBack{a.id, nameOf(a.id), uint64(len(a.log)), b.committed})
		end(evFollowEnded{unready: true})
		return
	}
	seq, v, why := b.hist.meet(b.pos(), a.hist, a.pos(), false)
	if v == vResync && a.applied == 0 {
		v, seq = vCut, 0 // a resync does that
	}
	if v != vStream && v != vCut {
		if v == vBehind {
			b.post(evAnswer{slot: a.id, node: nameOf(a.id), poke: true, answer: a.answer(w)})
			end(evFollowEnded{refused: true})
			return
		}
		w.fail("%s cannot follow %s: %s", nameOf(a.id), nameOf(b.id), why)
		return
	}
	if a.applied > seq {
		w.fail("%s has applied up to %d, the history of %s parts from its own after %d", nameOf(a.id), a.applied, nameOf(b.id), seq)
		return
	}
	for _, o := range w.conns {
		if o != c && o.rep == a {
			o.repClosed = true
		}
		if o != c && o.rep == a && o.pri == b {
			o.priGone = true
		}
	}
	a.log = a.log[:seq:seq]
	a.durable = min(a.durable, seq)
	a.rehist()
	a.heardAt = w.now
	w.numbers++
	c.open, c.priLife, c.epoch, c.sent, c.heard, c.number = true, b.life, b.pos().Epoch, seq, w.now, w.numbers
	b.latest[a.i] = c.number
	b.post(evJoin{conn: c.number, slot: a.id, node: nameOf(a.id), local: a.local, at: seq})
	w.commit(a, b.committed)
}

func (w *xworld) send(c *xconn, n int) {
	b := c.pri
	if !b.up || b.still || c.priGone || len(c.down) > 3 {
		return
	}
	to := min(c.sent+uint64(n), uint64(len(b.log)))
	c.down = append(c.down, xdata{c.sent + 1, b.log[c.sent:to:to], b.committed})
	c.sent = to
}

func (w *xworld) receive(c *xconn) {
	a := c.rep
	if !a.up || a.still || c.repClosed || len(c.down) == 0 || !w.linked(a.i, c.pri.i) {
		return
	}
	d := c.down[0]
	c.down = c.down[1:]
	if a.leading {
		return // with bugAcksOn
	}
	a.heardAt = w.now
	for _, e := range d.entries {
		if e.begin != nil {
			c.epoch = max(c.epoch, e.epoch)
		}
	}
	if c.epoch <= a.sealed {
		c.repClosed = true
		a.post(evFollowEnded{slot: c.pri.id, session: c.session, joined: true})
		return
	}
	if len(d.entries) > 0 {
		if d.first != uint64(len(a.log))+1 {
			w.fail("%s gets seq %d after %d", nameOf(a.id), d.first, len(a.log))
			return
		}
		a.log = append(a.log[:len(a.log):len(a.log)], d.entries...)
		a.rehist()
	}
	w.commit(a, d.committed)
}

// commit is oplog.Log.Commit.
func (w *xworld) commit(n *xnode, seq uint64) {
	if w.bug != bugToldAhead {
		seq = min(seq, uint64(len(n.log)))
	}
	n.told = max(n.told, seq)
	w.advance(n)
}

// hear has the primary take in one acknowledgement. What is in its socket is
// read even when the replica has gone.
func (w *xworld) hear(c *xconn) {
	b := c.pri
	if !b.up || b.still || c.priGone || b.life != c.priLife || len(c.up) == 0 {
		return
	}
	c.acked, c.heard = c.up[0], w.now
	c.up = c.up[1:]
	if b.leading {
		b.acks[c.rep.id] = c.acked
		w.advance(b)
	}
}

// reap tells both ends of connections that have ended.
func (w *xworld) reap() {
	w.conns = slices.DeleteFunc(w.conns, func(c *xconn) bool {
		if c.priGone && !c.repClosed && !c.rep.still && (len(c.down) == 0 || !w.linked(c.rep.i, c.pri.i)) && w.linked(c.rep.i, c.pri.i) {
			c.repClosed = true
			if c.rep.life == c.repLife {
				c.rep.post(evFollowEnded{slot: c.pri.id, session: c.session, joined: c.open})
			}
		}
		if c.repClosed && !c.priGone && (!c.open || !c.pri.up || c.pri.life != c.priLife || len(c.up) == 0 && !c.pri.still) {
			c.priGone = true
		}
		if !c.repClosed || !c.priGone {
			return false
		}
		if c.open && c.pri.up && c.pri.life == c.priLife {
			c.pri.post(evLeave{slot: c.rep.id, conn: c.number, why: "closed"})
		}
		return true
	})
}
