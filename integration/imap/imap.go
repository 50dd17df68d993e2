// Package imap is a small IMAP client (RFC 9051 and 3501, CONDSTORE, MOVE,
// IDLE) for tests. It looks at what a store must keep: UIDVALIDITY, UIDs,
// flags, keywords, INTERNALDATEs, MODSEQs and bytes.
//
// Caveat: in BODY[] a server may not send NULs. Dovecot sends 0x80 in their
// place; compare with what [Normal] makes of the message that was sent.
package imap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Client is one connection. It is not safe for concurrent use.
type Client struct {
	conn net.Conn
	p    parser
	tag  int
	// Timeout bounds each command; a minute by default.
	Timeout time.Duration
}

// RefusedError is a NO or BAD.
type RefusedError struct{ Command, Text string }

func (e *RefusedError) Error() string { return fmt.Sprintf("%s: %s", e.Command, e.Text) }

// Mailbox is what SELECT, EXAMINE or STATUS tell.
type Mailbox struct {
	UIDValidity, UIDNext, Messages, HighestModSeq uint64
}

// Message is what FETCH tells. Flags are sorted and without \Recent, which
// belongs to a session.
type Message struct {
	Seq, UID, ModSeq uint64
	Flags            []string
	InternalDate     string
	Body             []byte // nil if not asked for
}

// Dial connects.
func Dial(addr string) (*Client, error) {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return New(conn, time.Minute)
}

// New waits for the greeting on a connection, which it closes if that fails.
func New(conn net.Conn, timeout time.Duration) (*Client, error) {
	c := &Client{conn: conn, p: parser{bufio.NewReaderSize(conn, 1<<16)}, Timeout: timeout}
	conn.SetDeadline(time.Now().Add(c.Timeout))
	if _, err := c.p.line(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greeting: %w", err)
	}
	return c, nil
}

// Open connects and logs in.
func Open(addr, user, password string) (*Client, error) {
	c, err := Dial(addr)
	if err != nil {
		return nil, err
	}
	return c, c.Login(user, password)
}

// Login logs in; if that fails the connection is closed.
func (c *Client) Login(user, password string) error {
	_, err := c.command(nil, "LOGIN %s %s", quote(user), quote(password))
	if err != nil {
		c.Close()
	}
	return err
}

// Close ends the connection without ceremony.
func (c *Client) Close() error { return c.conn.Close() }

