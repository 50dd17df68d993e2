package meta

import (
	"context"
	"time"

	"slotfs/meta/ledger"
)

// VerifyIndex reads the whole index from the disk. One that is damaged is made
// anew, beside the damaged one; the error is why it could not be.
func (s *Slot) VerifyIndex() error { return s.healed(s.ix.verify) }

// views verifies what the pass looks everything up in. Without repair, too: the
// index is a view, which the slot makes anew by itself whoever finds it damaged.
func (p *pass) views() error {
	err := p.s.ix.verify()
	if !unusable(err) {
		return err
	}
	f := ScrubFinding{Kind: FoundIndex, Path: "./" + dirIndex, Text: err.Error(), Outcome: ledger.Repaired}
	if err = p.s.VerifyIndex(); err != nil {
		f.Outcome = ledger.Unrepaired
	}
	p.finding(f)
	return err
}

// historyRest is the largest multiple of the time that a piece of the log took, to
// rest beside users: a mebibyte in a row disturbs them less than the same in
// messages, and the log grows with what users do.
const historyRest = 4

// history verifies the log: nothing that is served comes from there, but a slot
// that was away, point-in-time restore and evidence do. It reads at the disk's
// usual priority: no segment can be trimmed while one is read, and a trim that waits
// holds up those who send entries.
func (p *pass) history(ctx context.Context) error {
	p.s.keeper.verifying.Lock()
	defer p.s.keeper.verifying.Unlock()
	pace := newPacer(p.opt.Rate, p.s.usersDid)
	pace.most = historyRest
	begun := time.Now()
	damage, err := p.s.Log.Verify(ctx, func(n int) error {
		p.mu.Lock()
		p.p.LogBytes += int64(n)
		p.mu.Unlock()
		p.tell()
		err := pace.rest(ctx, time.Since(begun), int64(n))
		begun = time.Now()
		return err
	})
	if err != nil {
		return err
	}
	if p.opt.NoRepair {
		for _, d := range damage {
			p.finding(ScrubFinding{Kind: FoundLog, Path: p.s.inData(d.Path), Text: d.Error(), Outcome: ledger.Unrepaired})
		}
		return nil
	}
	for _, d := range p.s.mendAll(ctx, damage) {
		f := ScrubFinding{Kind: FoundLog, Path: p.s.inData(d.Path), Text: d.Finding().Text, Outcome: ledger.Repaired}
		if d.Unmended != nil {
			f.Outcome = ledger.Unrepaired
		}
		p.finding(f)
	}
	return ctx.Err()
}
