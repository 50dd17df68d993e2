package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
)

// getAtRisk tells the messages that are not on two nodes. A node whose slot is
// not primary passes the question on. With after=N it tells this node's
// messages after that entry, whatever its role: for another node that wants to
// know what it lacks.
func (n *Node) getAtRisk(w http.ResponseWriter, r *http.Request) {
	store := r.FormValue("store")
	s, err := n.slot(store)
	if v := r.FormValue("after"); err == nil && v != "" {
		after, perr := strconv.ParseUint(v, 10, 64)
		if perr != nil {
			problem(w, exit.With(exit.Usage, fmt.Errorf("after: %w", perr)))
			return
		}
		n.stream(w, r, func(emit func(*admin.RiskLine) error) error {
			return s.mailsAfter(r.Context(), after, "only on "+n.Config.Node, emit)
		})
		return
	}
	if err == nil && s.Member.State().Role != repl.Primary || err != nil && store != "" {
		n.passOn(w, r, store)
		return
	}
	if err != nil {
		problem(w, err)
		return
	}
	n.stream(w, r, func(emit func(*admin.RiskLine) error) error {
		after, why := s.Member.Copied()
		return s.mailsAfter(r.Context(), after, why, emit)
	})
}

// stream answers with one JSON object per line.
func (n *Node) stream(w http.ResponseWriter, r *http.Request, tell func(emit func(*admin.RiskLine) error) error) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	sent := false
	err := tell(func(l *admin.RiskLine) error {
		sent = true
		return enc.Encode(l)
	})
	switch {
	case err == nil || r.Context().Err() != nil:
	case sent:
		n.Log.Warn("answer cut short", "err", err)
		panic(http.ErrAbortHandler) // so that the client notices
	default:
		problem(w, err)
	}
}

// mailsAfter tells the slot's messages after an entry.
func (s *Slot) mailsAfter(ctx context.Context, after uint64, why string, emit func(*admin.RiskLine) error) error {
	last := s.Meta.Log.Last()
	h := &admin.RiskHead{Store: s.Conf.Store, Node: s.node.Config.Node, Slot: s.Meta.ID, Time: time.Now(),
		Epoch: last.Epoch, Seq: last.Seq, After: after, Entries: last.Seq - min(after, last.Seq), Why: why}
	if err := emit(&admin.RiskLine{Head: h}); err != nil {
		return err
	}
	t := &admin.RiskTotal{Users: map[string]uint64{}}
	err := s.Meta.MessagesAfter(ctx, after, func(m *meta.Mail) error {
		m.Path, m.User = printablePath(m.Path), printablePath(m.User)
		t.Messages++
		t.Bytes += uint64(m.Size)
		t.Users[m.User]++
		return emit(&admin.RiskLine{Mail: m})
	})
	if err != nil {
		return err
	}
	return emit(&admin.RiskLine{Total: t})
}

// getMissing tells what other nodes are known to have and this node's slot has
// not: what a forced promotion gives up.
func (n *Node) getMissing(w http.ResponseWriter, r *http.Request) {
	s, err := n.slot(r.FormValue("store"))
	if err != nil {
		problem(w, err)
		return
	}
	n.stream(w, r, func(emit func(*admin.RiskLine) error) error {
		return n.missing(r.Context(), s, emit)
	})
}

func (n *Node) missing(ctx context.Context, s *Slot, emit func(*admin.RiskLine) error) error {
	st := s.Member.State()
	known := map[op.SlotID]bool{s.Meta.ID: true}
	for _, m := range n.Gossip.Members() {
		for _, g := range m.Slots {
			id, err := op.ParseSlotID(g.ID)
			if m.Self || g.Store != s.Conf.Store || err != nil {
				continue
			}
			known[id] = true
			if err := n.missingThere(ctx, s, &st, m, &g, id, emit); err != nil {
				return err
			}
		}
	}
	// Members of the last known set that gossip has never heard of.
	for _, id := range st.Members {
		if known[id] {
			continue
		}
		h := &admin.RiskHead{Store: s.Conf.Store, Node: firstOf(st.Nodes[id], "slot "+id.String()[:8]), Slot: id, Time: time.Now(), Epoch: st.Epoch, After: st.Pos.Seq, Unknown: true}
		if id == st.Primary {
			h.Seq = st.HeardSeq
		}
		h.Why = fmt.Sprintf("it is in the in-sync set of epoch %d, and this node has not heard of it since its start", st.Epoch)
		unknown(h, &st)
		if err := emit(&admin.RiskLine{Head: h}); err != nil {
			return err
		}
	}
	return nil
}

// missingThere tells what one other slot has beyond this one's log.
func (n *Node) missingThere(ctx context.Context, s *Slot, st *repl.State, m gossip.Member, g *gossip.Slot, id op.SlotID, emit func(*admin.RiskLine) error) error {
	after := st.Pos.Seq
	if i := slices.IndexFunc(st.Peers, func(p repl.PeerState) bool { return p.Slot == id }); i >= 0 && st.Peers[i].Common > 0 {
		after = min(after, st.Peers[i].Common)
	}
	h := &admin.RiskHead{Store: s.Conf.Store, Node: m.Name, Slot: id, Time: time.Now(), Epoch: g.Epoch, Seq: g.Pos.Seq, After: after}
	if m.Alive {
		why, err := n.askMissing(ctx, m, h, emit)
		if err != nil || why == "" {
			return err
		}
		h.Why = why
	} else {
		h.Why = fmt.Sprintf("it cannot be reached; what it last said of itself, at %s, is that its log ends at seq %d of epoch %d, with %d messages",
			m.Heard.UTC().Format(time.DateTime), g.Pos.Seq, g.Pos.Epoch, g.Messages)
	}
	if id == st.Primary {
		h.Seq = max(h.Seq, st.HeardSeq)
	}
	h.Unknown = true
	unknown(h, st)
	return emit(&admin.RiskLine{Head: h})
}

// unknown completes a head about a slot that cannot be asked.
func unknown(h *admin.RiskHead, st *repl.State) {
	h.Entries = h.Seq - min(h.After, h.Seq)
	if r := st.Register; r != nil && r.Found && r.Epoch > st.Pos.Epoch {
		h.Why += fmt.Sprintf("; the register has epoch %d, with %s primary and in sync %s (%s), of which this slot has nothing",
			r.Epoch, r.Primary, strings.Join(r.InSync, ", "), r.Reason)
	}
	if h.Slot != st.Primary {
		return
	}
	if st.Heard.IsZero() {
		h.Why += "; it was primary, and this slot has not heard it"
		return
	}
	h.Why += fmt.Sprintf("; it was primary, and this slot heard it last at %s: what it accepted alone after that is not known here",
		st.Heard.UTC().Format(time.DateTime))
}

// askMissing asks a node that can be reached; why says what went wrong.
func (n *Node) askMissing(ctx context.Context, m gossip.Member, h *admin.RiskHead, emit func(*admin.RiskLine) error) (why string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q := url.Values{"store": {h.Store}, "after": {strconv.FormatUint(h.After, 10)}}
	body, err := n.Server.Send(ctx, m.Name, m.Repl, repl.Command{Path: pathAtRisk, Query: q.Encode()})
	if err != nil {
		return "it could not be asked: " + err.Error(), nil
	}
	defer body.Close()
	dec := json.NewDecoder(body)
	for {
		var l admin.RiskLine
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return "", nil
		} else if err != nil {
			return "its answer broke off: " + err.Error(), nil
		}
		if err := emit(&l); err != nil {
			return "", err
		}
	}
}
