package node

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/evidence"
	"slotfs/meta"
	"slotfs/meta/op"
)

// postEvidence holds a list against the store.
func (n *Node) postEvidence(w http.ResponseWriter, r *http.Request) {
	report, err := n.verifyEvidence(r.Context(), r)
	answer(w, report, err)
}

func (n *Node) verifyEvidence(ctx context.Context, r *http.Request) (*admin.EvidenceReport, error) {
	list, err := evidence.Read(r.Body, func(c *x509.Certificate) error { return n.Identity.Cluster.Trusted(c) })
	if err != nil {
		return nil, exit.With(exit.Forged, err)
	}
	s, err := n.slot(list.Store)
	if err != nil {
		return nil, err
	}
	if own := s.Meta.StoreID().String(); own != list.StoreID {
		return nil, exit.With(exit.Refused, fmt.Errorf("the list is of another store called %s (id %s; this one is %s)", list.Store, list.StoreID, own))
	}
	if err := s.Meta.Unfit(); err != nil {
		return nil, exit.With(exit.Refused, err)
	}
	return s.holdAgainst(ctx, list)
}

// holdAgainst says of each message of the list what has become of it.
func (s *Slot) holdAgainst(ctx context.Context, list *evidence.List) (*admin.EvidenceReport, error) {
	rep := &admin.EvidenceReport{Head: list.Head, Signer: list.Signer.Subject.CommonName, Messages: len(list.Messages), VerifiedBy: s.node.Config.Node}
	rep.Now = s.Meta.Log.Last()
	gone := map[op.ID][]*admin.EvidenceItem{}
	read := map[op.ID]error{}
	for i := range list.Messages {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m := &list.Messages[i]
		item := &admin.EvidenceItem{ID: op.ID(m.ID), Path: m.Path, MessageID: m.MessageID}
		if err := s.judge(ctx, m, item, read); err != nil {
			return nil, err
		}
		if item.State == admin.EvidenceGone {
			gone[item.ID] = append(gone[item.ID], item)
		}
		rep.Count(item)
	}
	return rep, s.tellRemovals(ctx, list, gone, rep)
}

// judge compares one message with what the store has.
func (s *Slot) judge(ctx context.Context, m *evidence.Message, item *admin.EvidenceItem, read map[op.ID]error) error {
	in, err := s.Meta.Inode(item.ID)
	if errors.Is(err, meta.ErrNotExist) {
		item.State = admin.EvidenceGone
		return nil
	}
	if err != nil {
		return err
	}
	has, err := in.Sum, error(nil)
	if in.Unverified() {
		var now op.Sum // of what is there: nobody knows better
		now, err = s.sumNow(ctx, in)
		has = &now
	}
	if err == nil && (has == nil || in.Size != m.Size || has.XXH() != m.XXH || has.SHA256 != m.SHA256) {
		item.State, item.Text = admin.EvidenceAltered, "the store has another checksum for it"
		return nil
	}
	bad, known := read[in.ID]
	if !known {
		_, bad = s.readWhole(ctx, in)
		read[in.ID] = bad
	}
	var damaged *meta.DamagedError
	switch {
	case errors.Is(bad, meta.ErrNotExist):
		item.State = admin.EvidenceGone
		return nil
	case errors.As(bad, &damaged):
		item.State, item.Text = admin.EvidenceAltered, "its content is damaged, and there is no good copy"
		return nil
	case bad != nil:
		return bad
	}
	var paths []string
	for _, at := range in.Names {
		dir, err := s.Meta.Path(at.Dir)
		if err != nil {
			return err
		}
		paths = append(paths, strings.TrimPrefix(dir+"/"+at.Name, "/"))
	}
	item.State = admin.EvidenceUnchanged
	if !slices.Contains(paths, m.Path) && len(paths) > 0 {
		item.State, item.Now = admin.EvidenceMoved, paths[0]
	}
	return nil
}

// tellRemovals finds in the log who removed what is gone, as far as it reaches.
func (s *Slot) tellRemovals(ctx context.Context, list *evidence.List, gone map[op.ID][]*admin.EvidenceItem, rep *admin.EvidenceReport) error {
	rep.LogFrom = s.Meta.Log.First()
	made, err := positionSeq(list.Position)
	if err != nil {
		return exit.With(exit.Forged, err)
	}
	from := max(made+1, rep.LogFrom)
	rep.LogComplete = rep.LogFrom <= made+1
	note := func(e *op.Entry, id op.ID, how string) {
		for _, item := range gone[id] {
			item.Seq, item.Epoch, item.Time = e.Seq, e.Epoch, time.Unix(0, e.Time).UTC()
			item.By, item.Text = s.primaryOf(e.Epoch), how
		}
	}
	if len(gone) > 0 {
		err = s.eachEntry(ctx, from, s.Meta.Log.Committed.Get(), func(e *op.Entry) { eachLoss(e, func(id op.ID, how string) { note(e, id, how) }) })
		if err != nil {
			return err
		}
	}
	rep.LogFromTime, err = s.timeOf(rep.LogFrom)
	for _, items := range gone {
		for _, item := range items {
			if item.Seq == 0 {
				item.Text = fmt.Sprintf("removed before entry %d, where this slot's log begins", rep.LogFrom)
			}
		}
	}
	return err
}

// eachLoss tells which objects lose a name by an entry, and how.
func eachLoss(e *op.Entry, f func(id op.ID, how string)) {
	switch o := e.Op.(type) {
	case *op.Unlink:
		f(o.ID, "removed")
	case *op.Put:
		f(o.Victim, "replaced by another file")
	case *op.Link:
		f(o.Victim, "replaced by a link to another file")
	case *op.Rename:
		if !o.Exchange {
			f(o.Victim, "replaced by another file's rename")
		}
	}
}

// primaryOf names the node that was primary in an epoch.
func (s *Slot) primaryOf(epoch uint64) string {
	for _, b := range s.Meta.Log.Epochs() {
		if b.Begin.Epoch != epoch {
			continue
		}
		if b.Begin.Primary == s.Meta.ID {
			return s.node.Config.Node
		}
		for _, p := range s.Member.State().Peers {
			if p.Slot == b.Begin.Primary {
				return p.Node
			}
		}
		return "slot " + b.Begin.Primary.String()
	}
	return ""
}

// timeOf is when an entry was made; zero if the log does not have it.
func (s *Slot) timeOf(seq uint64) (t time.Time, err error) {
	err = s.eachEntry(context.Background(), seq, seq, func(e *op.Entry) { t = time.Unix(0, e.Time).UTC() })
	return t, err
}

// positionSeq reads the seq of a position as it is written.
func positionSeq(text string) (uint64, error) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return 0, fmt.Errorf("position %q", text)
	}
	return strconv.ParseUint(parts[1], 10, 64)
}
