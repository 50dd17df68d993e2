package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/cmd/slotfs/pki"
	"slotfs/meta"
)

// initOptions are the flags of init.
type initOptions struct {
	config.Values
	cluster string
	example bool
}

func (a *app) initCmd() *cobra.Command {
	o := initOptions{Values: config.ExampleValues()}
	o.Join = nil
	host, err := os.Hostname()
	if err == nil && config.BadName(host) == "" {
		o.Node = host
	}
	cmd := &cobra.Command{
		Use:   "init DIR",
		Short: "Write a config, the cluster's keys and this node's certificate",
		Long: `Init makes all that a node needs: DIR/slotfs.toml, a commented config that can
be used as it is; the cluster's certificate authority and gossip key in
DIR/cluster; this node's certificate; the slot's data directory and mount point.
Without --members there is no register, and a change of primary is always a command
of yours; with two mail nodes and a witness as members a replica takes over by itself.

The first node makes a new cluster. For every further node run init with
--cluster naming the first node's directory, on a machine that has it (its
cluster directory holds ca.key, which should stay there), and copy the result. It
takes the register's members, and the nodes to join, from the first node's config.
Nothing that exists is overwritten.`,
		Example: `  # the first node
  slotfs init /etc/slotfs --node n1 --store mail1

  # a second node, which finds the first by gossip
  slotfs init /tmp/n2 --node n2 --store mail1 --cluster /etc/slotfs --join 192.0.2.1:7946 --no-data

  # two mail nodes and a witness, so that a replica takes over by itself
  slotfs init /etc/slotfs --node n1 --store mail1 \
      --members n1=192.0.2.1:7948,n2=192.0.2.2:7948,w=192.0.2.3:7948
  slotfs init /tmp/n2 --node n2 --store mail1 --cluster /etc/slotfs --no-data
  slotfs init /tmp/w --node w --witness --cluster /etc/slotfs

  # two nodes on one machine, to look around
  slotfs init /tmp/a --node a --gossip 127.0.0.1:7946 --listen 127.0.0.1:7947 --join 127.0.0.1:7956 \
      --socket admin.sock --data data --mount mnt
  slotfs init /tmp/b --node b --gossip 127.0.0.1:7956 --listen 127.0.0.1:7957 --join 127.0.0.1:7946 \
      --socket admin.sock --data data --mount mnt --cluster /tmp/a`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.example {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.ExactArgs(1)(cmd, args)
		},
	}
	noData := false
	f := cmd.Flags()
	f.StringVar(&o.Node, "node", o.Node, "name of this node")
	f.StringVar(&o.cluster, "cluster", "", "join the cluster that this directory belongs to")
	f.StringVar(&o.Store, "store", o.Store, "name of the store")
	f.StringVar(&o.Data, "data", "", "data directory of the slot (default /var/lib/slotfs/STORE)")
	f.StringVar(&o.Mount, "mount", "", "mount point (default /srv/STORE)")
	f.StringVar(&o.Socket, "socket", o.Socket, "admin socket")
	f.StringVar(&o.GossipBind, "gossip", o.GossipBind, "gossip address, host:port")
	f.StringVar(&o.GossipAdvertise, "gossip-advertise", "", "gossip address for other nodes, if it differs")
	f.StringVar(&o.Listen, "listen", o.Listen, "replication address, host:port")
	f.StringVar(&o.Advertise, "advertise", "", "replication address for other nodes, if it differs")
	f.StringSliceVar(&o.Join, "join", nil, "gossip address of another node (repeatable)")
	f.StringSliceVar(&o.Members, "members", nil, "members of the register, NAME=HOST:PORT each (default with --cluster: those in its config)")
	f.BoolVar(&o.Witness, "witness", false, "a node that votes in the register and has no mail")
	f.StringVar(&o.RegisterListen, "register-listen", "", "register address for its members, ip:port (default from --members)")
	f.StringVar(&o.RegisterClients, "register-clients", "", "register address for the other nodes, ip:port (default: the next port)")
	f.StringVar(&o.RegisterData, "register-data", "", "directory of the register's files (default beside the slot's data)")
	f.BoolVar(&noData, "no-data", false, "do not make data directory and mount point: the node runs elsewhere")
	f.BoolVar(&o.example, "print-example", false, "print a commented config and do nothing")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if o.example {
			text, err := config.Example(config.ExampleValues())
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(a.out, text)
			return err
		}
		if err := o.complete(cmd); err != nil {
			return err
		}
		if o.Data == "" {
			o.Data = "/var/lib/slotfs/" + o.Store
		}
		if o.Mount == "" {
			o.Mount = "/srv/" + o.Store
		}
		return a.init(args[0], &o, noData)
	}
	return cmd
}

