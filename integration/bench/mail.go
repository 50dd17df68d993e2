package main

import (
	"fmt"
	"strings"
	"time"
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

// mailer is one LMTP connection.
type mailer interface {
	// Send delivers one message to one recipient and returns after its 250.
	Send(rcpt string, msg []byte) error
	Close() error
}

// session is one IMAP connection, logged in.
type session interface {
	Select(mailbox string) error
	// List is FETCH 1:* (UID FLAGS) of the selected mailbox.
	List() ([]uint32, error)
	// Body is UID FETCH BODY.PEEK[].
	Body(uid uint32) ([]byte, error)
	// Do runs any other command.
	Do(command string) error
	Close() error
}

// server is a mail server that accepts any user name.
type server interface {
	Mailer() (mailer, error)
	Login(user string) (session, error)
}

// mailLoad is one round of the mail load on one server.
type mailLoad struct {
	server   server
	tag      string // begins the user names, so that every round has new mailboxes
	users    int
	conns    int
	messages int
	least    time.Duration // a phase that can be repeated lasts at least so long
	mail     *generator

	sessions []session  // of each user
	uids     [][]uint32 // in each INBOX, as scan listed them
}

func (m *mailLoad) user(i int) string { return fmt.Sprintf("%su%03d", m.tag, i) }

// open logs every user in and makes the second mailbox. It is not timed.
func (m *mailLoad) open() error {
	if m.sessions != nil {
		return nil
	}
	m.uids = make([][]uint32, m.users)
	for i := range m.users {
		s, err := m.server.Login(m.user(i))
		if err != nil {
			return fmt.Errorf("log in as %s: %w", m.user(i), err)
		}
		m.sessions = append(m.sessions, s)
		if err := s.Do("CREATE " + archive); err != nil {
			return err
		}
	}
	return nil
}

func (m *mailLoad) close() {
	for _, s := range m.sessions {
		s.Close() // the phases are over: nothing depends on the goodbye
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
			return m.each(func(i int, s session, t *timer) error {
				for _, uid := range m.uids[i] {
					t.do(func() error { return s.Do(fmt.Sprintf(`UID STORE %d %sFLAGS (\Seen)`, uid, "+-"[k%2:k%2+1])) })
				}
				return nil
			})
		})
	case "copy":
		return passes(m.least, func(int) *sample { return m.each(m.copy) })
	case "move":
		return passes(m.least, func(k int) *sample {
			return m.each(func(i int, s session, t *timer) error { return m.move(s, k, t) })
		})
	case "expunge":
		return m.each(m.expunge)
	}
	panic("no such phase: " + phase)
}

// each runs fn once on the session of every user.
func (m *mailLoad) each(fn func(i int, s session, t *timer) error) *sample {
	return parallel(m.conns, m.users, func(_, i int, t *timer) error { return fn(i, m.sessions[i], t) })
}

func (m *mailLoad) deliver() *sample {
	mailers := make([]mailer, m.conns)
	s := parallel(m.conns, m.messages, func(w, i int, t *timer) (err error) {
		if mailers[w] == nil {
			if mailers[w], err = m.server.Mailer(); err != nil {
				return err
			}
		}
		rcpt := m.user(i % m.users)
		msg := m.mail.message(m.tag, i)
		if !t.do(func() error { return mailers[w].Send(rcpt, msg) }) {
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

func (m *mailLoad) scan(i int, s session, t *timer) error {
	t.do(func() (err error) {
		if err = s.Select("INBOX"); err != nil {
			return err
		}
		m.uids[i], err = s.List()
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

func (m *mailLoad) body(i int, s session, t *timer) error {
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

func (m *mailLoad) copy(i int, s session, t *timer) error {
	for _, uid := range m.uids[i][:len(m.uids[i])/4] {
		t.do(func() error { return s.Do(fmt.Sprintf("UID COPY %d %s", uid, archive)) })
	}
	return nil
}

func (m *mailLoad) move(s session, pass int, t *timer) error {
	from, to := "INBOX", archive
	if pass%2 == 1 {
		from, to = to, from
	}
	if err := s.Select(from); err != nil {
		return err
	}
	all, err := s.List()
	if err != nil {
		return err
	}
	for _, uid := range all[max(0, len(all)-m.messages/m.users/4):] {
		t.do(func() error { return s.Do(fmt.Sprintf("UID MOVE %d %s", uid, to)) })
	}
	return nil
}

// expunge empties both mailboxes, message by message.
func (m *mailLoad) expunge(_ int, s session, t *timer) error {
	for _, box := range []string{"INBOX", archive} {
		if err := s.Select(box); err != nil {
			return err
		}
		all, err := s.List()
		if err != nil {
			return err
		}
		for _, uid := range all {
			t.do(func() error {
				if err := s.Do(fmt.Sprintf(`UID STORE %d +FLAGS.SILENT (\Deleted)`, uid)); err != nil {
					return err
				}
				return s.Do("EXPUNGE")
			})
		}
	}
	return nil
}

// emptySet tells the refusal of 1:* in an empty mailbox from others: an IMAP
// server has no code for it.
func emptySet(err error) bool {
	return err != nil && strings.Contains(err.Error(), "nvalid messageset")
}
