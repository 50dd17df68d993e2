package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
	"slotfs/repl/register"
)

// publishEvery is how old what other nodes know of our positions may be;
// changes of role are told at once.
const publishEvery = time.Second

// maxText bounds the texts that gossip carries, in bytes.
const maxText = 200

// peers shows gossip's knowledge to repl.
type peers struct{ g *gossip.Gossip }

// Slots implements repl.Peers.
func (p *peers) Slots(store string) []repl.PeerSlot {
	var out []repl.PeerSlot
	for _, m := range p.g.Members() {
		if m.Self {
			continue
		}
		for _, s := range m.Slots {
			if s.Store != store {
				continue
			}
			id, err := op.ParseSlotID(s.ID)
			if err != nil {
				continue
			}
			ps := repl.PeerSlot{Node: m.Name, Addr: m.Repl, Slot: id, Role: repl.Role(s.Role), Epoch: s.Epoch, Seq: s.Pos.Seq, Alive: m.Alive}
			if s.StoreID != "" && ps.Store.UnmarshalText([]byte(s.StoreID)) != nil {
				continue
			}
			out = append(out, ps)
		}
	}
	return out
}

// Changed implements repl.Peers.
func (p *peers) Changed() <-chan struct{} { return p.g.Changed() }

var _ repl.Peers = (*peers)(nil)

func (n *Node) publishSoon() {
	select {
	case n.soon <- struct{}{}:
	default:
	}
}

