package op

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Limits on what an entry may hold. They are what Linux allows.
const (
	MaxName       = 255      // bytes of a name of a file or an extended attribute
	MaxTarget     = 4095     // bytes of a symlink's target
	MaxXattrValue = 64 << 10 // bytes of an extended attribute's value
	MaxXattrs     = 1024     // extended attributes of a new object
	MaxMembers    = 64       // slots in an in-sync set
	MaxReason     = 1024     // bytes of EpochBegin.Reason
)

// newOp returns an empty operation of kind k, or nil.
func newOp(k Kind) Op {
	switch k {
	case KindEpochBegin:
		return new(EpochBegin)
	case KindMkdir:
		return new(Mkdir)
	case KindCreate:
		return new(Create)
	case KindPut:
		return new(Put)
	case KindChunk:
		return new(Chunk)
	case KindWrite:
		return new(Write)
	case KindTruncate:
		return new(Truncate)
	case KindFallocate:
		return new(Fallocate)
	case KindSetAttr:
		return new(SetAttr)
	case KindSetXattr:
		return new(SetXattr)
	case KindLink:
		return new(Link)
	case KindRename:
		return new(Rename)
	case KindUnlink:
		return new(Unlink)
	case KindSeal:
		return new(Seal)
	case KindCheckpoint:
		return new(Checkpoint)
	}
	return nil
}

var kindNames = [...]string{
	KindEpochBegin: "epoch-begin",
	KindMkdir:      "mkdir",
	KindCreate:     "create",
	KindPut:        "put",
	KindChunk:      "chunk",
	KindWrite:      "write",
	KindTruncate:   "truncate",
	KindFallocate:  "fallocate",
	KindSetAttr:    "setattr",
	KindSetXattr:   "setxattr",
	KindLink:       "link",
	KindRename:     "rename",
	KindUnlink:     "unlink",
	KindSeal:       "seal",
	KindCheckpoint: "checkpoint",
}

