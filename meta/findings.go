package meta

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// openLedger opens the slot's ledger. One that cannot be opened is set aside: it
// must not keep mail from being served.
func (s *Slot) openLedger() (err error) {
	dir := filepath.Join(s.dir, dirLedger)
	o := ledger.Options{Store: s.StoreName, Slot: s.ID.String()}
	if s.Ledger, err = ledger.Open(dir, o); err == nil {
		return nil
	}
	aside := dir + "." + time.Now().UTC().Format("20060102T150405.000000")
	if e := os.Rename(dir, aside); e != nil {
		return fmt.Errorf("%w; set it aside: %w", err, e)
	}
	cause := err
	if s.Ledger, err = ledger.Open(dir, o); err != nil {
		return err
	}
	text := fmt.Sprintf("the ledger could not be opened (%v); it was set aside as %s, and a new one begun", cause, filepath.Base(aside))
	s.Events.Add(Event{Kind: EventRecovery, Text: text})
	return s.Ledger.Append(ledger.Entry{Kind: ledger.Broken, Path: "./" + filepath.Base(aside), Outcome: ledger.Kept, Text: text})
}

// Record writes findings and decisions to the ledger, durably. That it could
// not is an event, and no reason to stop: the mail comes first.
func (s *Slot) Record(entries ...ledger.Entry) {
	if err := s.Ledger.Append(entries...); err != nil {
		s.Events.Add(Event{Kind: EventLedger, Text: fmt.Sprintf("%d findings could not be recorded: %v", len(entries), err)})
	}
}

// recordSoon is Record for who holds locks: many at a time are written with one
// fsync. They are written before Close returns.
func (s *Slot) recordSoon(e ledger.Entry) {
	e.Time = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unrecorded = append(s.unrecorded, e); len(s.unrecorded) > 1 {
		return // somebody is at it
	}
	s.recording.Go(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for len(s.unrecorded) > 0 {
			batch := s.unrecorded
			s.mu.Unlock()
			s.Record(batch...)
			s.mu.Lock()
			s.unrecorded = s.unrecorded[len(batch):]
		}
		s.unrecorded = nil
	})
}

// finding reports what was found: to people at once, and to the ledger.
func (s *Slot) finding(ev Event, e ledger.Entry) {
	s.Events.Add(ev)
	if e.Kind == "" {
		e.Kind = ev.Kind
	}
	e.Path, e.ID, e.Text = ev.Path, uint64(ev.ID), ev.Text
	s.recordSoon(e)
}

// checksum is how ledger entries show one.
func checksum(sum *op.Sum) string {
	if sum == nil {
		return "none"
	}
	text := fmt.Sprintf("xxh64:%016x size:%d", sum.XXH(), sum.Size)
	if sum.SHA256 != [32]byte{} {
		text += fmt.Sprintf(" sha256:%x", sum.SHA256)
	}
	return text
}

// headerMax is how much of a message is looked through for its Message-ID, in
// bytes.
const headerMax = 64 << 10

// MessageID is the Message-ID in the header of a message, as it stands there;
// empty if there is none.
func MessageID(content []byte) string {
	head := content[:min(len(content), headerMax)]
	if bytes.IndexByte(head, ':') < 0 {
		return ""
	}
	for _, end := range []string{"\r\n\r\n", "\n\n"} {
		if i := bytes.Index(head, []byte(end)); i >= 0 {
			head = head[:i]
		}
	}
	// Line by line: a header that one line of is not as it should be has its
	// Message-ID all the same.
	lines := strings.Split(string(head), "\n")
	for i, line := range lines {
		key, value, ok := strings.Cut(line, ":")
		if !ok || !strings.EqualFold(key, "Message-ID") {
			continue
		}
		for _, more := range lines[i+1:] {
			if !strings.HasPrefix(more, " ") && !strings.HasPrefix(more, "\t") {
				break
			}
			value += " " + more
		}
		value = strings.Join(strings.Fields(value), " ")
		return value[:min(len(value), 998)] // RFC 5322 §2.1.1
	}
	return ""
}