func (n *Node) publishLoop(ctx context.Context) {
	t := time.NewTicker(publishEvery)
	defer t.Stop()
	for _, s := range n.Slots {
		go func() {
			for {
				select {
				case <-s.Member.Changed():
					n.publishSoon()
				case <-ctx.Done():
					return
				}
				// Positions change all the time; a few times a second is enough.
				select {
				case <-time.After(publishEvery / 5):
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-n.soon:
		}
		n.publish()
	}
}

// publish tells the others what we are.
func (n *Node) publish() {
	st := gossip.State{Repl: n.replAddr(), Software: n.Version, Witness: n.Config.Witness()}
	if r := n.Register; r != nil && r.Member != nil {
		st.Register, st.Trouble = r.Member.Config().ClientAdvertise, cut(r.trouble())
		st.Votes = r.Member.State().Phase == register.Running
	}
	for _, s := range n.Slots {
		st.Slots = append(st.Slots, s.gossip())
	}
	n.Gossip.Publish(st)
}

// replAddr is where others reach our replication listener: what the config
// says, or the host that gossip advertises.
func (n *Node) replAddr() string {
	if n.Config.Advertise != "" {
		return n.Config.Advertise
	}
	host, port, err := net.SplitHostPort(n.listener.Addr().String())
	if err != nil {
		return n.listener.Addr().String()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		if h, _, err := net.SplitHostPort(n.Gossip.Addr()); err == nil {
			host = h
		}
	}
	return net.JoinHostPort(host, port)
}

// gossip is what the others are told about the slot.
func (s *Slot) gossip() gossip.Slot {
	g := gossip.Slot{Store: s.Conf.Store, ID: s.Meta.ID.String(), Role: string(repl.Replica), Mount: s.Conf.Mount, Pos: gossip.Pos(s.Meta.Log.Last())}
	if id := s.Meta.StoreID(); !id.IsZero() {
		g.StoreID = id.String()
	}
	if s.Member == nil {
		return g // before Run
	}
	st := s.Member.State()
	g.Role, g.Epoch, g.Pos = string(st.Role), st.Epoch, gossip.Pos(st.Pos)
	g.Committed, g.Applied = st.Commit, st.Applied
	g.InSync, g.Drained = st.InSync, st.Drained
	for _, m := range st.Members {
		g.Members = append(g.Members, m.String())
	}
	if !st.Primary.IsZero() {
		g.Primary = st.Primary.String()
	}
	if st.Role != repl.Primary {
		for _, p := range st.Peers {
			if p.Slot == st.Primary || p.Role == repl.Primary {
				g.LagEntries, g.LagBytes, g.LagSeconds = p.LagEntries, p.LagBytes, p.LagSeconds
			}
		}
	}
	if st.Role == repl.Primary {
		for _, p := range st.Peers {
			g.Peers = append(g.Peers, gossip.PeerLag{ID: p.Slot.String(), Connected: p.Connected, Entries: p.LagEntries, Bytes: p.LagBytes, Seconds: p.LagSeconds})
		}
	}
	if p := st.Resync; p != nil {
		st.Doing = fmt.Sprintf("resync from %s to seq %d: %d directories compared (%d equal), %d files (%d bytes) fetched, %d (%d bytes) to go, for %s",
			p.From, p.Target.Seq, p.Dirs, p.Same, p.Files, p.Bytes, p.WantFiles, p.WantBytes, time.Since(p.Started).Round(time.Second))
	}
	g.Doing, g.Fault, g.Error = cut(st.Doing), cut(firstOf(st.Faulted, st.Diverged)), lastError(&st)
	held := s.Meta.Stats()
	g.Applied, g.Digest, g.Messages, g.Bytes = held.Pos.Seq, held.Digest.String(), held.Messages, held.Bytes
	for kind, count := range s.Meta.Events.Counts() {
		if kind != meta.EventRecovery {
			g.Findings += count
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.Mounted = s.fs != nil
	g.Error = firstOf(cut(s.mountError), g.Error)
	for _, h := range s.outcomes() {
		if h.Error != "" {
			g.Error = firstOf(g.Error, cut(h.Hook+": "+h.Error))
		}
	}
	return g
}

// errorKept is how long an error that nobody needs to act on stays in status.
const errorKept = 10 * time.Minute

func lastError(st *repl.State) string {
	if st.LastError == "" || time.Since(st.ErrorTime) > errorKept {
		return ""
	}
	return cut(fmt.Sprintf("at %s: %s", st.ErrorTime.Format("15:04:05"), st.LastError))
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

func cut(text string) string {
	if len(text) > maxText {
		return strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// Status is everything the node knows.
func (n *Node) Status() admin.Status {
	n.publish()
	st := admin.Status{
		Node: n.Config.Node, Cluster: n.Identity.Cluster.ID, Version: n.Version, Time: time.Now(), Started: n.started,
		PID: os.Getpid(), Register: n.registerStatus(), Warnings: n.registerWarnings(), Nodes: n.Gossip.Members(), Problems: append(n.Gossip.Problems(), n.strangers.list()...),
	}
	for _, s := range n.Slots {
		st.Slots = append(st.Slots, s.status())
	}
	st.Warnings = append(st.Warnings, n.branchWarnings()...)
	if r := n.Server.LastRefusal(); !r.Time.IsZero() && time.Since(r.Time) < errorKept {
		st.Warnings = append(st.Warnings, fmt.Sprintf("at %s a replication connection from %s was refused: %s", r.Time.Format("15:04:05"), r.Remote, r.Reason))
	}
	byPrimaries(st.Nodes)
	return st
}

// byPrimaries corrects what replicas say about themselves by what the primary
// of their store says: a replica that was dropped while it was away still
// believes that it is in sync, and only the primary knows what it lacks.
func byPrimaries(nodes []gossip.Member) {
	primaries := map[string]gossip.Slot{}
	for _, n := range nodes {
		for _, s := range n.Slots {
			if p, ok := primaries[s.Store]; n.Alive && s.Role == string(repl.Primary) && (!ok || s.Epoch > p.Epoch) {
				primaries[s.Store] = s
			}
		}
	}
	for i := range nodes {
		nodes[i].Slots = slices.Clone(nodes[i].Slots)
		for j := range nodes[i].Slots {
			s := &nodes[i].Slots[j]
			p, ok := primaries[s.Store]
			if !ok || p.ID == s.ID || s.StoreID != "" && p.StoreID != s.StoreID {
				continue
			}
			s.InSync = slices.Contains(p.Members, s.ID)
			if k := slices.IndexFunc(p.Peers, func(x gossip.PeerLag) bool { return x.ID == s.ID }); k >= 0 {
				s.LagEntries, s.LagBytes, s.LagSeconds = p.Peers[k].Entries, p.Peers[k].Bytes, p.Peers[k].Seconds
			}
		}
	}
}
