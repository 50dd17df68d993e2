// Package admin is the local administration interface of a running node: what
// goes over its Unix socket, and the client for it.
//
// It is HTTP with JSON bodies. Who may open the socket may do everything; its
// mode and group come from the config, and nothing of it is on the network.
//
//	GET  /v1/status                     Status
//	GET  /v1/digest?store=S&path=P      Digest; with wait=1 when other nodes are at the same seq, or soon
//	GET  /v1/log?store=S&since=N&user=U a LogLine per line
//	GET  /v1/ledger?store=S             a ledger.Entry per line; with verify=1 LedgerVerified
//	GET  /v1/evidence?store=S&user=U    a list of evidence (package evidence)
//	POST /v1/evidence  a list of evidence  EvidenceReport
//	POST /v1/scrub     ScrubRequest     a ScrubLine per line, as it goes on
//	POST /v1/scrub/pause PauseRequest   meta.ScrubStatus
//	POST /v1/verify    VerifyRequest    Verified
//	POST /v1/undelete  UndeleteRequest  Undeleted
//	POST /v1/check     CheckRequest     meta.Report
//	POST /v1/promote   PromoteRequest   Outcome
//	POST /v1/demote    DemoteRequest    Outcome
//	POST /v1/rejoin    RejoinRequest    Outcome
//	GET  /v1/rescue?store=S             RescueList; of all stores without one
//	GET  /v1/rescue/show?store=S&name=B a RescueLine per line
//	GET  /v1/rescue/content?store=S&name=B&seq=N  one message
//	POST /v1/rescue/deliver RescueDeliver RescueDelivered
//	POST /v1/rescue/drop    RescueDrop    LostBranch
//	POST /v1/switch    SwitchRequest    Outcome of the new primary
//	POST /v1/drain     DrainRequest     Drained
//	GET  /v1/at-risk?store=S            RiskLine: messages that are not on two nodes
//	GET  /v1/missing?store=S            RiskLine: what other slots are known to have and this one has not
//	GET  /v1/register                   RegisterReport
//	POST /v1/register/add     AddMemberRequest      MembersOutcome
//	POST /v1/register/remove  RemoveMemberRequest   MembersOutcome
//	POST /v1/register/restore RestoreRequest        RestoreOutcome
//	GET  /metrics                       Prometheus' text format
//
// A refusal has a status of 400 or more and a Problem as its body.
package admin

import (
	"time"

	"slotfs/cmd/slotfs/exit"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/repl"
)

// Problem is an error on its way over the socket.
type Problem struct {
	Error string    `json:"error"`
	Code  exit.Code `json:"code"`
}

// Status is everything a node knows about itself and the others.
type Status struct {
	Node     string          `json:"node"`
	Cluster  string          `json:"cluster"`
	Version  string          `json:"version"`
	Time     time.Time       `json:"time"`
	Started  time.Time       `json:"started"`
	PID      int             `json:"pid"`
	Register Register        `json:"register"`
	Nodes    []gossip.Member `json:"nodes"`    // all that gossip knows, this one included
	Slots    []SlotStatus    `json:"slots"`    // of this node
	Problems []gossip.Report `json:"problems"` // refused peers, conflicts of names
	Warnings []string        `json:"warnings,omitempty"`
}

// SlotStatus is a slot of this node in full.
type SlotStatus struct {
	Store    string               `json:"store"`
	Mount    string               `json:"mount"`
	Mounted  bool                 `json:"mounted"`
	Data     string               `json:"data"`
	Messages uint64               `json:"messages"`
	Bytes    uint64               `json:"bytes"`
	Digest   op.Digest            `json:"digest"`
	DigestAt uint64               `json:"digest_at"` // seq
	Repl     repl.State           `json:"replication"`
	Scrub    meta.ScrubStatus     `json:"scrub"`
	Brake    meta.BrakeStatus     `json:"brake"`
	Adoption *meta.AdoptionStatus `json:"adoption,omitempty"`
	Findings []meta.Event         `json:"findings,omitempty"` // the latest, oldest first
	Hook     *HookOutcome         `json:"hook,omitempty"`     // the last one that ran
	Hooks    []HookOutcome        `json:"hooks,omitempty"`    // the last run of each
	Mail     *MountTraffic        `json:"traffic,omitempty"`
	Error    string               `json:"error,omitempty"`
}

// HookOutcome says how a hook ended.
type HookOutcome struct {
	Hook     string    `json:"hook"` // on_promote, on_demote or on_degraded
	Epoch    uint64    `json:"epoch"`
	Ended    time.Time `json:"ended,omitzero"` // zero: it still runs
	Duration string    `json:"duration,omitempty"`
	Error    string    `json:"error,omitempty"`
}

// MountTraffic counts FUSE requests by opcode since the mount was made.
type MountTraffic struct {
	Requests map[string]uint64 `json:"requests"`
}

// Digest is the digest of a slot, or of a directory in it, with what the
// other nodes last said about theirs.
type Digest struct {
	Store  string       `json:"store"`
	Path   string       `json:"path"`
	Node   string       `json:"node"`
	Seq    uint64       `json:"seq"` // applied when the digest was taken
	Digest op.Digest    `json:"digest"`
	Files  uint64       `json:"files"`
	Bytes  uint64       `json:"bytes"`
	Peers  []PeerDigest `json:"peers,omitempty"` // of the whole slot only
}

