package repl

import (
	"context"
	"errors"
	"slices"

	"slotfs/meta"
	"slotfs/meta/op"
)

// serveCompare answers the questions of another slot until it hangs up.
func (r *Member) serveCompare(ctx context.Context, l *link) {
	l.deadline(fetchIdle)
	s, ok := r.Slot.(*meta.Slot)
	if !ok || l.sendJSON(frameWelcome, r.identity()) != nil {
		return
	}
	v := &comparer{r: r, s: s}
	defer v.close()
	questions(l, compareIdle, func(q *compareRequest) error {
		a, err := v.answer(ctx, *q)
		if err != nil {
			a = &compareReply{None: CodeFailed, Why: err.Error()}
		}
		l.deadline(fetchIdle)
		return l.sendJSON(frameReply, a)
	})
}

// comparer is the answering side.
type comparer struct {
	r    *Member
	s    *meta.Slot
	snap *meta.Snapshot
	aud  *meta.Audit
}

func (v *comparer) close() {
	if v.snap != nil {
		v.snap.Close()
		v.snap, v.aud = nil, nil
	}
}

func (v *comparer) answer(ctx context.Context, q compareRequest) (*compareReply, error) {
	switch {
	case q.At != 0:
		v.close()
		if err := v.s.VerifyIndex(); err != nil {
			return nil, err
		}
		wctx, cancel := context.WithTimeout(ctx, compareWait)
		defer cancel()
		var err error
		if v.snap, err = v.s.SnapshotAt(wctx, q.At); err != nil {
			v.snap = nil
			return nil, err
		}
		if v.aud, err = v.snap.Audit(ctx); err != nil {
			return nil, err
		}
		return &compareReply{Audit: v.aud, Below: v.aud.Below(op.Root)}, nil
	case q.Dir != 0:
		if v.aud == nil || q.From < 0 {
			return nil, errors.New("no snapshot is open")
		}
		list, err := v.aud.Entries(q.Dir)
		if err != nil {
			return nil, err
		}
		page, more := pageOf(list, q.From, comparePage)
		return &compareReply{Entries: page, More: more}, nil
	case q.Testify != 0:
		t, err := v.s.Testify(ctx, q.Testify)
		return &compareReply{Testimony: t}, err
	case q.Reconsider != 0:
		v.close()
		outcome, err := v.s.Reconsider(ctx, q.Reconsider)
		return &compareReply{Outcome: outcome}, err
	case q.Retotal:
		v.close()
		return &compareReply{}, v.s.Retotal(ctx)
	}
	return nil, errors.New("an empty question")
}

// pageOf is at most n entries of a list, from one on, and whether there are more.
func pageOf(list []meta.AuditEntry, from, n int) (page []meta.AuditEntry, more bool) {
	if from < 0 || from >= len(list) {
		return nil, false
	}
	list = list[from:]
	return slices.Clip(list[:min(n, len(list))]), n < len(list)
}
