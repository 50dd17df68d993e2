package admin

import (
	"time"

	"slotfs/evidence"
	"slotfs/meta/op"
)

// What has become of a message on a list of evidence.
const (
	EvidenceUnchanged = "unchanged" // there, under the same name, with the same content
	EvidenceMoved     = "moved"     // there, with the same content, under another name
	EvidenceGone      = "gone"      // it has no name any more
	EvidenceAltered   = "altered"   // the store has other bytes for it, or damaged ones
)

// EvidenceReport is a list of evidence held against the store.
type EvidenceReport struct {
	Head       evidence.Head `json:"head"`
	Signer     string        `json:"signer"` // node
	VerifiedBy string        `json:"verified_by"`
	Now        op.Pos        `json:"now"` // of the store

	Messages  int `json:"messages"` // names on the list
	Unchanged int `json:"unchanged"`
	Moved     int `json:"moved"`
	Gone      int `json:"gone"`
	Altered   int `json:"altered"`

	// LogFrom is the first entry of this slot's log. LogComplete: it reaches back to
	// when the list was made, so that no removal is unexplained.
	LogFrom     uint64    `json:"log_from"`
	LogFromTime time.Time `json:"log_from_time,omitzero"`
	LogComplete bool      `json:"log_complete"`

	Items []*EvidenceItem `json:"items,omitempty"` // all that are not unchanged
}

// EvidenceItem is one message.
type EvidenceItem struct {
	ID        op.ID  `json:"id"`
	Path      string `json:"path"` // on the list
	MessageID string `json:"message_id,omitempty"`
	State     string `json:"state"`
	Now       string `json:"now,omitempty"` // present path, of a moved one

	// Of a gone one, from the log: the entry, and the node that was primary.
	Seq   uint64    `json:"seq,omitempty"`
	Epoch uint64    `json:"epoch,omitempty"`
	Time  time.Time `json:"time,omitzero"`
	By    string    `json:"by,omitempty"`
	Text  string    `json:"text,omitempty"`
}

// Count adds an item.
func (r *EvidenceReport) Count(i *EvidenceItem) {
	switch i.State {
	case EvidenceUnchanged:
		r.Unchanged++
		return
	case EvidenceMoved:
		r.Moved++
	case EvidenceGone:
		r.Gone++
	default:
		r.Altered++
	}
	r.Items = append(r.Items, i)
}

// Clean reports whether everything is there, unaltered.
func (r *EvidenceReport) Clean() bool { return r.Gone == 0 && r.Altered == 0 }