// String returns the kind's name for people.
func (k Kind) String() string {
	if int(k) < len(kindNames) && kindNames[k] != "" {
		return kindNames[k]
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// ValidName reports whether name can be the name of a directory entry.
func ValidName(name string) bool {
	return len(name) > 0 && len(name) <= MaxName && name != "." && name != ".." &&
		strings.IndexByte(name, '/') < 0 && strings.IndexByte(name, 0) < 0
}

// decoder takes values off the front of b. The first error sticks; after it
// every method returns zero values.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	d.b = nil
}

// take returns the next n bytes, which alias the input.
func (d *decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.b) {
		d.fail("payload ends early")
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() uint8 {
	if p := d.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if p := d.take(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if p := d.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

func (d *decoder) i64() int64 { return int64(d.u64()) }

// natural is an i64 that may not be negative.
func (d *decoder) natural() int64 {
	n := d.i64()
	if n < 0 {
		d.fail("negative size or offset")
		return 0
	}
	return n
}

func (d *decoder) bool() bool {
	n := d.u8()
	if n > 1 {
		d.fail("flag is %d", n)
	}
	return n == 1
}

// id is an ID that may not be zero.
func (d *decoder) id() ID {
	id := ID(d.u64())
	if id == 0 {
		d.fail("id is zero")
	}
	return id
}

func (d *decoder) name() string {
	s := string(d.take(int(d.u8())))
	if d.err == nil && !ValidName(s) {
		d.fail("bad name %q", s)
	}
	return s
}

func (d *decoder) xattrName() string {
	s := string(d.take(int(d.u8())))
	if d.err == nil && (s == "" || strings.IndexByte(s, 0) >= 0) {
		d.fail("bad attribute name %q", s)
	}
	return s
}

func (d *decoder) text(limit int) string {
	n := int(d.u16())
	if n > limit {
		d.fail("text of %d bytes", n)
		return ""
	}
	return string(d.take(n))
}

// data returns bytes that alias the input; nil for none.
func (d *decoder) data(limit int) []byte {
	n := d.u32()
	if n > uint32(limit) {
		d.fail("data of %d bytes", n)
		return nil
	}
	if n == 0 {
		return nil
	}
	return d.take(int(n))
}

func (d *decoder) slot() (s SlotID) {
	copy(s[:], d.take(len(s)))
	return s
}

func (d *decoder) sum() Sum {
	s := Sum{Size: d.natural()}
	n := int64(d.u32())
	if n != blocks(s.Size) {
		d.fail("%d checksums for %d bytes", n, s.Size)
		return s
	}
	if p := d.take(int(8 * n)); len(p) > 0 {
		s.Blocks = make([]uint64, n)
		for i := range s.Blocks {
			s.Blocks[i] = binary.BigEndian.Uint64(p[8*i:])
		}
	}
	copy(s.SHA256[:], d.take(len(s.SHA256)))
	return s
}

func (d *decoder) attr() Attr {
	a := Attr{Mode: d.u32(), UID: d.u32(), GID: d.u32(), Mtime: d.i64()}
	n := int(d.u16())
	if n > MaxXattrs {
		d.fail("%d extended attributes", n)
	}
	last := ""
	for range n {
		name := d.xattrName()
		value := d.data(MaxXattrValue)
		if d.err != nil {
			return a
		}
		if name <= last {
			d.fail("extended attributes out of order")
			return a
		}
		last = name
		if a.Xattr == nil {
			a.Xattr = make(map[string][]byte)
		}
		a.Xattr[name] = value
	}
	return a
}

// blocks returns how many checksums a file of size bytes has.
func blocks(size int64) int64 {
	n := size / BlockSize
	if size%BlockSize != 0 {
		n++
	}
	return n
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendU16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func appendU32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func appendU64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }
func appendI64(b []byte, v int64) []byte  { return appendU64(b, uint64(v)) }
func appendID(b []byte, id ID) []byte     { return appendU64(b, uint64(id)) }

// What is longer than its length field can say is encoded so that decoding
// refuses it, which NewDraft then does. (A length cut to its low bits would
// let whoever chooses a name choose the rest of the operation.)

func appendName(b []byte, s string) []byte {
	if len(s) > MaxName {
		s = "" // no name may be empty
	}
	return append(append(b, uint8(len(s))), s...)
}

func appendText(b []byte, s string) []byte {
	return append(appendCount(b, len(s)), s...)
}

// appendCount appends a u16 whose largest value is over every limit.
func appendCount(b []byte, n int) []byte {
	return appendU16(b, uint16(min(n, math.MaxUint16)))
}

func appendData(b, data []byte) []byte {
	return append(appendU32(b, uint32(len(data))), data...)
}

func (s *Sum) size() int { return 8 + 4 + 8*len(s.Blocks) + len(s.SHA256) }

func (s *Sum) append(b []byte) []byte {
	b = appendI64(b, s.Size)
	b = appendU32(b, uint32(len(s.Blocks)))
	for _, x := range s.Blocks {
		b = appendU64(b, x)
	}
	return append(b, s.SHA256[:]...)
}

func (a *Attr) size() int {
	n := 4 + 4 + 4 + 8 + 2
	for name, value := range a.Xattr {
		n += 1 + len(name) + 4 + len(value)
	}
	return n
}

func (a *Attr) append(b []byte) []byte {
	b = appendU32(b, a.Mode)
	b = appendU32(b, a.UID)
	b = appendU32(b, a.GID)
	b = appendI64(b, a.Mtime)
	b = appendCount(b, len(a.Xattr))
	if len(a.Xattr) == 0 {
		return b
	}
	names := make([]string, 0, len(a.Xattr))
	for name := range a.Xattr {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b = appendName(b, name)
		b = appendData(b, a.Xattr[name])
	}
	return b
}
