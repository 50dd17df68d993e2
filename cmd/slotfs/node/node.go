package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/cmd/slotfs/pki"
	"slotfs/fs"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/repl"
)

// Node is a node of the cluster. The exported fields may be changed before
// Open; afterwards they are for reading.
type Node struct {
	Config  *config.Config
	Log     *slog.Logger
	Level   *slog.LevelVar // of Log, for reload; may be nil
	Version string

	Identity *pki.Node
	Slots    []*Slot
	Gossip   *gossip.Gossip
	Server   *repl.Server
	Register *Register // nil: there is none

	started   time.Time
	listener  net.Listener // replication
	admin     net.Listener
	metrics   net.Listener // may be nil
	https     []*http.Server
	remote    *http.ServeMux // what other nodes may ask for
	strangers *strangers
	soon      chan struct{} // wakes publish

	mu    sync.Mutex
	conf  *config.Config // as last reloaded
	close []func() error // undoes Open, last first
}

// New makes a node; Open starts it.
func New(c *config.Config, log *slog.Logger, version string) *Node {
	return &Node{Config: c, Log: log, Version: version, conf: c, soon: make(chan struct{}, 1), started: time.Now()}
}

// Open checks and opens everything, and mounts nothing. If it fails nothing
// stays open; the error knows its exit code.
func (n *Node) Open(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			n.closeAll()
		}
	}()
	if n.Identity, err = n.Config.Check(); err != nil {
		return err
	}
	n.strangers = &strangers{log: n.Log, seen: map[string]*gossip.Report{}}
	n.Identity.Refused = n.strangers.refused
	prepareProcess(n.Log)
	if err := n.listen(); err != nil {
		return err
	}
	if err := n.openSlots(ctx); err != nil {
		return err
	}
	// With the data directories locked, a mount at ours can only be a corpse.
	if err := n.prepareMounts(); err != nil {
		return err
	}
	if err := n.startGossip(ctx); err != nil {
		return err
	}
	if err := n.openRegister(); err != nil {
		return err
	}
	return n.makeMembers()
}

// onClose remembers how to undo a step.
func (n *Node) onClose(f func() error) { n.close = append(n.close, f) }

func (n *Node) closeAll() error {
	var errs []error
	for len(n.close) > 0 {
		last := len(n.close) - 1
		if err := n.close[last](); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
		n.close = n.close[:last]
	}
	return errors.Join(errs...)
}

// listen opens the sockets, so that an address in use is noticed before
// anything else happens.
func (n *Node) listen() error {
	refuse := func(key, addr string, err error) error {
		return &config.Error{File: n.Config.Path, Key: key, Code: exit.Network, Err: err,
			Reason: fmt.Sprintf("cannot listen on %s: %v", addr, errors.Unwrap(err)),
			Remedy: "Is another slotfs running, or the address not one of this machine?"}
	}
	var err error
	if n.listener, err = net.Listen("tcp", n.Config.Listen); err != nil {
		return refuse("replication.listen", n.Config.Listen, err)
	}
	n.onClose(n.listener.Close)
	if n.Config.MetricsListen != "" {
		if n.metrics, err = net.Listen("tcp", n.Config.MetricsListen); err != nil {
			return refuse("metrics.listen", n.Config.MetricsListen, err)
		}
		n.onClose(n.metrics.Close)
	}
	// Check saw that nobody answers there: a socket file is a crash's leftover.
	if err := os.Remove(n.Config.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return refuse("admin.socket", n.Config.Socket, &net.OpError{Op: "remove", Err: err})
	}
	if n.admin, err = listenUnix(n.Config.Socket, n.Config.SocketMode, n.Config.SocketGID); err != nil {
		return refuse("admin.socket", n.Config.Socket, err)
	}
	n.onClose(n.admin.Close)
	return nil
}

// listenUnix makes a socket that has its mode from the beginning: it is bound
// with no permissions for anybody and opened up afterwards.
func listenUnix(path string, mode os.FileMode, gid int) (net.Listener, error) {
	var l net.Listener
	err := withUmask(0o777, func() (err error) {
		l, err = net.Listen("unix", path)
		return err
	})
	if err != nil {
		return nil, err
	}
	if gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, mode)
	}
	if err != nil {
		l.Close()
		return nil, &net.OpError{Op: "listen", Net: "unix", Err: err}
	}
	return l, nil
}

