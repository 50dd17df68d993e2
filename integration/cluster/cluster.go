// Package cluster runs nodes of slotfs for tests and for the demonstration:
// the built binary, as separate processes on loopback or each on a host of a
// network of their own, with directories and keys of their own, all inside a
// scratch directory.
//
// It knows slotfs only from outside: what the command line prints, what the
// processes log, and what is mounted.
package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"slotfs/integration/netns"
	"slotfs/integration/scratch"
)

// Options of a cluster.
type Options struct {
	Binary string   // default: what Binary finds
	Store  string   // "mail"
	Names  []string // of the nodes; n1, n2, …
	// Slot and Replication are more lines for these sections of the config.
	Slot, Replication string
	// Data says where node i (from 0) has its data directory; it must not
	// exist yet, its parent must. Default: beside the node's config.
	Data func(i int) string
	// Net gives each node a host of its own in it. Default: all on loopback.
	Net *netns.Net
	// Witness adds a node without slots, and a register whose members are it
	// and the Voters. Default: no register.
	Witness bool
	Voters  []int // nodes (from 0); the first two
	// Timeout is how long a node may take for anything that is waited for.
	Timeout time.Duration // a minute
}

// Cluster is some nodes that hold one store.
type Cluster struct {
	Store   string
	Nodes   []*Node
	Witness *Node // nil: there is none
	Scratch *scratch.Dir

	bin     string
	members []*Node // of the register
	more    []*Node // witnesses besides Witness
	timeout time.Duration
	options Options
}

// Binary finds the slotfs under test: $SLOTFS_BIN, or bin/slotfs of the
// module that the working directory is in.
func Binary() (string, error) {
	if bin := os.Getenv("SLOTFS_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == "/" {
			return "", errors.New("not inside the module: set SLOTFS_BIN")
		}
	}
	bin := filepath.Join(dir, "bin", "slotfs")
	if _, err := os.Stat(bin); err != nil {
		return "", fmt.Errorf("no binary to test: run make, or set SLOTFS_BIN: %w", err)
	}
	return bin, nil
}

// New makes the configuration of some nodes; none is started.
func New(d *scratch.Dir, nodes int, o Options) (*Cluster, error) {
	if o.Binary == "" {
		bin, err := Binary()
		if err != nil {
			return nil, err
		}
		o.Binary = bin
	}
	if o.Store == "" {
		o.Store = "mail"
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	c := &Cluster{Store: o.Store, Scratch: d, bin: o.Binary, timeout: o.Timeout, options: o}
	var first []*Node
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		if i < len(o.Names) {
			name = o.Names[i]
		}
		n, err := c.node(name, i)
		if err != nil {
			return nil, err
		}
		first = append(first, n)
	}
	if o.Witness {
		w, err := c.node("w", -1)
		if err != nil {
			return nil, err
		}
		w.witness = true
		c.Witness, c.members = w, []*Node{w}
		if o.Voters == nil {
			o.Voters = []int{0, 1}
		}
		for _, i := range o.Voters {
			if i < nodes {
				c.members = append(c.members, first[i])
			}
		}
	}
	for _, n := range first {
		if err := c.join(n); err != nil {
			return nil, err
		}
	}
	if o.Witness {
		return c, c.Witness.init()
	}
	return c, nil
}

// Add makes one more node.
func (c *Cluster) Add(name string) (*Node, error) {
	n, err := c.node(name, len(c.Nodes))
	if err != nil {
		return nil, err
	}
	return n, c.join(n)
}

// AddWitnesses makes more nodes without slots. The configs of these, and of
// these only, list them among the register's members.
func (c *Cluster) AddWitnesses(names ...string) ([]*Node, error) {
	var added []*Node
	for _, name := range names {
		n, err := c.node(name, -1)
		if err != nil {
			return nil, err
		}
		n.witness = true
		added = append(added, n)
	}
	c.members, c.more = append(c.members, added...), append(c.more, added...)
	for _, n := range added {
		if err := n.init(); err != nil {
			return nil, err
		}
	}
	return added, nil
}

