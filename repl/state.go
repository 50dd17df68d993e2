package repl

import (
	"cmp"
	"slices"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// storeID is the store's id: the slot's, or as the log begins to tell.
func (r *Member) storeID() meta.StoreID {
	if id := r.Slot.StoreID(); !id.IsZero() {
		return id
	}
	if e := r.Log.Epochs(); len(e) > 0 {
		return meta.StoreID(e[0].Begin.Store)
	}
	return meta.StoreID{}
}

// resyncing is whether a resync of this slot is unfinished.
func (r *Member) resyncing() bool {
	s, ok := r.Slot.(*meta.Slot)
	return ok && s.Resyncing()
}

// incomplete is whether the log lacks entries by which control files that a
// resync fetched may be ahead. The stream brings them; a slot promoted earlier
// would be a mixture that no history explains.
func (r *Member) incomplete() bool {
	s, ok := r.Slot.(*meta.Slot)
	return ok && r.Log.Last().Seq < s.CompleteFrom()
}

// Changed returns a channel that closes at the next change of State that is
// more than progress.
func (r *Member) Changed() <-chan struct{} { return r.changed.changed() }

// publish makes the machine's view of things visible.
func (r *Member) publish(notify bool) {
	m := r.m
	p := published{
		doing: m.doing, split: m.split, target: m.target, epoch: m.epoch, members: m.members,
		primary: r.ID, peers: make(map[op.SlotID]PeerState, len(m.peers)),
	}
	if !m.leading {
		last := m.v.hist.last()
		p.epoch, p.members, p.primary = last.Pos.Epoch, last.Members, last.Primary
	}
	for _, x := range m.peers {
		s := PeerState{
			Node: x.node, Slot: x.slot, Alive: x.alive, Connected: x.joined || x.slot == m.target && !m.target.IsZero(),
			Role: Replica, InSync: slices.Contains(p.members, x.slot), Local: x.local,
			Received: x.acks.received, Durable: x.acks.durable, Applied: x.acks.applied, Heard: x.acks.heard,
		}
		if x.info.leading {
			s.Role = Primary
		}
		if !x.joined {
			s.Durable, s.Heard = x.info.last.Seq, x.answered
		}
		s.Condition = x.info.Condition
		s.Common = r.common(x)
		p.peers[x.slot] = s
	}
	p.register, p.barred = r.registerState(), m.barred()
	p.nodes = make(map[op.SlotID]string, len(p.members))
	for _, slot := range p.members {
		p.nodes[slot] = m.label(slot)
	}
	r.mu.Lock()
	p.role, p.since = r.pub.role, r.pub.since
	r.pub = p
	r.mu.Unlock()
	if notify {
		r.changed.notify()
	}
}

// State says what the slot's replication looks like now.
func (r *Member) State() State {
	r.refresh()
	r.mu.Lock()
	p, hist := r.pub, r.hist
	s := State{
		Store: r.Store, StoreID: r.storeID(), Slot: r.ID, Node: r.Node, Role: p.role, Since: p.since,
		Epoch: p.epoch, Primary: p.primary, Members: slices.Clone(p.members), Doing: p.doing, Diverged: p.split,
		LastError: r.lastErr, ErrorTime: r.errTime, Events: slices.Clone(r.events),
		Drained: r.notes.Drained, Nodes: p.nodes,
	}
	s.Register, s.NotPromotable = p.register, p.barred
	if p.role == Replica {
		s.Heard, s.HeardSeq = r.heard, max(r.heardSeq.Load(), r.notes.HeardSeq)
	}
	table := make(map[op.SlotID]PeerSlot, len(r.table))
	for k, v := range r.table {
		table[k] = v
	}
	r.mu.Unlock()
	if !r.leading.Load() {
		last := hist.last()
		s.Epoch, s.Primary, s.Members = last.Pos.Epoch, last.Primary, slices.Clone(last.Members)
	}
	log := r.Log
	s.Pos, s.Durable, s.Received = log.Last(), log.Durable.Get(), log.Received.Get()
	s.Commit, s.Applied = log.Committed.Get(), log.Applied.Get()
	if m, ok := r.Slot.(*meta.Slot); ok {
		if st, ok := m.ResyncStatus(); ok {
			s.Resync = &st
		}
	}
	s.InSync = slices.Contains(s.Members, r.ID)
	if err := r.faulted(); err != nil {
		s.Faulted = err.Error()
	}
	for _, x := range p.peers {
		s.Peers = append(s.Peers, r.peerState(x, table[x.Slot], &s))
	}
	slices.SortFunc(s.Peers, func(a, b PeerState) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Slot.String(), b.Slot.String()))
	})
	return s
}

// peerState completes what the machine knows of a peer.
func (r *Member) peerState(x PeerState, at PeerSlot, s *State) PeerState {
	x.Addr = at.Addr
	if x.Node == "" {
		x.Node = at.Node
	}
	if d := r.sender(x.Slot); d != nil {
		a := d.acks()
		x.Connected, x.Received, x.Durable, x.Applied, x.Heard = true, a.received, a.durable, a.applied, a.heard
		x.Common = max(x.Common, a.durable)
	}
	if r.leading.Load() {
		x.InSync = slices.Contains(s.Members, x.Slot)
		x.LagEntries, x.LagBytes, x.LagSeconds = r.lag(x.Durable)
	} else if x.Connected {
		x.Heard = s.Heard
		if x.Durable > s.Durable {
			x.LagEntries = x.Durable - s.Durable
		}
	}
	return x
}

// lag says how much of the log comes after seq: exactly if that is little.
func (r *Member) lag(seq uint64) (entries uint64, bytes int64, seconds float64) {
	last, first := r.Log.Last().Seq, r.Log.First()
	if seq >= last {
		return 0, 0, 0
	}
	entries = last - seq
	next := max(seq+1, first)
	list, err := r.Log.Read(next, 64<<10)
	if err != nil || len(list) == 0 {
		return entries, 0, 0
	}
	for _, e := range list {
		bytes += int64(len(e.Raw))
	}
	if left := last - list[len(list)-1].Seq; left > 0 && last >= first {
		bytes = max(bytes, int64(float64(r.Log.Size())/float64(last-first+1)*float64(entries)))
	}
	seconds = max(0, time.Since(time.Unix(0, list[0].Time)).Seconds())
	return entries, bytes, seconds
}

// NeedFrom is the first entry that a slot of the store still needs, as far as
// known: the log must not be trimmed beyond it, within what the disk allows.
func (r *Member) NeedFrom() uint64 {
	s := r.State()
	need := s.Commit + 1
	for _, p := range s.Peers {
		if p.Durable > 0 || p.Connected {
			need = min(need, p.Durable+1)
		}
	}
	return need
}
