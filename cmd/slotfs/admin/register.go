package admin

import (
	"time"

	"slotfs/repl/register"
)

// Register is what a node knows of the register without asking anybody.
type Register struct {
	Mode    string           `json:"mode"`
	Answers bool             `json:"answers"`        // a majority does
	Heard   time.Time        `json:"heard,omitzero"` // when it last did
	Since   time.Time        `json:"unreachable_since,omitzero"`
	Error   string           `json:"error,omitempty"`
	Leader  string           `json:"leader,omitempty"` // of etcd; empty: none, or an external one's
	Members []RegisterMember `json:"members,omitempty"`
	// Member is this node's own; absent if it has none.
	Member *register.ProcessState `json:"member,omitempty"`
	// Garbage says which records cannot be used, by store.
	Garbage map[string]string `json:"garbage,omitempty"`
}

// RegisterMember is one member.
type RegisterMember struct {
	register.MemberInfo
	State   string `json:"state"` // up, down, joining
	Leads   bool   `json:"leads,omitempty"`
	Trouble string `json:"trouble,omitempty"`
}

// RegisterReport is Register with what the members and the records say.
type RegisterReport struct {
	Register
	Node    string                    `json:"node"`
	Records map[string]RegisterRecord `json:"records"` // by store
	Problem string                    `json:"records_error,omitempty"`
}

// RegisterRecord is a record for people and scripts.
type RegisterRecord struct {
	Epoch   uint64    `json:"epoch,omitempty"`
	Primary string    `json:"primary,omitempty"` // slot id
	InSync  []string  `json:"in_sync,omitempty"`
	Nodes   []string  `json:"nodes,omitempty"` // of in_sync, as far as known
	Leader  string    `json:"primary_node,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Time    time.Time `json:"time,omitzero"`
	Error   string    `json:"error,omitempty"` // it cannot be used
}

// AddMemberRequest adds a member to the register.
type AddMemberRequest struct {
	Name string `json:"name"` // of its node
	Addr string `json:"addr"` // host:port for the other members
}

// RemoveMemberRequest removes a member.
type RemoveMemberRequest struct {
	Member string `json:"member"` // name of its node, or its address
}

// MembersOutcome is who is a member after a change.
type MembersOutcome struct {
	Members []register.MemberInfo `json:"members"`
	Text    string                `json:"text"` // what to do next
}

// RestoreRequest makes a lost register, or a lost record, anew.
type RestoreRequest struct {
	Store string `json:"store"` // empty: the register as a whole
	Force bool   `json:"force"`
	Yes   bool   `json:"yes"` // else only what would be done is told
}

// RestoreOutcome says what was done, or what would be.
type RestoreOutcome struct {
	Done bool   `json:"done"`
	Text string `json:"text"`
}