func (n *Node) openSlots(ctx context.Context) error {
	for i := range n.Config.Slots {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s := &Slot{Conf: n.Config.Slots[i], node: n, mismatches: make(chan struct{}, 1), log: n.Log.With("store", n.Config.Slots[i].Store), recheck: make(chan struct{}, 1)}
		start := time.Now()
		alone, err := aloneIn(s.Conf.Data)
		if err != nil {
			return dataError(n.Config, i, err)
		}
		s.Meta, err = meta.Open(s.Conf.Data, meta.Options{
			Store: s.Conf.Store, Layout: s.Conf.Layout,
			Reserve: reserve(s.Conf), LogMax: s.Conf.LogMax,
			Logger: n.Log, Fetch: s.fetch, Ask: s.ask, OnEvent: s.mismatch, OnCorrected: s.corrected,
			OnFault: func(error) { n.publishSoon() },
			Refill:  true, Alone: alone, OnUnfit: s.onUnfit, Brake: s.brakeOptions(),
			FetchLog: s.fetchLog, OnMended: func() { s.Member.LogMended() },
		})
		if err != nil {
			return dataError(n.Config, i, err)
		}
		n.onClose(s.Meta.Close)
		n.Slots = append(n.Slots, s)
		s.log.Info("slot open", "slot", s.Meta.ID.String(), "pos", s.Meta.Log.Last().String(), "after", time.Since(start).Round(time.Millisecond).String())
	}
	return nil
}

// aloneIn is whether the slot in a data directory was the whole in-sync set; a
// directory that is no slot's is judged by who opens it.
func aloneIn(data string) (bool, error) {
	id, err := meta.ReadIdentity(data)
	if err != nil {
		return false, nil
	}
	return repl.Alone(data, id.Slot)
}

// prepareMounts removes what a killed process left mounted, and protects the
// bare mount points.
func (n *Node) prepareMounts() error {
	for i, s := range n.Slots {
		err := fs.Prepare(s.Conf.Mount, s.Conf.ProtectMountPoint, s.log)
		if err == nil {
			continue
		}
		e := &config.Error{File: n.Config.Path, Key: config.SlotKey(s.Conf.Store, i) + ".mount", Code: exit.Mount, Err: err, Reason: err.Error()}
		var me *fs.MountError
		if errors.As(err, &me) {
			e.Reason, e.Remedy = fmt.Sprintf("%s: %v", me.Dir, me.Reason), me.Remedy
			if me.Detail != "" {
				e.Reason += " (" + me.Detail + ")"
			}
		}
		return e
	}
	return nil
}

// reserve is what meta.Options.Reserve wants: bytes, 0 for its default, less
// for none.
func reserve(c config.Slot) int64 {
	if c.Reserve == config.DefaultReserve {
		return 0
	}
	total, err := fileSystemSize(c.Data)
	if err != nil {
		return 0
	}
	if r := c.Reserve.Of(total); r > 0 {
		return r
	}
	return -1
}

// dataError puts the config's file and key before what meta says.
func dataError(c *config.Config, i int, err error) error {
	s := c.Slots[i]
	e := &config.Error{File: c.Path, Key: config.SlotKey(s.Store, i) + ".data", Code: exit.Data, Err: err, Reason: err.Error()}
	var de *meta.DataError
	if errors.As(err, &de) {
		e.Reason = fmt.Sprintf("%s: %v", de.File, de.Reason)
		if de.Detail != "" {
			e.Reason += " (" + de.Detail + ")"
		}
		e.Remedy = de.Remedy
		if errors.Is(err, meta.ErrNotSlot) {
			e.Remedy = "If its disk is not mounted, mount it; for a new slot run: slotfs create " + s.Store + " --config " + c.Path
		}
	}
	return e
}

func (n *Node) startGossip(ctx context.Context) error {
	g, err := gossip.Start(gossip.Options{
		Node: n.Config.Node, Bind: n.Config.GossipBind, Advertise: n.Config.GossipAdvertise,
		Key: n.Identity.Cluster.GossipKey, Join: n.Config.Join, Logger: n.Log,
	})
	if err != nil {
		return &config.Error{File: n.Config.Path, Key: "gossip.bind", Code: exit.Network, Err: err, Reason: err.Error(),
			Remedy: "Is another slotfs running, or the address not one of this machine?"}
	}
	n.Gossip = g
	n.onClose(g.Close)
	n.publish()
	answered, refusals := g.Join(ctx)
	if err := n.judge(answered, refusals); err != nil {
		return exit.With(exit.Network, errors.Join(err, g.Abort()))
	}
	return ctx.Err()
}

// judge says whether refusals at the first join end the start. A name that is
// taken does. Another key does if this node is new and nobody has let it in: a
// node that has mail to serve must not be stopped by a stranger.
func (n *Node) judge(answered int, refusals []gossip.Problem) error {
	fresh := true
	for _, s := range n.Slots {
		fresh = fresh && s.Meta.StoreID().IsZero()
	}
	for _, p := range refusals {
		var name *gossip.NameConflict
		var key *gossip.KeyMismatch
		switch {
		case errors.As(p, &name) && name.Self:
			return fmt.Errorf("%w. Give this node another name (node in %s, and a certificate for it), or stop the other one", p, n.Config.Path)
		case errors.As(p, &key) && fresh && answered == 0:
			return fmt.Errorf("%w. Copy gossip.key and the certificates from the cluster that is meant (slotfs init --cluster), or correct gossip.join", p)
		}
	}
	return nil
}

