package gossip

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// inPacket is the longest state in bytes that is sent in a packet; a longer
// one goes over TCP.
const inPacket = 1000

// Publish replaces what we say about ourselves: all of s that is not set by
// this package.
func (g *Gossip) Publish(s State) {
	g.mu.Lock()
	next := g.self
	next.Repl, next.Software, next.Slots = s.Repl, s.Software, s.Slots
	next.Witness, next.Register, next.Votes, next.Trouble = s.Witness, s.Register, s.Votes, s.Trouble
	if reflect.DeepEqual(next, g.self) {
		g.mu.Unlock()
		return
	}
	next.Version++
	g.self = next
	found := g.storeConflictsLocked()
	g.changedLocked()
	g.mu.Unlock()
	g.reportAll(found)
	g.wake()
}

// spread tells the others our state if it changed since version sent. What a
// node misses it gets with the next full exchange.
func (g *Gossip) spread(sent uint64) uint64 {
	g.mu.Lock()
	version := g.self.Version
	buf, err := json.Marshal(&g.self)
	g.mu.Unlock()
	if err != nil {
		g.log.Error("encode gossip state", "err", err)
		return version
	}
	if version == sent {
		return version
	}
	var wg sync.WaitGroup
	for _, m := range g.living() {
		wg.Go(func() {
			send := g.list.SendBestEffort
			if len(buf) > inPacket {
				send = g.list.SendReliable
			}
			if err := send(m, buf); err != nil {
				g.log.Debug("send gossip state", "to", m.Name, "err", err)
			}
		})
	}
	wg.Wait()
	return version
}

// living are the other members that live, as nodes of our own making:
// memberlist goes on writing to those that it hands out.
func (g *Gossip) living() []*memberlist.Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	var nodes []*memberlist.Node
	for name, l := range g.alive {
		if !l.alive || name == g.self.Name {
			continue
		}
		addr, err := netip.ParseAddrPort(l.addr)
		if err != nil {
			continue // memberlist's own addresses are numeric
		}
		nodes = append(nodes, &memberlist.Node{Name: name, Addr: addr.Addr().AsSlice(), Port: addr.Port(), PMax: memberlist.ProtocolVersionMax})
	}
	return nodes
}

// mergeLocked takes over s if it is news, and says whether it was.
func (g *Gossip) mergeLocked(s *State) bool {
	if s.Name == g.self.Name {
		// Our own words come back. From a later incarnation than ours: the
		// clock went back between two starts, so continue from there, or
		// nobody would believe us.
		if s.Gossip == g.self.Gossip && s.Incarnation > g.self.Incarnation {
			g.self.Incarnation = s.Incarnation + 1
			g.wake()
		}
		return false
	}
	old := g.states[s.Name]
	if old != nil && (s.Incarnation < old.Incarnation || s.Incarnation == old.Incarnation && s.Version <= old.Version) {
		return false
	}
	// The name belongs to the node that memberlist knows under it.
	if l := g.alive[s.Name]; l != nil && l.alive && l.addr != s.Gossip {
		return false
	}
	g.states[s.Name] = s
	if l := g.alive[s.Name]; l != nil {
		l.heard = time.Now()
	}
	return true
}

func (g *Gossip) merge(states []*State) {
	g.mu.Lock()
	news := false
	for _, s := range states {
		news = g.mergeLocked(s) || news
	}
	var found []Problem
	if news {
		found = g.storeConflictsLocked()
		g.changedLocked()
	}
	g.mu.Unlock()
	g.reportAll(found)
}

// leftLocked reports whether the node said goodbye.
func (g *Gossip) leftLocked(name string) bool {
	l, s := g.alive[name], g.states[name]
	return l != nil && !l.alive && s != nil && s.Leaving
}

func (g *Gossip) changedLocked() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// Changed is closed when a member comes, goes, or says something new.
func (g *Gossip) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

