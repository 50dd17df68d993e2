package meta

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"slotfs/meta/op"
)

// fileScrub is what scrub remembers over restarts and changes of role: JSON,
// replaced as a whole.
const fileScrub = "scrub.json"

// scrubMemory is the content of fileScrub.
type scrubMemory struct {
	Version  int            `json:"version"`
	Paused   bool           `json:"paused,omitempty"`
	Verified verifiedRanges `json:"verified"` // doubles as the cursor
	// LastPass is when the last pass over everything began, and ended: all that
	// was there at its beginning was verified in between.
	PassBegan time.Time         `json:"pass_began,omitzero"`
	PassEnded time.Time         `json:"pass_ended,omitzero"`
	Found     map[string]uint64 `json:"found,omitempty"` // findings since the slot was made, by kind
}

const scrubVersion = 1

// saveEvery is the time between two writes of fileScrub while a scrub goes on: so
// much is read again after a crash.
const saveEvery = 10 * time.Second

// scrubber is a slot's scrubbing.
type scrubber struct {
	path  string
	asked sync.Mutex // held by a scrub that somebody asked for

	mu     sync.Mutex // guards what follows
	mem    scrubMemory
	saved  time.Time
	dirty  bool
	conf   ScrubConfig
	pass   *pass          // asked for; nil: none
	loop   *pass          // the continuous one's; nil: it rests
	seen   []seenAt       // what was applied when; see settled
	mended []ScrubFinding // repaired together with others, not reported yet
	wake   chan struct{}  // closed when conf, paused or pass change
}

// ScrubConfig configures the continuous scrub.
type ScrubConfig struct {
	Cycle time.Duration // everything is verified once in it; 0: no continuous scrub
	Rate  int64         // bytes a second at most; 0: no limit
}

// openScrub reads what is remembered. A file that cannot be read is no reason to
// stop: everything counts as never verified.
func (s *Slot) openScrub() {
	c := &s.scrub
	c.path, c.wake = filepath.Join(s.dir, fileScrub), make(chan struct{})
	b, err := os.ReadFile(c.path)
	if err == nil {
		err = json.Unmarshal(b, &c.mem)
	}
	if err == nil && c.mem.Version != scrubVersion {
		err = fmt.Errorf("version %d", c.mem.Version)
	}
	if err != nil {
		c.mem = scrubMemory{}
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("what scrub remembered is lost; it begins anew", keyPath, c.path, keyErr, err)
		}
	}
	c.mem.Version = scrubVersion
	if c.mem.Found == nil {
		c.mem.Found = map[string]uint64{}
	}
	// Not at once: who starts has other things to do with the disk.
	c.seen = []seenAt{{time.Now(), op.ID(s.ix.checkpointed().Pos.Seq)}}
}

// changedLocked wakes who waits for another state.
func (c *scrubber) changedLocked() {
	close(c.wake)
	c.wake = make(chan struct{})
}

// saveLocked writes the memory; mu is held.
func (c *scrubber) saveLocked() error {
	c.saved, c.dirty = time.Now(), false
	if err := writeRecord(c.path, &c.mem); err != nil {
		return fmt.Errorf("write %s: %w", fileScrub, err)
	}
	return nil
}

// save writes the memory if it changed.
func (c *scrubber) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return nil
	}
	return c.saveLocked()
}

// covered notes that the objects with ids from…to were verified at `at`.
func (c *scrubber) covered(from, to op.ID, at time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.Verified = c.mem.Verified.cover(from, to, at, c.grainLocked())
	c.dirty = true
	if time.Since(c.saved) < saveEvery {
		return nil
	}
	return c.saveLocked()
}

// grainLocked is how exact ages are: a hundredth of the cycle.
func (c *scrubber) grainLocked() time.Duration {
	if c.conf.Cycle <= 0 {
		return time.Hour
	}
	return max(c.conf.Cycle/100, time.Second)
}

// finished notes that a pass over everything ended.
func (c *scrubber) finished(began time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.PassBegan, c.mem.PassEnded = began.UTC(), time.Now().UTC()
	return c.saveLocked()
}

