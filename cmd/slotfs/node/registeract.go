package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta/op"
	"slotfs/repl"
	"slotfs/repl/register"
)

func refused(format string, args ...any) error {
	return exit.With(exit.Refused, fmt.Errorf("refused: "+format, args...))
}

// embeddedRegister refuses what an external etcd's own tools are for.
func (n *Node) embeddedRegister() (*Register, error) {
	switch n.Config.Register.Mode {
	case config.RegisterEtcd:
		return nil, refused("the register is an etcd of its own (register.mode = \"etcd\"); change its members with etcdctl")
	case config.RegisterEmbedded:
		return n.Register, nil
	}
	return nil, refused("this node has no register (register.mode = \"none\" in %s)", n.Config.Path)
}

// addMember lets a new member in. It has no vote until it has caught up, so
// that nothing gets worse if it never starts.
func (n *Node) addMember(ctx context.Context, req *admin.AddMemberRequest) (*admin.MembersOutcome, error) {
	r, err := n.embeddedRegister()
	if err != nil {
		return nil, err
	}
	if why := config.BadName(req.Name); why != "" {
		return nil, exit.With(exit.Usage, fmt.Errorf("%q cannot name a node: %s", req.Name, why))
	}
	if host, _, err := net.SplitHostPort(req.Addr); err != nil || host == "" {
		return nil, exit.With(exit.Usage, fmt.Errorf("%q is not an address with a port, such as 192.0.2.3:7948", req.Addr))
	}
	members, err := r.Client.Members(ctx, false)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		switch {
		case m.Name == req.Name:
			return nil, refused("%s is a member already, at %s. If its data is lost, remove it first: slotfs register remove %s", m.Name, m.Peer, m.Name)
		case m.Peer == req.Addr && m.Name != "":
			return nil, refused("%s is the address of the member %s", m.Peer, m.Name)
		case m.Peer == req.Addr:
			return n.membersOutcome(members, req), nil // added before, and not started yet
		}
	}
	if members, err = r.Client.AddLearner(ctx, req.Addr); err != nil {
		return nil, err
	}
	n.Log.Info("a register member was added", "member", req.Name, "addr", req.Addr)
	return n.membersOutcome(members, req), nil
}

// membersOutcome tells what the new member's config has to say.
func (n *Node) membersOutcome(members []register.MemberInfo, req *admin.AddMemberRequest) *admin.MembersOutcome {
	var list []string
	for _, m := range members {
		name := m.Name
		if m.Peer == req.Addr {
			name = req.Name
		}
		if name != "" {
			list = append(list, fmt.Sprintf("%q", name+"="+m.Peer))
		}
	}
	return &admin.MembersOutcome{Members: members, Text: fmt.Sprintf(
		"%s may join now. In its config: members = [%s]; then start it, with an empty register directory. It votes when it has caught up.",
		req.Name, strings.Join(list, ", "))}
}

func (n *Node) removeMember(ctx context.Context, req *admin.RemoveMemberRequest) (*admin.MembersOutcome, error) {
	r, err := n.embeddedRegister()
	if err != nil {
		return nil, err
	}
	members, err := r.Client.Members(ctx, false)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(members, func(m register.MemberInfo) bool { return m.Name == req.Member || m.Peer == req.Member })
	if i < 0 {
		return nil, exit.With(exit.Usage, fmt.Errorf("there is no register member %q", req.Member))
	}
	gone := members[i]
	if len(members) == 1 {
		return nil, refused("%s is the only member", req.Member)
	}
	if members, err = r.Client.Remove(ctx, gone.ID); err != nil {
		return nil, err
	}
	n.Log.Info("a register member was removed", "member", gone.Name, "addr", gone.Peer)
	text := fmt.Sprintf("%s has no vote any more. To put a new one in its place: slotfs register add %s %s", req.Member, firstOf(gone.Name, "NAME"), gone.Peer)
	return &admin.MembersOutcome{Members: members, Text: text}, nil
}

// restore makes the register, or one store's record, anew.
func (n *Node) restore(ctx context.Context, req *admin.RestoreRequest) (*admin.RestoreOutcome, error) {
	if req.Store == "" {
		return n.restoreRegister(ctx, req)
	}
	return n.restoreRecord(ctx, req)
}

