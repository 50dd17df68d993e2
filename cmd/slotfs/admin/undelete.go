package admin

import (
	"time"

	"slotfs/meta/op"
)

// UndeleteRequest asks for messages that were removed.
type UndeleteRequest struct {
	Store  string    `json:"store"`
	Since  time.Time `json:"since"`
	User   string    `json:"user,omitempty"` // a path, local@domain, or a name; empty: everybody
	DryRun bool      `json:"dry_run,omitempty"`
}

// Undeleted says what was brought back, or would be.
type Undeleted struct {
	Store    string           `json:"store"`
	Node     string           `json:"node"`
	DryRun   bool             `json:"dry_run,omitempty"`
	Restored int              `json:"restored"` // of a dry run: would be
	Failed   int              `json:"failed"`
	Items    []*UndeletedItem `json:"items,omitempty"`
}

// UndeletedItem is one message.
type UndeletedItem struct {
	ID      op.ID     `json:"id"`   // that it had
	Path    string    `json:"path"` // that it had
	User    string    `json:"user"`
	Removed time.Time `json:"removed"`
	Size    int64     `json:"size"`
	NewID   op.ID     `json:"new_id,omitempty"`
	To      string    `json:"to,omitempty"` // where it is now
	Error   string    `json:"error,omitempty"`
}

// Count adds an item that is in Items.
func (u *Undeleted) Count(i *UndeletedItem) {
	switch {
	case i.Error != "":
		u.Failed++
	case u.DryRun || i.NewID != 0:
		u.Restored++
	}
}
