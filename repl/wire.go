package repl

import (
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// Protocol is the version of the conversation that this program speaks. A node
// that is greeted with a higher one refuses.
const Protocol = 1

// purpose is what a connection is for; its first frame says so.
type purpose string

const (
	forStream   purpose = "stream"   // a replica asks the primary for the entries after its own
	forTail     purpose = "tail"     // a slot on the path to primary asks for a member's longer tail
	forFetch    purpose = "fetch"    // content by id and checksum
	forResync   purpose = "resync"   // objects of a snapshot
	forRescue   purpose = "rescue"   // messages of a lost branch, for the primary to deliver
	forHandover purpose = "handover" // the primary asks this replica to take over
	forCommand  purpose = "command"  // an operator's command for this node
	forNote     purpose = "note"     // a primary, or a slot about to be, asks to note that the other may join an epoch
	forStatus   purpose = "status"   // what the node's slot of a store is; also tells what the asker is
	forCompare  purpose = "compare"  // is what you hold the same as mine? what do you know of this object?
)

// hello is the first frame of every connection.
type hello struct {
	Protocol int          `json:"protocol"`
	For      purpose      `json:"for"`
	Cluster  string       `json:"cluster"`
	Node     string       `json:"node"`
	Store    string       `json:"store"` // empty: a command for the node
	StoreID  meta.StoreID `json:"store_id"`
	Slot     op.SlotID    `json:"slot"`
	Role     Role         `json:"role,omitempty"`
	Leading  bool         `json:"leading,omitempty"` // Role primary, or about to be
	Intent   intent       `json:"intent,omitempty"`
	Local    bool         `json:"local,omitempty"` // durability "local"
	Last     op.Pos       `json:"last"`
	Applied  uint64       `json:"applied,omitempty"`
	History  history      `json:"history,omitempty"`
	Yield    bool         `json:"yield,omitempty"` // the operator gave up this slot's branch
	Condition
	// Prepare is the epoch that the other slot is asked to note.
	Prepare *preparation `json:"prepare,omitempty"`
	// Of is the epoch to which it must prove that it belongs, then.
	Of *preparation `json:"of,omitempty"`
	// Mark is the entry that it must have, durably, then.
	Mark *op.Pos `json:"mark,omitempty"`
}

// welcome grants what a hello asked for.
type welcome struct {
	Protocol  int          `json:"protocol"`
	Node      string       `json:"node"`
	StoreID   meta.StoreID `json:"store_id"`
	Slot      op.SlotID    `json:"slot"`
	Common    op.Pos       `json:"common"` // stream, tail: entries follow after it
	Committed uint64       `json:"committed,omitempty"`
	Last      op.Pos       `json:"last"`
	History   history      `json:"history,omitempty"`
	TimeoutMS int64        `json:"timeout_ms,omitempty"` // stream: silence after which the other is lost
	// Snapshot is what a resync leads to.
	Snapshot *meta.SnapshotState `json:"snapshot,omitempty"`
	// Rescued is how many messages of lost branches the source knows to have been
	// delivered again.
	Rescued int `json:"rescued,omitempty"`
	// Slots is the node's slot of the store that was asked for; none if it has none.
	Slots []SlotStatus `json:"slots,omitempty"`
}

// SlotStatus is what a node answers about its slot of a store.
type SlotStatus struct {
	Store    string       `json:"store"`
	StoreID  meta.StoreID `json:"store_id"`
	Slot     op.SlotID    `json:"slot"`
	Role     Role         `json:"role"`
	Leading  bool         `json:"leading"` // primary, or has begun its epoch
	Intent   intent       `json:"intent,omitempty"`
	Last     op.Pos       `json:"last"`
	Applied  uint64       `json:"applied"`
	History  history      `json:"history"`
	Faulted  string       `json:"faulted,omitempty"`
	Diverged string       `json:"diverged,omitempty"`
	Yield    bool         `json:"yield,omitempty"` // its operator gave its branch up
	Condition
}

// Condition is what a slot says about its fitness to be primary.
type Condition struct {
	// Resyncing: its tree is not complete.
	Resyncing bool `json:"resyncing,omitempty"`
	// Drained: an operator moved the primaries away from its node, and wants none
	// to come there by itself.
	Drained bool `json:"drained,omitempty"`
	// Unready is why it could not serve now; empty: it could.
	Unready string `json:"unready,omitempty"`
	// Sealed is the epoch up to which it accepts nothing any more.
	Sealed uint64 `json:"sealed,omitempty"`
	// Auto is the last epoch that it began by an automatic failover.
	Auto uint64 `json:"auto,omitempty"`
	// AutoAgo is how long ago that was.
	AutoAgo time.Duration `json:"auto_ago,omitempty"`
	// Unfit is why it does not become primary by itself, with a register; empty:
	// it may.
	Unfit string `json:"unfit,omitempty"`
}