// join configures a node. It joins through all nodes before it, and they
// through it: a node that comes back alone must find the others by itself.
func (c *Cluster) join(n *Node) error {
	if err := n.init(); err != nil {
		return err
	}
	for _, other := range c.Nodes {
		if other.Running() { // it has read its config
			continue
		}
		if err := other.addJoin(n.Gossip); err != nil {
			return err
		}
	}
	c.Nodes = append(c.Nodes, n)
	return nil
}

// node finds directories and addresses for node i (from 0; -1 is the witness).
func (c *Cluster) node(name string, i int) (*Node, error) {
	n := &Node{Name: name, cluster: c, Dir: filepath.Join(c.Scratch.Path, name)}
	for i := 2; ; i++ { // two nodes may have one name: that is a test
		if _, err := os.Lstat(n.Dir); errors.Is(err, os.ErrNotExist) {
			break
		}
		n.Dir = filepath.Join(c.Scratch.Path, fmt.Sprintf("%s.%d", name, i))
	}
	n.Data = filepath.Join(n.Dir, "data")
	if c.options.Data != nil && i >= 0 {
		n.Data = c.options.Data(i)
	}
	n.Config = filepath.Join(n.Dir, "slotfs.toml")
	n.Mount = filepath.Join(n.Dir, "mount")
	n.socket = filepath.Join(n.Dir, "s")
	n.log = filepath.Join(n.Dir, "log")
	if err := os.Mkdir(n.Dir, 0o755); err != nil {
		return nil, err
	}
	return n, n.settle()
}

// settle finds the node's addresses: of the host that the network gives it, or
// of a loopback address of its own.
func (n *Node) settle() error {
	var host interface{ Addr(port int) string }
	var err error
	if net := n.cluster.options.Net; net != nil {
		n.Host, err = net.Add(n.Name)
		host = n.Host
	} else {
		host, err = n.cluster.Scratch.Loopback()
	}
	if err != nil {
		return err
	}
	n.Gossip, n.Repl, n.register, n.clients = host.Addr(17946), host.Addr(17947), host.Addr(17948), host.Addr(17949)
	return nil
}

// init has slotfs make keys and config, then adds what the options say.
func (n *Node) init() error {
	c := n.cluster
	args := []string{"init", n.Dir, "--node", n.Name, "--gossip", n.Gossip, "--listen", n.Repl, "--socket", n.socket}
	if n.witness {
		args = append(args, "--witness")
	} else {
		args = append(args, "--store", c.Store, "--data", n.Data, "--mount", n.Mount)
	}
	if slices.Contains(c.members, n) {
		args = append(args, "--register-listen", n.register, "--register-clients", n.clients, "--register-data", filepath.Join(n.Dir, "register"))
		for _, m := range c.members {
			args = append(args, "--members", m.Name+"="+m.register)
		}
	}
	if len(c.Nodes) > 0 {
		args = append(args, "--cluster", filepath.Join(c.Nodes[0].Dir, "cluster"))
	}
	for _, other := range c.Nodes {
		args = append(args, "--join", other.Gossip)
	}
	if out, err := exec.Command(c.bin, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("slotfs %s: %w: %s", strings.Join(args, " "), err, out)
	}
	if n.witness {
		return nil
	}
	if err := os.MkdirAll(n.Mount, 0o755); err != nil {
		return err
	}
	if c.options.Replication != "" {
		if err := n.Edit("[replication]\n", "[replication]\n"+c.options.Replication+"\n"); err != nil {
			return err
		}
	}
	if c.options.Slot != "" {
		return n.Edit("[[slot]]\n", "[[slot]]\n"+c.options.Slot+"\n")
	}
	return nil
}

// All are the nodes and the witness.
func (c *Cluster) All() []*Node {
	if c.Witness == nil {
		return slices.Clone(c.Nodes)
	}
	return append(append(slices.Clone(c.Nodes), c.Witness), c.more...)
}

