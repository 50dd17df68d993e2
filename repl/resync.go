package repl

import (
	"context"
)

// Resyncer is what a slot can do to be brought to another slot's state without
// its log.
type Resyncer interface {
	Resyncing() bool
}

func (r *Member) resync(ctx context.Context, p PeerSlot, e evFollowEnded) evFollowEnded {
	e.refused = true
	return e
}

func (r *Member) serveResync(ctx context.Context, l *link, h hello) {}
