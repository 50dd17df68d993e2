package meta

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Decision says what became of a message of a lost branch.
type Decision struct {
	Seq     uint64    `json:"seq"`
	Outcome string    `json:"outcome"`
	Path    string    `json:"path,omitempty"` // where it is now
	ID      op.ID     `json:"id,omitempty"`
	Time    time.Time `json:"time"`
	Text    string    `json:"text,omitempty"`
}

// Outcomes of a Decision.
const (
	Delivered = "delivered" // again, as a new message
	Present   = "present"   // the mailbox has it since the fork
	Homeless  = "kept"      // there is no mailbox to deliver it into
	Spoiled   = "damaged"   // what was kept of it does not match its checksum
)

// Final reports whether a message need not be offered again by itself.
func (d Decision) Final() bool { return d.Outcome != "" }

// BranchMails tells the messages of a branch in order of seq.
func (s *Slot) BranchMails(name string, emit func(*Lost) error) error {
	m, err := s.openMails(name)
	if err != nil || m == nil {
		return err
	}
	defer m.f.Close()
	for {
		l, err := m.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = emit(l)
		}
		if err != nil {
			return err
		}
	}
}

// mails reads a list of messages.
type mails struct {
	f    *os.File
	dec  *json.Decoder
	name string
}

// openMails is nil if the branch has none.
func (s *Slot) openMails(name string) (*mails, error) {
	if _, err := s.Branch(name); err != nil {
		return nil, err
	}
	f, err := os.Open(s.branchFile(name, ".mail"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &mails{f, json.NewDecoder(bufio.NewReader(f)), name}, nil
}

func (m *mails) next() (*Lost, error) {
	l := new(Lost)
	if err := m.dec.Decode(l); errors.Is(err, io.EOF) {
		return nil, io.EOF
	} else if err != nil {
		return nil, fmt.Errorf("rescue/%s.mail: %w", m.name, err)
	}
	return l, nil
}

// BranchEntries tells the entries of a branch, as far as its log was kept.
func (s *Slot) BranchEntries(name string, emit func(*op.Entry) error) error {
	b, err := s.Branch(name)
	if err != nil || b.LogFrom == 0 {
		return err
	}
	return oplog.ScanFile(s.branchFile(name, ".log"), emit)
}

// Decisions reads what was decided about a branch's messages, by seq.
func (s *Slot) Decisions(name string) (map[uint64]Decision, error) {
	f, err := os.Open(s.branchFile(name, ".done"))
	if errors.Is(err, fs.ErrNotExist) {
		return map[uint64]Decision{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	done := map[uint64]Decision{}
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return done, nil // a torn line: it will be decided again, with the same outcome
		}
		if err != nil {
			return nil, err
		}
		var d Decision
		if err := json.Unmarshal(line, &d); err != nil {
			return nil, fmt.Errorf("rescue/%s.done: %w", name, err)
		}
		done[d.Seq] = d
	}
}

// DecisionsSize changes with every decision about a branch.
func (s *Slot) DecisionsSize(name string) int64 {
	st, err := os.Stat(s.branchFile(name, ".done"))
	if err != nil {
		return 0
	}
	return st.Size()
}

// Decide notes what became of messages, durably.
func (s *Slot) Decide(name string, list ...Decision) error {
	path := s.branchFile(name, ".done")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	b := []byte{}
	if st, err := f.Stat(); err != nil {
		return err
	} else if n := st.Size(); n > 0 { // end a torn line
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, n-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			if err := cutTorn(f, n); err != nil {
				return err
			}
		}
	}
	for _, d := range list {
		line, err := json.Marshal(d)
		if err != nil {
			return err
		}
		b = append(append(b, line...), '\n')
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	return errors.Join(f.Sync(), syncDir(filepath.Dir(path)))
}

// cutTorn takes an unfinished last line off a file of n bytes.
func cutTorn(f *os.File, n int64) error {
	b := make([]byte, min(n, 64<<10))
	if _, err := f.ReadAt(b, n-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	end := n - int64(len(b))
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == '\n' {
			end += int64(i) + 1
			break
		}
	}
	return f.Truncate(end)
}

// OfferBranch goes through those messages of a branch that pick wants, in order
// of seq, and gives offer each with its content; or with the error why there is
// none that matches its checksum.
func (s *Slot) OfferBranch(ctx context.Context, name string, pick func(*Lost) bool, offer func(l *Lost, content []byte, damaged error) error) error {
	m, err := s.openMails(name)
	if err != nil || m == nil {
		return err
	}
	defer m.f.Close()
	w := &offering{ctx: ctx, mails: m, pick: pick, offer: offer, stages: map[uint64][]byte{}}
	if err := w.advance(); err != nil {
		return err
	}
	for w.at != nil && !w.at.InLog {
		content, err := os.ReadFile(filepath.Join(s.branchFile(name, ".content"), fmt.Sprint(w.at.Seq)))
		if err := w.give(content, err); err != nil {
			return err
		}
	}
	if w.at == nil {
		return nil
	}
	err = s.BranchEntries(name, w.entry)
	if errors.Is(err, errOffered) {
		return nil
	}
	for err == nil && w.at != nil {
		err = w.give(nil, errors.New("the branch's log has no such entry"))
	}
	return err
}

// offering is one pass over a branch's messages beside its log.
type offering struct {
	ctx    context.Context
	mails  *mails
	pick   func(*Lost) bool
	offer  func(*Lost, []byte, error) error
	at     *Lost // the next one that is wanted; nil: no more
	stages map[uint64][]byte
	epoch  *op.EpochBegin
}

// errOffered ends the pass over the log when nothing more is wanted.
var errOffered = errors.New("all were offered")

// advance finds the next message that is wanted.
func (w *offering) advance() error {
	for {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		l, err := w.mails.next()
		if errors.Is(err, io.EOF) {
			w.at = nil
			return nil
		}
		if err != nil {
			return err
		}
		if w.pick(l) {
			w.at = l
			return nil
		}
	}
}

// give offers the message that w is at.
func (w *offering) give(content []byte, err error) error {
	if err == nil {
		if sum := op.SumOf(content); fmt.Sprintf("%x", sum.SHA256) != w.at.SHA256 {
			err = fmt.Errorf("its SHA-256 is %x", sum.SHA256)
		}
	}
	if err := w.offer(w.at, content, err); err != nil {
		return err
	}
	return w.advance()
}

// entry takes one entry of the log.
func (w *offering) entry(e *op.Entry) error {
	for w.at != nil && w.at.Seq < e.Seq {
		if err := w.give(nil, errors.New("the branch's log has no such entry")); err != nil {
			return err
		}
	}
	if w.at == nil {
		return errOffered
	}
	switch o := e.Op.(type) {
	case *op.Chunk:
		stage := stageOf(o, e.Seq)
		w.stages[stage] = writeStage(w.stages[stage], o)
	case *op.Put:
		content := o.Data
		if o.Stage != 0 {
			content = w.stages[o.Stage]
			delete(w.stages, o.Stage)
		}
		if e.Seq == w.at.Seq {
			return w.give(content, nil)
		}
	case *op.EpochBegin:
		if abandons(w.epoch, o) {
			clear(w.stages)
		}
		w.epoch = o
	}
	return nil
}

// writeStage is what a chunk does to a staged content.
func writeStage(b []byte, o *op.Chunk) []byte {
	if end := int(o.Off) + len(o.Data); end > len(b) {
		b = append(b, make([]byte, end-len(b))...)
	}
	copy(b[o.Off:], o.Data)
	return b
}

// BranchContent is the content of one message.
func (s *Slot) BranchContent(ctx context.Context, name string, seq uint64) (l *Lost, content []byte, err error) {
	err = s.OfferBranch(ctx, name, func(l *Lost) bool { return l.Seq == seq }, func(x *Lost, b []byte, damaged error) error {
		l, content = x, b
		return damaged
	})
	if err == nil && l == nil {
		err = fmt.Errorf("message %d in branch %s: %w", seq, name, ErrNotExist)
	}
	return l, content, err
}

// DropBranch removes what is kept of a branch. The record goes last: until then
// dropping it can be repeated.
func (s *Slot) DropBranch(name string) error {
	if _, err := s.Branch(name); err != nil {
		return err
	}
	for _, suffix := range []string{".content", ".mail", ".mail.new", ".done", ".log", ".json"} {
		if err := os.RemoveAll(s.branchFile(name, suffix)); err != nil {
			return fmt.Errorf("drop branch %s: %w", name, err)
		}
	}
	return syncDir(filepath.Join(s.dir, dirRescue))
}
