package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta"
	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/repl"
)

var _ repl.Deliverer = (*Slot)(nil)

// Deliver implements repl.Deliverer: it publishes a message of a lost branch,
// whichever slot has that, through the mount. The store's log says which were
// delivered already, so before anything is decided all of it is applied; and one
// message is delivered at a time.
func (s *Slot) Deliver(ctx context.Context, l *meta.Lost, content []byte) (d meta.Decision, err error) {
	s.rescue.Lock()
	defer s.rescue.Unlock()
	s.mu.Lock()
	f := s.fs
	s.mu.Unlock()
	if f == nil {
		return d, errors.New("the store is not mounted")
	}
	log := s.Meta.Log
	last := log.Appended.Get()
	if err := log.Barrier(ctx, last); err != nil {
		return d, fmt.Errorf("commit seq %d: %w", last, err)
	}
	if err := log.Applied.Wait(ctx, last); err != nil {
		return d, fmt.Errorf("apply seq %d: %w", last, err)
	}
	d.Seq, d.Time = l.Seq, time.Now().UTC()
	if id, ok := s.Meta.Rescued(l.Origin()); ok {
		d.Outcome, d.ID = meta.Delivered, id
		if d.Path, err = s.Meta.Path(id); err != nil {
			d.Path, d.Text = "", "it is not there any more"
		}
		return d, nil
	}
	place, err := s.Meta.RescuePlace(l, l.Into)
	if errors.Is(err, meta.ErrNoMailbox) || errors.Is(err, meta.ErrNotExist) {
		d.Outcome, d.Text = meta.Homeless, err.Error()
		return d, nil
	}
	if err != nil {
		return d, err
	}
	if s.since == nil || s.since.After() != l.Fork {
		s.since = s.Meta.Since(l.Fork)
	}
	there, err := s.since.Find(l, place)
	if err != nil {
		return d, err
	}
	if there != "" {
		d.Outcome, d.Path = meta.Present, there
		return d, nil
	}
	dir, name := place.New, l.RescueName(s.node.Config.Node, d.Time)
	if flags := l.Flags(); flags != "" {
		dir, name = place.Cur, name+":2,"+flags
	}
	if d.ID, err = f.Deliver(ctx, dir, name, l.RescueAttr(), content); err != nil {
		return d, fmt.Errorf("deliver into %s: %w", place.Mailbox, err)
	}
	d.Outcome, d.Text = meta.Delivered, place.Text
	d.Path = place.Mailbox + "/new/" + name
	if dir == place.Cur {
		d.Path = place.Mailbox + "/cur/" + name
	}
	s.Meta.Record(ledger.Entry{Kind: ledger.Rescue, Path: d.Path, MessageID: l.MessageID, ID: uint64(d.ID), Outcome: d.Outcome,
		Expected: map[string]string{"branch": fmt.Sprintf("sha256:%s size:%d", l.SHA256, l.Size)},
		Text:     fmt.Sprintf("a message of a lost branch, epoch %d, seq %d, was delivered again (it was %s)", l.Epoch, l.Seq, l.Path)})
	return d, nil
}

// branchOf finds a slot and one of its lost branches.
func (n *Node) branchOf(store, name string) (*Slot, *meta.Branch, error) {
	s, err := n.slot(store)
	if err != nil {
		return nil, nil, err
	}
	b, err := s.Meta.Branch(name)
	if errors.Is(err, meta.ErrNoBranch) {
		err = exit.With(exit.Usage, fmt.Errorf("%w of store %s on node %s; \"slotfs rescue list\" shows what there is", err, store, n.Config.Node))
	}
	return s, b, err
}

// rescueList lists lost branches: of one store, or of all.
func (n *Node) rescueList(store string) (*admin.RescueList, error) {
	out := &admin.RescueList{Node: n.Config.Node, Branches: []admin.LostBranch{}}
	if store != "" {
		if _, err := n.slot(store); err != nil {
			return nil, err
		}
	}
	for _, s := range n.Slots {
		if store != "" && s.Conf.Store != store {
			continue
		}
		list, err := s.lostBranches()
		if err != nil {
			return nil, err
		}
		out.Branches = append(out.Branches, list...)
	}
	return out, nil
}

func (s *Slot) lostBranches() (out []admin.LostBranch, err error) {
	list, err := s.Meta.Branches()
	if err != nil {
		return nil, err
	}
	for _, b := range list {
		d, err := s.decisions(b.Name)
		if err != nil {
			return nil, err
		}
		x := admin.LostBranch{Branch: b, StoreName: s.Conf.Store, Decided: d}
		x.Left = b.Messages - min(b.Messages, x.Decided[meta.Delivered]+x.Decided[meta.Present])
		out = append(out, x)
	}
	return out, nil
}

// decided counts decisions; there may be very many, so it is kept.
type decided struct {
	size   int64 // of the file that has them
	counts map[string]uint64
}

