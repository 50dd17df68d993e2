// Package vote decides who is right when copies of one object, or what is said
// of them, differ. It knows nothing of roles: a primary has no more weight than
// a replica. It is pure; the caller collects the votes, and acts.
//
// # Witnesses
//
// What a message was at delivery is written down in several places, on every
// slot: in the log (as long as that reaches back), in the index, and in the
// attribute that the file itself carries. These are claims. The bytes that lie on
// a disk now are evidence.
//
// # Content
//
// Damaged bytes do not have a checksum that somebody noted at delivery: that
// would take 2^64 damages. So a checksum that is claimed by anybody and that
// the bytes of anybody have is proven to be one that was once delivered, however
// many others were damaged since. The rules, in order:
//
//  1. One checksum is proven: it is right. Bytes that differ are damaged, and
//     claims that differ are wrong, even if they are many.
//  2. Several are proven (two objects got each other's records, or two histories
//     met under one id): the one with most votes, claims and bytes together. A
//     draw decides nothing.
//  3. None is proven: nobody has a good copy. The one that most claim is what
//     it should be; a draw leaves that open, too. Nothing may be overwritten.
//
// # Attributes
//
// Mode, owner, times and names have no checksum of their own, so they are
// decided by the number of votes: log, index, and tree of each slot, and the
// digest of the directory for an index record that it confirms. A draw decides
// nothing.
package vote

import (
	"cmp"
	"slices"
)

// Witness is a place where something is written down.
type Witness string

// The witnesses of a slot.
const (
	Log    Witness = "log"    // the entry that made or sealed it
	Index  Witness = "index"  // the index record
	Xattr  Witness = "xattr"  // the attribute that the file carries
	Digest Witness = "digest" // the digest of the directory, which confirms an index record
	Tree   Witness = "tree"   // attributes as stat gives them
	Disk   Witness = "disk"   // the bytes
)

// Vote is one witness's word: Says is a checksum, or attributes, in a form in
// which equal means equal.
type Vote struct {
	Slot    string // whose it is
	Witness Witness
	Says    string
}

// Name is how people read who voted: "n1 index".
func (v Vote) Name() string { return v.Slot + " " + string(v.Witness) }

// Verdict is what votes come to.
type Verdict struct {
	// Right is what it should be; empty if that is open.
	Right string
	// Good says whose bytes are right: empty if nobody's are.
	Good []string
	// Wrong are the votes for anything else.
	Wrong []Vote
	// Rule is the number of the rule that decided; 0 if none did.
	Rule int
}

// Decided reports whether it is known what is right.
func (v Verdict) Decided() bool { return v.Right != "" }

// Has reports whether w of slot is among the wrong.
func (v Verdict) Has(slot string, w Witness) bool {
	return slices.ContainsFunc(v.Wrong, func(x Vote) bool { return x.Slot == slot && x.Witness == w })
}

// Content judges votes about content; a vote that says nothing does not count.
func Content(votes []Vote) Verdict {
	claims, bytes := map[string]int{}, map[string]int{}
	for _, v := range votes {
		switch {
		case v.Says == "":
		case v.Witness == Disk:
			bytes[v.Says]++
		default:
			claims[v.Says]++
		}
	}
	proven := map[string]int{}
	for says, n := range claims {
		if bytes[says] > 0 {
			proven[says] = n + bytes[says]
		}
	}
	var right string
	rule := 0
	switch len(proven) {
	case 0:
		if right = most(claims); right != "" {
			rule = 3
		}
	case 1:
		right, rule = most(proven), 1
	default:
		if right = most(proven); right != "" {
			rule = 2
		}
	}
	return verdict(votes, right, rule)
}

// Attributes judges votes about attributes; a vote that says nothing does not
// count.
func Attributes(votes []Vote) Verdict {
	count := map[string]int{}
	for _, v := range votes {
		if v.Says != "" {
			count[v.Says]++
		}
	}
	right, rule := most(count), 0
	if right != "" {
		rule = 2
	}
	return verdict(votes, right, rule)
}

// most is what has more votes than anything else; empty at a draw.
func most(count map[string]int) string {
	type said struct {
		says string
		n    int
	}
	var all []said
	for says, n := range count {
		all = append(all, said{says, n})
	}
	slices.SortFunc(all, func(a, b said) int { return cmp.Compare(b.n, a.n) })
	if len(all) == 0 || len(all) > 1 && all[0].n == all[1].n {
		return ""
	}
	return all[0].says
}

func verdict(votes []Vote, right string, rule int) Verdict {
	v := Verdict{Right: right, Rule: rule}
	if right == "" {
		return v
	}
	for _, x := range votes {
		switch {
		case x.Says == "":
		case x.Says != right:
			v.Wrong = append(v.Wrong, x)
		case x.Witness == Disk:
			v.Good = append(v.Good, x.Slot)
		}
	}
	return v
}
