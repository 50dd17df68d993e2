package vote_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"slotfs/meta/vote"
)

// parse reads "n1: index=a xattr=a disk=x | n2: index=a disk=a".
func parse(t testing.TB, text string) (votes []vote.Vote) {
	t.Helper()
	for part := range strings.SplitSeq(text, "|") {
		slot, rest, ok := strings.Cut(strings.TrimSpace(part), ":")
		if !ok {
			t.Fatalf("%q", text)
		}
		for f := range strings.FieldsSeq(rest) {
			w, says, _ := strings.Cut(f, "=")
			votes = append(votes, vote.Vote{Slot: slot, Witness: vote.Witness(w), Says: says})
		}
	}
	return votes
}

func names(votes []vote.Vote) string {
	var out []string
	for _, v := range votes {
		out = append(out, v.Name())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestContent(t *testing.T) {
	for _, c := range []struct {
		name, votes string
		right       string
		good        string // slots
		wrong       string
		rule        int
	}{
		{"all well", "n1: log=a index=a xattr=a disk=a | n2: index=a xattr=a disk=a", "a", "n1 n2", "", 1},
		{"rot on one disk", "n1: index=a xattr=a disk=x | n2: index=a xattr=a disk=a", "a", "n2", "n1 disk", 1},
		{"rot on the other", "n1: index=a xattr=a disk=a | n2: index=a xattr=a disk=x", "a", "n1", "n2 disk", 1},
		{"unreadable", "n1: index=a xattr=a disk= | n2: index=a disk=a", "a", "n2", "", 1},
		{"rot on both", "n1: index=a xattr=a disk=x | n2: index=a xattr=a disk=y", "a", "", "n1 disk, n2 disk", 3},
		{"the same rot on both", "n1: index=a xattr=a disk=x | n2: index=a xattr=a disk=x", "a", "", "n1 disk, n2 disk", 3},
		{"an index record", "n1: index=x xattr=a disk=a | n2: index=a xattr=a disk=a", "a", "n1 n2", "n1 index", 1},
		{"an index record, alone", "n1: index=x xattr=a disk=a", "a", "n1", "n1 index", 1},
		{"an xattr, alone", "n1: index=a xattr=x disk=a", "a", "n1", "n1 xattr", 1},
		{"index record and bytes", "n1: index=x xattr=a disk=y | n2: index=a xattr=a disk=a", "a", "n2", "n1 index, n1 disk", 1},
		{"every claim but one is wrong", "n1: index=x xattr=x disk=y | n2: index=x xattr=a disk=a", "a", "n2", "n1 index, n1 xattr, n1 disk, n2 index", 1},
		{"both index records alike", "n1: index=x xattr=a disk=a | n2: index=x xattr=a disk=a", "a", "n1 n2", "n1 index, n2 index", 1},
		{"the log remembers", "n1: log=a index=x xattr=y disk=a", "a", "n1", "n1 index, n1 xattr", 1},
		{"contents of two objects exchanged", "n1: index=a xattr=a disk=b | n2: index=a xattr=a disk=a", "a", "n2", "n1 disk", 1},
		{"two histories under one id", "n1: index=a xattr=a disk=a | n2: index=b xattr=b disk=b", "", "", "", 0},
		{"two histories, three slots", "n1: index=a xattr=a disk=a | n2: index=b xattr=b disk=b | n3: index=b xattr=b disk=b", "b", "n2 n3", "n1 index, n1 xattr, n1 disk", 2},
		{"two histories, and a log", "n1: log=a index=a xattr=a disk=a | n2: index=b xattr=b disk=b", "a", "n1", "n2 index, n2 xattr, n2 disk", 2},
		{"no claim at all", "n1: disk=a | n2: disk=a", "", "", "", 0},
		{"nothing", "n1: disk=", "", "", "", 0},
		{"claims differ, no bytes", "n1: index=a disk= | n2: index=b disk=", "", "", "", 0},
		{"file missing on one slot", "n1: index=a | n2: index=a xattr=a disk=a", "a", "n2", "", 1},
	} {
		votes := parse(t, c.votes)
		v := vote.Content(votes)
		wrong := strings.Split(c.wrong, ", ")
		slices.Sort(wrong)
		if v.Right != c.right || strings.Join(v.Good, " ") != c.good || names(v.Wrong) != strings.Join(wrong, ", ") || v.Rule != c.rule {
			t.Errorf("%s: %+v, want right %q good %q wrong %q rule %d", c.name, v, c.right, c.good, c.wrong, c.rule)
		}
		for _, w := range v.Wrong {
			if !v.Has(w.Slot, w.Witness) {
				t.Errorf("%s: Has(%s)", c.name, w.Name())
			}
		}
	}
}

func TestAttributes(t *testing.T) {
	for _, c := range []struct{ name, votes, right, wrong string }{
		{"the tree, alone", "n1: index=a digest=a tree=x", "a", "n1 tree"},
		{"the index record, alone, contradicts its digest", "n1: index=x tree=a", "", ""},
		{"the tree", "n1: index=a tree=x | n2: index=a tree=a", "a", "n1 tree"},
		{"the index record", "n1: index=x tree=a | n2: index=a tree=a", "a", "n1 index"},
		{"two against two", "n1: index=a tree=a | n2: index=b tree=b", "", ""},
		{"two against two and the log", "n1: index=a tree=a | n2: log=b index=b tree=b", "b", "n1 index, n1 tree"},
		{"nobody knows", "n1: index= tree=", "", ""},
	} {
		v := vote.Attributes(parse(t, c.votes))
		if v.Right != c.right || names(v.Wrong) != c.wrong || v.Decided() != (c.right != "") {
			t.Errorf("%s: %+v", c.name, v)
		}
	}
}

// TestImpartial: the verdict depends neither on the order of the votes nor on
// the names of the slots.
func TestImpartial(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		witness := []vote.Witness{vote.Log, vote.Index, vote.Xattr, vote.Disk}
		var votes []vote.Vote
		for range rapid.IntRange(0, 10).Draw(t, "votes") {
			votes = append(votes, vote.Vote{
				Slot:    rapid.SampledFrom([]string{"n1", "n2", "n3"}).Draw(t, "slot"),
				Witness: rapid.SampledFrom(witness).Draw(t, "witness"),
				Says:    rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "says"),
			})
		}
		other := slices.Clone(votes)
		rand.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		rename := map[string]string{"n1": "n2", "n2": "n3", "n3": "n1"}
		for i := range other {
			other[i].Slot = rename[other[i].Slot]
		}
		for _, judge := range []func([]vote.Vote) vote.Verdict{vote.Content, vote.Attributes} {
			v, o := judge(votes), judge(other)
			if v.Right != o.Right || v.Rule != o.Rule || len(v.Wrong) != len(o.Wrong) || len(v.Good) != len(o.Good) {
				t.Fatalf("%+v\n%+v", v, o)
			}
			// Bytes that are called right have a claim for them.
			for _, slot := range v.Good {
				if !slices.Contains(votes, vote.Vote{Slot: slot, Witness: vote.Disk, Says: v.Right}) {
					t.Fatalf("%+v: %s is not good", v, slot)
				}
			}
		}
	})
}
