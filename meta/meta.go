package meta

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Inode is one file or directory as the index has it. The index hands out
// inodes that nobody changes any more: read them, and Clone before changing.
type Inode struct {
	ID     op.ID
	Mode   uint32 // st_mode, type bits included
	UID    uint32
	GID    uint32
	Nlink  uint32 // number of Names; of a directory 2 + subdirectories
	Rdev   uint32 // of a device
	Size   int64  // bytes; of a symlink the length of Target; of a directory 0
	Mtime  int64  // ns since 1970
	Ctime  int64  // ns since 1970: time of the entry that changed it last
	Target string // of a symlink

	// Xattr is what the mount shows. The tree keeps the same names.
	Xattr map[string][]byte

	Sealed  bool    // a message: write-once
	Sum     *op.Sum // of the content; nil: not sealed at present
	Changed uint64  // Seq of the entry that changed the content last

	// Names lists every name of the object in order of arrival: exactly one for
	// a directory other than the root, none for the root.
	Names []Name

	// Of a directory, kept by the index alone: sum of the digest elements of
	// its entries, their number, and the bytes of the regular files among them.
	Entries op.Digest
	Count   uint64
	Bytes   uint64
}

// Name is one place where an object is found.
type Name struct {
	Dir  op.ID
	Name string
}

// Child is one entry of a directory.
type Child struct {
	Name string
	ID   op.ID
	Type uint32 // S_IFMT bits of the mode
}

// The type bits of a mode, as in inode(7).
const (
	typeMask    = 0o170000
	typeDir     = 0o040000
	typeRegular = 0o100000
	typeSymlink = 0o120000
	permMask    = 0o7777
)

// IsDir reports whether n is a directory.
func (n *Inode) IsDir() bool { return n.Mode&typeMask == typeDir }

// IsRegular reports whether n is a regular file.
func (n *Inode) IsRegular() bool { return n.Mode&typeMask == typeRegular }

// Type is the S_IFMT part of n's mode.
func (n *Inode) Type() uint32 { return n.Mode & typeMask }

// Clone makes a copy that may be changed. Sum and the values of Xattr are
// shared: replace them, don't write into them.
func (n *Inode) Clone() *Inode {
	c := *n
	c.Names = slices.Clone(n.Names)
	c.Xattr = maps.Clone(n.Xattr)
	return &c
}

// StoreID names a store for ever; it is made with the store's first epoch.
type StoreID [16]byte

func (s StoreID) String() string { return hex.EncodeToString(s[:]) }

// IsZero reports whether s names no store.
func (s StoreID) IsZero() bool { return s == StoreID{} }

