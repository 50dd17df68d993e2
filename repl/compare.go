package repl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// Two slots are compared at one seq: both open a snapshot of the state right
// after that entry, read all records of it, and go down where the digests of
// directories differ. The asker leads; the other one answers on a connection
// for "compare", which holds its snapshot.

// compareRequest is a question on a connection for comparing.
type compareRequest struct {
	At         uint64 `json:"at,omitempty"`         // open a snapshot at this seq
	Dir        op.ID  `json:"dir,omitempty"`        // list a directory of it
	From       int    `json:"from,omitempty"`       // from this entry on
	Testify    op.ID  `json:"testify,omitempty"`    // what do you know of it?
	Reconsider op.ID  `json:"reconsider,omitempty"` // vote on it, and correct what is wrong
	Retotal    bool   `json:"retotal,omitempty"`    // sum the index up anew
}

// compareReply answers it.
type compareReply struct {
	None      Code              `json:"none,omitempty"`
	Why       string            `json:"why,omitempty"`
	Audit     *meta.Audit       `json:"audit,omitempty"`
	Below     op.Digest         `json:"below,omitempty"` // of the root
	Entries   []meta.AuditEntry `json:"entries,omitempty"`
	More      bool              `json:"more,omitempty"`
	Testimony *meta.Testimony   `json:"testimony,omitempty"`
	Outcome   string            `json:"outcome,omitempty"`
}

const (
	comparePage = 20_000           // entries of a directory in one answer
	compareWait = 10 * time.Second // for a seq to be reached
	compareIdle = 30 * time.Minute // an audit of a large slot takes its time
	compareMax  = 1000             // differences that are listed
	compareTry  = 5
)

// Difference is one thing in which two slots differ.
type Difference struct {
	ID   op.ID  `json:"id,omitempty"`
	Path string `json:"path"`
	Text string `json:"text"`
}

// Comparison is what comparing this slot with another one came to.
type Comparison struct {
	Node        string       `json:"node"` // the other one's
	Pos         op.Pos       `json:"pos"`
	Objects     uint64       `json:"objects"`
	Digest      op.Digest    `json:"digest"`       // of this slot, from its records
	Theirs      op.Digest    `json:"their_digest"` // of the other one
	Equal       bool         `json:"equal"`
	Differences []Difference `json:"differences,omitempty"`
	Omitted     int          `json:"omitted,omitempty"`
	// Totals: the records are equal, and what an index says they come to is not.
	Totals bool `json:"totals,omitempty"`
}

// comparing is a connection for it.
type comparing struct {
	l     *link
	there string
}

func (r *Member) openCompare(ctx context.Context, p PeerSlot) (*comparing, func(), error) {
	l, _, err := r.connect(ctx, p, forCompare)
	if err != nil {
		return nil, nil, err
	}
	stop := l.closeOn(ctx)
	return &comparing{l: l, there: p.Node}, func() { stop(); l.close() }, nil
}

func (c *comparing) ask(q compareRequest) (*compareReply, error) {
	c.l.deadline(compareIdle)
	if err := c.l.sendJSON(frameRequest, q); err != nil {
		return nil, err
	}
	a := new(compareReply)
	if err := c.l.expect(frameReply, a); err != nil {
		return nil, noEOF(err)
	}
	if a.None != "" {
		return nil, &PeerError{c.there, a.None, a.Why}
	}
	return a, nil
}

// Ask collects what the other slots that can be reached know of an object.
func (r *Member) Ask(ctx context.Context, id op.ID) (all []*meta.Testimony) {
	if ctx.Value(serving{}) != nil {
		return nil
	}
	for _, p := range r.Peers.Slots(r.Store) {
		if p.Slot == r.ID || p.Slot.IsZero() {
			continue
		}
		limit := fetchIdle
		if !p.Alive {
			limit = fetchDoubtful
		}
		pctx, cancel := context.WithTimeout(ctx, limit)
		if c, done, err := r.openCompare(pctx, p); err == nil {
			if a, err := c.ask(compareRequest{Testify: id}); err == nil && a.Testimony != nil {
				a.Testimony.Node = p.Node
				all = append(all, a.Testimony)
			}
			done()
		}
		cancel()
	}
	return all
}

