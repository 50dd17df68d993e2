package repl

import (
	"context"
	"errors"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// Role is what a slot does for its store.
type Role string

// The roles. A slot always starts as a replica.
const (
	Replica   Role = "replica"   // follows the primary, or looks for it
	Promoting Role = "promoting" // on the path to primary
	Primary   Role = "primary"   // mounted, accepts changes
	Demoting  Role = "demoting"  // unmounting, still committing what was accepted
)

// Peers says who else is there. It finds and suspects; it never decides.
type Peers interface {
	// Slots lists the slots of a store on other nodes, as far as known.
	Slots(store string) []PeerSlot
	// Changed is closed when the answer of Slots may have changed.
	Changed() <-chan struct{}
}

// PeerSlot is one slot of a store on another node, as that node announced it.
type PeerSlot struct {
	Node  string // name of the node
	Addr  string // where its replication listener is, host:port
	Slot  op.SlotID
	Store meta.StoreID // zero: it has no store yet
	Role  Role
	Epoch uint64
	Seq   uint64
	Alive bool // false: suspected or gone
}

// Hooks is what a change of role does outside this package.
type Hooks interface {
	// Mount makes the applied state visible and writable, and tells the world.
	Mount(ctx context.Context, epoch uint64) error
	// Unmount refuses changes, ends the users of the mount and unmounts.
	Unmount(ctx context.Context, reason string) error
}

// Event is something that people must hear of.
type Event struct {
	Time  time.Time `json:"time"`
	Alert bool      `json:"alert"` // somebody should act
	Text  string    `json:"text"`
}

// State is what a slot's replication looks like at one moment.
type State struct {
	Store    string       `json:"store"`
	StoreID  meta.StoreID `json:"store_id"`
	Slot     op.SlotID    `json:"slot"`
	Node     string       `json:"node"`
	Role     Role         `json:"role"`
	Since    time.Time    `json:"since"` // of the role
	Epoch    uint64       `json:"epoch"`
	Pos      op.Pos       `json:"pos"`     // of the last entry
	Durable  uint64       `json:"durable"` // seqs
	Received uint64       `json:"received"`
	Commit   uint64       `json:"committed"`
	Applied  uint64       `json:"applied"`
	Primary  op.SlotID    `json:"primary"` // of the last epoch that this slot knows
	Members  []op.SlotID  `json:"members"` // its in-sync set
	InSync   bool         `json:"in_sync"` // this slot is in it
	// Nodes are those of the members, as far as known.
	Nodes map[op.SlotID]string `json:"nodes,omitempty"`

	Drained bool `json:"drained,omitempty"` // does not become primary by itself
	// HeardSeq is the last entry that the primary was known to have, when this
	// slot last heard it.
	HeardSeq uint64 `json:"heard_seq,omitempty"`

	// Doing says in words what the slot is about or waits for; may be empty.
	Doing string `json:"doing,omitempty"`
	// Diverged, Faulted: why the slot takes no part any more; empty if it does.
	Diverged string `json:"diverged,omitempty"`
	Faulted  string `json:"faulted,omitempty"`

	// Register is what this slot knows of the register; nil: there is none.
	Register *RegisterState `json:"register,omitempty"`
	// NotPromotable is why this slot would not become primary now, by itself or
	// without --force; empty: it would. Only with a register.
	NotPromotable string `json:"not_promotable,omitempty"`

	// Heard is when a replica last heard the primary.
	Heard     time.Time `json:"heard,omitzero"`
	LastError string    `json:"last_error,omitempty"`
	ErrorTime time.Time `json:"error_time,omitzero"`

	Peers  []PeerState        `json:"peers"`
	Resync *meta.ResyncStatus `json:"resync,omitempty"`
	Events []Event            `json:"events,omitempty"` // the latest, oldest first
}

// RegisterState is the register as a slot sees it.
type RegisterState struct {
	Found   bool      `json:"found"` // there is a record of the store
	Epoch   uint64    `json:"epoch,omitempty"`
	Primary string    `json:"primary,omitempty"` // node
	InSync  []string  `json:"in_sync,omitempty"` // nodes
	Nonce   Nonce     `json:"nonce,omitzero"`
	Reason  string    `json:"reason,omitempty"` // of the last change
	Read    time.Time `json:"read,omitzero"`    // when the record was last read
	// Unreachable is since when no majority answers; zero: one does.
	Unreachable time.Time `json:"unreachable,omitzero"`
	Error       string    `json:"error,omitempty"`
	// Trouble says in a sentence why no role can change; empty: roles can.
	Trouble string `json:"trouble,omitempty"`
}

// PeerState is what a slot knows of another one of its store.
type PeerState struct {
	Node      string    `json:"node"`
	Addr      string    `json:"addr"`
	Slot      op.SlotID `json:"slot"`
	Alive     bool      `json:"alive"`     // says gossip
	Connected bool      `json:"connected"` // a stream of entries runs between us
	Role      Role      `json:"role"`
	InSync    bool      `json:"in_sync"`
	Local     bool      `json:"local,omitempty"` // durability "local": never in sync
	Received  uint64    `json:"received"`
	Durable   uint64    `json:"durable"`
	Applied   uint64    `json:"applied"`
	// Common is the last entry that both logs are known to hold alike.
	Common uint64 `json:"common"`
	Condition
	Heard     time.Time `json:"heard,omitzero"`
	LastError string    `json:"last_error,omitempty"`

	// How far the peer is behind this slot (primary) or this slot behind the
	// peer (replica).
	LagEntries uint64  `json:"lag_entries"`
	LagBytes   int64   `json:"lag_bytes"`
	LagSeconds float64 `json:"lag_seconds"`
}

// PromoteOptions are the operator's words at a promotion.
type PromoteOptions struct {
	// OldPrimaryIsDown: the operator has made sure that every member of the
	// in-sync set that cannot be reached is down and stays down.
	OldPrimaryIsDown bool
	// Force: this slot becomes primary though it may lack acknowledged mail.
	Force bool

	handover string // the node whose primary hands over; empty: none does
}

// What a caller may test for with errors.Is.
var (
	// ErrRefused: the operation was judged and not done; the text says why.
	ErrRefused = errors.New("refused")
	// ErrStopped: the member is not running.
	ErrStopped = errors.New("replication is stopped")
	// ErrNoCopy: no reachable peer has the content that was asked for.
	ErrNoCopy = errors.New("no good copy on any reachable peer")
	// ErrWire is wrapped by every error about malformed frames.
	ErrWire = errors.New("malformed frame")
)

// refusal is an operation that was judged and not done.
type refusal struct{ text string }

func (r *refusal) Error() string        { return r.text }
func (r *refusal) Is(target error) bool { return target == ErrRefused }

// PeerError is what another node answered instead of doing what it was asked.
type PeerError struct {
	Node string
	Code Code
	Text string
}

func (e *PeerError) Error() string { return e.Node + ": " + e.Text }

// Code says what kind of refusal a PeerError is.
type Code string

// The codes on the wire.
const (
	CodeProtocol   Code = "protocol"    // newer or unknown protocol version
	CodeCluster    Code = "cluster"     // another cluster
	CodeNoStore    Code = "no-store"    // the node hosts no such store
	CodeStoreID    Code = "store-id"    // another store of the same name
	CodeSlot       Code = "slot"        // the same slot id on both sides: a copied data directory
	CodeNotPrimary Code = "not-primary" // cannot stream: not primary
	CodeBehind     Code = "behind"      // the asker's history has a higher epoch
	CodeDiverged   Code = "diverged"    // two histories with one epoch number
	CodeResync     Code = "resync"      // the log does not reach back: resync
	CodeNotFound   Code = "not-found"   // no such object or content
	CodeBusy       Code = "busy"        // try again later
	CodeSealed     Code = "sealed"      // the asker gets nothing of this epoch, but of the next
	CodeFailed     Code = "failed"      // it went wrong over there
)
