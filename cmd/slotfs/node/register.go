package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/repl"
	"slotfs/repl/register"
)

// MemberCommand is the command of this program that runs a register member for
// a node; see package register.
const MemberCommand = "register-member"

// Register is the node's part in the register.
type Register struct {
	Client *register.Etcd
	Member *register.Process // nil: this node has no vote

	node *Node
	self string // where the member's clients come in on this machine, host:port

	mu      sync.Mutex // guards what follows
	members []register.MemberInfo
	leader  uint64
	local   register.LocalStatus
	moved   time.Time // last attempt to move the lead
}

// openRegister connects to the register and starts this node's member.
func (n *Node) openRegister() error {
	c := &n.Config.Register
	switch c.Mode {
	case config.RegisterEtcd:
		return n.openEtcd(c)
	case config.RegisterEmbedded:
		return n.openEmbedded(c)
	}
	return nil
}

func (n *Node) openEtcd(c *config.Register) error {
	tls, cerr := c.TLS()
	password := ""
	if cerr == nil {
		password, cerr = c.ReadPassword()
	}
	if cerr != nil { // Check found nothing: it has changed meanwhile
		cerr.File = n.Config.Path
		return cerr
	}
	r := &Register{node: n, Client: register.New(register.Options{Cluster: n.Identity.Cluster.ID, TLS: tls, User: c.User, Password: password, Logger: n.Log})}
	r.Client.SetEndpoints(c.Endpoints)
	n.Register = r
	n.onClose(r.Client.Close)
	return nil
}

func (n *Node) openEmbedded(c *config.Register) error {
	r := &Register{node: n, Client: register.New(register.Options{Cluster: n.Identity.Cluster.ID, TLS: n.Identity.ClientTLS(), Logger: n.Log})}
	n.Register = r
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	n.onClose(func() error { cancel(); wg.Wait(); return nil })
	n.onClose(r.Client.Close) // first, so that it does not miss the member
	if self, ok := n.Config.RegisterSelf(); ok {
		if err := n.makeMember(r, c, self); err != nil {
			return err
		}
		wg.Go(func() { r.Member.Run(ctx) })
	}
	wg.Go(func() { r.steward(ctx) })
	return nil
}

// makeMember prepares this node's member. Its addresses are tried first, so
// that one in use is told at once.
func (n *Node) makeMember(r *Register, c *config.Register, self config.RegisterMember) error {
	host, _, err := net.SplitHostPort(self.Addr)
	if err != nil {
		return fmt.Errorf("register address: %w", err)
	}
	bind, port, err := net.SplitHostPort(c.ClientListen)
	if err != nil {
		return fmt.Errorf("register address: %w", err)
	}
	if ip := net.ParseIP(bind); ip == nil || ip.IsUnspecified() {
		bind = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			bind = "::1"
		}
	}
	r.self = net.JoinHostPort(bind, port)
	cluster := n.Identity.Cluster
	m := register.MemberConfig{
		Name: n.Config.Node, Cluster: cluster.ID, Dir: c.Data, Listen: c.Listen, ClientListen: c.ClientListen,
		ClientAdvertise: firstOf(c.ClientAdvertise, net.JoinHostPort(host, port)),
		Cert:            n.Config.Cert, Key: n.Config.Key, CA: cluster.CAPath(), ServerName: cluster.ServerName(),
	}
	for _, p := range c.Members {
		m.Peers = append(m.Peers, register.Peer{Name: p.Name, Addr: p.Addr})
	}
	if err := n.registerReady(c, &m); err != nil {
		return err
	}
	r.Member = register.NewProcess(m, n.Log)
	r.Member.Changed = n.publishSoon
	r.Member.Command = n.memberCommand
	r.Client.SetEndpoints([]string{r.self})
	return nil
}

// registerReady refuses what would keep the member from ever starting.
func (n *Node) registerReady(c *config.Register, m *register.MemberConfig) error {
	fail := func(key, reason, remedy string, err error) error {
		return &config.Error{File: n.Config.Path, Key: key, Code: exit.Network, Err: err, Reason: reason, Remedy: remedy}
	}
	if n.Identity.Cert.Leaf != nil && !slices.Contains(n.Identity.Cert.Leaf.DNSNames, m.ServerName) {
		return fail("replication.cert", fmt.Sprintf("%s was made before there was a register, and cannot be used for it", n.Config.Cert),
			"Make a new one with slotfs init --node "+n.Config.Node+" --cluster DIR, DIR being where the cluster was created.", nil)
	}
	for key, addr := range map[string]string{"register.listen": c.Listen, "register.client_listen": c.ClientListen} {
		l, err := listenSoon(addr)
		if err != nil {
			return fail(key, fmt.Sprintf("cannot listen on %s: %v", addr, err), "Is another slotfs or etcd running, or the address not one of this machine?", err)
		}
		l.Close()
	}
	return nil
}

