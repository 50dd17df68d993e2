package oplog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sort"

	"github.com/cespare/xxhash/v2"

	"slotfs/meta/op"
)

const (
	page          = 4096
	formatVersion = 1

	segMagic      = "slotfsOL"
	segHeaderSize = 48

	batchMagic      = 0x536c4261 // "SlBa"
	batchHeaderSize = 96
	flagRestart     = 1
	flagReset       = 2

	maxBatchBytes = batchBytes + op.MaxEntry // entries of one batch
	indexStep     = 128 << 10                // bytes between remembered batches
)

var (
	errNoBatch = errors.New("no batch header")
	errBody    = errors.New("batch does not match its header")
	errRead    = errors.New("read segment")
)

// batchHeader is what precedes the entries of one group commit.
type batchHeader struct {
	restart   bool   // earlier segments' entries after base don't count
	reset     bool   // nor does anything before
	first     uint64 // seq of the first entry, or of the one to come if count is 0
	count     uint32
	bytes     uint32 // of the entries
	durable   uint64 // seq known durable when this was written
	committed uint64 // seq known committed then
	base      op.Pos // what the first entry continues
	chain     uint64 // after the last entry
	time      int64  // of the entry before the first; 0: not known
}

// last is the seq of the last entry at or before the batch's end.
func (h *batchHeader) last() uint64 { return h.first + uint64(h.count) - 1 }

// extent is how many bytes of the segment the batch takes.
func (h *batchHeader) extent() int64 { return roundUp(batchHeaderSize + int64(h.bytes)) }

func roundUp(n int64) int64 { return (n + page - 1) &^ (page - 1) }

func (h *batchHeader) encode(b []byte, id uint64, off int64) {
	be := binary.BigEndian
	clear(b[:batchHeaderSize])
	be.PutUint32(b[0:], batchMagic)
	b[4] = formatVersion
	if h.restart {
		b[5] |= flagRestart
	}
	if h.reset {
		b[5] |= flagReset
	}
	be.PutUint64(b[8:], id)
	be.PutUint64(b[16:], uint64(off))
	be.PutUint64(b[24:], h.first)
	be.PutUint32(b[32:], h.count)
	be.PutUint32(b[36:], h.bytes)
	be.PutUint64(b[40:], h.durable)
	be.PutUint64(b[48:], h.committed)
	be.PutUint64(b[56:], h.base.Epoch)
	be.PutUint64(b[64:], h.base.Chain)
	be.PutUint64(b[72:], h.chain)
	be.PutUint64(b[80:], uint64(h.time))
	be.PutUint64(b[88:], xxhash.Sum64(b[:88]))
}

// decode reads the header that stands at off of the segment id; errNoBatch if
// there is none.
func (h *batchHeader) decode(b []byte, id uint64, off int64) error {
	be := binary.BigEndian
	if len(b) < batchHeaderSize || be.Uint32(b) != batchMagic ||
		be.Uint64(b[88:]) != xxhash.Sum64(b[:88]) ||
		be.Uint64(b[8:]) != id || be.Uint64(b[16:]) != uint64(off) {
		return errNoBatch
	}
	if b[4] != formatVersion || b[5]&^(flagRestart|flagReset) != 0 {
		return fmt.Errorf("%w: batch %d, flags %#x", ErrVersion, b[4], b[5])
	}
	*h = batchHeader{
		restart:   b[5]&flagRestart != 0,
		reset:     b[5]&flagReset != 0,
		first:     be.Uint64(b[24:]),
		count:     be.Uint32(b[32:]),
		bytes:     be.Uint32(b[36:]),
		durable:   be.Uint64(b[40:]),
		committed: be.Uint64(b[48:]),
		base:      op.Pos{Epoch: be.Uint64(b[56:]), Chain: be.Uint64(b[64:])},
		chain:     be.Uint64(b[72:]),
		time:      int64(be.Uint64(b[80:])),
	}
	if h.first == 0 || h.bytes > maxBatchBytes {
		return errNoBatch
	}
	h.base.Seq = h.first - 1
	return nil
}

// entries decodes body, and verifies that it is what the header promises.
func (h *batchHeader) entries(body []byte) ([]*op.Entry, error) {
	pos := h.base
	es := make([]*op.Entry, 0, min(int(h.count), len(body)/op.HeaderSize))
	for range h.count {
		n, err := op.EntryLen(body)
		if err != nil {
			return nil, err
		}
		if n > len(body) {
			return nil, errBody
		}
		e, err := op.Decode(body[:n:n])
		if err != nil {
			return nil, err
		}
		if e.Seq != pos.Seq+1 || e.Before != pos.Chain || e.Epoch < pos.Epoch {
			return nil, errBody
		}
		es = append(es, e)
		pos, body = e.Pos(), body[n:]
	}
	if len(body) != 0 || pos.Chain != h.chain {
		return nil, errBody
	}
	return es, nil
}

