package node

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"slotfs/meta/op"
	"slotfs/repl"
)

// The values of SLOTFS_STATE.
const (
	stateDegraded = "degraded" // the primary is alone in its in-sync set
	stateWhole    = "whole"    // it is not any more
)

// redundancy decides when on_degraded is due: when a primary of a store that
// has or had other slots is alone in its in-sync set, and when it is alone no
// more. What was told is forgotten with the role: a primary that is alone says
// so again after each promotion, and only who said "degraded" says "whole".
type redundancy struct {
	role context.Context // of which told is true
	told string
}

// due returns the state to tell, or nothing. had reports whether the store
// ever had more than one slot in sync; it is asked only when that matters.
func (r *redundancy) due(st *repl.State, had func() bool) string {
	if st.Role != repl.Primary {
		r.told = ""
		return ""
	}
	alone := len(st.Members) < 2
	switch {
	case alone && r.told != stateDegraded:
		others := slices.ContainsFunc(st.Peers, func(p repl.PeerState) bool { return !p.Local })
		if others || had() {
			return stateDegraded
		}
	case !alone && r.told == stateDegraded:
		return stateWhole
	}
	return ""
}

// watchDegraded runs on_degraded until ctx ends. States that come and go while
// the hook runs are not told; the last one is.
func (s *Slot) watchDegraded(ctx context.Context) {
	var r redundancy
	for ctx.Err() == nil {
		changed := s.Member.Changed()
		st := s.Member.State()
		role := s.roleContext()
		if role != r.role {
			r = redundancy{role: role}
		}
		if role == nil {
			// It is no primary, or on_promote comes first.
		} else if state := r.due(&st, s.hadOthers); state != "" {
			s.hook.Lock()
			if role.Err() == nil {
				env := append(s.hookEnv(st.Epoch, "primary", "the in-sync set has changed"), "SLOTFS_STATE="+state,
					"SLOTFS_COPIES="+strconv.Itoa(len(st.Members)), "SLOTFS_IN_SYNC="+strings.Join(s.names(&st), " "))
				s.runHook(role, hookRun{"on_degraded", s.Conf.OnDegraded, st.Epoch, env})
				r.told = state // failed or not: it is not tried again for the same state
			}
			s.hook.Unlock()
			continue // it may have changed meanwhile
		}
		select {
		case <-changed:
		case <-s.recheck:
		case <-ctx.Done():
		}
	}
}

// roleContext ends when the slot stops being primary; nil when it is none, or
// one whose on_promote has not ended.
func (s *Slot) roleContext() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.served {
		return nil
	}
	return s.role
}

// serves notes that the slot is mounted and on_promote has ended: the other
// hooks may run.
func (s *Slot) serves(role context.Context) {
	s.mu.Lock()
	s.served = s.role == role
	s.mu.Unlock()
	select {
	case s.recheck <- struct{}{}:
	default:
	}
}

// hadOthers reports whether the log tells of a larger in-sync set.
func (s *Slot) hadOthers() bool {
	for _, e := range s.Meta.Log.Epochs() {
		if len(e.Begin.Members) > 1 {
			return true
		}
	}
	return false
}

// names are the nodes of the in-sync set.
func (s *Slot) names(st *repl.State) []string {
	of := map[op.SlotID]string{st.Slot: st.Node}
	for _, p := range st.Peers {
		of[p.Slot] = p.Node
	}
	var names []string
	for _, m := range st.Members {
		if name := of[m]; name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