func (a *app) init(dir string, o *initOptions, noData bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "slotfs.toml")
	if _, err := os.Lstat(path); err == nil {
		return exit.With(exit.Refused, fmt.Errorf("%s exists already; to add a slot, edit it and run slotfs create STORE", path))
	}
	text, err := config.Example(o.Values)
	if err != nil {
		return err
	}
	c, err := config.ParseText(path, []byte(text))
	if err != nil {
		return err
	}
	var from *pki.Cluster
	if o.cluster != "" {
		if from, err = findCluster(o.cluster); err != nil {
			return exit.With(exit.Config, err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := makeKeys(c, from); err != nil {
		return exit.With(exit.Config, err)
	}
	if !noData {
		for i := range c.Slots {
			if err := a.makeSlot(c, &c.Slots[i]); err != nil {
				return err
			}
		}
		// Elsewhere it belongs to the service manager (RuntimeDirectory=).
		if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	a.explainInit(c, from)
	return nil
}

// makeKeys fills the cluster directory and makes the node's certificate.
func makeKeys(c *config.Config, from *pki.Cluster) error {
	if from == nil {
		cluster, err := pki.Create(c.ClusterDir)
		if err != nil {
			return err
		}
		return cluster.Issue(c.Node, c.Cert, c.Key)
	}
	// Issue first: it fails if the CA's key is not there.
	if err := from.Issue(c.Node, c.Cert, c.Key); err != nil {
		return err
	}
	_, err := from.CopyTo(c.ClusterDir)
	return err
}

// findCluster accepts a node's directory or its cluster directory.
func findCluster(dir string) (*pki.Cluster, error) {
	sub := filepath.Join(dir, "cluster")
	if _, err := os.Stat(filepath.Join(sub, pki.CAFile)); err == nil {
		return pki.Load(sub)
	}
	return pki.Load(dir)
}

// makeSlot makes a slot's data directory and mount point.
func (a *app) makeSlot(c *config.Config, s *config.Slot) error {
	if err := os.MkdirAll(filepath.Dir(s.Data), 0o755); err != nil {
		return exit.With(exit.Data, err)
	}
	id, err := meta.Create(s.Data, meta.Identity{Store: s.Store, Layout: s.Layout})
	if err != nil {
		return exit.With(exit.Data, fmt.Errorf("make slot of %s: %w", s.Store, err))
	}
	if err := os.MkdirAll(s.Mount, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return exit.With(exit.Mount, err)
	}
	fmt.Fprintf(a.out, "slot %s of store %s made in %s\n", id, s.Store, s.Data)
	return nil
}

func (a *app) createCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "create STORE",
		Short: "Make the data directory of a slot that the config names",
		Long: `Create makes the data directory and the mount point of a slot that was added to
the config. The data directory must be empty or absent. Serve never does this by
itself, so that a disk that is not mounted cannot turn into an empty slot.`,
		Example: "  slotfs create mail2 --config /etc/slotfs/slotfs.toml",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := config.Parse(a.findConfig())
			if err != nil {
				return err
			}
			s, ok := c.Slot(args[0])
			if !ok {
				return &config.Error{File: c.Path, Key: "slot", Reason: fmt.Sprintf("there is no slot of store %q", args[0]),
					Remedy: "Add a [[slot]] section for it first."}
			}
			return a.makeSlot(c, s)
		},
	}
}
