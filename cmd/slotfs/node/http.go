package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
)

// serveHTTP answers on the admin socket, and on the metrics address if there
// is one.
func (n *Node) serveHTTP(wg *sync.WaitGroup) {
	metrics := promhttp.HandlerFor(n.registry(), promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(n.Log.Handler(), slog.LevelError)})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { st := n.Status(); answer(w, &st, nil) })
	mux.HandleFunc("GET /v1/digest", n.getDigest)
	mux.HandleFunc("GET /v1/log", n.getLog)
	mux.HandleFunc("GET /v1/ledger", n.getLedger)
	mux.HandleFunc("GET /v1/evidence", n.getEvidence)
	mux.HandleFunc("POST /v1/evidence", n.postEvidence)
	mux.HandleFunc("POST /v1/undelete", handle(n.undelete))
	mux.HandleFunc("GET /v1/register", func(w http.ResponseWriter, r *http.Request) { answer(w, n.registerReport(r.Context()), nil) })
	mux.HandleFunc("POST /v1/register/add", handle(n.addMember))
	mux.HandleFunc("POST /v1/register/remove", handle(n.removeMember))
	mux.HandleFunc("POST /v1/register/restore", handle(n.restore))
	mux.HandleFunc("POST "+pathScrub, n.postScrub)
	mux.HandleFunc("POST /v1/scrub/pause", handle(n.pauseScrub))
	mux.HandleFunc("POST /v1/verify", handle(n.verify))
	mux.HandleFunc("POST /v1/check", handle(n.check))
	mux.HandleFunc("POST /v1/promote", handle(n.promote))
	mux.HandleFunc("POST /v1/demote", handle(n.demote))
	mux.HandleFunc("POST /v1/rejoin", handle(n.rejoin))
	mux.HandleFunc("GET /v1/rescue", func(w http.ResponseWriter, r *http.Request) {
		l, err := n.rescueList(r.FormValue("store"))
		answer(w, l, err)
	})
	mux.HandleFunc("GET /v1/rescue/show", n.getRescueShow)
	mux.HandleFunc("GET /v1/rescue/content", n.getRescueContent)
	mux.HandleFunc("POST /v1/rescue/deliver", handle(n.rescueDeliver))
	mux.HandleFunc("POST /v1/rescue/drop", handle(n.rescueDrop))
	mux.HandleFunc("POST "+pathSwitch, handle(n.switchOver))
	mux.HandleFunc("POST "+pathDrain, handle(n.drain))
	mux.HandleFunc("GET "+pathAtRisk, n.getAtRisk)
	mux.HandleFunc("GET /v1/missing", n.getMissing)
	n.serve(wg, &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, "admin", n.admin)
	if n.metrics != nil {
		only := http.NewServeMux()
		only.Handle("GET /metrics", metrics)
		n.serve(wg, &http.Server{Handler: only, ReadHeaderTimeout: 10 * time.Second}, "metrics", n.metrics)
	}
}

func (n *Node) serve(wg *sync.WaitGroup, srv *http.Server, name string, l net.Listener) {
	srv.ErrorLog = slog.NewLogLogger(n.Log.Handler(), slog.LevelWarn)
	n.https = append(n.https, srv)
	wg.Go(func() {
		if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			n.Log.Error("http", "server", name, "err", err)
		}
	})
}

// shutdownHTTP lets the requests end that are being answered.
func (n *Node) shutdownHTTP() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	for _, s := range n.https {
		if err := s.Shutdown(ctx); err != nil {
			s.Close()
		}
	}
}

