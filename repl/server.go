package repl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Server is a node's replication listener, for all of its slots.
type Server struct {
	Node    string
	Cluster string
	TLS     *tls.Config // for accepting connections; must demand a certificate
	Logger  *slog.Logger
	// Client is for connecting to other nodes. Command, if set, carries out what
	// the operator of another node asked for; what it writes is the answer.
	Client  *tls.Config
	Command func(ctx context.Context, node string, c Command, w io.Writer) error

	mu      sync.Mutex
	members map[string]*Member
	refused map[string]time.Time // remote host and reason: when it was logged
	last    Refusal
	wg      sync.WaitGroup
}

// Refusal is a connection that was turned away.
type Refusal struct {
	Time   time.Time `json:"time,omitzero"`
	Remote string    `json:"remote"` // address
	Reason string    `json:"reason"`
}

// refusalQuiet is how long the same refusal is not logged again.
const refusalQuiet = time.Minute

// NewServer makes a server; Serve starts it.
func NewServer(node, cluster string, conf *tls.Config, logger *slog.Logger) *Server {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Server{Node: node, Cluster: cluster, TLS: conf, Logger: logger,
		members: map[string]*Member{}, refused: map[string]time.Time{}}
}

// Add makes a member reachable for other nodes.
func (s *Server) Add(m *Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members[m.Store] = m
}

// Remove takes a member away.
func (s *Server) Remove(m *Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members[m.Store] == m {
		delete(s.members, m.Store)
	}
}

// LastRefusal is the last connection that was turned away.
func (s *Server) LastRefusal() Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

// Serve accepts connections until ctx ends, and closes the listener. It returns
// when all connections have ended.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	defer s.wg.Wait()
	defer ln.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = c.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept: %w", err)
		case err != nil:
			// Out of descriptors or the like: it may pass.
			s.Logger.Error("accept", keyErr, err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		s.wg.Go(func() { s.conversation(ctx, c) })
	}
}

// conversation serves one connection.
func (s *Server) conversation(ctx context.Context, c net.Conn) {
	remote := c.RemoteAddr().String()
	l, err := accept(ctx, c, s.TLS)
	if err != nil {
		if ctx.Err() == nil {
			s.refuse(remote, err)
		}
		return
	}
	defer l.close()
	defer l.closeOn(ctx)()
	l.deadline(handshakeTimeout)
	var h hello
	if err := l.expect(frameHello, &h); err != nil {
		if errors.Is(err, ErrWire) {
			s.refuse(remote, fmt.Errorf("greeting of %s: %w", l.peer, err))
			l.turnAway(CodeProtocol, err.Error())
		}
		return
	}
	if perr := s.check(l, h); perr != nil {
		s.refuse(remote, fmt.Errorf("%s: %s", l.peer, perr.Text))
		l.turnAway(perr.Code, perr.Text)
		return
	}
	l.deadline(0)
	s.dispatch(ctx, l, h)
}

// check judges a greeting as far as the node can.
func (s *Server) check(l *link, h hello) *PeerError {
	refuse := func(code Code, format string, args ...any) *PeerError {
		return &PeerError{s.Node, code, fmt.Sprintf(format, args...)}
	}
	switch {
	case h.Protocol > Protocol || h.Protocol < 1:
		return refuse(CodeProtocol, "node %s speaks replication protocol %d, node %s up to %d: bring both to the same version", h.Node, h.Protocol, s.Node, Protocol)
	case h.Cluster != s.Cluster:
		return refuse(CodeCluster, "node %s is of cluster %s, node %s of cluster %s", h.Node, h.Cluster, s.Node, s.Cluster)
	case h.Node != l.peer:
		return refuse(CodeCluster, "a node that says it is %q has the certificate of %q", h.Node, l.peer)
	case h.Node == s.Node:
		return refuse(CodeCluster, "two nodes are named %s: give one another name", s.Node)
	}
	return nil
}

