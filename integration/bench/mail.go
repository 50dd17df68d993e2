package main

import (
	"fmt"
	"strconv"
	"time"

	"slotfs/integration/imap"
	"slotfs/integration/lmtp"
)

// mailPhases are the phases of the mail load, in order.
//
//	deliver  one message to one user by LMTP, until its 250
//	scan1    first SELECT and FETCH 1:* (UID FLAGS) of a mailbox after delivery
//	scan     the same again
//	body     UID FETCH BODY.PEEK[] of one message, compared with what was sent
//	store    UID STORE +FLAGS (\Seen) of one message, the next pass -FLAGS
//	copy     UID COPY of one message to Archive, a quarter of the mailbox
//	move     UID MOVE of one message to Archive; the next pass moves it back
//	expunge  UID STORE +FLAGS (\Deleted) and EXPUNGE of one message
var mailPhases = []string{"deliver", "scan1", "scan", "body", "store", "copy", "move", "expunge"}

// archive is the second mailbox of every user.
const archive = "Archive"

// server is a mail server that accepts any user name.
type server struct {
	lmtp, imap string // addresses
	password   string
}

// mailLoad is one round of the mail load on one server.
type mailLoad struct {
	server   *server
	tag      string // begins the user names, so that every round has new mailboxes
	users    int
	conns    int
	messages int
	least    time.Duration // a phase that can be repeated lasts at least so long
	mail     *generator

	sessions []*imap.Client // of each user
	uids     [][]uint64     // in each INBOX, as scan listed them
}

func (m *mailLoad) user(i int) string { return fmt.Sprintf("%su%03d", m.tag, i) }

// open logs every user in and makes the second mailbox. It is not timed.
func (m *mailLoad) open() error {
	if m.sessions != nil {
		return nil
	}
	m.uids = make([][]uint64, m.users)
	for i := range m.users {
		s, err := imap.Open(m.server.imap, m.user(i), m.server.password)
		if err != nil {
			return fmt.Errorf("log in as %s: %w", m.user(i), err)
		}
		m.sessions = append(m.sessions, s)
		if err := s.Create(archive); err != nil {
			return err
		}
	}
	return nil
}

func (m *mailLoad) close() {
	for _, s := range m.sessions {
		s.Logout() // the phases are over: nothing depends on the goodbye
	}
	m.sessions = nil
}

// run runs one phase. Order matters: a phase finds what the one before it left.
func (m *mailLoad) run(phase string) *sample {
	switch phase {
	case "deliver":
		return m.deliver()
	case "scan1":
		return m.each(m.scan)
	case "scan":
		return passes(m.least, func(int) *sample { return m.each(m.scan) })
	case "body":
		return passes(m.least, func(int) *sample { return m.each(m.body) })
	case "store":
		return passes(m.least, func(k int) *sample {
			return m.each(func(i int, s *imap.Client, t *timer) error {
				for _, uid := range m.uids[i] {
					t.do(func() error { return s.Store(number(uid), "+-"[k%2:k%2+1]+"FLAGS", `\Seen`) })
				}
				return nil
			})
		})
	case "copy":
		return passes(m.least, func(int) *sample { return m.each(m.copy) })
	case "move":
		return passes(m.least, func(k int) *sample {
			return m.each(func(i int, s *imap.Client, t *timer) error { return m.move(s, k, t) })
		})
	case "expunge":
		return m.each(m.expunge)
	}
	panic("no such phase: " + phase)
}

// each runs fn once on the session of every user.
func (m *mailLoad) each(fn func(i int, s *imap.Client, t *timer) error) *sample {
	return parallel(m.conns, m.users, func(_, i int, t *timer) error { return fn(i, m.sessions[i], t) })
}

func (m *mailLoad) deliver() *sample {
	mailers := make([]*lmtp.Client, m.conns)
	s := parallel(m.conns, m.messages, func(w, i int, t *timer) (err error) {
		if mailers[w] == nil {
			if mailers[w], err = lmtp.Dial(m.server.lmtp); err != nil {
				return err
			}
		}
		rcpt := []string{m.user(i % m.users)}
		msg := m.mail.message(m.tag, i)
		if !t.do(func() error { return deliver(mailers[w], rcpt, msg) }) {
			mailers[w].Close() // its error is counted already
			mailers[w] = nil
		}
		return nil
	})
	for _, l := range mailers {
		if l != nil {
			l.Close() // every message has its 250
		}
	}
	return s
}

func (m *mailLoad) scan(i int, s *imap.Client, t *timer) error {
	t.do(func() (err error) {
		if err = s.SelectPlain("INBOX"); err != nil {
			return err
		}
		m.uids[i], err = s.UIDs()
		return err
	})
	want := m.messages / m.users
	if i < m.messages%m.users {
		want++
	}
	if got := len(m.uids[i]); got != want {
		return fmt.Errorf("%s: %d messages listed, %d delivered", m.user(i), got, want)
	}
	return nil
}

func (m *mailLoad) body(i int, s *imap.Client, t *timer) error {
	for _, uid := range m.uids[i] {
		t.do(func() error {
			b, err := s.Body(uid)
			if err == nil {
				err = m.mail.verify(b)
			}
			if err != nil {
				return fmt.Errorf("%s uid %d: %w", m.user(i), uid, err)
			}
			return nil
		})
	}
	return nil
}

func (m *mailLoad) copy(i int, s *imap.Client, t *timer) error {
	for _, uid := range m.uids[i][:len(m.uids[i])/4] {
		t.do(func() error { return s.Copy(number(uid), archive) })
	}
	return nil
}

func (m *mailLoad) move(s *imap.Client, pass int, t *timer) error {
	from, to := "INBOX", archive
	if pass%2 == 1 {
		from, to = to, from
	}
	if err := s.SelectPlain(from); err != nil {
		return err
	}
	all, err := s.UIDs()
	if err != nil {
		return err
	}
	for _, uid := range all[max(0, len(all)-m.messages/m.users/4):] {
		t.do(func() error { return s.Move(number(uid), to) })
	}
	return nil
}

// expunge empties both mailboxes, message by message.
func (m *mailLoad) expunge(_ int, s *imap.Client, t *timer) error {
	for _, box := range []string{"INBOX", archive} {
		if err := s.SelectPlain(box); err != nil {
			return err
		}
		all, err := s.UIDs()
		if err != nil {
			return err
		}
		for _, uid := range all {
			t.do(func() error {
				if err := s.Store(number(uid), "+FLAGS.SILENT", `\Deleted`); err != nil {
					return err
				}
				return s.Expunge()
			})
		}
	}
	return nil
}

func deliver(c *lmtp.Client, rcpt []string, msg []byte) error {
	replies, err := c.Deliver("sender@example.org", rcpt, msg)
	if err != nil {
		return err
	}
	if !replies[0].OK() {
		return fmt.Errorf("deliver to %s: %s", rcpt[0], replies[0])
	}
	return nil
}

func number(uid uint64) string { return strconv.FormatUint(uid, 10) }