// Start starts all nodes, at one time if there is a register, which forms when
// all its members run.
func (c *Cluster) Start() error {
	if c.Witness == nil {
		for _, n := range c.Nodes {
			if err := n.Start(); err != nil {
				return err
			}
		}
		return nil
	}
	all := c.All()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, n := range all {
		wg.Go(func() { errs[i] = n.Start() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// StartPair starts all nodes, makes the first the primary and waits until all
// the others are in its in-sync set.
func (c *Cluster) StartPair() error {
	if err := c.Start(); err != nil {
		return err
	}
	// A register that forms is no reason to give up.
	if err := c.Wait(c.Nodes[0].Name+" to be promoted", func() error { return c.Nodes[0].Promote() }); err != nil {
		return err
	}
	return c.WaitInSync()
}

// Stop stops all nodes that run, replicas first, so that every entry has a
// slot to go to until the primary itself goes.
func (c *Cluster) Stop() error {
	var errs []error
	primary := c.primary()
	for _, n := range c.All() {
		if info, err := os.Stat(n.log); err == nil && n.ending == 0 {
			n.ending = info.Size()
		}
	}
	for _, n := range c.Nodes {
		if n != primary {
			errs = append(errs, n.Stop())
		}
	}
	if primary != nil {
		errs = append(errs, primary.Stop())
	}
	if c.Witness != nil {
		errs = append(errs, c.Witness.Stop())
	}
	for _, n := range c.more {
		errs = append(errs, n.Stop())
	}
	return errors.Join(errs...)
}

func (c *Cluster) primary() *Node {
	for _, n := range c.Nodes {
		if n.Running() {
			if s, err := n.Slot(); err == nil && s.Repl.Role == "primary" {
				return n
			}
		}
	}
	return nil
}

// Wait polls until cond returns no error. There is no event that covers the
// state of several processes.
func (c *Cluster) Wait(what string, cond func() error) error {
	var last error
	for end := time.Now().Add(c.timeout); time.Now().Before(end); time.Sleep(15 * time.Millisecond) {
		if last = cond(); last == nil {
			return nil
		}
	}
	return fmt.Errorf("waited %v for %s: %w", c.timeout, what, last)
}

// WaitInSync waits until there is a primary, mounted, and every running node
// is in its in-sync set.
func (c *Cluster) WaitInSync() error {
	return c.Wait("all nodes to be in sync", func() error {
		p := c.primary()
		if p == nil {
			return errors.New("there is no primary")
		}
		s, err := p.Slot()
		if err != nil {
			return err
		}
		if !s.Mounted {
			return fmt.Errorf("%s is not mounted", p.Name)
		}
		for _, n := range c.Nodes {
			if !n.Running() {
				continue
			}
			t, err := n.Slot()
			if err != nil {
				return err
			}
			if !s.Repl.member(t.Repl.Slot) || t.Repl.Epoch != s.Repl.Epoch {
				return fmt.Errorf("%s is not in the in-sync set of %s: %s", n.Name, p.Name, t.Repl.why())
			}
		}
		return nil
	})
}

// WaitEqual waits until all running nodes have applied the same entry, at
// least the last that the primary has at this moment, and have the same
// digest, and returns it.
func (c *Cluster) WaitEqual() (digest string, err error) {
	last := uint64(0)
	if p := c.primary(); p != nil {
		s, err := p.Slot()
		if err != nil {
			return "", err
		}
		last = s.Repl.Pos.Seq
	}
	err = c.Wait("equal digests", func() error {
		var first *Digest
		for _, n := range c.Nodes {
			if !n.Running() {
				continue
			}
			d, err := n.Digest("")
			if err != nil {
				return err
			}
			if first == nil {
				first = &d
			}
			// The index, and with it the digest, is a little ahead of the tree.
			s, err := n.Slot()
			if err != nil {
				return err
			}
			if s.Repl.Applied < max(last, d.Seq) {
				return fmt.Errorf("%s has applied %d of %d", n.Name, s.Repl.Applied, max(last, d.Seq))
			}
			if d.Seq != first.Seq || d.Digest != first.Digest {
				return fmt.Errorf("%s has %s at %d, another %s at %d", n.Name, d.Digest, d.Seq, first.Digest, first.Seq)
			}
			digest = d.Digest
		}
		return nil
	})
	return digest, err
}

// Problems collects those of all nodes.
func (c *Cluster) Problems(expected ...string) ([]string, error) {
	var found []string
	for _, n := range c.All() {
		p, err := n.Problems(expected...)
		if err != nil {
			return nil, err
		}
		for _, line := range p {
			found = append(found, n.Name+": "+line)
		}
	}
	return found, nil
}
