package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/repl"
)

const pathScrub = "/v1/scrub"

// scrubLines sends what a scrub says, one object per line, from several slots.
type scrubLines struct {
	mu   sync.Mutex // guards w
	w    http.ResponseWriter
	enc  *json.Encoder
	sent bool
}

func (l *scrubLines) send(line *admin.ScrubLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.sent {
		l.w.Header().Set("Content-Type", "application/x-ndjson")
		l.sent = true
	}
	if l.enc.Encode(line) == nil {
		_ = http.NewResponseController(l.w).Flush() // of another node's question: written through
	}
}

// postScrub scrubs this node's slot, and with both those of the other nodes, and
// tells how far it is. The asker's going away ends it.
func (n *Node) postScrub(w http.ResponseWriter, r *http.Request) {
	var req admin.ScrubRequest
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&req); err != nil {
		problem(w, exit.With(exit.Usage, fmt.Errorf("read request: %w", err)))
		return
	}
	s, err := n.slot(req.Store)
	if err != nil {
		problem(w, err)
		return
	}
	out := &scrubLines{w: w, enc: json.NewEncoder(w)}
	var others []gossip.Member
	if req.Both {
		if others = n.otherSlots(req.Store); len(others) == 0 {
			problem(w, exit.With(exit.Refused, fmt.Errorf("no other node with a slot of store %q can be reached", req.Store)))
			return
		}
	}
	var wg sync.WaitGroup
	for _, m := range others {
		wg.Go(func() { n.scrubOn(r.Context(), m, req, out) })
	}
	err = n.scrubHere(r.Context(), s, &req, out)
	wg.Wait()
	out.mu.Lock()
	defer out.mu.Unlock()
	switch {
	case err == nil || r.Context().Err() != nil:
	case !out.sent:
		problem(w, err)
	default:
		line := admin.ScrubLine{Node: n.Config.Node, Error: err.Error()}
		_ = out.enc.Encode(&line)
	}
}

// scrubHere scrubs this node's slot.
func (n *Node) scrubHere(ctx context.Context, s *Slot, req *admin.ScrubRequest, out *scrubLines) error {
	o := meta.ScrubOptions{User: req.User, Since: req.Since, Rate: req.Rate, NoRepair: req.NoRepair}
	_, err := s.Meta.Scrub(ctx, o, meta.ScrubReport{
		Progress: func(p meta.ScrubProgress) { out.send(&admin.ScrubLine{Node: n.Config.Node, Progress: &p}) },
		Finding:  func(f meta.ScrubFinding) { out.send(&admin.ScrubLine{Node: n.Config.Node, Finding: &f}) },
	})
	switch {
	case errors.Is(err, meta.ErrNoUser):
		return exit.With(exit.Usage, err)
	case errors.Is(err, meta.ErrScrubRuns), errors.Is(err, meta.ErrResyncing):
		return exit.With(exit.Refused, err)
	}
	return err
}

// scrubOn has another node scrub its slot.
func (n *Node) scrubOn(ctx context.Context, m gossip.Member, req admin.ScrubRequest, out *scrubLines) {
	req.Both = false
	b, err := json.Marshal(&req)
	if err == nil {
		var body io.ReadCloser
		if body, err = n.Server.Send(ctx, m.Name, m.Repl, repl.Command{Path: pathScrub, Body: b}); err == nil {
			defer body.Close()
			for dec := json.NewDecoder(body); ; {
				var line admin.ScrubLine
				if err = dec.Decode(&line); err != nil {
					break
				}
				out.send(&line)
			}
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		out.send(&admin.ScrubLine{Node: m.Name, Error: err.Error()})
	}
}

// otherSlots are the live nodes with another slot of a store.
func (n *Node) otherSlots(store string) (list []gossip.Member) {
	for _, m := range n.Gossip.Members() {
		for _, g := range m.Slots {
			if !m.Self && m.Alive && g.Store == store {
				list = append(list, m)
			}
		}
	}
	return list
}

// pauseScrub stops the continuous scrub of a slot, or lets it go on.
func (n *Node) pauseScrub(_ context.Context, r *admin.PauseRequest) (*meta.ScrubStatus, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	if err := s.Meta.PauseScrub(r.Paused); err != nil {
		return nil, err
	}
	st := s.Meta.ScrubStatus()
	return &st, nil
}

// scrubConfig is what the config says about the continuous scrub.
func scrubConfig(c *config.Config) meta.ScrubConfig {
	return meta.ScrubConfig{Cycle: c.ScrubCycle, Rate: c.ScrubRate}
}

// verify compares the slot of this node with the others of its store.
func (n *Node) verify(ctx context.Context, r *admin.VerifyRequest) (*admin.Verified, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	list, err := s.Member.Compare(ctx, r.Repair)
	v := &admin.Verified{Store: r.Store, Node: n.Config.Node, Comparisons: list}
	switch {
	case err == nil:
		return v, nil
	case len(list) == 0:
		return nil, exit.With(exit.Refused, fmt.Errorf("cannot compare the slots of %s: %w", r.Store, err))
	}
	v.Error = err.Error()
	return v, nil
}

// mismatch is told that digests differed at the same entry.
func (s *Slot) mismatch(e meta.Event) {
	if e.Kind != meta.EventDigest {
		return
	}
	select {
	case s.mismatches <- struct{}{}:
	default: // it is known already
	}
}

// mendMismatches compares the slot with the others whenever a digest differed,
// and has what differs voted on and corrected, until ctx ends.
func (s *Slot) mendMismatches(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.mismatches:
		}
		e := ledger.Entry{Kind: ledger.Digest, Outcome: ledger.Unrepaired}
		list, err := s.Member.Compare(ctx, true)
		if err == nil {
			again, err := s.Member.Compare(ctx, false)
			equal := err == nil
			for _, c := range again {
				equal = equal && c.Equal
			}
			if equal {
				e.Outcome = ledger.Repaired
			}
		}
		differ := 0
		for _, c := range list {
			differ += len(c.Differences) + c.Omitted
		}
		e.Text = fmt.Sprintf("slots compared because a digest differed: %d differences, voted on", differ)
		if err != nil {
			e.Text += ": " + err.Error()
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Warn(e.Text, "outcome", e.Outcome)
		s.Meta.Record(e)
		if e.Outcome == ledger.Repaired {
			continue
		}
		t := time.NewTimer(mismatchPause) // the next checkpoint will differ, too
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// mismatchPause is the time between two attempts to mend the same mismatch.
const mismatchPause = time.Minute

// corrected makes the mount show a record of the index that was corrected.
func (s *Slot) corrected(id op.ID) {
	s.mu.Lock()
	f := s.fs
	s.mu.Unlock()
	if f != nil {
		f.Refresh(id)
	}
}

// ask is meta's question to the other slots about an object.
func (s *Slot) ask(ctx context.Context, id op.ID) []*meta.Testimony {
	if s.Member == nil {
		return nil
	}
	return s.Member.Ask(ctx, id)
}
