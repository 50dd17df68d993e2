package repl

import (
	"fmt"
	"slices"
	"strings"

	"slotfs/meta"
	"slotfs/meta/op"
)

// What can happen to a slot's role.
type (
	event interface{ isEvent() }

	evTick  struct{}                   // time passed
	evPeers struct{ slots []PeerSlot } // gossip's list
	evAcks  struct{ acks map[op.SlotID]acks }
	evJoin  struct { // a replica streams from us
		conn  uint64 // number of the connection
		slot  op.SlotID
		node  string
		local bool
		at    uint64 // seq after which the stream begins
	}
	evLeave struct { // it no longer does
		slot op.SlotID
		conn uint64
		why  string
	}
	evPrepared struct { // effPrepare is done: it noted durably that it may join epoch
		slot  op.SlotID
		epoch uint64
		nonce Nonce
		err   error
	}
	evAnswer struct { // a peer said what it is; poke: unasked
		slot op.SlotID
		node string
		poke bool
		answer
	}
	evNoAnswer struct { // a question failed; refused: nobody listens there
		slot    op.SlotID
		refused bool
	}
	evWentBack struct { // a member came with less than it had acknowledged: turned away
		slot      op.SlotID
		node      string
		last, had uint64
	}
	evHint   struct{} // the register may have a new record
	evRecord struct { // effGet is done
		id    uint64
		rec   Record
		found bool
		err   error // no answer, or none that can be used
	}
	evSwapped struct { // effSwap is done; err: nobody knows whether it happened
		id  uint64
		now Record
		won bool
		err error
	}
	evSealed struct { // effSeal is done
		epoch uint64
		err   error
	}
	evBegun       struct{ epoch uint64 } // effChange is done
	evFollowEnded struct {               // effFollow's stream ended
		slot        op.SlotID
		session     uint64
		joined      bool   // it had streamed
		stale       bool   // the other is not primary, or behind us
		unreachable bool   // no connection
		nobody      bool   // the connection was refused: no process there
		refused     bool   // it, or we, refused
		unready     bool   // the other begins an epoch for us first
		again       bool   // reconnect at once
		diverged    string // why the histories cannot be joined
	}
	evTail struct { // effTail is done
		slot op.SlotID
		err  error
	}
	evReady struct { // effBegin is done: its entry is applied
		epoch uint64
		err   error
	}
	evMounted   struct{ err error }
	evUnmounted struct{ err error }
	evDrained   struct{ err error }
	evPromote   struct {
		id   uint64
		opts PromoteOptions
	}
	evDemote struct {
		id       uint64
		reason   string
		stopping bool // the process ends: resume at the next start
	}
	evRejoin struct {
		id     uint64
		giveUp bool
	}
)

func (evTick) isEvent()        {}
func (evPeers) isEvent()       {}
func (evAcks) isEvent()        {}
func (evJoin) isEvent()        {}
func (evLeave) isEvent()       {}
func (evPrepared) isEvent()    {}
func (evAnswer) isEvent()      {}
func (evNoAnswer) isEvent()    {}
func (evHint) isEvent()        {}
func (evWentBack) isEvent()    {}
func (evRecord) isEvent()      {}
func (evSwapped) isEvent()     {}
func (evSealed) isEvent()      {}
func (evBegun) isEvent()       {}
func (evFollowEnded) isEvent() {}
func (evTail) isEvent()        {}
func (evReady) isEvent()       {}
func (evMounted) isEvent()     {}
func (evUnmounted) isEvent()   {}
func (evDrained) isEvent()     {}
func (evPromote) isEvent()     {}
func (evDemote) isEvent()      {}
func (evRejoin) isEvent()      {}

