package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"slotfs/meta"
	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// Messages of lost branches go back to the store: the slot that keeps a branch
// offers them to the primary, one after the other, and notes durably what that
// answers. A stop on either side in between costs nothing: the message is
// offered again, and the primary's log says whether it was delivered.

// Deliverer publishes a message of a lost branch on the primary, committed when
// it returns, and says what became of it. What the store's log says was
// delivered is not delivered again. An error means that nobody knows yet.
type Deliverer interface {
	Deliver(ctx context.Context, l *meta.Lost, content []byte) (meta.Decision, error)
}

// After an attempt that did not succeed there is a pause: rescueRetry, or
// rescueAgain if something has changed.
const (
	rescueRetry = time.Second
	rescueAgain = 50 * time.Millisecond
)

// branchInfo says what is known of what this slot has after fork. Messages were
// acknowledged if they were committed by a set without the slot with which the
// other history goes on: that may have been right when they were appended, or
// when a later epoch began.
func (r *Member) branchInfo(fork uint64, unknown bool, w welcome) meta.BranchInfo {
	r.refresh()
	r.mu.Lock()
	hist := r.hist
	r.mu.Unlock()
	last := r.Log.Last()
	winner := w.Slot
	for _, e := range w.History {
		if e.Pos.Seq > fork {
			winner = e.Primary
			break
		}
	}
	info := meta.BranchInfo{Fork: fork, Unknown: unknown, From: w.Node}
	for i, e := range hist {
		end := hist.end(i, last)
		if end <= fork {
			continue
		}
		info.Epochs = append(info.Epochs, meta.BranchEpoch{Epoch: e.Pos.Epoch, From: e.Pos.Seq, Primary: e.Primary, Members: e.Members, Reason: e.Reason})
		if e.has(r.ID) && !e.has(winner) {
			info.Acked = end
		}
	}
	return info
}

// cutBranch keeps what the log has after w.Common, and cuts it off.
func (r *Member) cutBranch(w welcome) error {
	dir := ""
	if s, ok := r.Slot.(*meta.Slot); ok {
		if err := s.SetBranchAside(r.branchInfo(w.Common.Seq, false, w)); err != nil {
			return fmt.Errorf("keep the entries after seq %d: %w", w.Common.Seq, err)
		}
	} else {
		dir = filepath.Join(r.Dir, "rescue")
	}
	n, err := r.Log.Cut(w.Common.Seq, dir)
	if err != nil {
		return fmt.Errorf("cut the log after seq %d: %w", w.Common.Seq, err)
	}
	r.forget(w.Common.Seq)
	r.tell(true, fmt.Sprintf("%d entries after seq %d are not in the primary's history: cut, kept in rescue/", n, w.Common.Seq))
	r.wakeRescue()
	return nil
}

// wakeRescue says that there may be a branch to be delivered.
func (r *Member) wakeRescue() {
	select {
	case r.rescues <- struct{}{}:
	default:
	}
}

// rescueLoop delivers again what was acknowledged in lost branches, until the
// member stops.
func (r *Member) rescueLoop(ctx context.Context) {
	s, ok := r.Slot.(*meta.Slot)
	if !ok {
		return
	}
	for ctx.Err() == nil {
		names, err := pendingBranches(s)
		if err != nil {
			r.fail(fmt.Errorf("look at rescue/: %w", err))
		}
		if len(names) == 0 {
			select {
			case <-r.rescues:
			case <-ctx.Done():
			}
			continue
		}
		for _, name := range names {
			changed := r.Changed()
			_, err := r.RescueBranch(ctx, name, "", func(l *meta.Lost) bool { return l.Offer })
			if err == nil || ctx.Err() != nil {
				continue
			}
			if !errors.Is(err, errNoPrimary) {
				r.fail(fmt.Errorf("deliver messages of lost branch %s: %w", name, err))
			}
			if !r.pauseRescue(ctx, changed) {
				return
			}
		}
	}
}

// pauseRescue waits for a while, less if something changes: the primary may be
// there then. False if ctx ends.
func (r *Member) pauseRescue(ctx context.Context, changed <-chan struct{}) bool {
	least, most := time.NewTimer(rescueAgain), time.NewTimer(rescueRetry)
	defer least.Stop()
	defer most.Stop()
	select {
	case <-least.C:
	case <-ctx.Done():
		return false
	}
	select {
	case <-changed:
	case <-most.C:
	case <-ctx.Done():
		return false
	}
	return true
}

