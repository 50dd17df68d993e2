package powerloss

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
)

// The units in which a write may be torn.
const (
	sector = 512
	page   = 4096
)

// image is the content of the disk: the durable part in a file, and over it
// the writes since the last flush.
type image struct {
	mu      sync.RWMutex
	durable *os.File
	pending []write
	pages   map[int64][]byte // page number → newest content, where pending has some
	flushes uint64
	writes  uint64
	bad     []extent // reading any of it fails
}

// extent is a part of the disk, in bytes.
type extent struct{ off, size int64 }

type write struct {
	off  int64
	data []byte
}

// Loss says what a loss of power did to the unsynced writes.
type Loss struct {
	Kept, Dropped, Torn int   // writes
	Bytes               int64 // not on the disk
}

func (m *image) readAt(p []byte, off int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, b := range m.bad {
		if off < b.off+b.size && b.off < off+int64(len(p)) {
			return errBad
		}
	}
	return m.readLocked(p, off)
}

// errBad: a part of the disk that cannot be read.
var errBad = errors.New("unreadable sector")

func (m *image) readLocked(p []byte, off int64) error {
	n, err := m.durable.ReadAt(p, off)
	if err == io.EOF {
		clear(p[n:])
		err = nil
	}
	if err != nil {
		return err
	}
	for at := off &^ (page - 1); at < off+int64(len(p)); at += page {
		b, ok := m.pages[at/page]
		if !ok {
			continue
		}
		if at < off {
			copy(p, b[off-at:])
		} else {
			copy(p[at-off:], b)
		}
	}
	return nil
}

func (m *image) writeAt(p []byte, off int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes++
	for at := off &^ (page - 1); at < off+int64(len(p)); at += page {
		b, ok := m.pages[at/page]
		if !ok {
			b = make([]byte, page)
			if err := m.readLocked(b, at); err != nil {
				return err
			}
			m.pages[at/page] = b
		}
		if at < off {
			copy(b[off-at:], p)
		} else {
			copy(b, p[at-off:])
		}
	}
	m.pending = append(m.pending, write{off, append([]byte(nil), p...)})
	return nil
}

// flush makes every write that was answered before durable.
func (m *image) flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	for _, w := range m.pending {
		if _, err := m.durable.WriteAt(w.data, w.off); err != nil {
			return err
		}
	}
	m.pending = nil
	clear(m.pages)
	return nil
}

// lose applies a random part of the unsynced writes and forgets the rest.
// How much is kept is random too, from nothing to everything: each extreme
// finds other faults.
func (m *image) lose(rng *rand.Rand) (Loss, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	keep := rng.Float64()
	switch rng.IntN(4) {
	case 0:
		keep = 0
	case 1:
		keep = 1
	}
	tear := rng.Float64() * 0.5
	var loss Loss
	for _, w := range m.pending {
		var err error
		switch {
		case rng.Float64() < tear:
			loss.Torn++
			err = m.tear(rng, w, &loss)
		case rng.Float64() < keep:
			loss.Kept++
			_, err = m.durable.WriteAt(w.data, w.off)
		default:
			loss.Dropped++
			loss.Bytes += int64(len(w.data))
		}
		if err != nil {
			return loss, err
		}
	}
	m.pending = nil
	clear(m.pages)
	return loss, nil
}

// tear keeps some units of a write: a beginning, an end, or any.
func (m *image) tear(rng *rand.Rand, w write, loss *Loss) error {
	unit := int64(sector)
	if rng.IntN(2) == 0 {
		unit = page
	}
	units := (int64(len(w.data)) + unit - 1) / unit
	cut, kind := rng.Int64N(units+1), rng.IntN(3)
	for i := range units {
		kept := i < cut
		switch kind {
		case 1:
			kept = !kept
		case 2:
			kept = rng.IntN(2) == 0
		}
		part := w.data[i*unit : min((i+1)*unit, int64(len(w.data)))]
		if !kept {
			loss.Bytes += int64(len(part))
			continue
		}
		if _, err := m.durable.WriteAt(part, w.off+i*unit); err != nil {
			return err
		}
	}
	return nil
}
