package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Gossip is a running member of the cluster.
type Gossip struct {
	opts Options
	log  *slog.Logger
	tr   *transport
	list *memberlist.Memberlist

	mu      sync.Mutex
	self    State             // our own
	states  map[string]*State // of the others, by name
	alive   map[string]*life  // of all, by name
	joining map[string]bool   // addresses that joinAgain is trying
	reports map[string]*Report
	join    []string
	changed chan struct{} // closed and replaced at each change

	conflicts chan NameConflict // from memberlist, to be looked into
	inquest   sync.Mutex        // held while that is done; before mu
	kick      chan struct{}     // wakes run
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	closeOnce sync.Once
}

type life struct {
	alive bool
	addr  string
	since time.Time
	heard time.Time
}

// Start opens the sockets and begins to answer; it does not join anybody yet.
// An address in use is an error that wraps syscall.EADDRINUSE.
func Start(o Options) (*Gossip, error) {
	if o.Timing == (Timing{}) {
		o.Timing = DefaultLAN
	}
	g := &Gossip{
		opts:      o,
		log:       o.Logger,
		states:    map[string]*State{},
		alive:     map[string]*life{},
		joining:   map[string]bool{},
		reports:   map[string]*Report{},
		join:      slices.Clone(o.Join),
		changed:   make(chan struct{}),
		conflicts: make(chan NameConflict, 16),
		kick:      make(chan struct{}, 1),
	}
	tcp, udp, err := listen(o.Bind)
	if err != nil {
		return nil, err
	}
	g.tr = &transport{key: o.Key, tag: keyTag(o.Key), self: g.hello, report: g.report, log: g.log, tcp: tcp, udp: udp}
	ip, port, err := advertise(o.Advertise, tcp.Addr().(*net.TCPAddr))
	if err != nil {
		tcp.Close()
		udp.Close()
		return nil, err
	}
	now := time.Now()
	g.self = State{Name: o.Node, Incarnation: uint64(now.UnixNano()), Version: 1,
		Gossip: net.JoinHostPort(ip, strconv.Itoa(port)), Started: now.UnixNano()}
	g.tr.start()
	g.list, err = memberlist.Create(g.config(ip, port))
	if err != nil {
		g.tr.Shutdown()
		return nil, fmt.Errorf("start gossip: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	g.wg.Add(1)
	go g.run(ctx)
	return g, nil
}

func (g *Gossip) config(ip string, port int) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.opts.Node
	c.Transport = g.tr
	c.BindAddr, c.BindPort = ip, port
	c.AdvertiseAddr, c.AdvertisePort = ip, port
	c.SecretKey = g.opts.Key
	c.TCPTimeout = 2 * time.Second
	c.ProbeInterval = g.opts.Timing.Probe
	c.ProbeTimeout = g.opts.Timing.Timeout
	c.SuspicionMult = g.opts.Timing.Suspicion
	c.SuspicionMaxTimeoutMult = 2
	c.GossipInterval = g.opts.Timing.Gossip
	c.PushPullInterval = g.opts.Timing.PushPull
	c.GossipToTheDeadTime = time.Minute
	// A node may come back under another address as soon as the old one is
	// known to be dead; while it lives, that is a conflict.
	c.DeadNodeReclaimTime = time.Nanosecond
	c.UDPBufferSize = 1400 - len(magic) - tagSize
	d := &delegate{g}
	c.Delegate, c.Events, c.Conflict = d, d, d
	c.LogOutput = &logWriter{log: g.log, closing: g.tr.closed.Load}
	return c
}

// advertise finds the address to tell others.
func advertise(want string, bound *net.TCPAddr) (ip string, port int, err error) {
	if want != "" {
		a, err := net.ResolveTCPAddr("tcp", want)
		if err != nil {
			return "", 0, fmt.Errorf("advertise gossip address: %w", err)
		}
		return a.IP.String(), a.Port, nil
	}
	if !bound.IP.IsUnspecified() {
		return bound.IP.String(), bound.Port, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", 0, fmt.Errorf("advertise gossip address: %w", err)
	}
	best := ""
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.IsLoopback() || n.IP.IsLinkLocalUnicast() || n.IP.To4() == nil && best != "" {
			continue
		}
		if n.IP.IsPrivate() && n.IP.To4() != nil {
			return n.IP.String(), bound.Port, nil
		}
		best = n.IP.String()
	}
	if best == "" {
		best = "127.0.0.1"
	}
	return best, bound.Port, nil
}

func (g *Gossip) hello() hello {
	g.mu.Lock()
	defer g.mu.Unlock()
	return hello{Name: g.self.Name, Addr: g.self.Gossip, Incarnation: g.self.Incarnation}
}

