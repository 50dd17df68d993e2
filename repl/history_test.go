package repl

import (
	"testing"

	"pgregory.net/rapid"

	"slotfs/meta/op"
)

// TestMeet makes two histories that part somewhere, and compares what meet says
// with the entries themselves.
func TestMeet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		// A log is a list of epochs, one per entry; entries are the same if their
		// branch, epoch and seq are.
		type entry struct {
			branch int
			epoch  uint64
		}
		grow := func(log []entry, branch, n int, epochs func(last uint64) uint64) []entry {
			log = append([]entry(nil), log...)
			last := uint64(0)
			if len(log) > 0 {
				last = log[len(log)-1].epoch
			}
			for i := range n {
				if e := epochs(last); e > last || i == 0 && last == 0 {
					last = max(e, 1)
				}
				log = append(log, entry{branch, last})
			}
			return log
		}
		some := func(last uint64) uint64 {
			if rapid.IntRange(0, 3).Draw(t, "new epoch") == 0 {
				return last + uint64(rapid.IntRange(1, 3).Draw(t, "step"))
			}
			return last
		}
		common := grow(nil, 0, rapid.IntRange(1, 20).Draw(t, "common"), some)
		tail := rapid.IntRange(0, 6).Draw(t, "tail") // entries of the last common epoch that only a has
		a := grow(common, 0, tail, func(last uint64) uint64 { return last })
		b := common
		if n := rapid.IntRange(0, 10).Draw(t, "branch"); n > 0 {
			first := true
			b = grow(common, 1, n, func(last uint64) uint64 {
				if first {
					first = false
					return last + 1
				}
				return some(last)
			})
		}
		hist := func(log []entry) (h history, last op.Pos) {
			for i, e := range log {
				last = op.Pos{Epoch: e.epoch, Seq: uint64(i + 1), Chain: uint64(e.branch)<<32 | uint64(i+1)}
				if i == 0 || log[i-1].epoch != e.epoch {
					h = append(h, epochStart{Pos: last})
				}
			}
			return h, last
		}
		want := uint64(0)
		for i := range min(len(a), len(b)) {
			if a[i] != b[i] {
				break
			}
			want = uint64(i + 1)
		}
		ha, la := hist(a)
		hb, lb := hist(b)
		// b is primary, a asks.
		seq, v, why := hb.meet(lb, ha, la, false)
		switch {
		case len(b) == len(common) && len(a) > len(b):
			// a has more of the same epoch: its tail would be cut.
			if v != vCut || seq != want {
				t.Fatalf("a longer: %v at %d (%s), want cut at %d", v, seq, why, want)
			}
		case want == uint64(len(a)):
			if v != vStream || seq != want {
				t.Fatalf("a prefix: %v at %d (%s), want stream at %d", v, seq, why, want)
			}
		default:
			if v != vCut || seq != want {
				t.Fatalf("%v at %d (%s), want cut at %d", v, seq, why, want)
			}
		}
	})
}

func TestMeetVerdicts(t *testing.T) {
	at := func(epoch, seq, chain uint64) op.Pos { return op.Pos{Epoch: epoch, Seq: seq, Chain: chain} }
	h := func(p ...op.Pos) (h history) {
		for _, x := range p {
			h = append(h, epochStart{Pos: x})
		}
		return h
	}
	for _, c := range []struct {
		name         string
		mine, theirs history
		last, tlast  op.Pos
		yield        bool
		want         verdict
		seq          uint64
	}{
		{"empty", h(at(1, 1, 1)), nil, at(1, 9, 9), op.Pos{}, false, vStream, 0},
		{"same epoch number", h(at(1, 1, 1), at(2, 5, 5)), h(at(1, 1, 1), at(2, 5, 6)), at(2, 9, 9), at(2, 9, 8), false, vDiverged, 0},
		{"the same, given up", h(at(1, 1, 1), at(2, 5, 5)), h(at(1, 1, 1), at(2, 5, 6)), at(2, 9, 9), at(2, 9, 8), true, vCut, 4},
		{"theirs is later", h(at(1, 1, 1)), h(at(1, 1, 1), at(2, 5, 6)), at(1, 9, 9), at(2, 9, 8), false, vBehind, 0},
		{"later, given up", h(at(1, 1, 1)), h(at(1, 1, 1), at(2, 5, 6)), at(1, 9, 9), at(2, 9, 8), true, vCut, 4},
		{"forgotten", h(at(8, 80, 1)), h(at(1, 1, 1), at(2, 5, 6)), at(8, 99, 9), at(2, 9, 8), false, vResync, 0},
		{"skipped epochs", h(at(1, 1, 1), at(5, 9, 5)), h(at(1, 1, 1), at(3, 7, 3)), at(5, 20, 9), at(3, 30, 8), false, vCut, 6},
	} {
		seq, v, _ := c.mine.meet(c.last, c.theirs, c.tlast, c.yield)
		if v != c.want || seq != c.seq {
			t.Errorf("%s: %v at %d, want %v at %d", c.name, v, seq, c.want, c.seq)
		}
	}
}
