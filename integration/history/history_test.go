package history_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfs/integration/history"
)

// story is what an honest store leaves behind: n1 is primary of epochs 1 and
// 3, n2 of epoch 2.
type story struct {
	made []history.Delivery
	held []history.Held
	log  history.Log
}

func honest() *story {
	s := &story{}
	start := time.Unix(1e9, 0)
	seq := uint64(0)
	for epoch := uint64(1); epoch <= 3; epoch++ {
		node := []string{"n1", "n2"}[(epoch-1)%2]
		seq++
		s.log.Epochs = append(s.log.Epochs, history.Epoch{Seq: seq, Epoch: epoch, Primary: node})
		for i := range 10 {
			seq++
			key := fmt.Sprintf("e%d.%d", epoch, i)
			sum := sha256.Sum256([]byte(key))
			at := start.Add(time.Duration(seq) * time.Millisecond)
			d := history.Delivery{Key: key, Sum: sum, Node: node, Start: at, End: at.Add(time.Microsecond), Acked: i != 9}
			s.made = append(s.made, d)
			if i == 9 && epoch == 2 { // not known, and not there
				continue
			}
			s.held = append(s.held, history.Held{Key: key, Sum: sum, Path: "new/" + key})
			s.log.Entries = append(s.log.Entries, history.Entry{Seq: seq, Epoch: epoch, Key: key})
		}
	}
	return s
}

func TestHonestStoryIsBelieved(t *testing.T) {
	s := honest()
	if broken := history.Check(s.made, s.held, s.log); len(broken) > 0 {
		t.Errorf("%q", broken)
	}
}

// TestLiesAreFound: each is a way in which a store could betray its users.
func TestLiesAreFound(t *testing.T) {
	for name, lie := range map[string]struct {
		rule string
		tell func(s *story)
	}{
		"acknowledged mail lost": {"H1", func(s *story) { s.held = slices.Delete(s.held, 3, 4) }},
		"mail delivered twice": {"H1", func(s *story) {
			s.held = append(s.held, history.Held{Key: s.made[3].Key, Sum: s.made[3].Sum, Path: "cur/again"})
		}},
		"retried mail twice": {"H2", func(s *story) {
			s.held = append(s.held, history.Held{Key: s.made[9].Key, Sum: s.made[9].Sum, Path: "cur/again"})
		}},
		"ghost":        {"H3", func(s *story) { s.held = append(s.held, history.Held{Key: "ghost", Path: "cur/ghost"}) }},
		"other bytes":  {"H4", func(s *story) { s.held[5].Sum[0] ^= 1 }},
		"not logged":   {"H5", func(s *story) { s.log.Entries = slices.Delete(s.log.Entries, 4, 5) }},
		"logged twice": {"H5", func(s *story) { s.log.Entries[4].Key = s.log.Entries[5].Key }},
		// n1 did not know that it was superseded and went on acknowledging.
		"two primaries in one epoch": {"H6", func(s *story) { s.made[12].Node = "n1" }},
		// It was delivered again by n2 in its own epoch, to hide the loss.
		"acknowledged outside its epoch": {"H6", func(s *story) {
			e := s.log.Entries
			e[2].Seq, e[2].Epoch = e[len(e)-1].Seq+1, 3
			e[2].Key = "e2.1"
			s.log.Entries = append(append(slices.Clone(e[:2]), e[3:]...), e[2])
			s.log.Entries = slices.DeleteFunc(s.log.Entries, func(x history.Entry) bool { return x.Key == "e2.1" && x.Epoch == 2 })
		}},
		"epoch begins twice": {"H7", func(s *story) { s.log.Epochs[2].Epoch = 2 }},
		"epoch never began":  {"H7", func(s *story) { s.log.Epochs = s.log.Epochs[:2] }},
		"seq given out twice": {"H7", func(s *story) {
			s.log.Entries[7].Seq = s.log.Entries[6].Seq
		}},
		"order": {"H8", func(s *story) {
			e := s.log.Entries
			e[1].Key, e[6].Key = e[6].Key, e[1].Key
		}},
	} {
		s := honest()
		lie.tell(s)
		broken := history.Check(s.made, s.held, s.log)
		if !slices.ContainsFunc(broken, func(line string) bool { return strings.HasPrefix(line, lie.rule) }) {
			t.Errorf("%s: found %q, want a breach of %s", name, broken, lie.rule)
		}
	}
}

func TestUIDs(t *testing.T) {
	a, b := sha256.Sum256([]byte("a")), sha256.Sum256([]byte("b"))
	first := history.Box{UIDValidity: 7, UIDNext: 3, Messages: map[uint64]history.Sum{1: a, 2: b}}
	for name, c := range map[string]struct {
		rule string
		box  history.Box
	}{
		"same":           {"", first},
		"grown":          {"", history.Box{UIDValidity: 7, UIDNext: 4, Messages: map[uint64]history.Sum{2: b, 3: a}}},
		"validity":       {"U1", history.Box{UIDValidity: 8, UIDNext: 3}},
		"uid reused":     {"U2", history.Box{UIDValidity: 7, UIDNext: 3, Messages: map[uint64]history.Sum{1: b}}},
		"uidnext back":   {"U3", history.Box{UIDValidity: 7, UIDNext: 2}},
		"beyond uidnext": {"U3", history.Box{UIDValidity: 7, UIDNext: 3, Messages: map[uint64]history.Sum{3: a}}},
	} {
		var u history.UIDs
		if broken := u.Observe("ann/INBOX", first); len(broken) > 0 {
			t.Fatalf("%q", broken)
		}
		broken := u.Observe("ann/INBOX", c.box)
		if c.rule == "" && len(broken) > 0 || c.rule != "" && (len(broken) == 0 || !strings.HasPrefix(broken[0], c.rule)) {
			t.Errorf("%s: %q, want %q", name, broken, c.rule)
		}
	}
	// A UID that was expunged is remembered, too.
	var u history.UIDs
	u.Observe("x", first)
	u.Observe("x", history.Box{UIDValidity: 7, UIDNext: 3})
	if broken := u.Observe("x", history.Box{UIDValidity: 7, UIDNext: 3, Messages: map[uint64]history.Sum{2: a}}); len(broken) != 1 {
		t.Errorf("an expunged UID was reused, and %q was found", broken)
	}
}

func TestFirstAfter(t *testing.T) {
	var r history.Recorder
	at := func(ms int) time.Time { return time.Unix(1e9, 0).Add(time.Duration(ms) * time.Millisecond) }
	r.Add(history.Delivery{Start: at(0), End: at(20), Acked: true}) // begun before
	r.Add(history.Delivery{Start: at(11), End: at(12)})             // not known
	if _, ok := r.FirstAfter(at(10)); ok {
		t.Error("an outage ended with nothing")
	}
	r.Add(history.Delivery{Start: at(30), End: at(50), Acked: true})
	r.Add(history.Delivery{Start: at(35), End: at(40), Acked: true})
	if end, ok := r.FirstAfter(at(10)); !ok || end != at(40) {
		t.Errorf("ended at %v, %t; want %v", end, ok, at(40))
	}
	if len(r.Take()) != 4 || r.Acks() != 0 {
		t.Error("Take does not take")
	}
}
