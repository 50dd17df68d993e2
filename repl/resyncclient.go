package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// resync brings this slot to the state of the primary, and says how following
// goes on.
func (r *Member) resync(ctx context.Context, p PeerSlot, e evFollowEnded) evFollowEnded {
	s, ok := r.Slot.(*meta.Slot)
	if !ok {
		r.fail(errors.New("this slot needs a resync, and cannot be resynced"))
		e.refused = true
		return e
	}
	begun := time.Now()
	err := r.resyncFrom(ctx, s, p)
	var refused *PeerError
	switch {
	case err == nil:
		r.tell(false, fmt.Sprintf("resync from %s finished at seq %d after %v", p.Node, r.Log.Last().Seq, time.Since(begun).Round(time.Millisecond)))
		e.again = true
	case ctx.Err() != nil:
	case errors.As(err, &refused) && refused.Code == CodeNotPrimary:
		e.stale = true
	case errors.As(err, &refused) && refused.Code == CodeDiverged:
		e.diverged = refused.Text
	default:
		r.fail(fmt.Errorf("resync from %s: %w", p.Node, err))
		e.refused = true
	}
	return e
}

func (r *Member) resyncFrom(ctx context.Context, s *meta.Slot, p PeerSlot) error {
	for i := 0; ; i++ {
		err := r.resyncOnce(ctx, s, p)
		var again *meta.ResyncError
		if !errors.As(err, &again) || !again.Restart || i == resyncRestarts {
			return err
		}
		r.fail(fmt.Errorf("resync from %s begins again: %w", p.Node, err))
	}
}

// resyncOnce is one conversation with the primary.
func (r *Member) resyncOnce(ctx context.Context, s *meta.Slot, p PeerSlot) error {
	l, w, err := r.connect(ctx, p, forResync)
	if err != nil {
		return err
	}
	defer l.close()
	defer l.closeOn(ctx)()
	if w.Snapshot == nil {
		return fmt.Errorf("%w: no snapshot", ErrWire)
	}
	r.tell(true, fmt.Sprintf("resync from %s: to seq %d, common history up to %d", p.Node, w.Snapshot.Pos.Seq, w.Common.Seq))
	err = s.ResyncBegin(meta.ResyncTarget{Store: w.StoreID, State: *w.Snapshot, Common: w.Common.Seq, From: p.Node,
		Branch: r.branchInfo(w.Common.Seq, w.Common.Seq == 0 && r.Log.Last().Seq > 0, w)})
	if err != nil {
		return err
	}
	r.changed.notify()
	r.wakeRescue()
	c := &resyncClient{l: l, s: s}
	if err := c.compare(); err != nil {
		return err
	}
	if err := c.fetch(false); err != nil {
		return err
	}
	if err := c.rescued(w.Rescued); err != nil {
		return err
	}
	// What the slot's history becomes must be known before its log is: a stop
	// between the two would leave this slot's old epochs beside a new log.
	if err := r.note(func(n *notes) { n.Becoming = &becoming{w.Snapshot.Pos, w.History} }); err != nil {
		return err
	}
	if err := s.ResyncEnd(ctx); err != nil {
		return err
	}
	return r.become()
}

// becoming is the history that a slot has when its log begins after Pos.
type becoming struct {
	Pos     op.Pos  `json:"pos"`
	History history `json:"history"`
}

// become takes over the history of a finished resync.
func (r *Member) become() error {
	r.mu.Lock()
	b := r.notes.Becoming
	r.mu.Unlock()
	if b == nil {
		return nil
	}
	if pos, err := r.Log.PosAt(b.Pos.Seq); err != nil || pos.Chain != b.Pos.Chain || r.Log.First() != b.Pos.Seq+1 {
		return nil // it has not come so far
	}
	r.mu.Lock()
	r.hist, r.histAt = b.History, op.Pos{}
	r.mu.Unlock()
	r.refresh()
	return r.note(func(n *notes) { n.Becoming = nil })
}

// resyncClient asks the questions.
type resyncClient struct {
	l *link
	s *meta.Slot
}

