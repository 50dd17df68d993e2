package integration_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// The damage matrix: every kind of damage, on every side, found in every way.
//
//	damage_test.go         the table: its cells, and those that cannot be
//	damageobject_test.go   damage to messages and mailboxes
//	damageways_test.go     the ways in which that is found
//	damageslot_test.go     damage to a slot's index, log and tree
//
// Cells of one way are damaged together and looked at together where one does
// not hide the other, so that the whole takes a few minutes.

// Sides of a cell.
const (
	onPrimary   = "primary"
	onReplica   = "replica"
	onDifferent = "different" // on both, two messages
	onSame      = "same"      // on both, the same message
)

// Ways to find damage.
const (
	byRead    = "read"    // of the mount
	byScrub   = "scrub"   // slotfs scrub --both
	byCompare = "compare" // slotfs verify --content
	byStart   = "start"   // both nodes were killed, and start
)

// kindsOfSlots are the damages that are of a whole slot; see damageslot_test.go.
const (
	indexFlipped = "index-flipped"
	indexRemoved = "index-removed"
	logHead      = "log-head"
	logMiddle    = "log-middle"
	logLast      = "log-last"
	treeEmptied  = "tree-emptied"
)

// combo is one combination of the table.
type combo struct{ kind, side, way string }

func (c combo) String() string {
	return fmt.Sprintf("%s, %s, found by %s", c.kind, c.side, c.way)
}

// combos are all of the table.
func combos() (all []combo) {
	kinds := []string{indexFlipped, indexRemoved, logHead, logMiddle, logLast, treeEmptied}
	for _, h := range harms {
		kinds = append(kinds, h.name)
	}
	for _, kind := range kinds {
		for _, side := range []string{onPrimary, onReplica, onDifferent, onSame} {
			for _, way := range []string{byRead, byScrub, byCompare, byStart} {
				all = append(all, combo{kind, side, way})
			}
		}
	}
	return all
}

// excused says why a combination cannot be; empty if it can.
func excused(c combo) string {
	ofLog := slices.Contains([]string{logHead, logMiddle, logLast}, c.kind)
	switch {
	case c.way == byRead && ofLog:
		return "mail is read from the tree: nothing of the log is"
	case c.way == byRead && c.side == onReplica:
		return "reads are answered by the primary: damage of the replica alone is never read"
	case c.way == byRead && c.kind == "stray":
		return "what no entry of the log made has no name in the mount: nobody can read it"
	case c.side == onDifferent && (c.kind == indexRemoved || c.kind == treeEmptied):
		return "there is one of it on each side, and all of it is gone: the same as both sides alike"
	case c.side == onDifferent && c.kind == logLast:
		return "both logs end with the same entry: the same as both sides alike"
	}
	return ""
}

// matrix keeps account of what was run.
type matrix struct {
	mu    sync.Mutex
	cells map[combo]bool
}

func newMatrix() *matrix { return &matrix{cells: map[combo]bool{}} }

// ran notes a cell, once what is to be found is on the disk.
func (m *matrix) ran(c combo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cells[c] = true
}

// holes lists what is neither run nor excused, and what is both or unknown.
func (m *matrix) holes() (list []string) {
	all := combos()
	for _, c := range all {
		switch why := excused(c); {
		case why == "" && !m.cells[c]:
			list = append(list, fmt.Sprintf("%v: neither run nor excused", c))
		case why != "" && m.cells[c]:
			list = append(list, fmt.Sprintf("%v: was run, and is excused: %s", c, why))
		}
	}
	for c := range m.cells {
		if !slices.Contains(all, c) {
			list = append(list, fmt.Sprintf("%v: is not in the table", c))
		}
	}
	return list
}

// TestDamageTable: the table has every kind of damage there is, and a cell that
// is neither run nor excused is noticed.
func TestDamageTable(t *testing.T) {
	m, excuses := newMatrix(), map[string]int{}
	for _, c := range combos() {
		if why := excused(c); why != "" {
			excuses[why]++
			continue
		}
		m.ran(c)
	}
	if holes := m.holes(); len(holes) > 0 {
		t.Errorf("%d holes where there are none: %q", len(holes), holes[0])
	}
	for _, c := range combos() {
		had := m.cells[c]
		if delete(m.cells, c); !had {
			m.ran(c)
		}
		if holes := m.holes(); len(holes) != 1 {
			t.Errorf("%v: run %t, and the holes are %q", c, !had, holes)
		}
		if delete(m.cells, c); had {
			m.ran(c)
		}
	}
	for _, kind := range []string{"flip", "zeroed", "truncated", "extended", "swapped", "names", "missing", "stray", "mode", "owner", "mtime",
		"xattr-gone", "xattr-wrong", "unreadable", "emptied", indexFlipped, indexRemoved, logHead, logMiddle, logLast, treeEmptied} {
		if n := len(slices.DeleteFunc(combos(), func(c combo) bool { return c.kind != kind })); n != 16 {
			t.Errorf("%s: %d combinations in the table, want 16", kind, n)
		}
	}
	for why, n := range excuses {
		t.Logf("%d combinations: %s", n, why)
	}
	t.Logf("%d combinations, %d of them run", len(combos()), len(m.cells))
}

// TestDamageMatrix runs the table.
func TestDamageMatrix(t *testing.T) {
	t.Parallel()
	m, parts := newMatrix(), new(atomic.Int32)
	type part struct {
		name string
		run  func()
	}
	run := func(t *testing.T, at **testing.T, list ...part) {
		for _, p := range list {
			t.Run(p.name, func(t *testing.T) {
				*at = t
				p.run()
				parts.Add(1)
			})
		}
		*at = t
	}
	t.Run("worlds", func(t *testing.T) {
		t.Run("objects", func(t *testing.T) {
			t.Parallel()
			w := newDamageWorld(t, m)
			run(t, &w.t, part{byRead, w.byRead}, part{byScrub, w.byScrub}, part{byCompare, w.byCompare}, part{byStart, w.byStart})
		})
		t.Run("slots", func(t *testing.T) {
			t.Parallel()
			w := newSlotWorld(t, m)
			run(t, &w.t, part{"index", w.index}, part{"log", w.logs}, part{"tree", w.trees})
		})
	})
	if n := parts.Load(); n < 7 {
		t.Logf("%d of 7 parts were run to their end: the table is not whole", n)
		return
	}
	for _, hole := range m.holes() {
		t.Error(hole)
	}
	t.Logf("%d cells were run, %d excused", len(m.cells), len(combos())-len(m.cells))
}