// restoreRegister makes a register whose only member is this node's.
func (n *Node) restoreRegister(ctx context.Context, req *admin.RestoreRequest) (*admin.RestoreOutcome, error) {
	r, err := n.embeddedRegister()
	if err != nil {
		return nil, err
	}
	if r.Member == nil {
		return nil, refused("this node has no register member; run it on a node that has one")
	}
	if r.Client.Reach().OK() {
		return nil, refused("the register answers, so a majority of its members lives: replace the lost ones with slotfs register remove and add")
	}
	text := fmt.Sprintf("the register begins anew with %s as its only member, from what its member has in %s; the other members are out. "+
		"What was decided without this member is forgotten: run this on the member that was up last, and make sure that the others are down and stay down. "+
		"Then, on each of the others that comes back: empty its register directory, after slotfs register add here. "+
		"A store whose record is missing or too old afterwards gets it from a slot that was in sync: slotfs register restore STORE", n.Config.Node, r.Member.Config().Dir)
	if !req.Yes {
		return &admin.RestoreOutcome{Text: text}, nil
	}
	n.Log.Warn("the register is made anew from this node's member alone, as asked by an operator")
	r.Member.Restart(true)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err = r.Client.List(ctx); err == nil {
			return &admin.RestoreOutcome{Done: true, Text: text}, nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("the register does not answer yet: %w; its member here: %s %s", err, r.Member.State().Phase, r.Member.State().Text)
		}
	}
}

// restoreRecord writes a store's record from what this node's slot knows.
func (n *Node) restoreRecord(ctx context.Context, req *admin.RestoreRequest) (*admin.RestoreOutcome, error) {
	if n.Register == nil {
		return nil, refused("this node has no register (register.mode = \"none\" in %s)", n.Config.Path)
	}
	s, err := n.slot(req.Store)
	if err != nil {
		return nil, err
	}
	rec, caution, err := s.Member.RestoreRecord()
	if err != nil {
		return nil, err
	}
	cautions, err := n.othersKnowLater(req.Store, &rec)
	if err != nil {
		return nil, err
	}
	if caution != "" {
		cautions = append(cautions, caution)
	}
	now, found, err := n.Register.Client.Get(ctx, req.Store)
	switch {
	case err != nil && !errors.Is(err, repl.ErrRecord):
		return nil, err
	case err == nil && found && now.Epoch > rec.Epoch:
		cautions = append(cautions, fmt.Sprintf("the register has a record of epoch %d, and this slot knows epoch %d at most", now.Epoch, rec.Epoch))
	case err == nil && found && now.Epoch == rec.Epoch && now.Nonce == rec.Nonce:
		return nil, refused("the register has this very record (epoch %d); there is nothing to restore", rec.Epoch)
	}
	names := n.slotNodes()
	rec.Nodes = map[op.SlotID]string{}
	for _, id := range rec.InSync {
		rec.Nodes[id] = firstOf(names[id.String()], id.String())
	}
	text := fmt.Sprintf("the record of %s becomes: epoch %d, primary %s, in sync %s, as the slot on %s knows it", req.Store, rec.Epoch,
		rec.Nodes[rec.Primary], nodeNames(&rec), n.Config.Node)
	if len(cautions) > 0 && !req.Force {
		return nil, refused("%s. If the slot of another node may have gone on in a later epoch, run this there; if you are sure that none has, repeat with --force", strings.Join(cautions, "; "))
	}
	if !req.Yes {
		return &admin.RestoreOutcome{Text: text}, nil
	}
	if err := n.Register.Client.Put(ctx, req.Store, rec); err != nil {
		return nil, err
	}
	s.log.Warn("the register's record was restored by an operator", "epoch", rec.Epoch, "in_sync", nodeNames(&rec))
	return &admin.RestoreOutcome{Done: true, Text: text}, nil
}

func nodeNames(rec *repl.Record) string {
	var out []string
	for _, id := range rec.InSync {
		out = append(out, rec.Nodes[id])
	}
	return strings.Join(out, ", ")
}

// othersKnowLater asks gossip about the store's other slots. One that knows a
// later epoch has to speak instead; a member of the set that is silent might.
func (n *Node) othersKnowLater(store string, rec *repl.Record) (cautions []string, err error) {
	heard := map[string]bool{}
	for _, m := range n.Gossip.Members() {
		for _, g := range m.Slots {
			if g.Store != store || g.StoreID != rec.Store.String() {
				continue
			}
			heard[g.ID] = heard[g.ID] || m.Alive
			if g.Epoch > rec.Epoch {
				return nil, refused("the slot on %s is in epoch %d, later than what this slot knows (%d): run this on %s", m.Name, g.Epoch, rec.Epoch, m.Name)
			}
		}
	}
	for _, id := range rec.InSync {
		if !heard[id.String()] {
			cautions = append(cautions, fmt.Sprintf("slot %s of the in-sync set does not answer, and may know a later epoch", id))
		}
	}
	return cautions, nil
}