// Compare compares this slot with every other one of the store that can be
// reached. With mend, what differs is voted on and corrected, here and there.
func (r *Member) Compare(ctx context.Context, mend bool) ([]Comparison, error) {
	s, ok := r.Slot.(*meta.Slot)
	if !ok {
		return nil, errors.New("this slot cannot be compared")
	}
	var all []Comparison
	var errs []error
	for _, p := range r.Peers.Slots(r.Store) {
		if p.Slot == r.ID || p.Slot.IsZero() {
			continue
		}
		c, err := r.compareWith(ctx, s, p, mend)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Node, err))
			continue
		}
		all = append(all, c)
	}
	if len(all) == 0 && len(errs) == 0 {
		errs = append(errs, &refusal{"no other node is known to have a slot of this store"})
	}
	return all, errors.Join(errs...)
}

func (r *Member) compareWith(ctx context.Context, s *meta.Slot, p PeerSlot, mend bool) (out Comparison, err error) {
	c, done, err := r.openCompare(ctx, p)
	if err != nil {
		return out, err
	}
	defer done()
	if err := s.VerifyIndex(); err != nil {
		return out, err
	}
	here, their, err := r.sameMoment(ctx, s, c, p)
	if err != nil {
		return out, err
	}
	defer here.Close()
	own, err := here.Audit(ctx)
	if err != nil {
		return out, err
	}
	out = Comparison{Node: p.Node, Pos: own.Pos, Objects: own.Objects, Digest: own.Digest, Theirs: their.Audit.Digest}
	d := &differ{ask: c.ask, there: p.Node, entries: own.Entries, most: their.Audit.Objects, path: s.Path, here: r.Node, out: &out}
	if own.Pos != their.Audit.Pos {
		d.add(0, "", fmt.Sprintf("%s has %s, %s has %s at that entry: two histories", r.Node, own.Pos, p.Node, their.Audit.Pos))
		return out, nil
	}
	if own.Digest != their.Audit.Digest {
		if err := d.dir(ctx, op.Root, "", own.Below(op.Root), their.Below); err != nil {
			return out, err
		}
		if len(out.Differences) == 0 {
			d.add(op.Root, "", "the root directory's own attributes differ")
		}
	}
	d.contradictions(r.Node, own)
	d.contradictions(p.Node, their.Audit)
	out.Totals = own.Digest == their.Audit.Digest && len(out.Differences) > 0
	out.Equal = len(out.Differences) == 0
	if mend && !out.Equal {
		here.Close()
		return out, r.mendDifferences(ctx, s, c, &out)
	}
	return out, nil
}

// sameMoment opens a snapshot on both sides at one seq: one that neither has
// passed. On a quiet store that is the last; on a busy one, one to come.
func (r *Member) sameMoment(ctx context.Context, s *meta.Slot, c *comparing, p PeerSlot) (*meta.Snapshot, *compareReply, error) {
	type answer struct {
		a   *compareReply
		err error
	}
	var last error
	for try := range uint64(compareTry) {
		seq := r.Log.Last().Seq
		for _, q := range r.Peers.Slots(r.Store) {
			if q.Slot == p.Slot {
				seq = max(seq, q.Seq)
			}
		}
		seq += try * try * 16 // 0 if nothing is going on
		wctx, cancel := context.WithTimeout(ctx, compareWait)
		theirs := make(chan answer, 1)
		go func() {
			a, err := c.ask(compareRequest{At: seq})
			theirs <- answer{a, err}
		}()
		here, err := s.SnapshotAt(wctx, seq)
		cancel()
		t := <-theirs
		if t.err == nil && t.a.Audit == nil {
			t.err = fmt.Errorf("%w: no audit in the reply", ErrWire)
		}
		if err == nil && t.err == nil {
			return here, t.a, nil
		}
		if here != nil {
			here.Close()
		}
		last = errors.Join(err, t.err)
		var refused *PeerError
		if ctx.Err() != nil || t.err != nil && !errors.As(t.err, &refused) {
			break
		}
	}
	return nil, nil, fmt.Errorf("no moment was found at which both slots are at one entry: %w", last)
}

// mendDifferences has every object that differs voted on, on both sides.
func (r *Member) mendDifferences(ctx context.Context, s *meta.Slot, c *comparing, out *Comparison) error {
	var errs []error
	for _, d := range out.Differences {
		if d.ID == 0 {
			continue
		}
		if _, err := s.Reconsider(ctx, d.ID); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d.Path, err))
		}
		if _, err := c.ask(compareRequest{Reconsider: d.ID}); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d.Path, err))
			if !errors.As(err, new(*PeerError)) {
				break
			}
		}
	}
	if err := s.Retotal(ctx); err != nil {
		errs = append(errs, err)
	}
	if _, err := c.ask(compareRequest{Retotal: true}); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