func (s *Server) dispatch(ctx context.Context, l *link, h hello) {
	if h.For == forStatus {
		s.serveStatus(l, h)
		return
	}
	if h.For == forCommand {
		s.serveCommand(ctx, l, h)
		return
	}
	m := s.member(h.Store)
	if m == nil {
		l.turnAway(CodeNoStore, fmt.Sprintf("node %s has no store %q", s.Node, h.Store))
		return
	}
	if err := m.acceptable(h); err != nil {
		m.turnAway(l, h, err)
		return
	}
	switch h.For {
	case forStream:
		m.heardOf(h)
		m.serveStream(ctx, l, h)
	case forTail:
		m.serveTail(ctx, l, h)
	case forFetch:
		m.serveFetch(ctx, l)
	case forNote:
		m.serveNote(l, h)
	case forRescue:
		m.serveRescue(ctx, l, h)
	case forHandover:
		m.serveHandover(ctx, l, h)
	case forCompare:
		m.serveCompare(ctx, l)
	case forResync:
		m.serveResync(ctx, l, h)
	default:
		l.turnAway(CodeProtocol, fmt.Sprintf("node %s does not know what %q is for", s.Node, h.For))
	}
}

func (s *Server) member(store string) *Member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.members[store]
}

// acceptable judges a greeting as far as the slot can.
func (r *Member) acceptable(h hello) error {
	own := r.storeID()
	switch {
	case h.Slot == r.ID:
		return &PeerError{r.Node, CodeSlot, fmt.Sprintf("the slots on %s and %s have the same id %s: one data directory is a copy of the other; start one of them with an empty directory", r.Node, h.Node, r.ID)}
	case !own.IsZero() && !h.StoreID.IsZero() && own != h.StoreID:
		return &PeerError{r.Node, CodeStoreID, fmt.Sprintf("the slots of %q on %s (store id %s) and on %s (%s) belong to two stores of one name: rename one of them", r.Store, r.Node, own, h.Node, h.StoreID)}
	}
	return nil
}

// heardOf passes what a greeting says about the other slot to the machine.
func (r *Member) heardOf(h hello) {
	if h.Slot.IsZero() || h.Slot == r.ID {
		return
	}
	r.answered(SlotStatus{Slot: h.Slot, StoreID: h.StoreID, Role: h.Role, Leading: h.Leading, Intent: h.Intent, Last: h.Last, Applied: h.Applied, History: h.History, Yield: h.Yield, Condition: h.Condition}, h.Node, true)
}

// serveStatus answers what this node's slot of the store is. The question says
// what the asker's slot is, which is news, too.
func (s *Server) serveStatus(l *link, h hello) {
	w := welcome{Protocol: Protocol, Node: s.Node}
	if m := s.member(h.Store); m != nil {
		m.heardOf(h)
		w.Slots = []SlotStatus{m.status()}
	}
	l.deadline(handshakeTimeout)
	if l.sendJSON(frameWelcome, w) == nil {
		_, _ = l.next() // until the asker hangs up
	}
}

// refuse notes a connection that was turned away; the same one is logged once
// in a while only.
func (s *Server) refuse(remote string, err error) {
	if errors.Is(err, io.EOF) {
		s.Logger.Debug("connection without a word", "remote", remote)
		return // somebody looked whether the port is open
	}
	now := time.Now()
	host, _, _ := net.SplitHostPort(remote)
	key := host + " " + err.Error()
	if e := (*net.OpError)(nil); errors.As(err, &e) {
		key = host + " " + e.Err.Error() // without the port, which is another one each time
	}
	s.mu.Lock()
	s.last = Refusal{now, remote, err.Error()}
	quiet := now.Sub(s.refused[key]) < refusalQuiet
	if !quiet {
		if len(s.refused) > 1000 {
			clear(s.refused)
		}
		s.refused[key] = now
	}
	s.mu.Unlock()
	if !quiet {
		s.Logger.Warn("connection refused", "remote", remote, keyErr, err)
	}
}

// askNode says hello to a node, and returns what it is welcomed with.
func askNode(ctx context.Context, addr string, conf *tls.Config, h hello) (welcome, error) {
	var w welcome
	l, err := dial(ctx, addr, conf)
	if err != nil {
		return w, err
	}
	defer l.close()
	defer l.closeOn(ctx)()
	if err := l.sendJSON(frameHello, h); err != nil {
		return w, err
	}
	err = l.expect(frameWelcome, &w)
	return w, err
}