// Addr is the address that others are told.
func (g *Gossip) Addr() string { return g.hello().Addr }

// Join tries each join address once. It returns how many answered, and the
// refusals among the errors: a NameConflict is a reason not to go on. Whoever
// does not answer is tried again in the background.
func (g *Gossip) Join(ctx context.Context) (answered int, refusals []Problem) {
	g.mu.Lock()
	addrs := slices.Clone(g.join)
	g.mu.Unlock()
	// All at once: those that are down take their time to show it.
	done := make(chan int, len(addrs))
	for _, a := range addrs {
		go func() {
			n, err := g.list.Join([]string{a})
			if err != nil {
				g.log.Debug("join", "addr", a, "err", err)
			}
			done <- n
		}()
	}
	for range addrs {
		select {
		case n := <-done:
			answered += n
		case <-ctx.Done():
		}
	}
	g.investigateAll() // a third node may have told us that our name is taken
	for _, r := range g.Problems() {
		refusals = append(refusals, r.Problem)
	}
	return answered, refusals
}

// SetJoin replaces the join addresses.
func (g *Gossip) SetJoin(addrs []string) {
	g.mu.Lock()
	g.join = slices.Clone(addrs)
	g.mu.Unlock()
	g.wake()
}

func (g *Gossip) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// run tells others of our changes, looks into conflicts, and joins again
// whoever is missing.
func (g *Gossip) run(ctx context.Context) {
	defer g.wg.Done()
	tick := time.NewTicker(g.opts.Timing.Rejoin)
	defer tick.Stop()
	var sent uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.kick:
			g.investigateAll()
			sent = g.spread(sent)
		case <-tick.C:
			for _, a := range g.missing() {
				g.joinAgain(a)
			}
		}
	}
}

// joinAgain tries to reach one address, beside everything else: where nothing
// answers at all that takes long.
func (g *Gossip) joinAgain(addr string) {
	g.mu.Lock()
	busy := g.joining[addr]
	g.joining[addr] = true
	g.mu.Unlock()
	if busy {
		return
	}
	g.wg.Go(func() {
		if _, err := g.list.Join([]string{addr}); err != nil {
			g.log.Debug("join again", "addr", addr, "err", err)
		}
		g.mu.Lock()
		delete(g.joining, addr)
		g.mu.Unlock()
	})
}

// missing lists addresses of no living member: those to join, and those of
// members that died. A host name in the config cannot be compared and is only
// tried while we are alone.
func (g *Gossip) missing() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	living := map[string]bool{g.self.Gossip: true}
	for _, l := range g.alive {
		if l.alive {
			living[l.addr] = true
		}
	}
	var out []string
	for _, a := range g.join {
		host, _, err := net.SplitHostPort(a)
		if err != nil || living[a] || net.ParseIP(host) == nil && len(living) > 1 {
			continue
		}
		out = append(out, a)
	}
	for name, l := range g.alive {
		if !l.alive && !g.leftLocked(name) && !living[l.addr] && !slices.Contains(out, l.addr) {
			out = append(out, l.addr)
		}
	}
	return out
}

// investigateAll looks into the conflicts that memberlist found, and returns
// when that is done, by whomever.
func (g *Gossip) investigateAll() {
	g.inquest.Lock()
	defer g.inquest.Unlock()
	for {
		select {
		case c := <-g.conflicts:
			g.investigate(c)
		default:
			return
		}
	}
}

// investigate asks the node that is said to have a taken name. If it is our
// own name and the other lives, both of us report it by way of the hello.
func (g *Gossip) investigate(c NameConflict) {
	if !c.Self {
		g.report(&c)
		return
	}
	conn, err := g.tr.dial(c.With, 2*time.Second)
	if err == nil {
		conn.Close()
	} else {
		g.log.Debug("ask who has our name", "addr", c.With, "err", err)
	}
}

// Close says goodbye and stops.
func (g *Gossip) Close() error {
	return g.stop(func() {
		g.mu.Lock()
		g.self.Leaving = true
		g.self.Version++
		g.mu.Unlock()
		g.spread(0)
		if err := g.list.Leave(500 * time.Millisecond); err != nil {
			g.log.Debug("leave the cluster", "err", err)
		}
	})
}

// Abort stops without a word. It is for a node whose name is taken: a goodbye
// in that name would be understood as that of the other node.
func (g *Gossip) Abort() error { return g.stop(func() {}) }

func (g *Gossip) stop(goodbye func()) error {
	var err error
	g.closeOnce.Do(func() {
		g.cancel()
		g.wg.Wait()
		goodbye()
		err = g.list.Shutdown()
	})
	return err
}