// Members lists all nodes ever heard of, ourselves included, by name.
func (g *Gossip) Members() []Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := []Member{{State: g.self, Self: true, Alive: true, Since: time.Unix(0, g.self.Started), Heard: time.Now()}}
	for name, l := range g.alive {
		if name == g.self.Name {
			continue
		}
		m := Member{Alive: l.alive, Left: g.leftLocked(name), Since: l.since, Heard: l.heard}
		if s := g.states[name]; s != nil {
			m.State = *s
		} else {
			m.State = State{Name: name, Gossip: l.addr}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// storeConflictsLocked finds stores of one name with different ids. Nodes that
// died count: their store still exists.
func (g *Gossip) storeConflictsLocked() []Problem {
	type holder struct{ node, id string }
	seen := map[string]holder{}
	var out []Problem
	look := func(s *State) {
		for _, slot := range s.Slots {
			if slot.StoreID == "" {
				continue
			}
			h, ok := seen[slot.Store]
			if !ok {
				seen[slot.Store] = holder{s.Name, slot.StoreID}
			} else if h.id != slot.StoreID {
				c := &StoreConflict{Store: slot.Store, Nodes: [2]string{h.node, s.Name}, IDs: [2]string{h.id, slot.StoreID}}
				if c.Nodes[0] > c.Nodes[1] {
					c.Nodes[0], c.Nodes[1], c.IDs[0], c.IDs[1] = c.Nodes[1], c.Nodes[0], c.IDs[1], c.IDs[0]
				}
				out = append(out, c)
			}
		}
	}
	look(&g.self)
	names := make([]string, 0, len(g.states))
	for name := range g.states {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		look(g.states[name])
	}
	return out
}

func (g *Gossip) reportAll(ps []Problem) {
	for _, p := range ps {
		g.report(p)
	}
}

// maxReports bounds what strangers can make us remember.
const maxReports = 256

// report counts p, and logs it when it is new or was quiet for a minute.
func (g *Gossip) report(p Problem) {
	now := time.Now()
	g.mu.Lock()
	if k, ok := p.(*KeyMismatch); ok && k.Name == "" {
		// A packet comes from the gossip port that a stream told us about
		// together with a name; keep the better report.
		if r := g.reports[k.key()]; r != nil {
			p = r.Problem
		}
	}
	r := g.reports[p.key()]
	loud := r == nil || now.Sub(r.Last) > time.Minute
	if r == nil {
		if len(g.reports) >= maxReports {
			g.mu.Unlock()
			return
		}
		r = &Report{First: now}
		g.reports[p.key()] = r
	}
	r.Problem, r.Text, r.Last = p, p.Error(), now
	r.Count++
	if loud {
		g.changedLocked()
	}
	g.mu.Unlock()
	if loud {
		g.log.Error("cluster problem", "err", p)
	}
}

// Problems lists what was refused or conflicts, oldest first. Those that were
// not met for ten minutes are left out; conflicts of stores stay for as long
// as they last.
func (g *Gossip) Problems() []Report {
	g.mu.Lock()
	defer g.mu.Unlock()
	lasting := map[string]bool{}
	for _, p := range g.storeConflictsLocked() {
		lasting[p.key()] = true
	}
	var out []Report
	for key, r := range g.reports {
		if _, store := r.Problem.(*StoreConflict); store && !lasting[key] || !store && time.Since(r.Last) > 10*time.Minute {
			delete(g.reports, key)
			continue
		}
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b Report) int { return a.First.Compare(b.First) })
	return out
}

// delegate is what memberlist calls, with its lock held.
type delegate struct{ g *Gossip }

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// NodeMeta implements memberlist.Delegate: we use states instead.
func (d *delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg implements memberlist.Delegate.
func (d *delegate) NotifyMsg(b []byte) {
	var s State
	if err := json.Unmarshal(b, &s); err != nil {
		d.g.log.Warn("gossip state of another version", "err", err)
		return
	}
	d.g.merge([]*State{&s})
}

// GetBroadcasts implements memberlist.Delegate: states are sent directly.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (d *delegate) LocalState(bool) []byte {
	g := d.g
	g.mu.Lock()
	defer g.mu.Unlock()
	all := []*State{&g.self}
	for _, s := range g.states {
		all = append(all, s)
	}
	b, err := json.Marshal(all)
	if err != nil {
		g.log.Error("encode gossip states", "err", err)
	}
	return b
}

// MergeRemoteState implements memberlist.Delegate.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	var all []*State
	if err := json.Unmarshal(b, &all); err != nil {
		d.g.log.Warn("gossip states of another version", "err", err)
		return
	}
	all = slices.DeleteFunc(all, func(s *State) bool { return s == nil })
	d.g.merge(all)
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.live(n, true) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.live(n, true) }

// NotifyLeave implements memberlist.EventDelegate.
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.live(n, false) }

func (d *delegate) live(n *memberlist.Node, alive bool) {
	g := d.g
	g.mu.Lock()
	l := g.alive[n.Name]
	if l == nil {
		l = &life{}
		g.alive[n.Name] = l
	}
	was := l.alive
	if was != alive || l.since.IsZero() {
		l.since = time.Now()
	}
	addr := n.FullAddress().Addr
	l.alive, l.addr = alive, addr
	g.changedLocked()
	self := n.Name == g.self.Name
	if alive && !was && !self {
		// It does not know our state, which may not change for days: send it again.
		g.self.Version++
		g.wake()
	}
	left := g.leftLocked(n.Name)
	g.mu.Unlock()
	switch {
	case self:
	case alive && !was:
		g.log.Info("node joined", "peer", n.Name, "addr", addr)
	case left:
		g.log.Info("node left", "peer", n.Name)
	case !alive:
		g.log.Warn("node does not answer", "peer", n.Name, "addr", addr)
	}
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	c := NameConflict{Name: existing.Name, Self: existing.Name == d.g.opts.Node,
		Addr: existing.FullAddress().Addr, With: other.FullAddress().Addr}
	select {
	case d.g.conflicts <- c:
		d.g.wake()
	default: // it will come again
	}
}
