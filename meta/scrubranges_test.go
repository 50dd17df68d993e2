package meta

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"slotfs/meta/op"
)

// TestRangesModel compares ranges with one time per id.
func TestRangesModel(t *testing.T) {
	const last = 60
	rapid.Check(t, func(t *rapid.T) {
		var r verifiedRanges
		model := map[op.ID]int64{}
		grain := time.Duration(rapid.IntRange(0, 3).Draw(t, "grain")) * time.Second
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			from := op.ID(rapid.IntRange(1, last).Draw(t, "from"))
			to := min(last, from+op.ID(rapid.IntRange(0, 20).Draw(t, "length")))
			at := int64(rapid.IntRange(1, 30).Draw(t, "at"))
			r = r.cover(from, to, time.Unix(at, 0), grain)
			for id := from; id <= to; id++ {
				model[id] = at
			}
			if grain > 0 {
				// Times may become older, by joining; never younger.
				for id := op.Root; id <= last; id++ {
					got, ok := r.at(id)
					want, known := model[id]
					if ok != known || ok && got.Unix() > want {
						t.Fatalf("id %d: %v %v, want %v %v in %v", id, got.Unix(), ok, want, known, r)
					}
					if ok {
						model[id] = got.Unix()
					}
				}
			}
		}
		never := map[op.ID]bool{}
		for _, g := range r.never(last) {
			for id := g.From; id <= g.To; id++ {
				never[id] = true
			}
		}
		oldest := int64(0)
		for id := op.Root; id <= last; id++ {
			got, ok := r.at(id)
			want, known := model[id]
			if ok != known || never[id] == known || ok && got.Unix() != want {
				t.Fatalf("id %d: %v %v, want %v %v; never %v; %v", id, got.Unix(), ok, want, known, never[id], r)
			}
			if known && (oldest == 0 || want < oldest) {
				oldest = want
			}
		}
		old, ok := r.oldest(last)
		if ok != (oldest != 0) || ok && old.At != oldest {
			t.Fatalf("oldest %+v, want %d", old, oldest)
		}
		for i := 1; i < len(r); i++ {
			if r[i-1].To >= r[i].From || r[i].From > r[i].To {
				t.Fatalf("overlap: %v", r)
			}
		}
	})
}

// TestRangesBounded: however scattered the verifications, the list stays short.
func TestRangesBounded(t *testing.T) {
	var r verifiedRanges
	for i := range 2 * rangesMax {
		r = append(r, verifiedRange{op.ID(2*i + 1), op.ID(2*i + 1), int64(i)})
	}
	r = r.cover(1<<40, 1<<40, time.Unix(1, 0), time.Second)
	if len(r) > rangesMax {
		t.Errorf("%d ranges", len(r))
	}
}

// TestPacer: on an idle slot nothing is waited for but the rate; on a busy one
// the rests grow to a bound.
func TestPacer(t *testing.T) {
	var users uint64
	now := time.Unix(1000, 0)
	p := newPacer(0, func() uint64 { return users })
	p.now = func() time.Time { return now }
	for range 5 {
		if d := p.due(time.Millisecond, 1<<20); d != 0 {
			t.Errorf("idle: %v", d)
		}
		if n := p.atOnce(); n != readsMost {
			t.Errorf("idle: %d files at once", n)
		}
	}
	var rest time.Duration
	for range 10 {
		users++
		rest = p.due(time.Millisecond, 1<<20)
	}
	if rest != restMost*time.Millisecond {
		t.Errorf("busy: %v", rest)
	}
	if n := p.atOnce(); n != 1 {
		t.Errorf("busy: %d files at once", n)
	}
	users++
	if d := p.due(time.Hour, 0); d != restLimit {
		t.Errorf("at most: %v", d)
	}
	if d := p.due(time.Millisecond, 0); d != restMost*time.Millisecond {
		t.Errorf("between two signs of users: %v", d)
	}
	now = now.Add(usersGone)
	for range 10 {
		rest = p.due(time.Millisecond, 0)
	}
	if rest != 0 {
		t.Errorf("idle again: %v", rest)
	}

	p.rate = 1 << 20
	var total time.Duration
	for range 20 {
		d := p.due(0, 1<<19)
		total += d
		now = now.Add(d)
	}
	if want := 10*time.Second - rateBurst; total < want-time.Second || total > want+time.Second {
		t.Errorf("10 MiB at 1 MiB/s took %v", total)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.rest(ctx, 0, 1<<30); err == nil {
		t.Error("rests on when cancelled")
	}
}
