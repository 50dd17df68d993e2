package repl

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// RecordVersion is the version of records that this program writes; it refuses
// higher ones.
const RecordVersion = 1

// RegisterPatience bounds every Get and Swap, whatever their context says.
const RegisterPatience = 3 * time.Second

// Record is what the register holds of one store.
type Record struct {
	Version int // RecordVersion
	Store   meta.StoreID
	Epoch   uint64 // from 1
	Primary op.SlotID
	InSync  []op.SlotID // the primary is one of them
	Nonce   Nonce       // of this change: says which of several attempts won

	// For people only; never judged.
	Nodes  map[op.SlotID]string // names of the nodes of InSync
	Reason string
	Time   time.Time
}

// Nonce tells one attempt to change a record from all others. It is never zero.
type Nonce [16]byte

func (n Nonce) String() string { return hex.EncodeToString(n[:]) }

// Has reports whether slot is in the in-sync set.
func (r *Record) Has(slot op.SlotID) bool { return slices.Contains(r.InSync, slot) }

// Check says what is wrong with a record that can be told from it alone; it
// wraps ErrRecord.
func (r *Record) Check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRecord, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Version > RecordVersion:
		return bad("it has version %d, and this slotfs knows versions up to %d", r.Version, RecordVersion)
	case r.Version < 1:
		return bad("version %d", r.Version)
	case r.Store.IsZero():
		return bad("it names no store id")
	case r.Epoch == 0:
		return bad("epoch 0")
	case r.Primary.IsZero():
		return bad("it names no primary")
	case r.Nonce == Nonce{}:
		return bad("it has no nonce")
	case !r.Has(r.Primary):
		return bad("its primary is not in its in-sync set")
	}
	for i, s := range r.InSync {
		if s.IsZero() || slices.Contains(r.InSync[:i], s) {
			return bad("its in-sync set has an empty or repeated slot id")
		}
	}
	return nil
}

// Register decides who is primary: a small majority store with one record per
// store, changed by compare-and-swap only. Get and Swap fail after
// RegisterPatience at the latest; all methods may be called at any time from
// any goroutine.
type Register interface {
	// Get reads the record of a store, linearizably; found is false if there is
	// none. A record that cannot be used gives an error that wraps ErrRecord; any
	// other error means that no majority answered.
	Get(ctx context.Context, store string) (rec Record, found bool, err error)

	// Swap puts next if the record's epoch is still expect, or, with expect 0, if
	// there is no record. Otherwise it changes nothing; won is then false and now
	// the present record (of epoch 0 if there is none). An error means that the
	// outcome is unknown: the change may have happened, and may yet happen until
	// a Get shows that the epoch is no longer expect.
	//
	// Of two attempts with the same nonce both say that they won if one did.
	Swap(ctx context.Context, store string, expect uint64, next Record) (now Record, won bool, err error)

	// Watch calls f with the record after each change that is heard of, and after
	// each reconnect, until ctx ends; one call at a time. It is a hint: what it
	// says may be old, and a record that cannot be used is not shown at all.
	Watch(ctx context.Context, store string, f func(rec Record, found bool))

	// Reach says whether a majority answers. It is kept up to date without being
	// asked, about once a second.
	Reach() Reach
}

// Reach says when the register last answered a linearizable request.
type Reach struct {
	Heard time.Time // zero: never since the start
	// Since is when it was first found unreachable after Heard; zero: it answers.
	Since time.Time
	Error string // of the last request if it failed
}

// OK reports whether the register answers.
func (r Reach) OK() bool { return !r.Heard.IsZero() && r.Since.IsZero() }

// ErrRecord is wrapped by errors about a record that is garbage, or newer than
// this program.
var ErrRecord = errors.New("register record cannot be used")