// PeerDigest is a digest as gossip heard it.
type PeerDigest struct {
	Node   string `json:"node"`
	Seq    uint64 `json:"seq"`
	Digest string `json:"digest"`
}

// LogLine is one entry of the log for people.
type LogLine struct {
	Seq   uint64    `json:"seq"`
	Epoch uint64    `json:"epoch"`
	Time  time.Time `json:"time"`
	Op    string    `json:"op"`
	ID    op.ID     `json:"id,omitempty"`
	Path  string    `json:"path,omitempty"`
	To    string    `json:"to,omitempty"` // new path of a rename
	Size  int64     `json:"size,omitempty"`
	UID   *uint32   `json:"uid,omitempty"`
	Text  string    `json:"text,omitempty"`

	Primary string `json:"primary,omitempty"` // slot id, of an epoch's begin
}

// LedgerVerified is what verifying a slot's ledger found.
type LedgerVerified struct {
	Node  string `json:"node,omitempty"`
	Store string `json:"store"`
	Dir   string `json:"dir"`
	ledger.Result
}

// ScrubRequest asks for a scrub.
type ScrubRequest struct {
	Store    string    `json:"store"`
	User     string    `json:"user,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Rate     int64     `json:"rate,omitempty"` // bytes a second; 0: no limit
	Both     bool      `json:"both,omitempty"` // the slots of other nodes, too
	NoRepair bool      `json:"no_repair,omitempty"`
}

// ScrubLine is one thing that a scrub says while it goes on.
type ScrubLine struct {
	Node     string              `json:"node"`
	Progress *meta.ScrubProgress `json:"progress,omitempty"` // the last one of a node has done
	Finding  *meta.ScrubFinding  `json:"finding,omitempty"`
	Error    string              `json:"error,omitempty"` // the scrub of this node ended by it
}

// PauseRequest stops the continuous scrub, or lets it go on.
type PauseRequest struct {
	Store  string `json:"store"`
	Paused bool   `json:"paused"`
}

// VerifyRequest asks for a comparison of a store's slots.
type VerifyRequest struct {
	Store  string `json:"store"`
	Repair bool   `json:"repair,omitempty"` // vote on what differs, and correct it
}

// Verified is what comparing slots came to.
type Verified struct {
	Store       string            `json:"store"`
	Node        string            `json:"node"`
	Comparisons []repl.Comparison `json:"comparisons"`
	Error       string            `json:"error,omitempty"` // why not all could be compared, or repaired
}

// Equal reports whether every slot was compared, and is equal.
func (v *Verified) Equal() bool {
	equal := v.Error == ""
	for _, c := range v.Comparisons {
		equal = equal && c.Equal
	}
	return equal
}

// CheckRequest asks for a check of a slot.
type CheckRequest struct {
	Store   string `json:"store"`
	Content bool   `json:"content"` // read and verify all bytes
	Repair  bool   `json:"repair"`  // put right what can be
	Rebuild bool   `json:"rebuild"` // make the index anew from tree and log
}

// PromoteRequest asks a slot to become primary.
type PromoteRequest struct {
	Store            string `json:"store"`
	OldPrimaryIsDown bool   `json:"old_primary_is_down"`
	Force            bool   `json:"force"`
	// Yes: the operator has seen what a forced promotion gives up.
	Yes bool `json:"yes,omitempty"`
}

// DemoteRequest asks a primary to become a replica.
type DemoteRequest struct {
	Store string `json:"store"`
}

// RejoinRequest gives up a slot's diverged history for that of its peers.
type RejoinRequest struct {
	Store string `json:"store"`
}

// SwitchRequest asks a store's primary to hand over to a replica.
type SwitchRequest struct {
	Store string `json:"store"`
	To    string `json:"to,omitempty"` // node; empty: the best one
}

// DrainRequest moves a node's primaries away, and keeps them away; or ends that.
type DrainRequest struct {
	Node string `json:"node"`
	On   bool   `json:"on"`
}

// Drained is what came of a DrainRequest.
type Drained struct {
	Node   string         `json:"node"`
	On     bool           `json:"on"`
	Stores []DrainedStore `json:"stores"`
}

// DrainedStore is one slot of a drained node.
type DrainedStore struct {
	Store string `json:"store"`
	To    string `json:"to,omitempty"` // node whose slot is primary now; empty: it was not primary here
	Epoch uint64 `json:"epoch,omitempty"`
	Error string `json:"error,omitempty"` // why it still is primary here
}

// Outcome is what came of an operation.
type Outcome struct {
	Store string    `json:"store"`
	Node  string    `json:"node"`
	Role  repl.Role `json:"role"`
	Epoch uint64    `json:"epoch"`
	Pos   op.Pos    `json:"pos"`
	Mount string    `json:"mount"`
	Text  string    `json:"text,omitempty"`
	// HeldMS is for how many milliseconds a switchover held calls back.
	HeldMS int64 `json:"held_ms,omitempty"`
}