// place is where a batch starts.
type place struct {
	first uint64
	off   int64
}

// segment is one file of the log. The fields that change are under Log.mu.
type segment struct {
	num  uint64 // order among the segments
	id   uint64 // random, of this use of the file
	path string
	f    file
	size int64 // of the file

	start   int64  // where the first batch is: page, or after damage that was accepted
	end     int64  // where the next batch goes
	base    op.Pos // before the first entry
	last    uint64 // the last entry that counts; base.Seq if there is none
	restart bool   // entries after base in earlier segments don't count
	reset   bool   // nor does anything before
	places  []place
}

func (s *segment) first() uint64 { return s.base.Seq + 1 }

// note records a batch that stands at off.
func (s *segment) note(h *batchHeader, off int64) {
	if off == s.start {
		s.base, s.restart, s.reset = h.base, h.restart, h.reset
		s.last = h.base.Seq
	}
	if h.count > 0 && (len(s.places) == 0 || off-s.places[len(s.places)-1].off >= indexStep) {
		s.places = append(s.places, place{h.first, off})
	}
	s.last = h.last()
	s.end = off + h.extent()
}

// placeOf returns where to start looking for seq.
func (s *segment) placeOf(seq uint64) int64 {
	i := sort.Search(len(s.places), func(i int) bool { return s.places[i].first > seq })
	if i == 0 {
		return s.start
	}
	return s.places[i-1].off
}

func segmentName(num, id uint64) string { return fmt.Sprintf("%016x-%016x.log", num, id) }

func parseSegmentName(name string) (num, id uint64, ok bool) {
	n, err := fmt.Sscanf(name, "%016x-%016x.log", &num, &id)
	return num, id, err == nil && n == 2 && name == segmentName(num, id)
}

func newSegmentID() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return binary.BigEndian.Uint64(b[:])
}

func encodeSegmentHeader(num, id uint64, created int64) []byte {
	b := make([]byte, page)
	copy(b, segMagic)
	binary.BigEndian.PutUint32(b[8:], formatVersion)
	binary.BigEndian.PutUint64(b[16:], num)
	binary.BigEndian.PutUint64(b[24:], id)
	binary.BigEndian.PutUint64(b[32:], uint64(created))
	binary.BigEndian.PutUint64(b[40:], xxhash.Sum64(b[:40]))
	return b
}