// compare goes through the directories, the root first, and leaves out what is
// below one with an equal digest.
func (c *resyncClient) compare() error {
	todo := []op.ID{op.Root}
	for len(todo) > 0 {
		n := min(len(todo), askDirs)
		batch := todo[:n:n]
		todo = todo[n:]
		var a digestReply
		if err := c.ask(request{Digests: batch}, &a); err != nil {
			return err
		}
		if len(a.Digests) != len(batch) {
			return fmt.Errorf("%w: %d digests of %d directories", ErrWire, len(a.Digests), len(batch))
		}
		for i, id := range batch {
			same, err := c.s.ResyncSame(id, op.Digest(a.Digests[i]))
			if err != nil {
				return err
			}
			if same {
				continue
			}
			below, err := c.list(id)
			if err != nil {
				return err
			}
			todo = append(todo, below...)
		}
		// Not all at the end: what is fetched is not asked for again after a stop,
		// and the list of what is wanted stays short.
		if err := c.fetch(true); err != nil {
			return err
		}
	}
	return nil
}

// rescued takes over what is known to have been delivered again.
func (c *resyncClient) rescued(count int) error {
	for next := 1; next <= count; {
		var a rescuedReply
		if err := c.ask(request{Rescued: next}, &a); err != nil {
			return err
		}
		if len(a.List) == 0 {
			return nil
		}
		if err := c.s.AddRescued(a.List); err != nil {
			return err
		}
		next += len(a.List)
	}
	return nil
}

// ask sends a question and reads a reply of one frame.
func (c *resyncClient) ask(q request, reply any) error {
	c.l.deadline(fetchIdle)
	if err := c.l.sendJSON(frameRequest, q); err != nil {
		return err
	}
	return noEOF(c.l.expect(frameReply, reply))
}

// list takes over a directory's entries, and returns the directories among
// them.
func (c *resyncClient) list(id op.ID) (below []op.ID, err error) {
	var all listReply
	if err := c.ask(request{List: id}, &all); err != nil {
		return nil, err
	}
	for more := all.More; more; {
		var part listReply
		c.l.deadline(fetchIdle)
		if err := c.l.expect(frameReply, &part); err != nil {
			return nil, noEOF(err)
		}
		all.Children = append(all.Children, part.Children...)
		all.Inodes = append(all.Inodes, part.Inodes...)
		more = part.More
	}
	if all.Dir == nil || all.Dir.ID != id {
		return nil, fmt.Errorf("%w: list of another directory than %d", ErrWire, id)
	}
	if err := c.s.ResyncDir(all.Dir, all.Children, all.Inodes); err != nil {
		return nil, err
	}
	for _, x := range all.Children {
		if x.Type == typeDir {
			below = append(below, x.ID)
		}
	}
	return below, nil
}

// fetch gets what is wanted; with onlyMany, only as long as that is much.
func (c *resyncClient) fetch(onlyMany bool) error {
	const many = 1000
	for {
		list, err := c.s.ResyncWanted(many)
		if err != nil {
			return err
		}
		if len(list) == 0 || onlyMany && len(list) < many {
			return nil
		}
		for len(list) > 0 {
			n, bytes := 0, int64(0)
			for n < len(list) && n < askFiles && (n == 0 || bytes+list[n].Size <= askBytes) {
				bytes += list[n].Size
				n++
			}
			if err := c.contents(list[:n]); err != nil {
				return err
			}
			list = list[n:]
		}
	}
}

// contents gets the content of some files in one question.
func (c *resyncClient) contents(list []*meta.Inode) error {
	q := request{}
	for _, in := range list {
		q.Files = append(q.Files, in.ID)
	}
	c.l.deadline(fetchIdle)
	if err := c.l.sendJSON(frameRequest, q); err != nil {
		return err
	}
	for _, in := range list {
		got, err := c.l.content()
		var none *PeerError
		if errors.As(err, &none) && none.Code == CodeNotFound {
			if err := c.s.ResyncSkip(in.ID); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if got.Inode == nil || got.Inode.ID != in.ID {
			return fmt.Errorf("%w: content of another file than %d", ErrWire, in.ID)
		}
		err = c.s.ResyncContent(got.Inode, got)
		if rest := got.drain(); rest != nil {
			return rest
		}
		if err != nil && got.Inode.Sealed {
			return err
		}
		// A control file that changed while it was being read stays on the list,
		// and is asked for again.
	}
	return nil
}

// Read implements io.Reader over the pieces.
func (c *contentReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		c.rest, c.err = c.next()
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// drain reads what is left of the content.
func (c *contentReader) drain() error {
	_, err := io.Copy(io.Discard, c)
	return err
}