// listenSoon waits a little for an address that a member before still has: it
// ends by itself, a moment after its node was killed.
func listenSoon(addr string) (l net.Listener, err error) {
	for range 20 {
		if l, err = net.Listen("tcp", addr); err == nil {
			return l, nil
		}
		time.Sleep(100 * time.Millisecond) // nobody tells when an address is free
	}
	return nil, err
}

// memberCommand runs this very program.
func (n *Node) memberCommand() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", MemberCommand, "--config", n.Config.Path)
	cmd.Args[0] = "slotfs"
	cmd.Stderr = os.Stderr
	return cmd
}

// register is what repl needs; nil without one.
func (n *Node) register() repl.Register {
	if n.Register == nil {
		return nil
	}
	return n.Register.Client
}

const stewardEvery = time.Second

// steward keeps the endpoints up to date, gives this node's member its vote
// when it has caught up, and the lead to a witness: the loss of a mail node then
// costs no election.
func (r *Register) steward(ctx context.Context) {
	t := time.NewTicker(stewardEvery)
	defer t.Stop()
	for {
		r.refresh(ctx)
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Register) refresh(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*stewardEvery)
	defer cancel()
	r.Client.SetEndpoints(r.endpoints())
	members, err := r.Client.Members(ctx, true)
	if err != nil {
		return // Reach tells
	}
	local, err := r.status(ctx)
	r.mu.Lock()
	r.members = members
	if err == nil {
		r.local, r.leader = local, local.Leader
	}
	r.mu.Unlock()
	if err != nil || r.Member == nil {
		return
	}
	switch {
	case local.Learner:
		if err := r.Client.Promote(ctx, local.ID); err != nil {
			r.node.Log.Debug("register member", "err", err)
		} else {
			r.node.Log.Info("this node's register member has caught up, and votes")
		}
	case local.Leader == local.ID && !r.node.Config.Witness():
		r.giveLead(ctx, members)
	}
}

// status asks this node's member, or any if it has none.
func (r *Register) status(ctx context.Context) (register.LocalStatus, error) {
	urls := []string{r.self}
	if r.Member == nil {
		urls = r.Client.Endpoints()
	}
	err := error(nil)
	for _, u := range urls {
		var s register.LocalStatus
		if s, err = r.Client.StatusAt(ctx, u); err == nil {
			return s, nil
		}
	}
	if err == nil {
		err = fmt.Errorf("no register member is known")
	}
	return register.LocalStatus{}, err
}

// endpoints: our member first, then those that nodes announce, then those that
// the members' list has.
func (r *Register) endpoints() []string {
	var out []string
	if r.Member != nil {
		out = append(out, r.self)
	}
	for _, m := range r.node.Gossip.Members() {
		if !m.Self && m.Register != "" {
			out = append(out, m.Register)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.members {
		if m.Client != "" && m.Name != r.node.Config.Node {
			out = append(out, m.Client)
		}
	}
	return out
}

// leadPause is the time between attempts to move the lead.
const leadPause = 5 * time.Second

// giveLead lets a witness lead that is up.
func (r *Register) giveLead(ctx context.Context, members []register.MemberInfo) {
	r.mu.Lock()
	early := time.Since(r.moved) < leadPause
	r.mu.Unlock()
	if early {
		return
	}
	for _, g := range r.node.Gossip.Members() {
		i := slices.IndexFunc(members, func(m register.MemberInfo) bool { return m.Name == g.Name && !m.Learner })
		if !g.Witness || !g.Alive || i < 0 {
			continue
		}
		r.mu.Lock()
		r.moved = time.Now()
		r.mu.Unlock()
		if err := r.Client.GiveLead(ctx, r.self, members[i].ID); err != nil {
			r.node.Log.Info("the register's lead stays here", "to", g.Name, "err", err)
			continue
		}
		r.node.Log.Info("the witness leads the register now", "witness", g.Name)
		return
	}
}

// name of a member by its id; empty if unknown. The caller holds r.mu.
func (r *Register) nameLocked(id uint64) string {
	for _, m := range r.members {
		if m.ID == id {
			return firstOf(m.Name, m.Peer)
		}
	}
	return ""
}

// memberRoom is what a member's next log segment takes, in bytes, and a little.
const memberRoom = 72 << 20

// trouble says in a sentence what is wrong with this node's member.
func (r *Register) trouble() string {
	if r.Member == nil {
		return ""
	}
	switch st := r.Member.State(); st.Phase {
	case register.Running:
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.local.Errors) > 0 {
			return "register member: " + strings.Join(r.local.Errors, "; ")
		}
		dir := r.Member.Config().Dir
		if room, _, err := free(dir); err == nil && room < memberRoom {
			return fmt.Sprintf("register member: only %d MiB free in %s; it needs %d MiB for its log", room>>20, dir, memberRoom>>20)
		}
		return ""
	case register.Starting:
		return ""
	default:
		return fmt.Sprintf("register member %s: %s", st.Phase, st.Text)
	}
}