// decodeSegmentHeader returns ErrVersion for a newer format, ErrCorrupt for what
// is no header.
func decodeSegmentHeader(r io.ReaderAt) (num, id uint64, err error) {
	b := make([]byte, segHeaderSize)
	if _, err := r.ReadAt(b, 0); err != nil {
		return 0, 0, fmt.Errorf("%w: read segment header: %w", op.ErrCorrupt, err)
	}
	if string(b[:8]) != segMagic || binary.BigEndian.Uint64(b[40:]) != xxhash.Sum64(b[:40]) {
		return 0, 0, fmt.Errorf("segment header: %w", op.ErrCorrupt)
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != formatVersion {
		return 0, 0, fmt.Errorf("%w: segment %d", ErrVersion, v)
	}
	return binary.BigEndian.Uint64(b[16:]), binary.BigEndian.Uint64(b[24:]), nil
}

// window reads a file front to back in large pieces.
type window struct {
	r    io.ReaderAt
	size int64
	off  int64
	b    []byte
	step int
	keep bool // what has been read stays valid
}

// at returns n bytes from off on, fewer at the end of the file. They are valid
// until the next call, or for ever with keep.
func (w *window) at(off int64, n int) ([]byte, error) {
	if off < 0 || off >= w.size {
		return nil, nil
	}
	n = int(min(int64(n), w.size-off))
	if off >= w.off && off+int64(n) <= w.off+int64(len(w.b)) {
		return w.b[off-w.off:][:n], nil
	}
	want := int(min(int64(max(n, w.step)), w.size-off))
	if cap(w.b) < want || w.keep {
		w.b = make([]byte, want)
	}
	w.b, w.off = w.b[:want], off
	k, err := w.r.ReadAt(w.b, off)
	if err != nil && !errors.Is(err, io.EOF) && want > n {
		// What nobody asked for may be what cannot be read.
		w.b = w.b[:n]
		k, err = w.r.ReadAt(w.b, off)
	}
	w.b = w.b[:k]
	if err != nil && !errors.Is(err, io.EOF) {
		w.b = nil
		return nil, fmt.Errorf("%w: %w", errRead, err)
	}
	return w.b[:min(n, k)], nil
}

// batchAt reads the batch at off of the segment id. The error wraps
// errNoBatch if no header of this segment is there.
func batchAt(w *window, id uint64, off int64) (h batchHeader, body []byte, err error) {
	b, err := w.at(off, page)
	if err != nil {
		return h, nil, err
	}
	if err := h.decode(b, id, off); err != nil {
		return h, nil, err
	}
	b, err = w.at(off, batchHeaderSize+int(h.bytes))
	if err != nil {
		return h, nil, err
	}
	if len(b) < batchHeaderSize+int(h.bytes) {
		return h, nil, errBody
	}
	return h, b[batchHeaderSize:], nil
}

// flaw is where a segment stops making sense; at best that is the unused rest
// of the file.
type flaw struct {
	off    int64
	err    error
	extent int64  // of the batch whose header is good but not its entries; 0: no header
	next   uint64 // first seq of the next good header in the segment; 0: none
	nextAt int64  // where that is
}

// scan reads the whole segment, sets what it holds, and calls fn for every
// good batch (the entries are valid during the call).
func (s *segment) scan(fn func(h *batchHeader, es []*op.Entry)) (fl flaw, err error) {
	w := &window{r: s.f, size: s.size, step: 256 << 10}
	var end op.Pos
	s.end, s.places = s.start, nil
	for {
		var es []*op.Entry
		h, body, err := batchAt(w, s.id, s.end)
		headerOK := err == nil || errors.Is(err, errBody)
		if err == nil && s.end > s.start && (h.base.Seq != end.Seq || h.base.Chain != end.Chain) {
			err = errBody
		}
		if err == nil {
			es, err = h.entries(body)
		}
		switch {
		case err == nil:
			end = h.base
			if len(es) > 0 {
				end = es[len(es)-1].Pos()
			}
			s.note(&h, s.end)
			fn(&h, es)
			continue
		case errors.Is(err, ErrVersion) || errors.Is(err, op.ErrVersion):
			return flaw{}, fmt.Errorf("%s: %w", s.path, err)
		case !isFormat(err):
			return flaw{}, err
		}
		fl := flaw{off: s.end, err: err}
		if headerOK {
			fl.extent = h.extent()
		}
		fl.next, fl.nextAt = s.search(w, s.end+page)
		return fl, nil
	}
}

// isFormat reports whether err is about what is on the disk.
func isFormat(err error) bool {
	return errors.Is(err, errRead) || errors.Is(err, errNoBatch) || errors.Is(err, errBody) || errors.Is(err, op.ErrCorrupt)
}

// walk calls fn for the entries from seq from on, up to the segment's last,
// which was last when the caller looked; they may be kept. It stops early
// when fn returns false.
func (s *segment) walk(off int64, from, last uint64, fn func(e *op.Entry, off int64) bool) error {
	w := &window{r: s.f, size: s.size, step: 64 << 10, keep: true}
	for next := from; next <= last; {
		h, body, err := batchAt(w, s.id, off)
		for err == nil && h.last() < next {
			off += h.extent()
			h, body, err = batchAt(w, s.id, off)
		}
		var es []*op.Entry
		if err == nil && h.first > next {
			err = errBody
		}
		if err == nil {
			es, err = h.entries(body)
		}
		if err != nil {
			if isFormat(err) {
				err = &DamageError{Path: s.path, Offset: off, From: next, Next: next + 1, Err: err}
			}
			return err
		}
		for _, e := range es {
			if e.Seq < next {
				continue
			}
			if e.Seq > last || !fn(e, off) {
				return nil
			}
			next = e.Seq + 1
		}
		off += h.extent()
	}
	return nil
}

// search looks for a batch header of this segment from off on, past what cannot
// be read.
func (s *segment) search(w *window, off int64) (first uint64, at int64) {
	for ; off < s.size; off += page {
		b, _ := w.at(off, batchHeaderSize)
		var h batchHeader
		if h.decode(b, s.id, off) == nil {
			return h.first, off
		}
	}
	return 0, 0
}

// openSegment opens a file of the log by its name.
func openSegment(fs fsys, dir, name string, write bool) (*segment, error) {
	num, id, ok := parseSegmentName(name)
	if !ok {
		return nil, fmt.Errorf("segment name %q: %w", name, op.ErrCorrupt)
	}
	s := &segment{num: num, id: id, path: filepath.Join(dir, name), start: page}
	var err error
	if s.f, err = fs.Open(s.path, write); err != nil {
		return nil, err
	}
	if s.size, err = s.f.Size(); err != nil {
		s.f.Close()
		return nil, err
	}
	return s, nil
}
