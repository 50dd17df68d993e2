package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// ErrClosed is returned after Close.
var ErrClosed = errors.New("gossip is closed")

// Options says who we are. All but Advertise, Join and Timing must be given.
type Options struct {
	Node      string
	Bind      string // host:port; port 0 chooses one
	Advertise string // host:port; empty: Bind, or the first private address
	Key       []byte // of the cluster, 32 bytes
	Join      []string
	Timing    Timing
	Logger    *slog.Logger
}

// Timing is how quickly failures are noticed.
type Timing struct {
	Probe     time.Duration // between probes
	Timeout   time.Duration // of a probe
	Suspicion int           // multiplier of Probe
	Gossip    time.Duration // between broadcasts
	PushPull  time.Duration // between full exchanges
	Rejoin    time.Duration // between attempts to reach who is missing
}

// DefaultLAN suits machines in one data centre, and loopback: a dead node is
// noticed within about two seconds.
var DefaultLAN = Timing{
	Probe:     500 * time.Millisecond,
	Timeout:   250 * time.Millisecond,
	Suspicion: 3,
	Gossip:    200 * time.Millisecond,
	PushPull:  10 * time.Second,
	Rejoin:    time.Second,
}

// State is what a node says about itself.
type State struct {
	Name        string `json:"name"`
	Incarnation uint64 `json:"incarnation"` // set by this package
	Version     uint64 `json:"version"`     // set by this package
	Gossip      string `json:"gossip"`      // host:port; set by this package
	Repl        string `json:"repl"`        // host:port
	Software    string `json:"software,omitempty"`
	Started     int64  `json:"started,omitempty"` // ns since 1970
	Leaving     bool   `json:"leaving,omitempty"` // set by this package, by Close
	Slots       []Slot `json:"slots"`
	Witness     bool   `json:"witness,omitempty"`  // it has no slots, and votes in the register
	Register    string `json:"register,omitempty"` // host:port of its register member, for clients
	Votes       bool   `json:"votes,omitempty"`    // that member runs
	Trouble     string `json:"trouble,omitempty"`  // what is wrong with the node, not with a slot
}

// Pos is a point in a store's history. Like the ids of slots and stores it is
// only carried here, so this package needs none of those that know about them.
type Pos struct {
	Epoch uint64 `json:"epoch"`
	Seq   uint64 `json:"seq"`
	Chain uint64 `json:"chain"`
}

// Slot is what a node says about one of its slots.
type Slot struct {
	Store     string   `json:"store"`
	StoreID   string   `json:"store_id"` // empty: a fresh slot that has not found its store
	ID        string   `json:"slot_id"`
	Role      string   `json:"role"`
	Epoch     uint64   `json:"epoch"`
	Pos       Pos      `json:"pos"` // end of its log
	Committed uint64   `json:"committed"`
	Applied   uint64   `json:"applied"`
	Primary   string   `json:"primary,omitempty"` // slot id of the epoch's primary, as far as the slot knows
	Members   []string `json:"members,omitempty"` // the in-sync set
	InSync    bool     `json:"in_sync"`
	Drained   bool     `json:"drained,omitempty"` // it does not become primary by itself

	// How far a replica says it is behind; Peers of its primary knows better.
	LagEntries uint64  `json:"lag_entries"`
	LagBytes   int64   `json:"lag_bytes"`
	LagSeconds float64 `json:"lag_seconds"`

	Peers []PeerLag `json:"peers,omitempty"` // of a primary: its replicas

	Mount    string `json:"mount"` // mount point
	Mounted  bool   `json:"mounted"`
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
	Digest   string `json:"digest,omitempty"`   // at Applied
	Doing    string `json:"doing,omitempty"`    // "resync: 120 of 4000 files", "connecting to 192.0.2.1:7947: …"
	Fault    string `json:"fault,omitempty"`    // why the slot stopped acknowledging
	Error    string `json:"error,omitempty"`    // last error
	Findings uint64 `json:"findings,omitempty"` // damage found since start
}

// PeerLag is how far a replica is behind its primary.
type PeerLag struct {
	ID        string  `json:"slot_id"`
	Connected bool    `json:"connected"`
	Entries   uint64  `json:"entries"`
	Bytes     int64   `json:"bytes"`
	Seconds   float64 `json:"seconds"` // age of the oldest entry that it lacks
}

// Member is a node as this node sees it.
type Member struct {
	State
	Self  bool      `json:"self"`
	Alive bool      `json:"alive"`
	Left  bool      `json:"left,omitempty"` // it said goodbye
	Since time.Time `json:"since"`          // of the last change of Alive
	Heard time.Time `json:"heard"`          // when its State last changed here
}

// Problem is one of KeyMismatch, NameConflict and StoreConflict.
type Problem interface {
	error
	key() string
}

// KeyMismatch says that a node which tries to talk to us, or that we were told
// to join, uses another cluster's key.
type KeyMismatch struct {
	Addr string // where it is
	Name string // what it says it is called; unproven, may be empty
}

func (e *KeyMismatch) Error() string {
	who := "node"
	if e.Name != "" {
		who = fmt.Sprintf("node %q", e.Name)
	}
	return fmt.Sprintf("%s at %s uses another cluster key: it belongs to another cluster, or its gossip.key was not copied from this one", who, e.Addr)
}

func (e *KeyMismatch) key() string { return "key " + e.Addr }

// NameConflict says that two living nodes have one name.
type NameConflict struct {
	Name string
	Self bool   // it is our own name
	Addr string // of the one that had it before, or of ourselves
	With string // address of the other
}

func (e *NameConflict) Error() string {
	if e.Self {
		return fmt.Sprintf("another node is called %q, too: it is at %s, we are at %s; node names must be unique in a cluster", e.Name, e.With, e.Addr)
	}
	return fmt.Sprintf("two nodes are called %q: one at %s and one at %s; node names must be unique in a cluster", e.Name, e.Addr, e.With)
}

func (e *NameConflict) key() string { return "name " + e.Name + " " + e.With }

// StoreConflict says that two different stores have one name.
type StoreConflict struct {
	Store string
	Nodes [2]string // sorted
	IDs   [2]string // of the store on these nodes
}

func (e *StoreConflict) Error() string {
	return fmt.Sprintf("two different stores are called %q: node %s has the one with id %s, node %s has %s; store names must be unique in a cluster",
		e.Store, e.Nodes[0], short(e.IDs[0]), e.Nodes[1], short(e.IDs[1]))
}

func (e *StoreConflict) key() string { return "store " + e.Store + " " + e.IDs[0] + " " + e.IDs[1] }

func short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

// Report is a problem and how often it was met.
type Report struct {
	Problem Problem   `json:"-"`
	Text    string    `json:"text"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   uint64    `json:"count"`
}
