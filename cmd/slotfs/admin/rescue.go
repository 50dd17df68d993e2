package admin

import "slotfs/meta"

// RescueList is what a node keeps of lost branches.
type RescueList struct {
	Node     string       `json:"node"`
	Branches []LostBranch `json:"branches"` // by store, the oldest first
}

// LostBranch is one of them.
type LostBranch struct {
	*meta.Branch
	StoreName string            `json:"store"`
	Decided   map[string]uint64 `json:"decided"` // messages by outcome
	Left      uint64            `json:"left"`    // messages that are in the branch only
}

// RescueLine is one line of what a lost branch holds: first the branch, then its
// messages, then its entries. One of Branch, Mail and Entry is set.
type RescueLine struct {
	Branch    *meta.Branch   `json:"branch,omitempty"`
	Mail      *meta.Lost     `json:"mail,omitempty"`
	Decision  *meta.Decision `json:"decision,omitempty"` // about Mail, if there is one
	Entry     *LogLine       `json:"entry,omitempty"`
	MessageID string         `json:"message_id,omitempty"` // of what Entry delivered
}

// RescueDeliver asks to deliver messages of a lost branch again.
type RescueDeliver struct {
	Store string   `json:"store"`
	Name  string   `json:"name"`
	Seqs  []uint64 `json:"seqs,omitempty"`
	All   bool     `json:"all,omitempty"`
	Into  string   `json:"into,omitempty"` // mailbox; empty: where they were, or the INBOX
}

// RescueDelivered is what became of them.
type RescueDelivered struct {
	Name      string          `json:"name"`
	Decisions []meta.Decision `json:"decisions"`
	Error     string          `json:"error,omitempty"` // why it ended early
}

// RescueDrop asks to remove a lost branch for good.
type RescueDrop struct {
	Store string `json:"store"`
	Name  string `json:"name"`
	Yes   bool   `json:"yes"`
}
