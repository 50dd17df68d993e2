package op

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// Version is the version of the encoding that this package writes.
const Version = 1

// HeaderSize is the length of an entry's header, in bytes: no entry is shorter.
const HeaderSize = 64

// ErrInvalid is wrapped by the error for an operation that has no encoding: a
// name or value too long, an id of zero. Nothing was logged.
var ErrInvalid = errors.New("invalid operation")

// ErrVersion is wrapped, with ErrCorrupt, by the error for an entry of a
// version that this program doesn't know.
var ErrVersion = errors.New("unknown entry version")

// Draft is an operation encoded and hashed, but not yet in its place in the
// history. Making one needs no lock, and giving it its place costs little.
type Draft struct {
	op      Op
	raw     []byte
	payload uint64 // hash of the payload
}

// NewDraft encodes o. It copies everything out of o once.
func NewDraft(o Op) (*Draft, error) {
	want := HeaderSize + o.size()
	if want > MaxEntry {
		return nil, fmt.Errorf("%w: %v of %d bytes", ErrInvalid, o.Kind(), want)
	}
	raw := o.append(make([]byte, HeaderSize, want))
	d := &Draft{op: newOp(o.Kind()), raw: raw, payload: xxhash.Sum64(raw[HeaderSize:])}
	// Decoding what was just encoded makes Op's slices share raw, and applies
	// here, where the caller can still refuse, what a peer would apply there.
	dec := decoder{b: raw[HeaderSize:]}
	d.op.decode(&dec)
	if dec.err == nil && len(dec.b) != 0 {
		dec.fail("value too long")
	}
	if dec.err != nil {
		return nil, fmt.Errorf("%w: %v: %w", ErrInvalid, o.Kind(), dec.err)
	}
	return d, nil
}

// Op is the operation; its byte slices are the draft's own.
func (d *Draft) Op() Op { return d.op }

// Entry gives d its place right after prev. A draft makes one entry only.
func (d *Draft) Entry(prev Pos, epoch uint64, time int64) *Entry {
	e := &Entry{
		Seq: prev.Seq + 1, Epoch: epoch, Time: time, Before: prev.Chain,
		Op: d.op, Raw: d.raw,
	}
	e.After = e.chain(d.payload)
	h := d.raw[:HeaderSize]
	binary.BigEndian.PutUint32(h[0:], uint32(len(d.raw)))
	h[4] = Version
	h[5] = uint8(d.op.Kind())
	binary.BigEndian.PutUint64(h[8:], e.Seq)
	binary.BigEndian.PutUint64(h[16:], e.Epoch)
	binary.BigEndian.PutUint64(h[24:], uint64(e.Time))
	binary.BigEndian.PutUint64(h[32:], e.Before)
	binary.BigEndian.PutUint64(h[40:], e.After)
	binary.BigEndian.PutUint64(h[48:], d.payload)
	binary.BigEndian.PutUint64(h[56:], xxhash.Sum64(h[:56]))
	return e
}

// chain is the running checksum after e, whose payload has the given hash.
func (e *Entry) chain(payload uint64) uint64 {
	var b [41]byte
	binary.BigEndian.PutUint64(b[0:], e.Before)
	binary.BigEndian.PutUint64(b[8:], e.Seq)
	binary.BigEndian.PutUint64(b[16:], e.Epoch)
	binary.BigEndian.PutUint64(b[24:], uint64(e.Time))
	b[32] = uint8(e.Op.Kind())
	binary.BigEndian.PutUint64(b[33:], payload)
	return xxhash.Sum64(b[:])
}

// NewEntry encodes o as the entry right after prev. It panics if o has no
// encoding; NewDraft returns an error instead.
func NewEntry(prev Pos, epoch uint64, time int64, o Op) *Entry {
	d, err := NewDraft(o)
	if err != nil {
		panic(err)
	}
	return d.Entry(prev, epoch, time)
}

// EntryLen returns the length of the encoded entry that starts with b, of
// which HeaderSize bytes must be there. It verifies the header only.
func EntryLen(b []byte) (int, error) {
	if len(b) < HeaderSize {
		return 0, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
	}
	n := binary.BigEndian.Uint32(b)
	switch {
	case n < HeaderSize || n > MaxEntry:
		return 0, fmt.Errorf("%w: length %d", ErrCorrupt, n)
	case binary.BigEndian.Uint64(b[56:]) != xxhash.Sum64(b[:56]):
		return 0, fmt.Errorf("%w: header checksum", ErrCorrupt)
	case b[4] != Version:
		return 0, fmt.Errorf("%w: %w: %d", ErrCorrupt, ErrVersion, b[4])
	case b[6] != 0 || b[7] != 0:
		return 0, fmt.Errorf("%w: reserved bytes set", ErrCorrupt)
	}
	return int(n), nil
}

// Decode reads the entry that raw is, all of it, and verifies everything that
// can be verified without its neighbours. The entry aliases raw.
func Decode(raw []byte) (*Entry, error) {
	n, err := EntryLen(raw)
	if err != nil {
		return nil, err
	}
	if n != len(raw) {
		return nil, fmt.Errorf("%w: %d bytes for a length of %d", ErrCorrupt, len(raw), n)
	}
	payload := xxhash.Sum64(raw[HeaderSize:])
	if binary.BigEndian.Uint64(raw[48:]) != payload {
		return nil, fmt.Errorf("%w: payload checksum", ErrCorrupt)
	}
	e := &Entry{
		Seq:    binary.BigEndian.Uint64(raw[8:]),
		Epoch:  binary.BigEndian.Uint64(raw[16:]),
		Time:   int64(binary.BigEndian.Uint64(raw[24:])),
		Before: binary.BigEndian.Uint64(raw[32:]),
		After:  binary.BigEndian.Uint64(raw[40:]),
		Op:     newOp(Kind(raw[5])),
		Raw:    raw,
	}
	if e.Op == nil {
		return nil, fmt.Errorf("%w: unknown kind %d", ErrCorrupt, raw[5])
	}
	if e.Seq == 0 || e.After != e.chain(payload) {
		return nil, fmt.Errorf("%w: chain", ErrCorrupt)
	}
	d := decoder{b: raw[HeaderSize:]}
	e.Op.decode(&d)
	if d.err == nil && len(d.b) != 0 {
		d.fail("%d bytes after the payload", len(d.b))
	}
	if d.err != nil {
		return nil, fmt.Errorf("%v of seq %d: %w", e.Op.Kind(), e.Seq, d.err)
	}
	return e, nil
}
