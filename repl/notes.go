package repl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"slotfs/meta/op"
)

// notesFile is the file in a slot's data directory that holds the notes.
const notesFile = "repl.json"

// notesFormat is the version of notes that this program writes.
const notesFormat = 1

// notes is what a slot must remember about its role that is not in its log: the
// log forgets epochs when it is trimmed, and an operator's word is in no log.
type notes struct {
	Format int `json:"format"`
	// Epochs is the history as of the last write; the log may know later ones.
	Epochs history `json:"epochs"`
	// Prepared is the epoch that this slot told a primary it may join.
	Prepared uint64 `json:"prepared,omitempty"`
	// Preparations are the epochs that this slot noted it may join, with the nonce
	// that their record was to have. Those that its log has reached are dropped.
	Preparations []preparation `json:"preparations,omitempty"`
	// Demoted is the epoch in which an operator demoted this slot: it does not
	// resume that one by itself.
	Demoted uint64 `json:"demoted,omitempty"`
	// Yield: the operator gave up this slot's branch.
	Yield bool `json:"yield,omitempty"`
	// Drained: an operator moved the primaries away from this node; the slot does
	// not become primary by itself.
	Drained bool `json:"drained,omitempty"`
	// Copies is up to which entry other slots were known to have the log; it
	// may be more.
	Copies map[op.SlotID]uint64 `json:"copies,omitempty"`
	// HeardSeq is the last entry that a primary was known to have.
	HeardSeq uint64 `json:"heard_seq,omitempty"`
	// Restored is the epoch in which the data directory was found to be a copy, or
	// restored: until the slot is a member of a later one it may lack anything.
	Restored uint64 `json:"restored,omitempty"`
	// Becoming is what Epochs will be when the resync under way has ended.
	Becoming *becoming `json:"becoming,omitempty"`
	// Alive is when the notes were last written, every few minutes at least.
	Alive time.Time `json:"alive,omitzero"`
	// Heard is when, and From which node, a primary was last heard.
	Heard time.Time `json:"heard,omitzero"`
	From  string    `json:"from,omitempty"`
}

// readNotes reads the notes of the data directory dir; a slot without any has
// the zero ones.
func readNotes(dir string) (notes, error) {
	n := notes{Format: notesFormat}
	path := filepath.Join(dir, notesFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return n, fmt.Errorf("read notes: %w", err)
	}
	if err := json.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("read notes %s: %w", path, err)
	}
	if n.Format > notesFormat {
		return n, fmt.Errorf("read notes %s: written by a newer version (format %d, this program knows %d)", path, n.Format, notesFormat)
	}
	return n, nil
}

// Alone reports whether the slot with this data directory was the whole in-sync
// set when it ran last.
func Alone(dir string, slot op.SlotID) (bool, error) {
	n, err := readNotes(dir)
	members := n.Epochs.last().Members
	return len(members) == 1 && members[0] == slot, err
}

// write makes the notes durable.
func (n notes) write(dir string) error {
	b, err := json.MarshalIndent(n, "", "\t")
	if err != nil {
		return fmt.Errorf("write notes: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, notesFile), append(b, '\n')); err != nil {
		return fmt.Errorf("write notes: %w", err)
	}
	return nil
}

// replaceFile writes a file so that a crash leaves the old or the new one.
func replaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// saveNotes makes the notes durable as they are.
func (r *Member) saveNotes() {
	if err := r.note(func(*notes) {}); err != nil {
		r.fail(err)
	}
}

// note changes the notes and makes them durable before it returns. It is for
// any goroutine.
func (r *Member) note(change func(*notes)) error {
	r.noteMu.Lock()
	defer r.noteMu.Unlock()
	r.mu.Lock()
	change(&r.notes)
	r.notes.Alive = time.Now().Round(0)
	r.notes.Epochs, r.notes.Heard, r.notes.From = r.hist, r.heard, r.from
	r.notes.HeardSeq, r.notes.Copies = r.heardSeq.Load(), maps.Clone(r.copies)
	n := r.notes
	r.mu.Unlock()
	if err := n.write(r.Dir); err != nil {
		return err
	}
	r.saved.Store(n.Epochs.last().Pos.Epoch)
	return nil
}

// heardEvery is how far the durable note of when a primary was heard may lag.
const heardEvery = 30 * time.Second

// aliveEvery is how far the durable note of being alive may lag.
const aliveEvery = 5 * time.Minute

// keepHeard saves now and then when the primary was heard: an operator will
// want to know after a restart.
func (r *Member) keepHeard() {
	r.mu.Lock()
	due := r.heard.Sub(r.notes.Heard) > heardEvery || r.Register != nil && time.Since(r.notes.Alive).Abs() > aliveEvery
	r.mu.Unlock()
	if due {
		r.saveNotes()
	}
}

// forget drops what the slot remembers of epochs that began after seq, because
// its log was cut there.
func (r *Member) forget(after uint64) {
	r.mu.Lock()
	r.hist = slices.DeleteFunc(slices.Clone(r.hist), func(e epochStart) bool { return e.Pos.Seq > after })
	r.histAt = op.Pos{}
	r.mu.Unlock()
	r.refresh()
}
