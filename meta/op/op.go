package op

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// ID names a file or directory within a store for ever: the Seq of the entry
// that made it. Root is made by the store's first entry, an EpochBegin.
type ID uint64

// Root is the id of the directory that the mount shows.
const Root ID = 1

// BlockSize is how many bytes of content one checksum covers. Messages up to
// BlockSize have exactly one, so a read in the middle of a large file
// verifies only the blocks that it touches.
const BlockSize = 1 << 20

// SlotID names one slot for ever. It is made with its data directory.
type SlotID [16]byte

func (s SlotID) String() string { return hex.EncodeToString(s[:]) }

// IsZero reports whether s names no slot.
func (s SlotID) IsZero() bool { return s == SlotID{} }

// ParseSlotID reads what String wrote.
func ParseSlotID(text string) (SlotID, error) {
	var s SlotID
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(s) {
		return s, fmt.Errorf("slot id %q: want %d hexadecimal digits", text, 2*len(s))
	}
	copy(s[:], b)
	return s, nil
}

// MarshalText makes JSON show the hexadecimal form.
func (s SlotID) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (s *SlotID) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSlotID(string(text))
	return err
}

// Pos is a point in a store's history. Two slots at the same Seq with the same
// Chain hold the same prefix of it.
type Pos struct {
	Epoch uint64 `json:"epoch"` // of the entry at Seq
	Seq   uint64 `json:"seq"`   // 0: before the first entry
	Chain uint64 `json:"chain"` // running checksum over all entries up to Seq
}

func (p Pos) String() string { return fmt.Sprintf("%d/%d/%016x", p.Epoch, p.Seq, p.Chain) }

// Digest is an order-free 128-bit sum over index entries: equal digests mean
// equal content.
type Digest [2]uint64

// Add puts the element with hash h into the sum.
func (d *Digest) Add(h Digest) { d[0] += h[0]; d[1] += h[1] }

// Sub takes the element with hash h out of the sum.
func (d *Digest) Sub(h Digest) { d[0] -= h[0]; d[1] -= h[1] }

func (d Digest) String() string { return fmt.Sprintf("%016x%016x", d[0], d[1]) }

// MarshalText makes JSON show the hexadecimal form.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (d *Digest) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != 16 {
		return fmt.Errorf("digest %q: want 32 hexadecimal digits", text)
	}
	d[0], d[1] = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
	return nil
}

// Sum is the checksum of one file's whole content.
type Sum struct {
	Size   int64    // bytes
	Blocks []uint64 // xxHash64 of each BlockSize bytes, the last one shorter; none for an empty file
	SHA256 [32]byte // of the whole content; zero for a Seal of a control file
}

// Attr is what an object is created with.
type Attr struct {
	Mode  uint32 // st_mode, type bits included
	UID   uint32
	GID   uint32
	Mtime int64             // ns since 1970; 0 means the entry's time
	Xattr map[string][]byte // user-visible extended attributes, ACLs included; nil for none
}

// Kind numbers the operations on disk and on the wire; never reuse one.
type Kind uint8

// The kinds. Keep in step with the types below and with decoders in codec.go.
const (
	KindEpochBegin Kind = iota + 1
	KindMkdir
	KindCreate
	KindPut
	KindChunk
	KindWrite
	KindTruncate
	KindFallocate
	KindSetAttr
	KindSetXattr
	KindLink
	KindRename
	KindUnlink
	KindSeal
	KindCheckpoint
)

// Op is one of the operation types of this package (pointers).
type Op interface {
	Kind() Kind
	// size is an upper bound of the encoded payload, in bytes.
	size() int
	append(b []byte) []byte
	decode(d *decoder)
}