// problem turns an error into an answer with its exit code.
func problem(w http.ResponseWriter, err error) {
	p := admin.Problem{Error: err.Error(), Code: exit.Of(err)}
	status := http.StatusInternalServerError
	switch {
	case p.Code != exit.General:
	case errors.Is(err, repl.ErrRefused):
		p.Code = exit.Refused
	case errors.Is(err, meta.ErrNotExist):
		p.Code = exit.Usage
	}
	switch p.Code {
	case exit.Refused:
		status = http.StatusConflict
	case exit.Usage:
		status = http.StatusNotFound
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(&p)
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		problem(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// handle decodes a request for f and encodes its answer.
func handle[In, Out any](f func(context.Context, *In) (*Out, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		in := new(In)
		dec := json.NewDecoder(r.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(in); err != nil {
			problem(w, exit.With(exit.Usage, fmt.Errorf("read request: %w", err)))
			return
		}
		out, err := f(r.Context(), in)
		answer(w, out, err)
	}
}

// slot finds the slot that a request names.
func (n *Node) slot(store string) (*Slot, error) {
	if s, ok := n.Slot(store); ok {
		return s, nil
	}
	return nil, exit.With(exit.Usage, fmt.Errorf("node %s has no slot of store %q", n.Config.Node, store))
}

func (n *Node) getDigest(w http.ResponseWriter, r *http.Request) {
	var patience time.Duration
	if r.FormValue("wait") != "" {
		patience = digestPatience
	}
	d, err := n.digest(r.Context(), r.FormValue("store"), r.FormValue("path"), patience)
	answer(w, d, err)
}

// digestPatience is how long a digest waits for the other nodes to say theirs
// at the same seq: what gossip knows is a second old.
const digestPatience = 2 * time.Second

func (n *Node) digest(ctx context.Context, store, path string, patience time.Duration) (*admin.Digest, error) {
	s, err := n.slot(store)
	if err != nil {
		return nil, err
	}
	enough := time.NewTimer(patience)
	defer enough.Stop()
	for {
		changed := n.Gossip.Changed()
		d, err := s.digest(path)
		if err != nil || path != "" {
			return d, err
		}
		comparable := true
		for _, m := range n.Gossip.Members() {
			for _, g := range m.Slots {
				if !m.Self && g.Store == store && g.Digest != "" {
					d.Peers = append(d.Peers, admin.PeerDigest{Node: m.Name, Seq: g.Applied, Digest: g.Digest})
					comparable = comparable && (!m.Alive || g.Applied == d.Seq)
				}
			}
		}
		if comparable || patience == 0 {
			return d, nil
		}
		select {
		case <-changed:
		case <-enough.C:
			return d, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// digest is that of the slot, or of a directory in it.
func (s *Slot) digest(path string) (*admin.Digest, error) {
	d := &admin.Digest{Store: s.Conf.Store, Path: path, Node: s.node.Config.Node}
	id := op.Root
	if path != "" {
		var err error
		if id, err = s.Meta.Lookup(path); err != nil {
			return nil, fmt.Errorf("%s in store %s: %w", path, d.Store, err)
		}
	}
	// The parts are not taken in one step; again if something was applied
	// between them.
	for range 100 {
		d.Seq, d.Digest = s.Meta.Digest()
		below, files, bytes, err := s.Meta.DirDigest(id)
		if err != nil {
			return nil, fmt.Errorf("%s in store %s: %w", path, d.Store, err)
		}
		d.Files, d.Bytes = files, bytes
		if path != "" {
			d.Digest = below
		}
		if after, _ := s.Meta.Digest(); after == d.Seq {
			break
		}
	}
	return d, nil
}

func (n *Node) getLog(w http.ResponseWriter, r *http.Request) {
	s, err := n.slot(r.FormValue("store"))
	if err != nil {
		problem(w, err)
		return
	}
	since := uint64(0)
	if v := r.FormValue("since"); v != "" {
		if since, err = strconv.ParseUint(v, 10, 64); err != nil {
			problem(w, exit.With(exit.Usage, fmt.Errorf("since: %w", err)))
			return
		}
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	sent := false
	err = s.history(r.Context(), since, r.FormValue("user"), func(l *admin.LogLine) error {
		sent = true
		return enc.Encode(l)
	})
	n.endStream(w, r, sent, err)
}

func (n *Node) check(ctx context.Context, r *admin.CheckRequest) (*meta.Report, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	var logs []meta.LogDamage
	if r.Repair {
		if logs, err = s.Meta.VerifyLog(ctx, 0); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	report, err := s.Meta.Check(ctx, meta.CheckOptions{Content: r.Content, Repair: r.Repair, Rebuild: r.Rebuild})
	if err == nil {
		for _, d := range logs {
			report.Findings = append(report.Findings, d.Finding())
		}
	}
	return report, err
}

func (n *Node) promote(ctx context.Context, r *admin.PromoteRequest) (*admin.Outcome, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(n.storeNameFree(s), n.storeIsNew(s, r.Force)); err != nil {
		return nil, exit.With(exit.Refused, err)
	}
	if r.Force && !r.Yes {
		return nil, exit.With(exit.Unconfirmed, errors.New("a forced promotion wants --yes: it gives up what only other slots have; nothing was changed"))
	}
	err = s.Member.Promote(ctx, repl.PromoteOptions{OldPrimaryIsDown: r.OldPrimaryIsDown, Force: r.Force})
	return s.outcome(err)
}

// storeNameFree refuses to serve a store if gossip knows another one of the
// same name.
func (n *Node) storeNameFree(s *Slot) error {
	for _, r := range n.Gossip.Problems() {
		var p *gossip.StoreConflict
		if errors.As(r.Problem, &p) && p.Store == s.Conf.Store {
			return fmt.Errorf("refused: %w. Rename one of them in the configs of its nodes", p)
		}
	}
	return nil
}

// storeIsNew refuses to make a store while those are silent who may have it:
// their nodes are configured, and not one of them answers.
func (n *Node) storeIsNew(s *Slot, force bool) error {
	if force || !s.Meta.StoreID().IsZero() {
		return nil
	}
	n.mu.Lock()
	join := n.conf.Join
	n.mu.Unlock()
	for _, m := range n.Gossip.Members() {
		if m.Alive && !m.Self {
			return nil
		}
	}
	if len(join) == 0 {
		return nil
	}
	return fmt.Errorf("refused: this would make a new store %q, but no other node answers (gossip.join names %s), and one of them may have it. "+
		"Start them first; if the store is really new, repeat with --force", s.Conf.Store, strings.Join(join, ", "))
}

func (n *Node) demote(ctx context.Context, r *admin.DemoteRequest) (*admin.Outcome, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	return s.outcome(s.Member.Demote(ctx))
}

func (n *Node) rejoin(ctx context.Context, r *admin.RejoinRequest) (*admin.Outcome, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	return s.outcome(s.Member.Rejoin(ctx, true))
}

// outcome tells how things stand after an operation.
func (s *Slot) outcome(err error) (*admin.Outcome, error) {
	s.node.publish()
	if err != nil {
		return nil, err
	}
	st := s.Member.State()
	o := &admin.Outcome{Store: s.Conf.Store, Node: s.node.Config.Node, Role: st.Role, Epoch: st.Epoch, Pos: st.Pos, Text: st.Doing}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fs != nil {
		o.Mount = s.Conf.Mount
	}
	return o, nil
}
