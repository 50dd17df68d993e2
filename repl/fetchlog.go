package repl

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"slotfs/meta/op"
)

// logRange asks for entries of the log.
type logRange struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// logReply comes before the frame with the entries.
type logReply struct {
	Count int    `json:"count"`
	None  Code   `json:"none,omitempty"` // there are none, and why
	Why   string `json:"why,omitempty"`
}

// FetchLog gets entries of the log from another slot of the store, from…to or the
// first of them, to mend this slot's log with. Whether they are this history's
// shows in their chain, which the caller compares.
func (r *Member) FetchLog(ctx context.Context, from, to uint64) ([]*op.Entry, string, error) {
	errs := []error{ErrNoCopy}
	for _, p := range slices.SortedStableFunc(slices.Values(r.Peers.Slots(r.Store)), deadLast) {
		if p.Slot == r.ID || p.Slot.IsZero() {
			continue
		}
		list, err := r.fetchLogFrom(ctx, p, logRange{from, to})
		if err == nil && len(list) > 0 {
			return list, p.Node, nil
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p.Node, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, "", fmt.Errorf("fetch entries %d to %d: %w", from, to, errors.Join(errs...))
}

func (r *Member) fetchLogFrom(ctx context.Context, p PeerSlot, q logRange) ([]*op.Entry, error) {
	l, _, err := r.connect(ctx, p, forFetch)
	if err != nil {
		return nil, err
	}
	defer l.close()
	defer l.closeOn(ctx)()
	if err := l.sendJSON(frameRequest, request{Log: &q}); err != nil {
		return nil, err
	}
	var a logReply
	if err := l.expect(frameReply, &a); err != nil {
		return nil, noEOF(err)
	}
	if a.None != "" {
		return nil, &PeerError{p.Node, a.None, a.Why}
	}
	f, err := l.next()
	switch {
	case err != nil:
		return nil, noEOF(err)
	case f.typ == frameRefuse:
		return nil, l.refused(f)
	}
	return entriesOf(f, q)
}

// entriesOf takes the answer to a question for entries out of a frame: some of
// what was asked for, from its beginning on, or an error.
func entriesOf(f frame, q logRange) ([]*op.Entry, error) {
	if f.typ != frameEntries || len(f.body) < marksSize {
		return nil, fmt.Errorf("%w: type %d instead of entries", ErrWire, f.typ)
	}
	list, err := splitEntries(slices.Clone(f.body[marksSize:]), nil)
	if err != nil {
		return nil, err
	}
	for i, e := range list {
		if e.Seq != q.From+uint64(i) || e.Seq > q.To {
			return nil, fmt.Errorf("%w: entry %d of the range %d to %d", ErrWire, e.Seq, q.From, q.To)
		}
		if err := verifyContent(e.Op); err != nil {
			return nil, fmt.Errorf("seq %d: %w", e.Seq, err)
		}
	}
	return list, nil
}

// sendLog answers a question for entries with as many as fit a frame.
func (r *Member) sendLog(l *link, q logRange) error {
	var list []*op.Entry
	err := fmt.Errorf("no entries %d to %d", q.From, q.To)
	if q.From > 0 && q.From <= q.To && q.From <= r.Log.Last().Seq {
		list, err = r.Log.Read(q.From, batchBytes)
	}
	if err != nil {
		r.noteDamage(err)
		return l.sendJSON(frameReply, logReply{None: CodeNotFound, Why: err.Error()})
	}
	for i, e := range list {
		if e.Seq > q.To {
			list = list[:i]
			break
		}
	}
	if err := l.sendJSON(frameReply, logReply{Count: len(list)}); err != nil {
		return err
	}
	if err := l.entries(marks{}, list); err != nil {
		return err
	}
	return l.flush()
}

// LogMended is told that what could not be read of the log can be again.
func (r *Member) LogMended() { r.damaged.Store(0) }
