package meta

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"slotfs/meta/op"
)

// Kinds of events.
const (
	EventRepaired   = "repaired"   // a damaged copy was replaced by a good one
	EventDamaged    = "damaged"    // a damaged copy, and no good one found
	EventDigest     = "digest"     // digest differs from the primary's at the same entry
	EventUnexpected = "unexpected" // something in the tree that no entry explains
	EventMissing    = "missing"    // something that should be in the tree is not
	EventSpace      = "space"      // disk full, or no longer
	EventRecovery   = "recovery"   // what a start had to put right
	EventFault      = "fault"      // the slot stopped
	EventLedger     = "ledger"     // a finding could not be recorded
	EventBrake      = "brake"      // implausibly much was removed, and is kept; or given up
	EventLost       = "lost"       // the tree, or a part of the log, is gone: the slot waits to be refilled
	EventIndex      = "index"      // the index is damaged, or was made anew
)

// Event is a finding that a person may want to know about.
type Event struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	ID   op.ID     `json:"id,omitempty"`
	Path string    `json:"path,omitempty"`
	Text string    `json:"text"`
}

// eventsKept is how many events the ring remembers.
const eventsKept = 256

// Events remembers the last findings of a slot, and counts them all by kind.
type Events struct {
	log  *slog.Logger
	tell func(Event) // may be nil

	mu     sync.Mutex
	ring   []Event // oldest first once it wrapped at next
	next   int
	counts map[string]uint64
	untold []Event // for tell; a goroutine is at it while not empty
}

func newEvents(log *slog.Logger, tell func(Event)) *Events {
	return &Events{log: log, tell: tell, counts: make(map[string]uint64)}
}

// Add records an event; Time is filled in. It may be called with locks held:
// tell is called in a goroutine of its own, for one event after the other.
func (e *Events) Add(ev Event) {
	ev.Time = time.Now()
	e.mu.Lock()
	e.counts[ev.Kind]++
	if len(e.ring) < eventsKept {
		e.ring = append(e.ring, ev)
	} else {
		e.ring[e.next] = ev
		e.next = (e.next + 1) % eventsKept
	}
	if e.tell != nil {
		e.untold = append(e.untold, ev)
		if len(e.untold) == 1 {
			go e.tellAll()
		}
	}
	e.mu.Unlock()
	level := slog.LevelWarn
	switch ev.Kind {
	case EventFault, EventDamaged, EventDigest, EventLedger, EventLost, EventIndex, EventBrake:
		level = slog.LevelError
	case EventRecovery:
		level = slog.LevelInfo
	}
	e.log.Log(context.Background(), level, ev.Text, "event", ev.Kind, keyID, uint64(ev.ID), keyPath, ev.Path)
}

// tellAll tells what is untold, and ends.
func (e *Events) tellAll() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.untold) > 0 {
		ev := e.untold[0]
		e.mu.Unlock()
		e.tell(ev)
		e.mu.Lock()
		e.untold = e.untold[1:]
	}
}

// List returns the events that are remembered, oldest first.
func (e *Events) List() []Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Concat(e.ring[e.next:], e.ring[:e.next])
}

// Counts returns how many events of each kind there were since the start.
func (e *Events) Counts() map[string]uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return maps.Clone(e.counts)
}
