package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/gossip"
	"slotfs/meta/op"
	"slotfs/repl/register"
)

// registerStatus is what is known of the register without asking.
func (n *Node) registerStatus() admin.Register {
	st := admin.Register{Mode: n.Config.Register.Mode}
	r := n.Register
	if r == nil {
		return st
	}
	reach := r.Client.Reach()
	st.Answers, st.Heard, st.Since, st.Error = reach.OK(), reach.Heard, reach.Since, reach.Error
	st.Garbage = r.Client.Garbage()
	if r.Member != nil {
		s := r.Member.State()
		st.Member = &s
	}
	if st.Mode != config.RegisterEmbedded {
		return st
	}
	nodes := n.Gossip.Members()
	r.mu.Lock()
	defer r.mu.Unlock()
	st.Leader = r.nameLocked(r.leader)
	for _, m := range r.members {
		st.Members = append(st.Members, memberState(m, nodes, m.ID == r.leader))
	}
	if len(st.Members) == 0 { // not formed, or never heard of
		for _, c := range n.Config.Register.Members {
			st.Members = append(st.Members, memberState(register.MemberInfo{Name: c.Name, Peer: c.Addr}, nodes, false))
		}
	}
	return st
}

// memberState judges a member by what gossip says of its node.
func memberState(m register.MemberInfo, nodes []gossip.Member, leads bool) admin.RegisterMember {
	out := admin.RegisterMember{MemberInfo: m, State: "down", Leads: leads}
	i := slices.IndexFunc(nodes, func(g gossip.Member) bool { return g.Name == m.Name })
	switch {
	case m.Name == "":
		out.State = "joining" // added, and never started
	case i < 0 || !nodes[i].Alive:
	case !nodes[i].Votes:
		out.Trouble = nodes[i].Trouble
	case m.Learner:
		out.State = "joining"
	default:
		out.State, out.Trouble = "up", nodes[i].Trouble
	}
	return out
}

// registerReport asks the members and reads the records.
func (n *Node) registerReport(ctx context.Context) *admin.RegisterReport {
	if n.Register != nil && n.Config.Register.Mode == config.RegisterEmbedded {
		n.Register.refresh(ctx)
	}
	rep := &admin.RegisterReport{Register: n.registerStatus(), Node: n.Config.Node, Records: map[string]admin.RegisterRecord{}}
	if n.Register == nil {
		return rep
	}
	list, err := n.Register.Client.List(ctx)
	if err != nil {
		rep.Problem = err.Error()
	}
	names := n.slotNodes()
	for store, e := range list {
		out := admin.RegisterRecord{Epoch: e.Record.Epoch, Reason: e.Record.Reason, Time: e.Record.Time}
		if e.Err != nil {
			out.Error = e.Err.Error()
		} else {
			out.Primary = e.Record.Primary.String()
			name := func(s op.SlotID) string { return firstOf(names[s.String()], e.Record.Nodes[s], s.String()) }
			out.Leader = name(e.Record.Primary)
			for _, s := range e.Record.InSync {
				out.InSync, out.Nodes = append(out.InSync, s.String()), append(out.Nodes, name(s))
			}
		}
		rep.Records[store] = out
	}
	rep.Register = n.registerStatus() // what reading showed
	return rep
}

// slotNodes is where gossip has seen the slots: slot id to node name.
func (n *Node) slotNodes() map[string]string {
	out := map[string]string{}
	for _, m := range n.Gossip.Members() {
		for _, s := range m.Slots {
			out[s.ID] = m.Name
		}
	}
	return out
}

// registerWarnings are sentences for the status of the node.
func (n *Node) registerWarnings() []string {
	r := n.registerStatus()
	if n.Register == nil {
		return nil
	}
	var out []string
	switch {
	case r.Answers:
	case r.Heard.IsZero() && r.Member != nil && r.Member.Phase == register.Forming:
		out = append(out, r.Member.Text)
	case r.Heard.IsZero():
		out = append(out, "the register has not answered since this node started; roles cannot change"+because(r.Error))
	default:
		out = append(out, fmt.Sprintf("register unreachable since %s; roles cannot change%s", r.Since.Local().Format("15:04:05"), because(r.Error)))
	}
	if r.Member != nil && r.Member.Phase != register.Forming {
		if t := n.Register.trouble(); t != "" {
			out = append(out, "this node's "+t)
		}
	}
	down := 0
	for _, m := range r.Members {
		if m.Trouble != "" && m.Name != n.Config.Node {
			out = append(out, fmt.Sprintf("%s's %s", m.Name, m.Trouble))
		}
		if m.State != "up" {
			down++
		}
	}
	if voters := len(r.Members); r.Answers && down > 0 && voters-down == voters/2+1 {
		out = append(out, fmt.Sprintf("%d of %d register members are up: the loss of one more stops every change of role", voters-down, voters))
	}
	for store, text := range r.Garbage {
		out = append(out, store+": "+text)
	}
	slices.Sort(out)
	return out
}

func because(err string) string {
	if err == "" {
		return ""
	}
	return " (" + err + ")"
}

// heardAgo is the age of the last answer in seconds; -1: never.
func heardAgo(t time.Time) float64 {
	if t.IsZero() {
		return -1
	}
	return time.Since(t).Seconds()
}
