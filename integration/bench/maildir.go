package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// maildirPhases are the phases of the file-system load, in order.
var maildirPhases = []string{"deliver", "list", "stat", "read", "reread", "flag", "append", "expunge"}

// maildir drives one directory with the calls of a Maildir, as Dovecot makes
// them with mail_fsync=always, by a number of writers, each in a mailbox of its
// own.
type maildir struct {
	dir     string
	writers int
	each    int // messages per writer
	body    []byte
	least   time.Duration // a phase that can be repeated lasts at least so long
}

// mailbox is the directory of writer w.
func (m *maildir) mailbox(w int) string { return filepath.Join(m.dir, fmt.Sprint("u", w)) }

func messageName(i int) string { return fmt.Sprintf("1700000000.M%dP1.bench", i) }

func (m *maildir) create() error {
	for w := range m.writers {
		for _, d := range []string{"tmp", "new", "cur"} {
			if err := os.MkdirAll(filepath.Join(m.mailbox(w), d), 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *maildir) remove() error { return os.RemoveAll(m.dir) }

// run runs one phase. Order matters: a phase finds what the one before it left.
func (m *maildir) run(phase string) *sample {
	switch phase {
	case "deliver":
		return m.all(m.deliver)
	case "list":
		return passes(m.least, func(int) *sample { return m.all(m.list) })
	case "stat":
		return passes(m.least, func(int) *sample { return m.all(m.stat) })
	case "read":
		return m.all(m.read)
	case "reread":
		return passes(m.least, func(int) *sample { return m.all(m.read) })
	case "flag":
		return passes(m.least, func(k int) *sample {
			return m.all(func(box string, t *timer) error { return m.flag(box, k, t) })
		})
	case "append":
		return passes(m.least, func(int) *sample { return m.all(m.append) })
	case "expunge":
		return m.all(m.expunge)
	}
	panic("no such phase: " + phase)
}

func (m *maildir) all(fn func(box string, t *timer) error) *sample {
	return parallel(m.writers, m.writers, func(_, i int, t *timer) error { return fn(m.mailbox(i), t) })
}

// deliver publishes a message as Maildir delivery does: written and fsynced in
// tmp, renamed into new, new fsynced.
func (m *maildir) deliver(box string, t *timer) error {
	dir, err := os.Open(filepath.Join(box, "new"))
	if err != nil {
		return err
	}
	defer dir.Close()
	for i := range m.each {
		t.do(func() error {
			tmp := filepath.Join(box, "tmp", messageName(i))
			f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			for rest := m.body; len(rest) > 0; {
				n := min(len(rest), 8192)
				if _, err := f.Write(rest[:n]); err != nil {
					return errors.Join(err, f.Close())
				}
				rest = rest[n:]
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				return err
			}
			if err := os.Rename(tmp, filepath.Join(box, "new", messageName(i))); err != nil {
				return err
			}
			return dir.Sync()
		})
	}
	return nil
}

func (m *maildir) list(box string, t *timer) error {
	t.do(func() error {
		names, err := os.ReadDir(filepath.Join(box, "new"))
		if err == nil && len(names) != m.each {
			err = fmt.Errorf("%s/new lists %d messages, %d delivered", box, len(names), m.each)
		}
		return err
	})
	return nil
}

func (m *maildir) stat(box string, t *timer) error {
	for i := range m.each {
		t.do(func() error {
			info, err := os.Stat(filepath.Join(box, "new", messageName(i)))
			if err == nil && info.Size() != int64(len(m.body)) {
				err = fmt.Errorf("%s has %d bytes", info.Name(), info.Size())
			}
			return err
		})
	}
	return nil
}

func (m *maildir) read(box string, t *timer) error {
	buf := make([]byte, len(m.body)+1)
	for i := range m.each {
		t.do(func() error {
			f, err := os.Open(filepath.Join(box, "new", messageName(i)))
			if err != nil {
				return err
			}
			defer f.Close()
			n, err := io.ReadFull(f, buf)
			if err != io.ErrUnexpectedEOF {
				return fmt.Errorf("%s: read %d bytes, then %w", f.Name(), n, err)
			}
			if !bytes.Equal(buf[:n], m.body) {
				return fmt.Errorf("%s: other bytes than were written", f.Name())
			}
			return nil
		})
	}
	return nil
}

// flag renames new/x to cur/x:2,S in the first pass; later passes take the flag
// away and set it again.
func (m *maildir) flag(box string, pass int, t *timer) error {
	from, to := filepath.Join("new", "%s"), filepath.Join("cur", "%s:2,S")
	switch {
	case pass > 0 && pass%2 == 1:
		from, to = to, filepath.Join("cur", "%s:2,")
	case pass > 0:
		from = filepath.Join("cur", "%s:2,")
	}
	for i := range m.each {
		name := messageName(i)
		t.do(func() error {
			return os.Rename(filepath.Join(box, fmt.Sprintf(from, name)), filepath.Join(box, fmt.Sprintf(to, name)))
		})
	}
	return nil
}

// append is an index log: small appends to one open file.
func (m *maildir) append(box string, t *timer) error {
	f, err := os.OpenFile(filepath.Join(box, "dovecot.index.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	record := m.body[:min(120, len(m.body))]
	for range m.each {
		t.do(func() error { _, err := f.Write(record); return err })
	}
	return f.Close()
}

func (m *maildir) expunge(box string, t *timer) error {
	names, err := os.ReadDir(filepath.Join(box, "cur"))
	if err != nil {
		return err
	}
	if len(names) != m.each {
		return fmt.Errorf("%s/cur lists %d messages, %d flagged", box, len(names), m.each)
	}
	for _, e := range names {
		t.do(func() error { return os.Remove(filepath.Join(box, "cur", e.Name())) })
	}
	return nil
}
