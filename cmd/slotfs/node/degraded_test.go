package node

import (
	"testing"

	"slotfs/meta/op"
	"slotfs/repl"
)

func TestRedundancy(t *testing.T) {
	a, b, c := op.SlotID{1}, op.SlotID{2}, op.SlotID{3}
	primary := func(local bool, members ...op.SlotID) *repl.State {
		return &repl.State{Role: repl.Primary, Members: members, Peers: []repl.PeerState{{Slot: b, Local: local}}}
	}
	lone := &repl.State{Role: repl.Primary, Members: []op.SlotID{a}}
	replica := &repl.State{Role: repl.Replica, Members: []op.SlotID{a}}
	for name, steps := range map[string][]struct {
		st   *repl.State
		had  bool
		want string
	}{
		"a store of one slot":    {{lone, false, ""}, {lone, false, ""}},
		"its other slot is gone": {{lone, true, "degraded"}, {lone, true, ""}},
		"lost and found":         {{primary(false, a, b), true, ""}, {primary(false, a), true, "degraded"}, {primary(false, a), true, ""}, {primary(false, a, b), true, "whole"}, {primary(false, a, b), true, ""}},
		"three, one lost":        {{primary(false, a, b, c), true, ""}, {primary(false, a, b), true, ""}},
		"only an off-site copy":  {{primary(true, a), false, ""}},
		"demoted meanwhile":      {{primary(false, a), true, "degraded"}, {replica, true, ""}, {primary(false, a, b), true, ""}},
		"promoted alone":         {{replica, true, ""}, {primary(false, a), false, "degraded"}},
	} {
		var r redundancy
		for i, s := range steps {
			got := r.due(s.st, func() bool { return s.had })
			if got != s.want {
				t.Errorf("%s, step %d: %q, want %q", name, i+1, got, s.want)
			}
			if got != "" {
				r.told = got
			}
		}
	}
}
