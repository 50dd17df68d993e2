package main

import (
	"fmt"

	"slotfs/cmd/slotfs/admin"
	"slotfs/repl"
)

// roles tells what stands in the way of a change of role, for the slots of the
// node that was asked. That the register does not answer is told of the node.
func roles(s *admin.Status) []string {
	var out []string
	for _, sl := range s.Slots {
		r := sl.Repl.Register
		if r == nil {
			continue
		}
		if r.Trouble != "" && r.Unreachable.IsZero() && !r.Read.IsZero() {
			out = append(out, fmt.Sprintf("%s: register: %s", sl.Store, r.Trouble))
		} else if why := sl.Repl.NotPromotable; why != "" && sl.Repl.Role == repl.Replica && !r.Read.IsZero() {
			out = append(out, fmt.Sprintf("%s on this node would not become primary: %s", sl.Store, why))
		}
	}
	return out
}
