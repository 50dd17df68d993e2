package meta

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/meta/vote"
)

// Audit is the digests of a snapshot, made from its records one by one: what is
// recorded as their sum is not believed, but compared.
type Audit struct {
	Pos      op.Pos    `json:"pos"`
	Recorded op.Digest `json:"recorded"` // what the index says its digest is
	Digest   op.Digest `json:"digest"`   // what its records come to
	Objects  uint64    `json:"objects"`
	// Contradicted are directories whose records do not come to what is recorded.
	Contradicted []op.ID `json:"contradicted,omitempty"`

	snap  *Snapshot
	own   map[op.ID]op.Digest // of the entries of a directory
	below map[op.ID]op.Digest // and of all directories below
}

// contradictedMax bounds Contradicted.
const contradictedMax = 1000

// Audit reads all records once.
func (n *Snapshot) Audit(ctx context.Context) (*Audit, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.txn == nil {
		return nil, ErrClosed
	}
	a := &Audit{Pos: n.state.Pos, Recorded: n.state.Digest, snap: n,
		own: map[op.ID]op.Digest{}, below: map[op.ID]op.Digest{}}
	above, recorded := map[op.ID]op.ID{}, map[op.ID]op.Digest{}
	err := view{n.txn}.eachInode(0, func(in *Inode) error {
		a.Objects++
		a.Digest.Add(ownElements(in))
		for _, at := range in.Names {
			d := a.own[at.Dir]
			d.Add(element(at, in))
			a.own[at.Dir] = d
		}
		if in.IsDir() {
			recorded[in.ID] = in.Entries
			if len(in.Names) > 0 {
				above[in.ID] = in.Names[0].Dir
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	for id, d := range recorded {
		if a.own[id] != d && len(a.Contradicted) < contradictedMax {
			a.Contradicted = append(a.Contradicted, id)
		}
		for at, steps := id, 0; steps <= len(recorded); steps++ { // a circle is no way up
			b := a.below[at]
			b.Add(a.own[id])
			a.below[at] = b
			up, ok := above[at]
			if !ok {
				break
			}
			at = up
		}
	}
	sort.Slice(a.Contradicted, func(i, j int) bool { return a.Contradicted[i] < a.Contradicted[j] })
	return a, nil
}

// Below is the digest of the entries of a directory and of all directories
// below it.
func (a *Audit) Below(dir op.ID) op.Digest { return a.below[dir] }

// AuditEntry is one name of a directory.
type AuditEntry struct {
	Name  []byte    `json:"name"` // any bytes
	ID    op.ID     `json:"id"`
	Dir   bool      `json:"dir,omitempty"`
	Sum   op.Digest `json:"sum"`             // of the entry itself
	Below op.Digest `json:"below,omitempty"` // of a directory
}

// Entries lists a directory in order of name.
func (a *Audit) Entries(dir op.ID) ([]AuditEntry, error) {
	children, err := a.snap.Children(dir)
	if err != nil {
		return nil, err
	}
	list := make([]AuditEntry, 0, len(children))
	for _, c := range children {
		in, err := a.snap.Inode(c.ID)
		if errors.Is(err, ErrNotExist) {
			list = append(list, AuditEntry{Name: []byte(c.Name), ID: c.ID}) // differs from any that is there
			continue
		}
		if err != nil {
			return nil, err
		}
		e := AuditEntry{Name: []byte(c.Name), ID: c.ID, Sum: element(Name{Dir: dir, Name: c.Name}, in)}
		if in.IsDir() {
			e.Dir, e.Below = true, a.below[c.ID]
		}
		list = append(list, e)
	}
	return list, nil
}

// Reconsider puts an object right that differs between slots: what is said of it
// here and there is voted on, and whatever is outvoted here, record or tree, is
// corrected.
func (s *Slot) Reconsider(ctx context.Context, id op.ID) (outcome string, err error) {
	for range 10 {
		if outcome, err = s.reconsider(ctx, id); !errors.Is(err, errChanged) {
			return outcome, err
		}
	}
	return outcome, err
}

func (s *Slot) reconsider(ctx context.Context, id op.ID) (string, error) {
	n, err := s.ix.inode(id)
	if errors.Is(err, ErrNotExist) {
		return ledger.Noted, nil
	}
	if err != nil {
		return "", err
	}
	path := s.pathOf(n)
	if n.Sum != nil {
		j, err := s.judge(ctx, n, path, errors.New("differs between slots"))
		if err != nil {
			return "", err
		}
		if j.verdict.Decided() && j.verdict.Right != said(n.Sum) && len(j.verdict.Good) > 0 {
			return ledger.Repaired, s.correctIndex(j)
		}
	}
	all, err := s.ask(ctx, id)
	if err != nil {
		return "", err
	}
	var votes []vote.Vote
	for _, t := range all {
		if t.Index != nil && t.Index.Changed == n.Changed {
			votes = append(votes, t.attributeVotes()...)
		}
	}
	v := vote.Attributes(votes)
	if v.Decided() && !v.Has(ownName, vote.Index) && !v.Has(ownName, vote.Tree) {
		return ledger.Noted, nil // the other one is wrong
	}
	return s.mendAttributes(ctx, n, path, "attributes differ between slots")
}

// Retotal makes the digest of the slot, and of its directories, what the
// records of the index come to.
func (s *Slot) Retotal(ctx context.Context) error {
	n, err := s.Snapshot(ctx)
	if err != nil {
		return err
	}
	a, err := n.Audit(ctx)
	n.Close()
	if err != nil {
		return err
	}
	if a.Digest == a.Recorded && len(a.Contradicted) == 0 {
		return nil
	}
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	for _, dir := range a.Contradicted {
		if err := s.resum(dir); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	// What was applied since is in the state and in the difference alike.
	x := s.ix
	x.mu.Lock()
	var text string
	if len(a.Contradicted) == 0 {
		x.state.Digest.Sub(a.Recorded)
		x.state.Digest.Add(a.Digest)
	}
	text = fmt.Sprintf("the index's totals contradicted its records, in %d directories: they were summed up anew", len(a.Contradicted))
	x.mu.Unlock()
	s.Events.Add(Event{Kind: EventRepaired, Text: text})
	s.Record(ledger.Entry{Kind: ledger.Index, Source: "records", Outcome: ledger.Repaired, Text: text})
	return nil
}
