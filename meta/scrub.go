package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// Scrub reads everything from the medium, compares it with the index, and
// repairs what differs. It goes through the objects by id, so roughly in the
// order in which the disk has them:
//
//	scrub.go        a pass: options, progress, findings
//	scrubloop.go    the continuous scrub in the background
//	scrubstate.go   what is remembered in scrub.json: cursor, ages, last pass
//	scrubranges.go  when which ids were verified
//	scrubworkers.go several at a time, at low priority
//	scrubobject.go  looking at objects
//	scrubmend.go    mending them
//	scrubuser.go    a part of the tree, by name
//	scrubown.go     index and log, which are no objects
//	scrubmedium.go  reading the medium and not the page cache
//	scrubreads.go   several files at once
//	scrubpace.go    leaving users alone

// ScrubOptions says what to scrub. The zero value is everything, at full
// speed, with repair.
type ScrubOptions struct {
	User  string    // only below a directory of this name, or this path from the root
	Since time.Time // only what has an mtime or ctime since then
	Rate  int64     // bytes a second at most; 0: no limit
	// NoRepair: only report.
	NoRepair bool
}

// ScrubProgress is how far a scrub is.
type ScrubProgress struct {
	Objects      uint64            `json:"objects"`
	Messages     uint64            `json:"messages"`
	Unverified   uint64            `json:"unverified,omitempty"` // of them: adopted, without a checksum as yet
	Bytes        int64             `json:"bytes"`
	LogBytes     int64             `json:"log_bytes,omitempty"` // of the log, besides
	TotalObjects uint64            `json:"total_objects"`       // estimated
	TotalBytes   int64             `json:"total_bytes"`
	Found        map[string]uint64 `json:"found,omitempty"` // by kind
	Repaired     uint64            `json:"repaired"`
	Unrepaired   uint64            `json:"unrepaired"`
	Medium       map[string]uint64 `json:"medium,omitempty"` // files by how they were read
	Started      time.Time         `json:"started"`
	Took         time.Duration     `json:"took"`
	Done         bool              `json:"done,omitempty"`
}

// Clean reports whether nothing was found.
func (p *ScrubProgress) Clean() bool { return len(p.Found) == 0 }

// ScrubReport is told of a scrub while it goes on, one thing at a time; either
// may be nil.
type ScrubReport struct {
	Progress func(ScrubProgress) // several times a second
	Finding  func(ScrubFinding)
}

// ErrScrubRuns: another scrub of the slot was asked for and is under way.
var ErrScrubRuns = errors.New("a scrub of this slot is under way")

// scrubBatch is how many objects are looked at between two updates of what is
// verified.
const scrubBatch = 512

// pass is one scrub under way.
type pass struct {
	s       *Slot
	opt     ScrubOptions
	report  ScrubReport
	pace    *pacer
	readers readers
	full    bool // of everything: counts for the cycle

	telling sync.Mutex // held while report is told something; before mu

	mu   sync.Mutex // guards what follows
	p    ScrubProgress
	told time.Time
	said map[op.ID]struct{} // objects with a finding, the first saidMax
}

// saidMax bounds what a pass remembers of its findings.
const saidMax = 100_000

// Scrub makes one pass over the slot, or the part of it that o names. It works
// while the slot is in use. One at a time is possible besides the continuous
// one, which waits.
func (s *Slot) Scrub(ctx context.Context, o ScrubOptions, r ScrubReport) (ScrubProgress, error) {
	if !s.scrub.asked.TryLock() {
		return ScrubProgress{}, fmt.Errorf("scrub: %w", ErrScrubRuns)
	}
	defer s.scrub.asked.Unlock()
	if s.Resyncing() {
		return ScrubProgress{}, fmt.Errorf("scrub: %w", ErrResyncing)
	}
	p := s.newPass(o, r)
	defer p.readers.close()
	p.full = o.User == "" && o.Since.IsZero()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.ctx, func() { cancel(context.Cause(s.ctx)) })()
	s.scrub.setAsked(p)
	defer s.scrub.setAsked(nil)
	if err := p.run(ctx); err != nil {
		return p.progress(), fmt.Errorf("scrub: %w", errors.Join(err, context.Cause(ctx)))
	}
	done := p.progress()
	done.Done = true
	if r.Progress != nil {
		r.Progress(done)
	}
	text := fmt.Sprintf("%d objects, %d bytes read in %v; %d repaired, %d not repaired", done.Objects, done.Bytes, done.Took.Round(time.Millisecond), done.Repaired, done.Unrepaired)
	outcome := ledger.Noted
	switch {
	case done.Unrepaired > 0:
		outcome = ledger.Unrepaired
	case done.Repaired > 0:
		outcome = ledger.Repaired
	}
	s.Record(ledger.Entry{Kind: ledger.Scrub, Path: o.User, Outcome: outcome, Text: text})
	return done, nil
}