// decisions counts the messages of a lost branch by what became of them.
func (s *Slot) decisions(name string) (map[string]uint64, error) {
	size := s.Meta.DecisionsSize(name)
	s.mu.Lock()
	d, ok := s.decided[name]
	s.mu.Unlock()
	if ok && d.size == size {
		return d.counts, nil
	}
	list, err := s.Meta.Decisions(name)
	if err != nil {
		return nil, err
	}
	d = decided{size, map[string]uint64{}}
	for _, x := range list {
		d.counts[x.Outcome]++
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.decided == nil {
		s.decided = map[string]decided{}
	}
	s.decided[name] = d
	return d.counts, nil
}

// branchWarnings says which lost branches of this node have messages that the
// store has not.
func (n *Node) branchWarnings() (out []string) {
	for _, s := range n.Slots {
		list, err := s.lostBranches()
		if err != nil {
			out = append(out, fmt.Sprintf("%s: lost branches cannot be read: %v", s.Conf.Store, err))
		}
		for _, b := range list {
			if b.Left > 0 || b.Unknown {
				out = append(out, fmt.Sprintf("%s: a lost branch, kept at %s, has %d messages that the store has not: slotfs rescue show %s %s",
					s.Conf.Store, b.Time.Local().Format("2006-01-02 15:04"), b.Left, s.Conf.Store, b.Name))
			}
		}
	}
	return out
}

// getRescueShow tells what is in a lost branch: messages with what became of
// them, then every entry in words.
func (n *Node) getRescueShow(w http.ResponseWriter, r *http.Request) {
	s, b, err := n.branchOf(r.FormValue("store"), r.FormValue("name"))
	if err != nil {
		problem(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	if err := s.showBranch(r.Context(), b, func(l *admin.RescueLine) error { return enc.Encode(l) }); err != nil && r.Context().Err() == nil {
		n.Log.Warn("answer cut short", "err", err)
		panic(http.ErrAbortHandler)
	}
}

func (s *Slot) showBranch(ctx context.Context, b *meta.Branch, emit func(*admin.RescueLine) error) error {
	if err := emit(&admin.RescueLine{Branch: b}); err != nil {
		return err
	}
	done, err := s.Meta.Decisions(b.Name)
	if err != nil {
		return err
	}
	err = s.Meta.BranchMails(b.Name, func(l *meta.Lost) error {
		l.Path, l.User, l.Mailbox = printablePath(l.Path), printablePath(l.User), printablePath(l.Mailbox)
		line := &admin.RescueLine{Mail: l}
		if d, ok := done[l.Seq]; ok {
			line.Decision = &d
		}
		return errors.Join(ctx.Err(), emit(line))
	})
	if err != nil {
		return err
	}
	// Ids after the fork are other objects in the store's history.
	h := &historian{slot: s.Meta, names: map[op.ID]meta.Name{}, upTo: op.ID(b.Fork), known: b.Dirs}
	return s.Meta.BranchEntries(b.Name, func(e *op.Entry) error {
		l := h.line(e)
		if l == nil {
			return nil
		}
		line := &admin.RescueLine{Entry: l}
		if p, ok := e.Op.(*op.Put); ok && p.Sealed && p.Stage == 0 {
			line.MessageID = meta.MessageID(p.Data)
		}
		return errors.Join(ctx.Err(), emit(line))
	})
}

// getRescueContent is the content of one message.
func (n *Node) getRescueContent(w http.ResponseWriter, r *http.Request) {
	s, b, err := n.branchOf(r.FormValue("store"), r.FormValue("name"))
	if err != nil {
		problem(w, err)
		return
	}
	seq, err := strconv.ParseUint(r.FormValue("seq"), 10, 64)
	if err != nil {
		problem(w, exit.With(exit.Usage, fmt.Errorf("seq: %w", err)))
		return
	}
	_, content, err := s.Meta.BranchContent(r.Context(), b.Name, seq)
	if err != nil {
		problem(w, err)
		return
	}
	w.Header().Set("Content-Type", "message/rfc822")
	w.Write(content)
}

// rescueDeliver delivers messages of a lost branch that an operator chose.
func (n *Node) rescueDeliver(ctx context.Context, r *admin.RescueDeliver) (*admin.RescueDelivered, error) {
	s, b, err := n.branchOf(r.Store, r.Name)
	if err != nil {
		return nil, err
	}
	if !r.All && len(r.Seqs) == 0 {
		return nil, exit.With(exit.Usage, errors.New("name the messages to deliver, or say that all are meant"))
	}
	list, err := s.Member.RescueBranch(ctx, b.Name, r.Into, func(l *meta.Lost) bool { return r.All || slices.Contains(r.Seqs, l.Seq) })
	out := &admin.RescueDelivered{Name: b.Name, Decisions: list}
	if err != nil && len(list) > 0 {
		out.Error = err.Error()
		err = nil
	}
	return out, err
}

// rescueDrop gives a lost branch up for good.
func (n *Node) rescueDrop(ctx context.Context, r *admin.RescueDrop) (*admin.LostBranch, error) {
	s, b, err := n.branchOf(r.Store, r.Name)
	if err != nil {
		return nil, err
	}
	list, err := s.lostBranches()
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(x admin.LostBranch) bool { return x.Name == b.Name })
	if i < 0 {
		return nil, meta.ErrNoBranch
	}
	x := &list[i]
	if !r.Yes {
		return nil, exit.With(exit.Unconfirmed, fmt.Errorf("lost branch %s has %d messages, %d of which were not delivered again: to remove it for good repeat with --yes; nothing was changed",
			b.Name, b.Messages, x.Left))
	}
	s.Meta.Record(ledger.Entry{Kind: ledger.Rescue, Path: "./rescue/" + b.Name, Outcome: "dropped",
		Found: map[string]string{"chain": b.Last.String()},
		Text:  fmt.Sprintf("dropped by operator: %d messages, %d of which were not delivered again, and all other changes after seq %d", b.Messages, x.Left, b.Fork)})
	if err := s.Meta.DropBranch(b.Name); err != nil {
		return nil, err
	}
	return x, nil
}
