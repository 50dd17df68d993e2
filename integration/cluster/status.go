package cluster

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Status is what "slotfs status --json" prints, as far as tests look.
type Status struct {
	Node  string
	PID   int
	Nodes []struct {
		Name  string
		Alive bool
		Self  bool
	}
	Slots    []Slot
	Problems []struct{ Text string }
	Warnings []string
}

// Slot is a slot of the node that was asked.
type Slot struct {
	Store    string
	Mounted  bool
	Messages uint64
	Bytes    uint64
	Repl     Repl `json:"replication"`
	Findings []struct {
		Time             time.Time
		Kind, Path, Text string
	}
	Adoption *struct {
		Messages, Unverified uint64
	}
	Error   string
	Traffic *struct{ Requests map[string]uint64 }
}

// Repl is its replication.
type Repl struct {
	Role                        string
	Slot                        string
	Epoch                       uint64
	Members                     []string
	InSync                      bool `json:"in_sync"`
	Pos                         struct{ Epoch, Seq, Chain uint64 }
	Durable, Committed, Applied uint64
	Doing                       string
	Diverged, Faulted           string
	LastError                   string `json:"last_error"`
	Peers                       []Peer
	Resync                      *Resync
	Events                      []struct{ Text string }
}

// Peer is what a slot knows of another of its store.
type Peer struct {
	Node       string
	Connected  bool
	InSync     bool   `json:"in_sync"`
	LagEntries uint64 `json:"lag_entries"`
	LastError  string `json:"last_error"`
}

// Resync is how far one is.
type Resync struct {
	From                     string
	Dirs, Same, Files, Bytes uint64
}

func (r *Repl) member(slot string) bool { return slices.Contains(r.Members, slot) }

// why says what a slot says of itself.
func (r *Repl) why() string {
	var peers []string
	for _, p := range r.Peers {
		peers = append(peers, fmt.Sprintf("%s connected=%t error=%q", p.Node, p.Connected, p.LastError))
	}
	return fmt.Sprintf("%s epoch %d seq %d doing=%q diverged=%q faulted=%q error=%q peers=[%s]",
		r.Role, r.Epoch, r.Pos.Seq, r.Doing, r.Diverged, r.Faulted, r.LastError, strings.Join(peers, ", "))
}

// Status asks the node.
func (n *Node) Status() (Status, error) {
	var s Status
	err := n.getJSON(&s, "/v1/status")
	return s, err
}

// Slot asks the node about the cluster's store.
func (n *Node) Slot() (Slot, error) { return n.SlotOf(n.cluster.Store) }

// SlotOf asks the node about a store.
func (n *Node) SlotOf(store string) (Slot, error) {
	s, err := n.Status()
	if err != nil {
		return Slot{}, err
	}
	for _, slot := range s.Slots {
		if slot.Store == store {
			return slot, nil
		}
	}
	return Slot{}, fmt.Errorf("%s has no slot of %s", n.Name, store)
}

// Serves says why the slot does not serve; nil: it is primary and mounted.
func (s *Slot) Serves() error {
	if s.Repl.Role != "primary" || !s.Mounted {
		return fmt.Errorf("it is %s, mounted: %t; %s", s.Repl.Role, s.Mounted, s.Repl.why())
	}
	return nil
}

// Digest is what "slotfs digest --json" prints.
type Digest struct {
	Seq          uint64
	Digest       string
	Files, Bytes uint64
}

// Digest asks the node for the digest of its slot, or of a directory in it.
func (n *Node) Digest(path string) (Digest, error) {
	var d Digest
	err := n.getJSON(&d, "/v1/digest?"+url.Values{"store": {n.cluster.Store}, "path": {path}}.Encode())
	return d, err
}

// LogLine is a line of "slotfs log --json", as far as tests look.
type LogLine struct {
	Seq, Epoch uint64
	Op, Path   string
	Primary    string // slot id, of an epoch's begin
}

// History asks the node for the entries of its log from a seq on.
func (n *Node) History(since uint64) ([]LogLine, error) {
	body, err := n.get("/v1/log?" + url.Values{"store": {n.cluster.Store}, "since": {fmt.Sprint(since)}}.Encode())
	if err != nil {
		return nil, err
	}
	var lines []LogLine
	for text := range strings.Lines(string(body)) {
		var l LogLine
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			return nil, fmt.Errorf("log of %s: %w: %.200s", n.Name, err, text)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// Traffic is how many FUSE requests the mount has served, by opcode.
func (n *Node) Traffic() (map[string]uint64, error) {
	s, err := n.Slot()
	if err != nil {
		return nil, err
	}
	if s.Traffic == nil {
		return nil, fmt.Errorf("%s has no mount", n.Name)
	}
	return s.Traffic.Requests, nil
}
