package meta

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"slotfs/meta/op"
)

// A message that had been acknowledged by a primary alone, and is not in the
// store's history, is delivered again as a new one. The Put that does so carries
// where it comes from as an extended attribute, which the mount does not show.
// So the log itself says what was delivered again, and every slot remembers it
// (rescuedSet) for as long as the data directory lives: however often the slot
// that has the lost branch offers a message, and whoever is primary then, it is
// delivered once.

// RescuedXattr is the extended attribute that says where a message which was
// delivered again comes from; its value is the text of an Origin.
const RescuedXattr = markName + ".rescued"

// Origin says which entry of a lost branch a message was published by. Content
// is the beginning of its SHA-256: two branches may have an epoch of one number.
type Origin struct {
	Epoch   uint64
	Seq     uint64
	Content [8]byte
}

// String is the form that the log has.
func (o Origin) String() string { return fmt.Sprintf("%d.%d.%x", o.Epoch, o.Seq, o.Content) }

// parseOrigin reads what String wrote.
func parseOrigin(text string) (o Origin, err error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return o, fmt.Errorf("origin %q", text)
	}
	if o.Epoch, err = strconv.ParseUint(parts[0], 10, 64); err == nil {
		o.Seq, err = strconv.ParseUint(parts[1], 10, 64)
	}
	if err == nil {
		_, err = hex.Decode(o.Content[:], []byte(parts[2][:min(len(parts[2]), 2*len(o.Content))]))
	}
	if err != nil || o.String() != text {
		return o, fmt.Errorf("origin %q", text)
	}
	return o, nil
}

// fileDelivered is the file in rescue/ that holds the set: a line for each
// origin. What is added is written at once and synced with the next checkpoint;
// what a crash takes with it comes again with the replay of the log.
const fileDelivered = "delivered"

// rescuedSet is what was delivered again, in the applied state. It only grows.
type rescuedSet struct {
	path string

	mu   sync.Mutex
	f    *os.File // nil until something is added
	have map[Origin]op.ID
	list []Origin // in order of arrival
}

func openRescued(data string) (*rescuedSet, error) {
	r := &rescuedSet{path: filepath.Join(data, dirRescue, fileDelivered), have: map[Origin]op.ID{}}
	b, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	whole := strings.LastIndexByte(string(b), '\n') + 1
	lines := bufio.NewScanner(strings.NewReader(string(b[:whole])))
	for lines.Scan() {
		text, id, _ := strings.Cut(lines.Text(), " ")
		o, err := parseOrigin(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w: move the file away; messages of lost branches may then be delivered twice", r.path, err)
		}
		n, _ := strconv.ParseUint(id, 10, 64)
		r.remember(o, op.ID(n))
	}
	if whole < len(b) { // torn: the log has it
		if err := os.Truncate(r.path, int64(whole)); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *rescuedSet) remember(o Origin, id op.ID) bool {
	if _, again := r.have[o]; again {
		return false
	}
	r.have[o] = id
	r.list = append(r.list, o)
	return true
}

// add notes that o was delivered as id.
func (r *rescuedSet) add(o Origin, id op.ID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.remember(o, id) {
		return nil
	}
	if r.f == nil {
		var err error
		if r.f, err = os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(r.path)); err != nil {
			return err
		}
	}
	_, err := io.WriteString(r.f, fmt.Sprintf("%s %d\n", o, id))
	return err
}

// sync makes durable what was added.
func (r *rescuedSet) sync() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return nil
	}
	return r.f.Sync()
}

func (r *rescuedSet) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.f == nil {
		return nil
	}
	err := r.f.Close()
	r.f = nil
	return err
}

// noteRescued remembers what e delivered again.
func (s *Slot) noteRescued(e *op.Entry) error {
	p, ok := e.Op.(*op.Put)
	if !ok || p.Attr.Xattr == nil {
		return nil
	}
	v, ok := p.Attr.Xattr[RescuedXattr]
	if !ok {
		return nil
	}
	o, err := parseOrigin(string(v))
	if err != nil {
		return nil // somebody else's: it says nothing
	}
	if err := s.rescued.add(o, op.ID(e.Seq)); err != nil {
		return fmt.Errorf("note what was delivered again: %w", err)
	}
	return nil
}

// Rescued says as what a message of a lost branch was delivered again, in the
// applied state; ok is false if it was not.
func (s *Slot) Rescued(o Origin) (id op.ID, ok bool) {
	s.rescued.mu.Lock()
	defer s.rescued.mu.Unlock()
	id, ok = s.rescued.have[o]
	return id, ok
}

// RescuedFrom lists what was delivered again, in order, beginning with number
// from; at most limit. A resync hands it over.
func (s *Slot) RescuedFrom(from, limit int) (list []string) {
	s.rescued.mu.Lock()
	defer s.rescued.mu.Unlock()
	if from < 0 || from >= len(s.rescued.list) {
		return nil
	}
	for _, o := range s.rescued.list[from:min(len(s.rescued.list), from+limit)] {
		list = append(list, fmt.Sprintf("%s %d", o, s.rescued.have[o]))
	}
	return list
}

// RescuedCount is how many that are.
func (s *Slot) RescuedCount() int {
	s.rescued.mu.Lock()
	defer s.rescued.mu.Unlock()
	return len(s.rescued.list)
}

// AddRescued takes over, durably, what RescuedFrom of another slot gave.
func (s *Slot) AddRescued(list []string) error {
	for _, line := range list {
		text, id, _ := strings.Cut(line, " ")
		o, err := parseOrigin(text)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return fmt.Errorf("origin %q: %w", line, err)
		}
		if err := s.rescued.add(o, op.ID(n)); err != nil {
			return err
		}
	}
	return s.rescued.sync()
}