func (n *Node) makeMembers() error {
	n.Server = repl.NewServer(n.Config.Node, n.Identity.Cluster.ID, n.Identity.ServerTLS(), n.Log)
	n.Server.Client, n.Server.Command = n.Identity.ClientTLS(), n.command
	n.remote = http.NewServeMux()
	n.remote.HandleFunc("POST "+pathSwitch, handle(n.switchOver))
	n.remote.HandleFunc("POST "+pathDrain, handle(n.drain))
	n.remote.HandleFunc("GET "+pathAtRisk, n.getAtRisk)
	n.remote.HandleFunc("POST "+pathScrub, n.postScrub)
	peers := &peers{n.Gossip}
	for _, s := range n.Slots {
		m, err := repl.New(repl.Options{
			Node: n.Config.Node, Cluster: n.Identity.Cluster.ID, Store: s.Conf.Store,
			ID: s.Meta.ID, Dir: s.Conf.Data, Log: s.Meta.Log, Slot: s.Meta,
			Register: n.register(), Peers: peers, Hooks: s, TLS: n.Identity.ClientTLS(),
			FailoverTimeout: n.Config.FailoverTimeout, FailoverPause: n.Config.FailoverPause,
			Timeout: n.Config.ReplicaTimeout, StopOnLoss: s.Conf.OnReplicaLoss == config.Stop,
			Local: s.Conf.Durability == config.Local, LogMax: s.Conf.LogMax, Logger: n.Log,
			OnEvent: func(repl.Event) { n.publishSoon() }, Ready: s.ready, Deliverer: s, Record: s.Meta.Record,
		})
		if err != nil {
			return fmt.Errorf("start replication of %s: %w", s.Conf.Store, err)
		}
		s.Member = m
		s.Meta.Retain(m.NeedFrom)
		n.Server.Add(m)
	}
	return nil
}

// Run takes part in the cluster until ctx ends, then stops in good order.
// Every value on reload reads the config again.
func (n *Node) Run(ctx context.Context, reload <-chan struct{}) error {
	stopped, stop := context.WithCancel(context.Background())
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Server.Serve(stopped, n.listener); err != nil && stopped.Err() == nil {
			n.Log.Error("replication listener", "err", err)
		}
	})
	wg.Go(func() { n.publishLoop(stopped) })
	for _, s := range n.Slots {
		if len(s.Conf.OnDegraded) > 0 {
			wg.Go(func() { s.watchDegraded(stopped) })
		}
	}
	n.serveHTTP(&wg)
	var members sync.WaitGroup
	for _, s := range n.Slots {
		s.Meta.Start()
		s.Meta.ConfigureScrub(scrubConfig(n.Config))
		wg.Go(func() { s.Meta.ScrubLoop(stopped) })
		wg.Go(func() { s.Meta.AdoptLoop(stopped) })
		wg.Go(func() { s.mendMismatches(stopped) })
		members.Go(func() {
			if err := s.Member.Run(ctx); err != nil {
				s.log.Error("replication", "err", err)
			}
		})
	}
	n.notify(daemon.SdNotifyReady)
	n.Log.Info("node is up", "gossip", n.Gossip.Addr(), "replication", n.listener.Addr().String(), "socket", n.Config.Socket)
	n.wait(ctx, reload)
	n.notify(daemon.SdNotifyStopping)
	n.Log.Info("node stops")
	members.Wait()
	n.publish()
	n.shutdownHTTP()
	stop()
	err := n.closeAll()
	wg.Wait()
	n.Log.Info("node has stopped")
	return err
}

// wait does what is due until ctx ends: reloads, and systemd's watchdog.
func (n *Node) wait(ctx context.Context, reload <-chan struct{}) {
	var watchdog <-chan time.Time
	if every, err := daemon.SdWatchdogEnabled(false); err == nil && every > 0 {
		t := time.NewTicker(every / 2)
		defer t.Stop()
		watchdog = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-watchdog:
			n.notify(daemon.SdNotifyWatchdog)
		case <-reload:
			n.reload()
		}
	}
}

func (n *Node) notify(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.Log.Warn("tell systemd", "err", err)
	}
}

// Slot finds the slot of a store.
func (n *Node) Slot(store string) (*Slot, bool) {
	for _, s := range n.Slots {
		if s.Conf.Store == store {
			return s, true
		}
	}
	return nil, false
}
