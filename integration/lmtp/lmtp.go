// Package lmtp is a small LMTP client (RFC 2033) for tests: one connection,
// many messages, one reply for each recipient.
//
// It sends bytes as they are, except for what the protocol forbids: a line
// end is made CRLF, a leading dot is doubled, and a missing line end at the
// end of the message is added. NULs, 8-bit bytes, bare CRs and lines of any
// length pass through.
package lmtp

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Client is one connection. It is not safe for concurrent use.
type Client struct {
	conn net.Conn
	r    *bufio.Reader
	// Timeout bounds each exchange with the server; a minute by default.
	Timeout time.Duration
}

// Reply is what the server said, in its last line.
type Reply struct {
	Code int
	Text string
}

// OK reports a positive reply: for a message, the server has taken over the
// responsibility for it.
func (r Reply) OK() bool { return r.Code/100 == 2 }

func (r Reply) String() string { return fmt.Sprintf("%d %s", r.Code, r.Text) }

// Dial connects and says hello.
func Dial(addr string) (*Client, error) {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return New(conn, time.Minute)
}

// New says hello on a connection, which it closes if that fails.
func New(conn net.Conn, timeout time.Duration) (*Client, error) {
	c := &Client{conn: conn, r: bufio.NewReader(conn), Timeout: timeout}
	var err error
	if _, err = c.expect(220); err == nil {
		err = c.command(250, "LHLO localhost")
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection without ceremony.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) reply() (Reply, error) {
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return Reply{}, err
		}
		line = strings.TrimRight(line, "\r\n")
		if len(line) < 3 {
			return Reply{}, fmt.Errorf("reply %q is too short", line)
		}
		code, err := strconv.Atoi(line[:3])
		if err != nil {
			return Reply{}, fmt.Errorf("reply %q has no code", line)
		}
		if len(line) == 3 || line[3] != '-' {
			return Reply{code, strings.TrimSpace(line[3:])}, nil
		}
	}
}

func (c *Client) expect(code int) (Reply, error) {
	r, err := c.reply()
	if err == nil && r.Code != code {
		err = fmt.Errorf("server said %q instead of %d", r, code)
	}
	return r, err
}

func (c *Client) command(code int, format string, args ...any) error {
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	if _, err := fmt.Fprintf(c.conn, format+"\r\n", args...); err != nil {
		return err
	}
	_, err := c.expect(code)
	return err
}

// Deliver sends one message and returns the reply for each recipient. With an
// error nothing is known: the message may have been taken or not.
func (c *Client) Deliver(from string, to []string, message []byte) ([]Reply, error) {
	if err := c.command(250, "MAIL FROM:<%s>", from); err != nil {
		return nil, err
	}
	for _, rcpt := range to {
		if err := c.command(250, "RCPT TO:<%s>", rcpt); err != nil {
			return nil, err
		}
	}
	if err := c.command(354, "DATA"); err != nil {
		return nil, err
	}
	wire := append(Wire(message), ".\r\n"...)
	c.conn.SetDeadline(time.Now().Add(c.Timeout))
	if _, err := c.conn.Write(wire); err != nil {
		return nil, err
	}
	replies := make([]Reply, len(to))
	for i := range to {
		r, err := c.reply()
		if err != nil {
			return nil, err
		}
		replies[i] = r
	}
	return replies, nil
}

// Wire is a message as it goes over the wire, without the final dot.
func Wire(message []byte) []byte {
	wire := make([]byte, 0, len(message)+len(message)/32+16)
	for rest := message; len(rest) > 0; {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		rest = after
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > 0 && line[0] == '.' {
			wire = append(wire, '.')
		}
		wire = append(append(wire, line...), "\r\n"...)
	}
	return wire
}
