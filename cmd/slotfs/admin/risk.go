package admin

import (
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// RiskLine is one line of the answers about messages that only one node has:
// a head, then the messages that it announces, then the totals; or several such
// parts. One of the fields is set.
type RiskLine struct {
	Head  *RiskHead  `json:"head,omitempty"`
	Mail  *meta.Mail `json:"mail,omitempty"`
	Total *RiskTotal `json:"total,omitempty"`
}

// RiskHead says whose messages follow, or why none can be named.
type RiskHead struct {
	Store string    `json:"store"`
	Node  string    `json:"node"` // that has them
	Slot  op.SlotID `json:"slot"`
	Time  time.Time `json:"time"`
	Epoch uint64    `json:"epoch"`
	Seq   uint64    `json:"seq"`   // where its log ends
	After uint64    `json:"after"` // the last entry that another node has
	// Entries is how many entries nobody else is known to have.
	Entries uint64 `json:"entries"`
	Why     string `json:"why"`
	// Unknown: the messages cannot be named, because the node cannot be asked.
	Unknown bool `json:"unknown,omitempty"`
}

// RiskTotal adds up the messages of one part.
type RiskTotal struct {
	Messages uint64            `json:"messages"`
	Bytes    uint64            `json:"bytes"`
	Users    map[string]uint64 `json:"users"` // messages of each
}