// Logout ends the session properly, so that the server finishes its work.
func (c *Client) Logout() error {
	_, err := c.command(nil, "LOGOUT")
	return errors.Join(err, c.conn.Close())
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// command sends one command, with a literal at its end if data is not nil,
// and returns the untagged responses.
func (c *Client) command(data []byte, format string, args ...any) ([][]any, error) {
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	c.tag++
	tag, line := "t"+strconv.Itoa(c.tag), fmt.Sprintf(format, args...)
	if data != nil {
		line += fmt.Sprintf(" {%d}", len(data))
	}
	if _, err := fmt.Fprintf(c.conn, "%s %s\r\n", tag, line); err != nil {
		return nil, err
	}
	var untagged [][]any
	for {
		r, err := c.p.line()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		switch {
		case len(r) == 0:
		case r[0] == "*":
			untagged = append(untagged, r[1:])
		case r[0] == "+":
			if _, err := c.conn.Write(append(slices.Clone(data), "\r\n"...)); err != nil {
				return nil, err
			}
		case r[0] == tag:
			untagged = append(untagged, r[1:])
			if len(r) > 1 && r[1] != "OK" {
				return untagged, &RefusedError{line, fmt.Sprint(r[1:])}
			}
			return untagged, nil
		}
	}
}

// Select opens a mailbox for reading and writing.
func (c *Client) Select(name string) (Mailbox, error) { return c.open("SELECT", name) }

// Examine opens a mailbox for reading only.
func (c *Client) Examine(name string) (Mailbox, error) { return c.open("EXAMINE", name) }

func (c *Client) open(verb, name string) (m Mailbox, err error) {
	replies, err := c.command(nil, "%s %s (CONDSTORE)", verb, quote(name))
	if err != nil {
		return m, err
	}
	for _, r := range replies {
		if len(r) == 2 && r[1] == "EXISTS" {
			m.Messages = number(r[0])
		}
		if len(r) > 1 && r[0] == "OK" {
			code, _ := r[1].(string)
			key, value, _ := strings.Cut(strings.Trim(code, "[]"), " ")
			m.set(key, value)
		}
	}
	return m, nil
}

func (m *Mailbox) set(key string, value any) {
	switch strings.ToUpper(key) {
	case "UIDVALIDITY":
		m.UIDValidity = number(value)
	case "UIDNEXT":
		m.UIDNext = number(value)
	case "HIGHESTMODSEQ":
		m.HighestModSeq = number(value)
	case "MESSAGES":
		m.Messages = number(value)
	}
}

// Status asks about a mailbox without opening it.
func (c *Client) Status(name string) (m Mailbox, err error) {
	replies, err := c.command(nil, "STATUS %s (MESSAGES UIDNEXT UIDVALIDITY HIGHESTMODSEQ)", quote(name))
	for _, r := range replies {
		if len(r) < 3 || r[0] != "STATUS" {
			continue
		}
		list, _ := r[len(r)-1].([]any)
		for i := 0; i+1 < len(list); i += 2 {
			key, _ := list[i].(string)
			m.set(key, list[i+1])
		}
	}
	return m, err
}

// List names all mailboxes, sorted.
func (c *Client) List() ([]string, error) {
	replies, err := c.command(nil, `LIST "" "*"`)
	var names []string
	for _, r := range replies {
		if len(r) == 4 && r[0] == "LIST" {
			names = append(names, word(r[3]))
		}
	}
	slices.Sort(names)
	return names, err
}

// Fetch asks for UID, FLAGS, INTERNALDATE and MODSEQ of a set of UIDs, and
// for the bytes if body is set. An empty mailbox has no messages.
func (c *Client) Fetch(set string, body bool) ([]Message, error) {
	items := "UID FLAGS INTERNALDATE MODSEQ"
	if body {
		items += " BODY.PEEK[]"
	}
	return c.fetch(set, items)
}

// Bodies asks for the bytes only, which a server finds without its cache.
func (c *Client) Bodies(set string) ([]Message, error) { return c.fetch(set, "BODY.PEEK[]") }

func (c *Client) fetch(set, items string) ([]Message, error) {
	replies, err := c.command(nil, "UID FETCH %s (%s)", set, items)
	var messages []Message
	for _, r := range replies {
		if len(r) != 3 || r[1] != "FETCH" {
			continue
		}
		list, ok := r[2].([]any)
		if !ok {
			return nil, fmt.Errorf("FETCH response %v", r)
		}
		messages = append(messages, message(number(r[0]), list))
	}
	return messages, err
}

func message(seq uint64, list []any) Message {
	m := Message{Seq: seq}
	for i := 0; i+1 < len(list); i += 2 {
		switch list[i] {
		case "UID":
			m.UID = number(list[i+1])
		case "INTERNALDATE":
			m.InternalDate = word(list[i+1])
		case "BODY[]":
			m.Body, _ = list[i+1].(text)
			if m.Body == nil {
				m.Body = []byte{}
			}
		case "FLAGS":
			flags, _ := list[i+1].([]any)
			for _, f := range flags {
				if f := word(f); f != `\Recent` {
					m.Flags = append(m.Flags, f)
				}
			}
			slices.Sort(m.Flags)
		case "MODSEQ":
			if value, ok := list[i+1].([]any); ok && len(value) == 1 {
				m.ModSeq = number(value[0])
			}
		}
	}
	return m
}

// Store changes flags: what is "+FLAGS", "-FLAGS" or "FLAGS".
func (c *Client) Store(set, what string, flags ...string) error {
	_, err := c.command(nil, "UID STORE %s %s (%s)", set, what, strings.Join(flags, " "))
	return err
}

// Copy copies messages to another mailbox.
func (c *Client) Copy(set, to string) error {
	_, err := c.command(nil, "UID COPY %s %s", set, quote(to))
	return err
}

// Move moves messages to another mailbox.
func (c *Client) Move(set, to string) error {
	_, err := c.command(nil, "UID MOVE %s %s", set, quote(to))
	return err
}

// Expunge removes what is marked \Deleted.
func (c *Client) Expunge() error {
	_, err := c.command(nil, "EXPUNGE")
	return err
}

// Create makes a mailbox.
func (c *Client) Create(name string) error {
	_, err := c.command(nil, "CREATE %s", quote(name))
	return err
}

// Append stores a message with flags and an INTERNALDATE.
func (c *Client) Append(name string, flags []string, date time.Time, data []byte) error {
	_, err := c.command(data, `APPEND %s (%s) "%s"`, quote(name), strings.Join(flags, " "),
		date.Format("_2-Jan-2006 15:04:05 -0700"))
	return err
}

// Idle waits for an untagged response with the given word (EXISTS, EXPUNGE,
// FETCH), calling ready once the server watches the mailbox.
func (c *Client) Idle(word string, ready func()) error {
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	if _, err := fmt.Fprint(c.conn, "idle IDLE\r\n"); err != nil {
		return err
	}
	for seen := false; ; {
		r, err := c.p.line()
		if err != nil {
			return fmt.Errorf("IDLE: %w", err)
		}
		switch {
		case len(r) > 0 && r[0] == "+":
			ready()
		case len(r) > 0 && r[0] == "idle":
			if !seen {
				return fmt.Errorf("IDLE ended: %v", r)
			}
			return nil
		case !seen && len(r) == 3 && r[2] == word || !seen && len(r) == 4 && r[2] == word:
			seen = true
			if _, err := fmt.Fprint(c.conn, "DONE\r\n"); err != nil {
				return err
			}
		}
	}
}

func word(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case text:
		return string(v)
	}
	return ""
}

func number(v any) uint64 {
	n, _ := strconv.ParseUint(word(v), 10, 64)
	return n
}

// Normal is what BODY[] shows of a message: CRLF at every line end, and 0x80
// where a NUL was.
func Normal(message []byte) []byte {
	b := bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	return bytes.ReplaceAll(b, []byte{0}, []byte{0x80})
}
