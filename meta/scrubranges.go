package meta

import (
	"slices"
	"time"

	"slotfs/meta/op"
)

// verifiedRange says when the objects with ids From…To were last verified.
type verifiedRange struct {
	From op.ID `json:"from"`
	To   op.ID `json:"to"`
	At   int64 `json:"at"` // seconds since 1970
}

// verifiedRanges is the time of the last verification of every object, by id:
// sorted, without overlaps; ids in none of them were never verified. As a scrub
// goes through ids in order, and times that are close to each other are one,
// there are a few hundred ranges at most, however many messages.
type verifiedRanges []verifiedRange

// rangesMax bounds the ranges; then those closest in time become one.
const rangesMax = 4096

// cover notes that from…to were verified at `at`; ranges next to each other
// whose times differ by less than grain become one, with the older time.
func (r verifiedRanges) cover(from, to op.ID, at time.Time, grain time.Duration) verifiedRanges {
	if from > to {
		return r
	}
	now := verifiedRange{from, to, at.Unix()}
	var out verifiedRanges
	put := func(v verifiedRange) {
		if v.From > v.To {
			return
		}
		if n := len(out); n > 0 && out[n-1].To+1 == v.From && near(out[n-1].At, v.At, grain) {
			out[n-1].To, out[n-1].At = v.To, min(out[n-1].At, v.At)
			return
		}
		out = append(out, v)
	}
	placed := false
	for _, v := range r {
		if v.From > to && !placed {
			put(now)
			placed = true
		}
		if v.To < from || v.From > to {
			put(v)
			continue
		}
		put(verifiedRange{v.From, min(v.To, from-1), v.At})
		if v.To > to {
			put(now)
			placed = true
			put(verifiedRange{to + 1, v.To, v.At})
		}
	}
	if !placed {
		put(now)
	}
	for len(out) > rangesMax {
		out = out.thin()
	}
	return out
}

func near(a, b int64, grain time.Duration) bool {
	return max(a-b, b-a) < int64(grain/time.Second) || a == b
}

// thin joins the two neighbours that are closest in time.
func (r verifiedRanges) thin() verifiedRanges {
	best, gap := -1, int64(0)
	for i := 1; i < len(r); i++ {
		if r[i-1].To+1 != r[i].From {
			continue
		}
		if d := max(r[i].At-r[i-1].At, r[i-1].At-r[i].At); best < 0 || d < gap {
			best, gap = i, d
		}
	}
	if best < 0 {
		return r[1:] // forgotten: verified once more
	}
	r[best-1].To, r[best-1].At = r[best].To, min(r[best-1].At, r[best].At)
	return slices.Delete(r, best, best+1)
}

// at is when id was last verified; false: never.
func (r verifiedRanges) at(id op.ID) (time.Time, bool) {
	for _, v := range r {
		if v.From <= id && id <= v.To {
			return time.Unix(v.At, 0), true
		}
	}
	return time.Time{}, false
}

// never lists the ids up to last that were never verified, ascending.
func (r verifiedRanges) never(last op.ID) (gaps []verifiedRange) {
	next := op.Root
	for _, v := range r {
		if v.From > last {
			break
		}
		if v.From > next {
			gaps = append(gaps, verifiedRange{From: next, To: v.From - 1})
		}
		next = v.To + 1
	}
	if next <= last {
		gaps = append(gaps, verifiedRange{From: next, To: last})
	}
	return gaps
}

// oldest is the range that was verified longest ago, up to last; false if there
// is none.
func (r verifiedRanges) oldest(last op.ID) (old verifiedRange, ok bool) {
	for _, v := range r {
		if v.From > last {
			break
		}
		if !ok || v.At < old.At {
			old, ok = verifiedRange{v.From, min(v.To, last), v.At}, true
		}
	}
	return old, ok
}