func (s *Slot) newPass(o ScrubOptions, r ScrubReport) *pass {
	return &pass{s: s, opt: o, report: r, pace: newPacer(o.Rate, s.usersDid), readers: newReaders(), said: map[op.ID]struct{}{}, p: ScrubProgress{
		Started: time.Now(), Found: map[string]uint64{}, Medium: map[string]uint64{}}}
}

// usersDid counts what users do: reads, and entries of the log that are not about
// what is read in the background.
func (s *Slot) usersDid() uint64 { return s.reads.Load() + s.Log.Last().Seq - s.adopting.seals.Load() }

// run goes through what the pass is about.
func (p *pass) run(ctx context.Context) error {
	held := p.s.Stats()
	p.p.TotalObjects, p.p.TotalBytes = held.Objects, int64(held.Bytes)
	if err := p.views(); err != nil {
		return err
	}
	if err := p.s.guard(); err != nil { // a lost tree cannot be repaired file by file
		return err
	}
	if p.opt.User != "" {
		return p.runUser(ctx)
	}
	last := op.ID(held.Pos.Seq)
	if err := p.runIDs(ctx, op.Root, last); err != nil {
		return err
	}
	if p.full {
		if err := p.history(ctx); err != nil {
			return err
		}
		return p.s.scrub.finished(p.p.Started)
	}
	return nil
}

// runIDs goes through the objects with ids from…to.
func (p *pass) runIDs(ctx context.Context, from, to op.ID) error {
	for from <= to {
		ids, err := p.s.ix.idsFrom(from, to, scrubBatch)
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := p.batch(ctx, ids); err != nil {
			return err
		}
		end := to
		if len(ids) == scrubBatch {
			end = ids[len(ids)-1]
		}
		if p.opt.Since.IsZero() {
			if err := p.s.scrub.covered(from, end, begun); err != nil {
				return err
			}
		}
		from = end + 1
	}
	return nil
}

// batch looks at some objects.
func (p *pass) batch(ctx context.Context, ids []op.ID) error {
	return p.readers.sideBySide(ctx, ids, p.pace.atOnce, p.some)
}

// some looks at objects at the same time, and mends them.
func (p *pass) some(ctx context.Context, ids []op.ID, m *mediumReader) error {
	if err := errors.Join(ctx.Err(), p.s.Faulted()); err != nil {
		return err
	}
	if p.s.Resyncing() {
		return ErrResyncing
	}
	begun := time.Now()
	var all []examined
	err := p.s.healed(func() (err error) {
		recent, err := p.recent(ids)
		if err == nil {
			all, err = p.s.examineAll(recent, m)
		}
		return err
	})
	if err != nil {
		return err
	}
	worked, bytes := time.Since(begun), int64(0) // repairs are rare, and nothing to rest from
	for i := range all {
		bytes += all[i].bytes
		if err := p.one(ctx, &all[i], m); err != nil {
			return err
		}
	}
	p.tell()
	return p.pace.rest(ctx, worked, bytes)
}

// recent leaves out what the pass is not about because it is too old; there is
// that much less to do.
func (p *pass) recent(ids []op.ID) ([]op.ID, error) {
	if p.opt.Since.IsZero() {
		return ids, nil
	}
	var list []op.ID
	for _, id := range ids {
		n, err := p.s.ix.inode(id)
		switch {
		case errors.Is(err, ErrNotExist):
		case err != nil:
			return nil, err
		case !time.Unix(0, max(n.Mtime, n.Ctime)).Before(p.opt.Since):
			list = append(list, id)
		default:
			p.mu.Lock()
			p.p.TotalObjects -= min(1, p.p.TotalObjects)
			p.p.TotalBytes -= min(n.Size, p.p.TotalBytes)
			p.mu.Unlock()
		}
	}
	return list, nil
}