// MarshalText makes JSON show the hexadecimal form.
func (s StoreID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (s *StoreID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(s) {
		return fmt.Errorf("store id %q: want %d hexadecimal digits", text, 2*len(s))
	}
	copy(s[:], b)
	return nil
}

// Format is the version of the data directory that this program writes.
const Format = 1

// Identity is what slot.json holds: which slot of which store a data directory
// is.
type Identity struct {
	Format int       `json:"format"`
	Slot   op.SlotID `json:"slot"`
	Store  string    `json:"store"`    // the store's name
	ID     StoreID   `json:"store_id"` // zero until the slot has a store
	Layout string    `json:"layout"`

	// Ahead: since a resync, the content of control files may be that of any
	// entry up to this one, until it is applied. See CompleteFrom.
	Ahead uint64 `json:"ahead,omitempty"`

	// Unlocked is when Recover handed the tree over for use without slotfs;
	// since then log and index say nothing about it.
	Unlocked *time.Time `json:"unlocked,omitempty"`
}

// What a caller may test for with errors.Is.
var (
	// ErrNotExist: no object with that id or name in the applied state.
	ErrNotExist = errors.New("no such object")
	// ErrNoSpace: granting the request would eat into the reserve.
	ErrNoSpace = errors.New("disk space below the reserve")
	// ErrFaulted: the slot has met something that it cannot judge, and stops.
	ErrFaulted = errors.New("slot is faulted")
	// ErrClosed: the slot was closed.
	ErrClosed = errors.New("slot is closed")
)

// Why a data directory is refused; found inside a *DataError.
var (
	ErrLocked      = errors.New("in use by another process")
	ErrNotSlot     = errors.New("not a slot's data directory")
	ErrNotEmpty    = errors.New("directory is not empty")
	ErrNewerFormat = errors.New("written by a newer version")
	ErrOtherStore  = errors.New("belongs to another store")
	ErrLayout      = errors.New("has another layout")
)

// DataError says why a data directory was refused, and what to do about it.
type DataError struct {
	File   string // the file or directory that it is about
	Reason error  // one of the errors above, or the system's
	Detail string // what was found; may be empty
	Remedy string
}

func (e *DataError) Error() string {
	s := fmt.Sprintf("%s: %v", e.File, e.Reason)
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	return s + ": " + e.Remedy
}

// Unwrap gives the reason to errors.Is.
func (e *DataError) Unwrap() error { return e.Reason }

// DamagedError says that the bytes of an object differ from its checksum and
// that no good copy was found.
type DamagedError struct {
	ID   op.ID
	Path string // one of its names, in the applied state
	Err  error  // what was wrong, and why repair did not succeed
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged content of %s (id %d): %v", e.Path, e.ID, e.Err)
}

// Unwrap gives the cause to errors.Is.
func (e *DamagedError) Unwrap() error { return e.Err }

// Options is how a slot is opened. The zero value works, apart from Fetch.
type Options struct {
	Store  string // refuse a data directory of another store; "": any
	Layout string // refuse another layout; "": any

	// Reserve is how much of a disk stays free, in bytes: 0 means max(1 GiB, 2 %),
	// less than 0 none.
	Reserve int64
	// LogMax is how much log is kept for slots that were away, in bytes; 0
	// means 1 GiB.
	LogMax int64
	// CheckpointEvery is the time between checkpoints while there are changes;
	// 0 means 10 s.
	CheckpointEvery time.Duration
	// VerifiedCache is how many bytes of verified content are kept for reads
	// that come in pieces; 0 means 16 MiB.
	VerifiedCache int64

	// Brake says when removed messages are kept for undelete.
	Brake BrakeOptions

	Logger *slog.Logger // nil: slog.DiscardHandler

	// Fetch asks the other slots for the content of id with checksum want. What
	// it returns is verified here. Nil: there is nobody to ask.
	Fetch func(ctx context.Context, id op.ID, want op.Sum) (Copy, error)

	// FetchLog asks the other slots for entries of the log, from…to or the first of
	// them, and says who sent them. They are verified here. Nil: there is nobody.
	FetchLog func(ctx context.Context, from, to uint64) (entries []*op.Entry, source string, err error)
	// OnMended is told when a damaged log has become readable again; may be nil.
	OnMended func()

	// Ask asks the other slots that can be reached what they know of an object.
	// Nil: there is nobody to ask.
	Ask func(ctx context.Context, id op.ID) []*Testimony

	// OnCorrected is told that an index record was corrected, so that what the
	// kernel knows of the object is forgotten; may be nil.
	OnCorrected func(id op.ID)

	OnEvent func(Event) // told of every event, outside locks; may be nil
	OnFault func(error) // told once, when the slot faults; may be nil

	Log oplog.Options // of the oplog; Logger, Reserve and OnFault are filled in

	// Resync opens a slot that was unlocked, to be filled from another one: it
	// serves nothing until then.
	Resync bool

	// Refill: there are other slots of the store. A slot that finds its tree lost,
	// or its log damaged where it needs it, waits to be resynced from one of them,
	// instead of failing to open; see Slot.Unfit.
	Refill  bool
	OnUnfit func(error) // told when that happens to a running slot; may be nil
	// Alone: this slot is the whole in-sync set, as far as it knows. Others may lack
	// what it has acknowledged, so a damaged log is left for the operator to judge.
	Alone bool

	alone bool                          // Recover: give up a resync, as nobody is there to go on with it
	hold  func(step, path string) error // tests: asked before recovery changes anything on disk
}

// Copy is another slot's content of an object.
type Copy struct {
	Data []byte
	From string // name of the node
}

func (o Options) withDefaults() Options {
	if o.LogMax == 0 {
		o.LogMax = 1 << 30
	}
	if o.CheckpointEvery == 0 {
		o.CheckpointEvery = 10 * time.Second
	}
	if o.VerifiedCache == 0 {
		o.VerifiedCache = 16 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Keys of log attributes.
const (
	keyStore = "store"
	keyID    = "id"
	keyPath  = "path"
	keyErr   = "err"
)

// Names inside a data directory.
const (
	fileIdentity  = "slot.json"
	fileLock      = "lock"
	dirTree       = "tree"
	dirLog        = "oplog"
	dirIndex      = "index"
	dirTrash      = "trash"
	dirStage      = "stage"
	dirQuarantine = "quarantine"
	dirRescue     = "rescue"
	dirVolatile   = "volatile"
	dirLedger     = "ledger"
)
