package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/fs"
	"slotfs/gossip"
	"slotfs/meta/op"
	"slotfs/repl"
)

// Paths of what may be asked of any node and is passed on to the right one.
const (
	pathSwitch = "/v1/switch"
	pathDrain  = "/v1/drain"
)

// ready says why this slot could not serve if it became primary now.
func (s *Slot) ready() error {
	s.mu.Lock()
	mounted := s.fs != nil
	s.mu.Unlock()
	if mounted {
		return nil
	}
	if err := fs.Mountable(s.Conf.Mount); err != nil {
		return err
	}
	return s.Meta.Space(0)
}

// switchOver makes another slot primary: that of the node that is named, or the
// best one. The primary does it; another node passes the request on.
func (n *Node) switchOver(ctx context.Context, r *admin.SwitchRequest) (*admin.Outcome, error) {
	s, ok := n.Slot(r.Store)
	if !ok || s.Member.State().Role != repl.Primary {
		return n.passSwitch(ctx, r)
	}
	var to op.SlotID
	if r.To != "" {
		if r.To == n.Config.Node {
			return nil, exit.With(exit.Refused, fmt.Errorf("the slot of store %q on %s already is primary", r.Store, r.To))
		}
		m, g, err := n.slotOn(r.Store, r.To)
		if err != nil {
			return nil, err
		}
		if to, err = op.ParseSlotID(g.ID); err != nil {
			return nil, fmt.Errorf("slot of %s: %w", m.Name, err)
		}
	}
	s.mu.Lock()
	s.refusedAt = time.Time{}
	s.mu.Unlock()
	// What was begun is finished, whether the operator waits or not.
	if err := s.Member.Switch(context.WithoutCancel(ctx), to); err != nil {
		n.publish()
		return nil, err
	}
	done := time.Now()
	n.publish()
	return s.switched(done), nil
}

// switched says how a switchover went.
func (s *Slot) switched(done time.Time) *admin.Outcome {
	st := s.Member.State()
	s.mu.Lock()
	held := done.Sub(s.refusedAt).Round(time.Millisecond)
	s.mu.Unlock()
	o := &admin.Outcome{Store: s.Conf.Store, Node: s.label(st.Primary, &st), Role: repl.Primary, Epoch: st.Epoch, Pos: st.Pos}
	o.HeldMS = held.Milliseconds()
	o.Text = fmt.Sprintf("%s handed over; calls were held back for %v", s.node.Config.Node, held)
	return o
}

func (s *Slot) label(slot op.SlotID, st *repl.State) string {
	for _, p := range st.Peers {
		if p.Slot == slot || slot == st.Slot && p.Role == repl.Primary {
			return p.Node
		}
	}
	return s.node.Config.Node
}

func (n *Node) passSwitch(ctx context.Context, r *admin.SwitchRequest) (*admin.Outcome, error) {
	if ctx.Value(forwarded{}) != nil {
		return nil, exit.With(exit.Refused, fmt.Errorf("node %s is not primary of store %q any more", n.Config.Node, r.Store))
	}
	m, ok := n.primaryOf(r.Store)
	if !ok || m.Self {
		return nil, exit.With(exit.Refused, fmt.Errorf("store %q has no primary that can be reached: there is nothing to switch over from; see \"slotfs promote\"", r.Store))
	}
	o := new(admin.Outcome)
	if err := n.send(ctx, m, pathSwitch, r, o); err != nil {
		return nil, err
	}
	return o, nil
}

// slotOn finds a store's slot on a node.
func (n *Node) slotOn(store, node string) (gossip.Member, *gossip.Slot, error) {
	for _, m := range n.Gossip.Members() {
		if m.Name != node {
			continue
		}
		for i := range m.Slots {
			if m.Slots[i].Store == store {
				return m, &m.Slots[i], nil
			}
		}
		return m, nil, exit.With(exit.Usage, fmt.Errorf("node %s has no slot of store %q", node, store))
	}
	return gossip.Member{}, nil, exit.With(exit.Usage, fmt.Errorf("no node is called %q", node))
}

// drain notes that no slot of a node becomes primary by itself, and moves its
// primaries away; or takes that back. The node itself does it.
func (n *Node) drain(ctx context.Context, r *admin.DrainRequest) (*admin.Drained, error) {
	if r.Node != n.Config.Node {
		return n.passDrain(ctx, r)
	}
	out := &admin.Drained{Node: r.Node, On: r.On, Stores: []admin.DrainedStore{}}
	for _, s := range n.Slots {
		if err := s.Member.Drain(r.On); err != nil {
			return nil, fmt.Errorf("note that %s is drained: %w", s.Conf.Store, err)
		}
	}
	n.publish()
	for _, s := range n.Slots {
		d := admin.DrainedStore{Store: s.Conf.Store}
		if r.On && s.Member.State().Role == repl.Primary {
			o, err := n.switchOver(ctx, &admin.SwitchRequest{Store: s.Conf.Store})
			if err != nil {
				d.Error = err.Error()
			} else {
				d.To, d.Epoch = o.Node, o.Epoch
			}
		}
		out.Stores = append(out.Stores, d)
	}
	n.publish()
	return out, nil
}

func (n *Node) passDrain(ctx context.Context, r *admin.DrainRequest) (*admin.Drained, error) {
	var names []string
	for _, m := range n.Gossip.Members() {
		names = append(names, m.Name)
		if m.Name != r.Node {
			continue
		}
		switch {
		case ctx.Value(forwarded{}) != nil:
			return nil, exit.With(exit.Refused, errors.New("the request has come to the wrong node: ask again"))
		case !m.Alive:
			return nil, exit.With(exit.Refused, fmt.Errorf("node %s does not answer", r.Node))
		}
		out := new(admin.Drained)
		if err := n.send(ctx, m, pathDrain, r, out); err != nil {
			return nil, err
		}
		return out, nil
	}
	return nil, exit.With(exit.Usage, fmt.Errorf("no node is called %q; there are %s", r.Node, strings.Join(names, ", ")))
}