// found counts a finding.
func (c *scrubber) found(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mem.Found[kind]++
	c.dirty = true
}

func (c *scrubber) setAsked(p *pass) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pass = p
	c.changedLocked()
}

// alsoMended notes what was repaired together with something else.
func (c *scrubber) alsoMended(f ScrubFinding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pass != nil || c.loop != nil { // else nobody asks
		c.mended = append(c.mended, f)
	}
}

// takeMended returns that, once, but for the object that it was looked for.
func (c *scrubber) takeMended(but op.ID) (list []ScrubFinding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.mended {
		if f.ID != but {
			list = append(list, f)
		}
	}
	c.mended = nil
	return list
}

// PauseScrub stops the continuous scrub, durably, or lets it go on.
func (s *Slot) PauseScrub(paused bool) error {
	c := &s.scrub
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mem.Paused == paused {
		return nil
	}
	c.mem.Paused = paused
	c.changedLocked()
	return c.saveLocked()
}

// ConfigureScrub sets how the continuous scrub works; it may be called at any
// time.
func (s *Slot) ConfigureScrub(conf ScrubConfig) {
	c := &s.scrub
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conf != conf {
		c.conf = conf
		c.changedLocked()
	}
}

// ScrubStatus is what a slot says of its scrubbing.
type ScrubStatus struct {
	Cycle  time.Duration `json:"cycle"` // 0: no continuous scrub
	Rate   int64         `json:"rate,omitempty"`
	Paused bool          `json:"paused,omitempty"`
	// LastPass is when everything was last gone through: when that ended. All
	// that was there when it began was verified.
	LastPass  time.Time `json:"last_pass,omitzero"`
	PassBegan time.Time `json:"pass_began,omitzero"`
	// Oldest is when the message was verified, or if it never was, last changed,
	// that waits longest.
	Oldest   time.Time         `json:"oldest,omitzero"`
	Never    bool              `json:"never,omitempty"` // the oldest one never was
	Found    map[string]uint64 `json:"found,omitempty"` // since the slot was made, by kind
	Damaged  int               `json:"damaged"`         // objects known to be damaged at present
	Progress *ScrubProgress    `json:"progress,omitempty"`
	Asked    bool              `json:"asked,omitempty"` // Progress is of a scrub that was asked for
}

// ScrubStatus says how far scrubbing is.
func (s *Slot) ScrubStatus() ScrubStatus {
	c := &s.scrub
	last := op.ID(s.ix.current().Pos.Seq)
	c.mu.Lock()
	st := ScrubStatus{Cycle: c.conf.Cycle, Rate: c.conf.Rate, Paused: c.mem.Paused,
		LastPass: c.mem.PassEnded, PassBegan: c.mem.PassBegan, Found: maps.Clone(c.mem.Found)}
	p := c.pass
	st.Asked = p != nil
	if p == nil {
		p = c.loop
	}
	if old, ok := c.mem.Verified.oldest(last); ok {
		st.Oldest = time.Unix(old.At, 0).UTC()
	}
	gaps := c.mem.Verified.never(last)
	c.mu.Unlock()
	if p != nil {
		progress := p.progress()
		st.Progress = &progress
	}
	for _, g := range gaps {
		if made, ok := s.firstMade(g.From, g.To); ok && (st.Oldest.IsZero() || made.Before(st.Oldest)) {
			st.Oldest, st.Never = made, true
		}
	}
	s.mu.Lock()
	st.Damaged = len(s.suspects)
	s.mu.Unlock()
	return st
}

// firstMade is the age of the first message with an id from…to.
func (s *Slot) firstMade(from, to op.ID) (time.Time, bool) {
	ids, err := s.ix.idsFrom(from, to, scrubBatch)
	if err != nil {
		return time.Time{}, false
	}
	for _, id := range ids {
		if n, err := s.ix.inode(id); err == nil && n.Sealed {
			return time.Unix(0, n.Ctime).UTC(), true
		}
	}
	return time.Time{}, false
}