// What the machine wants done. String is for scenarios and logs.
type (
	effect interface {
		text(name func(op.SlotID) string) string
	}

	effAsk    struct{ slot op.SlotID } // ask its state; answer: evAnswer, evNoAnswer
	effFollow struct {
		slot    op.SlotID
		session uint64
	} // stream from it until evFollowEnded
	effUnfollow struct{}                 // end that; acknowledge nothing from now on
	effTail     struct{ slot op.SlotID } // fetch its longer tail: evTail
	effSeal     struct{ epoch uint64 }   // durably accept nothing of epochs up to this one: evSealed
	effGet      struct{ id uint64 }      // read the register: evRecord
	effSwap     struct {                 // change the register: evSwapped
		id     uint64
		expect uint64
		next   Record
	}
	effBegin struct { // seal, lead, append the EpochBegin: evReady
		epoch   uint64
		members []op.SlotID
		reason  string
		create  bool
		nonce   Nonce        // of the record; zero: there is no register
		store   meta.StoreID // of the store to create; zero: make one up
	}
	effChange struct { // append the EpochBegin, then change the commit rule: evBegun
		epoch   uint64
		members []op.SlotID
		peers   []op.SlotID // commits wait for these: the other members, and who is about to enter
		reason  string
		nonce   Nonce // of the record; zero: there is no register
	}
	effRequire struct { // commits wait for these peers
		epoch uint64
		peers []op.SlotID
	}
	effPrepare struct { // ask the slot, which may be this one, to note the epoch: evPrepared
		slot  op.SlotID
		epoch uint64
		nonce Nonce // of the record to come; zero: there is no register, the stream carries it
		// of is the record's epoch, to which the slot must prove that it belongs;
		// zero for one that enters the set.
		of preparation
		// mark is what a slot that enters must have durably by its own account;
		// zero for the others. What it acknowledged may have been said by a former
		// life of it, with another disk.
		mark op.Pos
	}
	effHangUp struct { // end a replica's stream
		slot op.SlotID
		why  string
	}
	effStepDown struct { // stop leading, end all replicas' streams
		reason   string
		keepDown bool // note that this epoch is not to be resumed
	}
	effMount   struct{ epoch uint64 }  // evMounted
	effUnmount struct{ reason string } // evUnmounted
	effDrain   struct{}                // commit everything: evDrained
	effRole    struct{ role Role }
	effNote    struct{ yield bool }
	effEvent   struct {
		alert bool
		words string
	}
	effReply struct { // tell the caller of Promote, Demote, Rejoin
		id  uint64
		err error
	}
)

func (e effAsk) text(n func(op.SlotID) string) string    { return "ask " + n(e.slot) }
func (e effFollow) text(n func(op.SlotID) string) string { return "follow " + n(e.slot) }
func (effUnfollow) text(func(op.SlotID) string) string   { return "unfollow" }
func (e effTail) text(n func(op.SlotID) string) string   { return "fetch tail from " + n(e.slot) }
func (e effSeal) text(func(op.SlotID) string) string     { return fmt.Sprintf("seal epoch %d", e.epoch) }
func (effGet) text(func(op.SlotID) string) string        { return "get record" }
func (e effSwap) text(n func(op.SlotID) string) string {
	return fmt.Sprintf("swap record %d for epoch %d primary %s in sync %s (%s)", e.expect, e.next.Epoch, n(e.next.Primary), list(e.next.InSync, n), e.next.Reason)
}
func (e effBegin) text(n func(op.SlotID) string) string {
	s := fmt.Sprintf("begin epoch %d members %s (%s)", e.epoch, list(e.members, n), e.reason)
	if e.create {
		s += " new store"
	}
	return s
}
func (e effChange) text(n func(op.SlotID) string) string {
	s := fmt.Sprintf("change to epoch %d members %s (%s)", e.epoch, list(e.members, n), e.reason)
	if more := slices.DeleteFunc(slices.Clone(e.peers), func(p op.SlotID) bool { return slices.Contains(e.members, p) }); len(more) > 0 {
		s += ", commits wait for " + list(more, n) + " too"
	}
	return s
}
func (e effRequire) text(n func(op.SlotID) string) string {
	return fmt.Sprintf("require %s", list(e.peers, n))
}
func (e effPrepare) text(n func(op.SlotID) string) string {
	return fmt.Sprintf("prepare %s for epoch %d", n(e.slot), e.epoch)
}
func (e effHangUp) text(n func(op.SlotID) string) string {
	return fmt.Sprintf("hang up on %s: %s", n(e.slot), e.why)
}
func (e effStepDown) text(func(op.SlotID) string) string {
	s := "step down"
	if e.keepDown {
		s += " for good"
	}
	return s + ": " + e.reason
}
func (e effMount) text(func(op.SlotID) string) string   { return fmt.Sprintf("mount epoch %d", e.epoch) }
func (e effUnmount) text(func(op.SlotID) string) string { return "unmount: " + e.reason }
func (effDrain) text(func(op.SlotID) string) string     { return "drain" }
func (e effRole) text(func(op.SlotID) string) string    { return "role " + string(e.role) }
func (e effNote) text(func(op.SlotID) string) string    { return fmt.Sprintf("note yield=%v", e.yield) }
func (e effEvent) text(func(op.SlotID) string) string {
	if e.alert {
		return "ALERT " + e.words
	}
	return "event " + e.words
}
func (e effReply) text(func(op.SlotID) string) string {
	if e.err == nil {
		return "reply ok"
	}
	return "reply error: " + e.err.Error()
}

func list(slots []op.SlotID, n func(op.SlotID) string) string {
	if len(slots) == 0 {
		return "nobody"
	}
	out := make([]string, len(slots))
	for i, s := range slots {
		out[i] = n(s)
	}
	return strings.Join(out, ",")
}
