package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/pki"
)

// complete fills in what follows from the other flags: the register's members,
// the nodes to join, the register's addresses.
func (o *initOptions) complete(cmd *cobra.Command) error {
	if o.Witness {
		for _, name := range []string{"store", "data", "mount"} {
			if cmd.Flags().Changed(name) {
				return &usageError{fmt.Errorf("--%s makes no sense with --witness: a witness has no mail", name)}
			}
		}
	}
	if o.cluster != "" {
		if err := o.fromFirst(); err != nil {
			return err
		}
	}
	if len(o.Members) == 0 {
		if o.Witness {
			return &usageError{errors.New("a witness votes in a register: name its members with --members, or the first node's directory with --cluster")}
		}
		return nil
	}
	if len(o.Join) == 0 {
		o.joinMembers()
	}
	if o.RegisterData == "" && o.Data != "" {
		o.RegisterData = filepath.Join(filepath.Dir(o.Data), "register")
	}
	return o.registerAddresses()
}

// fromFirst takes the members from the config of the node whose directory
// --cluster names, if there is one.
func (o *initOptions) fromFirst() error {
	for _, dir := range []string{o.cluster, filepath.Dir(filepath.Clean(o.cluster))} {
		path := filepath.Join(dir, "slotfs.toml")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		first, err := config.Parse(path)
		if err != nil {
			return err
		}
		if len(o.Members) == 0 {
			for _, m := range first.Register.Members {
				o.Members = append(o.Members, m.Name+"="+m.Addr)
			}
		}
		return nil
	}
	return nil
}

// joinMembers: the other members' machines are where to look for nodes.
func (o *initOptions) joinMembers() {
	_, port, err := net.SplitHostPort(o.GossipBind)
	if err != nil {
		return
	}
	for _, m := range o.Members {
		name, addr, _ := strings.Cut(m, "=")
		host, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err != nil || name == o.Node || ip != nil && ip.IsLoopback() {
			continue
		}
		o.Join = append(o.Join, net.JoinHostPort(host, port))
	}
}

// registerAddresses: where to listen follows from what the others are told.
func (o *initOptions) registerAddresses() error {
	for _, m := range o.Members {
		name, addr, _ := strings.Cut(m, "=")
		host, port, err := net.SplitHostPort(addr)
		if name != o.Node || err != nil {
			continue // what is wrong with it, the config says
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
			host = "0.0.0.0"
		}
		if o.RegisterListen == "" {
			o.RegisterListen = net.JoinHostPort(host, port)
		}
		if o.RegisterClients == "" {
			o.RegisterClients = net.JoinHostPort(host, strconv.FormatUint(n+1, 10))
		}
		return nil
	}
	if o.Witness {
		return &usageError{fmt.Errorf("a witness has to be one of the register's members; %s is not in %s", o.Node, strings.Join(o.Members, ","))}
	}
	return nil
}

// explainInit says what was made and what to type next.
func (a *app) explainInit(c *config.Config, from *pki.Cluster) {
	fmt.Fprintf(a.out, "config of node %s written to %s\n", c.Node, c.Path)
	if from == nil {
		fmt.Fprintf(a.out, "new cluster in %s; ca.key there makes the certificates of further nodes: keep it safe\n", c.ClusterDir)
	}
	port := func(addr string) string { _, p, _ := net.SplitHostPort(addr); return p }
	fmt.Fprintf(a.out, "open to the other nodes: TCP %s (replication), TCP and UDP %s (gossip)", port(c.Listen), port(c.GossipBind))
	if _, member := c.RegisterSelf(); member {
		fmt.Fprintf(a.out, ", TCP %s and %s (register)", port(c.Register.Listen), port(c.Register.ClientListen))
	}
	fmt.Fprintln(a.out)
	verb := "serve"
	if c.Witness() {
		verb = "witness"
	}
	switch {
	case from == nil && c.Register.Mode == config.RegisterEmbedded:
		a.explainMembers(c)
	case from == nil:
		fmt.Fprintf(a.out, "next: slotfs %s --config %s   and then, once: slotfs promote %s --config %s\n", verb, c.Path, c.Slots[0].Store, c.Path)
		fmt.Fprintln(a.out, "a change of primary is always a command of yours; for a replica that takes over by itself see slotfs init --help (two nodes and a witness)")
	default:
		fmt.Fprintf(a.out, "next: slotfs %s --config %s\n", verb, c.Path)
	}
}

// explainMembers tells how the register's other members come about. Which of
// them has no mail is the operator's choice; the last one is shown as witness.
func (a *app) explainMembers(c *config.Config) {
	dir := filepath.Dir(c.Path)
	var others []string
	for _, m := range c.Register.Members {
		if m.Name != c.Node {
			others = append(others, m.Name)
		}
	}
	if c.Witness() || len(others) == 0 {
		verb := "serve"
		if c.Witness() {
			verb = "witness"
		}
		fmt.Fprintf(a.out, "next: slotfs %s --config %s\n", verb, c.Path)
		return
	}
	store := c.Slots[0].Store
	fmt.Fprintln(a.out, "next, on this machine, make the other nodes; a witness has no mail, and any member can be one:")
	for i, name := range others {
		if i == len(others)-1 {
			fmt.Fprintf(a.out, "  slotfs init /tmp/%s --node %s --witness --cluster %s\n", name, name, dir)
		} else {
			fmt.Fprintf(a.out, "  slotfs init /tmp/%s --node %s --store %s --cluster %s --no-data\n", name, name, store, dir)
		}
	}
	fmt.Fprintf(a.out, "copy each directory to its machine, as %s; then, with --config %s each:\n", dir, c.Path)
	fmt.Fprintf(a.out, "  on every further mail node:  slotfs create %s\n", store)
	fmt.Fprintln(a.out, "  on every mail node:          slotfs serve")
	fmt.Fprintln(a.out, "  on the witness:              slotfs witness")
	fmt.Fprintf(a.out, "the register forms when all its members run; then, once, here: slotfs promote %s --config %s\n", store, c.Path)
}