// one takes note of what was found of an object, and mends it.
func (p *pass) one(ctx context.Context, e *examined, m *mediumReader) error {
	if e.n == nil {
		return nil
	}
	p.count(e)
	if e.n.IsDir() {
		if err := p.dir(e.n); err != nil {
			return err
		}
	}
	if !e.flaws.none() {
		if err := p.found(ctx, e, m); err != nil {
			return err
		}
	}
	for _, f := range p.s.scrub.takeMended(e.n.ID) {
		p.finding(f)
	}
	return nil
}

func (p *pass) count(e *examined) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.p.Objects++
	if e.n.Sealed {
		p.p.Messages++
	}
	if e.n.Unverified() {
		p.p.Unverified++
	}
	p.p.Bytes += e.bytes
	if e.medium != "" {
		p.p.Medium[e.medium]++
	}
}

// found reports and mends what is wrong with an object.
func (p *pass) found(ctx context.Context, e *examined, m *mediumReader) error {
	f := ScrubFinding{Kind: e.flaws.kind(), ID: e.n.ID, Path: p.s.pathOf(e.n), Text: e.flaws.String(), Outcome: ledger.Unrepaired}
	if !p.opt.NoRepair {
		outcome, err := p.s.mend(ctx, e, m)
		if errors.Is(err, errChanged) || errors.Is(err, ErrNotExist) {
			return nil // it is another by now
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			f.Text += "; repair: " + err.Error()
			outcome = ledger.Unrepaired
			p.s.Events.Add(Event{Kind: EventDamaged, ID: f.ID, Path: f.Path, Text: f.Text})
			p.s.Record(ledger.Entry{Kind: ledger.Damaged, ID: uint64(f.ID), Path: f.Path, Text: f.Text, Outcome: outcome})
		}
		f.Outcome = outcome
		if outcome == ledger.Unrepaired {
			// Together with something else, it may just have been.
			if again, err := p.s.examine(e.n.ID, m); err == nil && again.flaws.none() {
				f.Outcome = ledger.Repaired
			}
		}
	}
	p.finding(f)
	return nil
}

// dir looks for what does not belong into a directory, and at its records.
func (p *pass) dir(n *Inode) error {
	names, err := p.s.strays(n.ID)
	if err != nil {
		return fmt.Errorf("directory %d: %w", n.ID, err)
	}
	for _, name := range names {
		f := ScrubFinding{Kind: FoundStray, Path: p.s.shown(n.ID, name), Text: "no entry of the log explains it", Outcome: ledger.Unrepaired}
		if !p.opt.NoRepair {
			outcome, err := p.s.mendStray(n.ID, name)
			switch {
			case unusable(err):
				return fmt.Errorf("directory %d: %w", n.ID, err)
			case err != nil:
				f.Text += "; " + err.Error()
			case outcome == ledger.Noted:
				continue
			default:
				f.Outcome = outcome
			}
		}
		p.finding(f)
	}
	return nil
}

func (p *pass) finding(f ScrubFinding) {
	p.mu.Lock()
	if _, again := p.said[f.ID]; again && f.ID != 0 {
		p.mu.Unlock()
		return // repaired together with another one, and found by itself
	}
	if len(p.said) < saidMax {
		p.said[f.ID] = struct{}{}
	}
	p.p.Found[f.Kind]++
	if f.Outcome == ledger.Unrepaired {
		p.p.Unrepaired++
	} else {
		p.p.Repaired++
	}
	p.mu.Unlock()
	p.s.scrub.found(f.Kind)
	if p.report.Finding != nil {
		p.telling.Lock() // the workers find things at one time
		defer p.telling.Unlock()
		p.report.Finding(f)
	}
}

// tellEvery is the time between two reports of progress.
const tellEvery = 200 * time.Millisecond

func (p *pass) tell() {
	if p.report.Progress == nil {
		return
	}
	p.mu.Lock()
	due := time.Since(p.told) >= tellEvery
	if due {
		p.told = time.Now()
	}
	p.mu.Unlock()
	if due {
		p.telling.Lock()
		defer p.telling.Unlock()
		p.report.Progress(p.progress())
	}
}

// progress is a copy of where the pass is.
func (p *pass) progress() ScrubProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.p
	c.Found, c.Medium = maps.Clone(c.Found), maps.Clone(c.Medium)
	c.Took = time.Since(c.Started)
	return c
}
