package repl

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"

	"slotfs/meta/op"
)

// frameVersion is the version of the frame format. What the bodies mean is
// negotiated by Hello.Protocol.
const frameVersion = 1

// headerSize is the length of a frame's header in bytes.
const headerSize = 16

// frameType numbers what a frame carries; never reuse one.
type frameType uint8

const (
	frameHello    frameType = iota + 1 // JSON hello: first on every connection
	frameWelcome                       // JSON welcome: the request is granted
	frameRefuse                        // JSON refuse: the connection ends
	frameEntries                       // marks, then raw entries
	frameMark                          // marks alone; also the primary's heartbeat
	frameAck                           // received, durable, applied; also the replica's heartbeat
	framePrepare                       // epoch: note durably that you may join it
	framePrepared                      // epoch: noted
	frameRequest                       // JSON request of a fetch or resync connection
	frameReply                         // JSON answer
	frameContent                       // a piece of content; the last one is empty
	frameTypes                         // one more than the highest
)

// marksSize is the length of the marks that start an Entries frame.
const marksSize = 24

// marks is what a primary says beside entries, all seqs.
type marks struct {
	committed uint64
	wanted    uint64 // somebody waits for this to be durable
	awaited   uint64 // somebody waits for the receipt of this
}

func (m marks) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, m.committed)
	b = binary.BigEndian.AppendUint64(b, m.wanted)
	return binary.BigEndian.AppendUint64(b, m.awaited)
}

// readMarks reads what starts an Entries frame, or is a Mark frame.
func readMarks(b []byte) marks {
	return marks{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
}

// batchBytes is how many bytes of entries a sender puts into one frame, unless
// a single entry is larger.
const batchBytes = 512 << 10

// limits is the longest body per type, in bytes. A longer one is refused before
// anything is allocated.
var limits = [frameTypes]uint32{
	frameHello:    1 << 20,
	frameWelcome:  1 << 20,
	frameRefuse:   64 << 10,
	frameEntries:  marksSize + batchBytes + op.MaxEntry,
	frameMark:     marksSize,
	frameAck:      24,
	framePrepare:  8,
	framePrepared: 8,
	frameRequest:  1 << 20,
	frameReply:    16 << 20,
	frameContent:  op.BlockSize,
}

// A frame as it was read. body belongs to the receiver for Entries and Reply;
// otherwise it is valid until the next read.
type frame struct {
	typ  frameType
	body []byte
}

// putHeader writes the header of a frame whose checksummed part is body and
// which has extra more bytes after it.
func putHeader(h []byte, t frameType, body []byte, extra int) {
	binary.BigEndian.PutUint32(h[0:], uint32(len(body)+extra))
	h[4] = byte(t)
	h[5] = frameVersion
	h[6], h[7] = 0, 0
	binary.BigEndian.PutUint64(h[8:], frameSum(h, body))
}

// frameSum covers the header's first 8 bytes and body.
func frameSum(h, body []byte) uint64 {
	// A frame is short or its sum is cheap beside what is done with it; a Digest
	// on the stack makes no garbage.
	var d xxhash.Digest
	d.Reset()
	_, _ = d.Write(h[:8])
	_, _ = d.Write(body)
	return d.Sum64()
}

// frameReader decodes frames. It trusts nothing that it reads.
type frameReader struct {
	r      io.Reader
	header [headerSize]byte
	buf    []byte // reused for the small types
}

// next reads one frame. Errors are those of the reader, or wrap ErrWire.
func (f *frameReader) next() (frame, error) {
	h := f.header[:]
	if _, err := io.ReadFull(f.r, h); err != nil {
		return frame{}, err
	}
	n, t := binary.BigEndian.Uint32(h), frameType(h[4])
	if h[5] != frameVersion || h[6] != 0 || h[7] != 0 {
		return frame{}, fmt.Errorf("%w: version %d, this node speaks %d", ErrWire, h[5], frameVersion)
	}
	if t == 0 || t >= frameTypes {
		return frame{}, fmt.Errorf("%w: unknown type %d", ErrWire, t)
	}
	if n > limits[t] {
		return frame{}, fmt.Errorf("%w: type %d with %d bytes, at most %d", ErrWire, t, n, limits[t])
	}
	body, err := f.body(t, int(n))
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, err
	}
	sum := body
	if t == frameEntries {
		if len(body) < marksSize {
			return frame{}, fmt.Errorf("%w: entries without marks", ErrWire)
		}
		// Each entry has a checksum of its own.
		sum = body[:marksSize]
	}
	if frameSum(h, sum) != binary.BigEndian.Uint64(h[8:]) {
		return frame{}, fmt.Errorf("%w: checksum of a frame of type %d", ErrWire, t)
	}
	return frame{typ: t, body: body}, nil
}

// body reads n bytes. What outlives the frame gets memory of its own, and
// large claims are only believed as far as bytes arrive.
func (f *frameReader) body(t frameType, n int) ([]byte, error) {
	const trust = 1 << 20
	if t != frameEntries && t != frameReply {
		if cap(f.buf) < n {
			f.buf = make([]byte, max(n, 4<<10))
		}
		_, err := io.ReadFull(f.r, f.buf[:n])
		return f.buf[:n], err
	}
	b := make([]byte, min(n, trust))
	if _, err := io.ReadFull(f.r, b); err != nil {
		return nil, err
	}
	if n > trust {
		whole := make([]byte, n)
		copy(whole, b)
		if _, err := io.ReadFull(f.r, whole[trust:]); err != nil {
			return nil, err
		}
		b = whole
	}
	return b, nil
}

// splitEntries decodes the entries of an Entries frame's body behind the marks.
// Each must verify, and continue the one before it.
func splitEntries(b []byte, into []*op.Entry) ([]*op.Entry, error) {
	for len(b) > 0 {
		if len(b) < 4 {
			return into, fmt.Errorf("%w: %d bytes behind the last entry", ErrWire, len(b))
		}
		n := binary.BigEndian.Uint32(b)
		if n > op.MaxEntry || int(n) > len(b) {
			return into, fmt.Errorf("%w: entry of %d bytes in %d", ErrWire, n, len(b))
		}
		if n < 4 {
			return into, fmt.Errorf("%w: entry of %d bytes", ErrWire, n)
		}
		e, err := op.Decode(b[:n:n])
		if err != nil {
			return into, fmt.Errorf("%w: %w", ErrWire, err)
		}
		if len(into) > 0 {
			if last := into[len(into)-1]; e.Seq != last.Seq+1 || e.Before != last.After {
				return into, fmt.Errorf("%w: entry %d does not continue %d", ErrWire, e.Seq, last.Seq)
			}
		}
		into = append(into, e)
		b = b[n:]
	}
	return into, nil
}