// pendingBranches lists the branches with messages that are still to be
// delivered by themselves.
func pendingBranches(s *meta.Slot) (names []string, err error) {
	list, err := s.Branches()
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		if b.Offered == 0 {
			continue
		}
		done, err := s.Decisions(b.Name)
		if err != nil {
			return nil, err
		}
		left := false
		if uint64(len(done)) < b.Messages {
			err = s.BranchMails(b.Name, func(l *meta.Lost) error {
				left = left || l.Offer && !done[l.Seq].Final()
				return nil
			})
		}
		if err != nil {
			return nil, err
		}
		if left {
			names = append(names, b.Name)
		}
	}
	return names, nil
}

// errNoPrimary: there is nobody to deliver to.
var errNoPrimary = &refusal{"the store has no primary that this node could deliver to"}

// RescueBranch delivers again the messages of a branch that pick wants and that
// were not yet: into the mailbox into, if that is not empty. It returns what
// became of each.
func (r *Member) RescueBranch(ctx context.Context, name, into string, pick func(*meta.Lost) bool) (list []meta.Decision, err error) {
	s, ok := r.Slot.(*meta.Slot)
	if !ok {
		return nil, errNoPrimary
	}
	r.rescuing.Lock()
	defer r.rescuing.Unlock()
	to, end, err := r.deliverer(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	b, err := s.Branch(name)
	if err != nil {
		return nil, err
	}
	done, err := s.Decisions(name)
	if err != nil {
		return nil, err
	}
	wanted := func(l *meta.Lost) bool {
		d := done[l.Seq]
		again := d.Outcome == meta.Homeless && into != ""
		return pick(l) && (!d.Final() || again)
	}
	err = s.OfferBranch(ctx, name, wanted, func(l *meta.Lost, content []byte, damaged error) error {
		d := meta.Decision{Seq: l.Seq, Outcome: meta.Spoiled}
		if damaged != nil {
			d.Text = damaged.Error()
		} else {
			l.Into = into
			if d, err = to.Deliver(ctx, l, content); err != nil {
				return err
			}
			d.Seq = l.Seq
		}
		d.Time = time.Now().UTC()
		if err := s.Decide(name, d); err != nil {
			return err
		}
		list = append(list, d)
		r.decided(b, l, d)
		return nil
	})
	if len(list) > 0 {
		r.tell(false, summary(name, list))
	}
	return list, err
}

// decided writes one decision to the ledger.
func (r *Member) decided(b *meta.Branch, l *meta.Lost, d meta.Decision) {
	e := ledger.Entry{Kind: ledger.Rescue, Path: l.Path, MessageID: l.MessageID, ID: l.Seq, Source: "./rescue/" + b.Name, Outcome: d.Outcome,
		Expected: map[string]string{"branch": fmt.Sprintf("sha256:%s size:%d", l.SHA256, l.Size)}}
	switch d.Outcome {
	case meta.Delivered:
		e.Text = fmt.Sprintf("message of epoch %d, seq %d of a lost branch: delivered again as %s (id %d)", l.Epoch, l.Seq, d.Path, d.ID)
	case meta.Present:
		e.Text = fmt.Sprintf("message of epoch %d, seq %d of a lost branch: %s has the same content, and came after the fork", l.Epoch, l.Seq, d.Path)
	default:
		e.Text = fmt.Sprintf("message of epoch %d, seq %d of a lost branch: not delivered: %s", l.Epoch, l.Seq, d.Text)
	}
	if d.Text != "" && d.Outcome == meta.Delivered {
		e.Text += "; " + d.Text
	}
	r.record(e)
}

func summary(name string, list []meta.Decision) string {
	count := map[string]int{}
	for _, d := range list {
		count[d.Outcome]++
	}
	return fmt.Sprintf("lost branch %s: %d messages delivered again, %d were there already, %d without a mailbox and %d damaged are kept", name,
		count[meta.Delivered], count[meta.Present], count[meta.Homeless], count[meta.Spoiled])
}

// deliverer is whoever is primary: this slot, or the one that it follows.
func (r *Member) deliverer(ctx context.Context) (d Deliverer, end func(), err error) {
	if r.role.Load() == Primary {
		if r.Deliverer == nil {
			return nil, nil, errNoPrimary
		}
		return r.Deliverer, func() {}, nil
	}
	r.mu.Lock()
	target := r.pub.target
	r.mu.Unlock()
	p, ok := r.address(target)
	if target.IsZero() || !ok || r.resyncing() {
		return nil, nil, errNoPrimary
	}
	l, _, err := r.connect(ctx, p, forRescue)
	if err != nil {
		var refused *PeerError
		if errors.As(err, &refused) && refused.Code == CodeNotPrimary {
			return nil, nil, errNoPrimary
		}
		return nil, nil, err
	}
	stop := l.closeOn(ctx)
	return &remote{l}, func() { stop(); l.close() }, nil
}

// remote is the primary on another node.
type remote struct{ l *link }

// rescueReply answers an offer.
type rescueReply struct {
	Decision meta.Decision `json:"decision"`
	Error    string        `json:"error,omitempty"`
}

// Deliver implements Deliverer.
func (d *remote) Deliver(_ context.Context, l *meta.Lost, content []byte) (meta.Decision, error) {
	d.l.deadline(fetchIdle)
	if err := d.l.writeJSON(frameRequest, request{Rescue: l}); err != nil {
		return meta.Decision{}, err
	}
	for b := content; len(b) > 0; {
		n := min(len(b), op.BlockSize)
		d.l.deadline(fetchIdle)
		if err := d.l.write(frameContent, b[:n]); err != nil {
			return meta.Decision{}, err
		}
		b = b[n:]
	}
	if err := errors.Join(d.l.write(frameContent, nil), d.l.flush()); err != nil {
		return meta.Decision{}, err
	}
	d.l.deadline(2 * fetchIdle)
	var a rescueReply
	if err := d.l.expect(frameReply, &a); err != nil {
		return meta.Decision{}, noEOF(err)
	}
	if a.Error != "" {
		return meta.Decision{}, errors.New(a.Error)
	}
	return a.Decision, nil
}

// serveRescue takes messages of another slot's lost branch.
func (r *Member) serveRescue(ctx context.Context, l *link, h hello) {
	defer l.closeOn(ctx)()
	l.deadline(fetchIdle)
	switch {
	case r.role.Load() != Primary || r.Deliverer == nil:
		l.turnAway(CodeNotPrimary, "the slot on "+r.Node+" is not primary")
		return
	case r.storeID() != h.StoreID:
		l.turnAway(CodeStoreID, "another store of the same name")
		return
	}
	if l.sendJSON(frameWelcome, r.identity()) != nil {
		return
	}
	questions(l, fetchIdle, func(q *request) error {
		if q.Rescue == nil {
			l.turnAway(CodeProtocol, "not a message of a lost branch")
			return ErrWire
		}
		content, err := l.offered(q.Rescue)
		if err != nil {
			r.fail(fmt.Errorf("message of a lost branch from %s: %w", h.Node, err))
			l.turnAway(CodeProtocol, err.Error())
			return err
		}
		var a rescueReply
		if a.Decision, err = r.Deliverer.Deliver(ctx, q.Rescue, content); err != nil {
			a.Error = err.Error()
		}
		l.deadline(fetchIdle)
		return l.sendJSON(frameReply, a)
	})
}

// offered reads the content of an offer, and verifies it.
func (l *link) offered(m *meta.Lost) ([]byte, error) {
	if m.Size < 0 || m.Size > maxFetch {
		return nil, fmt.Errorf("%w: a message of %d bytes", ErrWire, m.Size)
	}
	c := &contentReader{l: l}
	var b []byte
	for {
		piece, err := c.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if int64(len(b)+len(piece)) > m.Size {
			return nil, fmt.Errorf("%w: longer than %d bytes", errContent, m.Size)
		}
		b = append(b, piece...)
	}
	if sum := op.SumOf(b); fmt.Sprintf("%x", sum.SHA256) != m.SHA256 {
		return nil, fmt.Errorf("%w: SHA-256", errContent)
	}
	return b, nil
}