type (
	// EpochBegin starts an epoch: a change of primary or of the in-sync set.
	// Apply removes what an earlier primary, or an earlier process of the same
	// one, left staged. The store's first
	// entry is one, and makes the root directory.
	EpochBegin struct {
		Epoch   uint64
		Primary SlotID
		Members []SlotID // the in-sync set, primary included
		Nonce   [16]byte
		Store   [16]byte // the store's own id, made with the first epoch
		Reason  string   // for people: "promoted by operator", "replica … lost"
	}

	// Mkdir makes a directory; its id is the entry's Seq.
	Mkdir struct {
		Parent ID
		Name   string
		Attr   Attr
	}

	// Create makes an empty control file, a symlink, a FIFO or a socket; its id
	// is the entry's Seq.
	Create struct {
		Parent ID
		Name   string
		Attr   Attr
		Target string // of a symlink
		Rdev   uint32 // of a device
	}

	// Put publishes a whole file, replacing Victim if there is one; its id is
	// the entry's Seq. The content is Data, or, for a file over ChunkSize, the
	// chunks staged under Stage.
	Put struct {
		Parent ID
		Name   string
		Attr   Attr
		Sum    Sum
		Sealed bool   // a message: write-once from now on
		Victim ID     // what had the name; 0 for nothing
		Stage  uint64 // the stage that holds the content; 0: Data does
		Data   []byte
	}

	// Chunk stages a piece of a later Put. A stage is named by the Seq of its
	// first Chunk, which has Stage 0.
	Chunk struct {
		Stage uint64
		Off   int64
		Data  []byte
	}

	// Write changes bytes of a control file, growing it where needed. The
	// file's mtime becomes the entry's time.
	Write struct {
		ID   ID
		Off  int64
		Data []byte
	}

	// Truncate sets a control file's size. mtime becomes the entry's time.
	Truncate struct {
		ID   ID
		Size int64
	}

	// Fallocate is fallocate(2) on a control file.
	Fallocate struct {
		ID   ID
		Mode uint32 // FALLOC_FL_*
		Off  int64
		Len  int64
	}

	// SetAttr changes the attributes named in Valid.
	SetAttr struct {
		ID    ID
		Valid uint32 // Set*
		Mode  uint32 // permission bits only
		UID   uint32
		GID   uint32
		Mtime int64 // ns since 1970
	}

	// SetXattr sets or removes one extended attribute.
	SetXattr struct {
		ID     ID
		Name   string
		Value  []byte
		Remove bool
	}

	// Link gives ID one more name, replacing Victim if there is one (a rename
	// of a memory-only name onto an existing one).
	Link struct {
		ID     ID
		Parent ID
		Name   string
		Victim ID
	}

	// Rename moves the name of ID. Without Exchange, Victim (0 for none) had
	// the new name and loses it; with Exchange, Victim takes the old name.
	Rename struct {
		ID        ID
		OldParent ID
		OldName   string
		NewParent ID
		NewName   string
		Victim    ID
		Exchange  bool
	}

	// Unlink removes one name of ID: unlink(2), or rmdir(2) for a directory.
	Unlink struct {
		ID     ID
		Parent ID
		Name   string
	}

	// Seal records the content of a control file that has been quiet, or of a
	// message that was adopted without having been read. Of is the Seq of the
	// last entry that changed it: a Seal is void if another change came between.
	Seal struct {
		ID  ID
		Of  uint64
		Sum Sum
	}

	// Checkpoint carries the primary's digest right after it applied At.
	Checkpoint struct {
		At     uint64
		Digest Digest
	}
)

// What SetAttr.Valid may name.
const (
	SetMode uint32 = 1 << iota
	SetUID
	SetGID
	SetMtime
)

// ChunkSize is the most content that one entry carries, in bytes.
const ChunkSize = 4 << 20

// MaxEntry is the longest encoded entry, in bytes; a decoder refuses more.
const MaxEntry = ChunkSize + 1<<20

// ErrCorrupt is wrapped by every decoding error.
var ErrCorrupt = errors.New("corrupt entry")

// Kind implements Op.
func (*EpochBegin) Kind() Kind { return KindEpochBegin }

// Kind implements Op.
func (*Mkdir) Kind() Kind { return KindMkdir }

// Kind implements Op.
func (*Create) Kind() Kind { return KindCreate }

// Kind implements Op.
func (*Put) Kind() Kind { return KindPut }

// Kind implements Op.
func (*Chunk) Kind() Kind { return KindChunk }

// Kind implements Op.
func (*Write) Kind() Kind { return KindWrite }

// Kind implements Op.
func (*Truncate) Kind() Kind { return KindTruncate }

// Kind implements Op.
func (*Fallocate) Kind() Kind { return KindFallocate }

// Kind implements Op.
func (*SetAttr) Kind() Kind { return KindSetAttr }

// Kind implements Op.
func (*SetXattr) Kind() Kind { return KindSetXattr }

// Kind implements Op.
func (*Link) Kind() Kind { return KindLink }

// Kind implements Op.
func (*Rename) Kind() Kind { return KindRename }

// Kind implements Op.
func (*Unlink) Kind() Kind { return KindUnlink }

// Kind implements Op.
func (*Seal) Kind() Kind { return KindSeal }

// Kind implements Op.
func (*Checkpoint) Kind() Kind { return KindCheckpoint }

// Entry is an operation in its place in a store's history. Entries are
// immutable once made; Op's byte slices may share memory with Raw.
type Entry struct {
	Seq    uint64
	Epoch  uint64
	Time   int64  // ns since 1970; strictly increasing within a store
	Before uint64 // Chain before this entry
	After  uint64 // Chain after it
	Op     Op
	Raw    []byte // the encoding, checksum included: what is logged and sent
}

// Pos is the point in history that e makes.
func (e *Entry) Pos() Pos { return Pos{Epoch: e.Epoch, Seq: e.Seq, Chain: e.After} }
