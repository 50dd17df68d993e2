package repl

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"slotfs/meta/op"
)

const (
	handshakeTimeout = 5 * time.Second
	readBuffer       = 128 << 10 // beneath TLS: one system call for many records
	writeBuffer      = 256 << 10
)

// corked is the socket beneath a TLS connection. TLS writes a record of at most
// 16 KiB per system call; corked gathers the records of everything that is sent
// together, and reads ahead.
type corked struct {
	net.Conn
	r *bufio.Reader

	mu   sync.Mutex // TLS may also write from a read (key update)
	hold bool       // gather: false during the handshake
	buf  []byte
}

func (c *corked) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *corked) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.hold {
		return c.Conn.Write(p)
	}
	c.buf = append(c.buf, p...)
	if len(c.buf) < writeBuffer {
		return len(p), nil
	}
	if err := c.flushLocked(); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *corked) cork() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = true
	c.buf = make([]byte, 0, 4<<10)
}

func (c *corked) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flushLocked()
}

func (c *corked) flushLocked() error {
	if len(c.buf) == 0 {
		return nil
	}
	_, err := c.Conn.Write(c.buf)
	c.buf = c.buf[:0]
	return err
}

// link is one authenticated connection. Reading is for one goroutine; writing
// is safe for several.
type link struct {
	conn *tls.Conn
	raw  *corked
	peer string        // node name, proven by the certificate
	buf  *bufio.Reader // decrypted
	in   frameReader

	mu  sync.Mutex // guards the writing side
	out []byte     // scratch: header and small bodies

	closed    chan struct{}
	closeOnce sync.Once
}

// dial connects to a node and proves both sides' identity.
func dial(ctx context.Context, addr string, conf *tls.Config) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	raw := &corked{Conn: c, r: bufio.NewReaderSize(c, readBuffer)}
	l, err := newLink(ctx, tls.Client(raw, prepared(conf)), raw)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	return l, nil
}

// accept is dial's counterpart.
func accept(ctx context.Context, c net.Conn, conf *tls.Config) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	raw := &corked{Conn: c, r: bufio.NewReaderSize(c, readBuffer)}
	return newLink(ctx, tls.Server(raw, prepared(conf)), raw)
}

// prepared is conf with what this package relies on.
func prepared(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	conf.MinVersion = tls.VersionTLS13
	// Small first records would only cost system calls between our own nodes.
	conf.DynamicRecordSizingDisabled = true
	return conf
}

func newLink(ctx context.Context, conn *tls.Conn, raw *corked) (*link, error) {
	if t, ok := raw.Conn.(*net.TCPConn); ok {
		_ = t.SetNoDelay(true) // Go's default, relied upon
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Conn.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	raw.cork()
	l := &link{conn: conn, raw: raw, closed: make(chan struct{})}
	if certs := conn.ConnectionState().PeerCertificates; len(certs) > 0 {
		l.peer = certs[0].Subject.CommonName
	}
	l.buf = bufio.NewReaderSize(conn, 16<<10)
	l.in.r = l.buf
	return l, nil
}

// close ends the connection at once, whoever is reading or writing.
func (l *link) close() {
	l.closeOnce.Do(func() {
		close(l.closed)
		// Not the TLS close: it may wait for a writer that is stuck.
		_ = l.raw.Conn.Close()
	})
}

// closeOn ends the connection when ctx ends. The returned function ends the
// watching.
func (l *link) closeOn(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, l.close)
}

func (l *link) deadline(d time.Duration) {
	if d == 0 {
		_ = l.raw.SetDeadline(time.Time{})
		return
	}
	_ = l.raw.SetDeadline(time.Now().Add(d))
}

// write writes one frame; it is sent off by flush.
func (l *link) write(t frameType, body []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = append(l.out[:0], make([]byte, headerSize)...)
	putHeader(l.out, t, body, 0)
	if len(body) <= 4<<10 {
		l.out = append(l.out, body...)
		body = nil
	}
	if _, err := l.conn.Write(l.out); err != nil {
		return err
	}
	if len(body) > 0 {
		if _, err := l.conn.Write(body); err != nil {
			return err
		}
	}
	return nil
}

// sendJSON sends v as the body of a frame.
func (l *link) sendJSON(t frameType, v any) error {
	if err := l.writeJSON(t, v); err != nil {
		return err
	}
	return l.flush()
}

// writeJSON writes v as the body of a frame; it is sent off by flush.
func (l *link) writeJSON(t frameType, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode frame: %w", err)
	}
	if uint64(len(b)) > uint64(limits[t]) {
		return fmt.Errorf("%w: %d bytes to send in a frame of type %d", ErrWire, len(b), t)
	}
	return l.write(t, b)
}

// numbers sends a frame of big-endian 64-bit numbers.
func (l *link) numbers(t frameType, v ...uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var body [24]byte
	b := body[:0]
	for _, n := range v {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	l.out = append(l.out[:0], make([]byte, headerSize)...)
	putHeader(l.out, t, b, 0)
	l.out = append(l.out, b...)
	if _, err := l.conn.Write(l.out); err != nil {
		return err
	}
	return l.raw.flush()
}

// entries writes one Entries frame; it is sent off by flush.
func (l *link) entries(m marks, list []*op.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := 0
	for _, e := range list {
		size += len(e.Raw)
	}
	var b [marksSize]byte
	head := m.append(b[:0])
	l.out = append(l.out[:0], make([]byte, headerSize)...)
	putHeader(l.out, frameEntries, head, size)
	l.out = append(l.out, head...)
	for _, e := range list {
		// Small entries share a record; a large one is encrypted where it lies.
		if len(l.out)+len(e.Raw) <= 16<<10 {
			l.out = append(l.out, e.Raw...)
			continue
		}
		if len(l.out) > 0 {
			if _, err := l.conn.Write(l.out); err != nil {
				return err
			}
			l.out = l.out[:0]
		}
		if len(e.Raw) <= 8<<10 {
			l.out = append(l.out, e.Raw...)
			continue
		}
		if _, err := l.conn.Write(e.Raw); err != nil {
			return err
		}
	}
	if len(l.out) == 0 {
		return nil
	}
	_, err := l.conn.Write(l.out)
	return err
}

func (l *link) flush() error { return l.raw.flush() }

// next reads a frame.
func (l *link) next() (frame, error) { return l.in.next() }

// expect reads a frame of type t into v. A Refuse frame becomes a *PeerError.
func (l *link) expect(t frameType, v any) error {
	f, err := l.next()
	if err != nil {
		return err
	}
	switch f.typ {
	case t:
	case frameRefuse:
		return l.refused(f)
	default:
		return fmt.Errorf("%w: type %d where %d was due", ErrWire, f.typ, t)
	}
	if err := json.Unmarshal(f.body, v); err != nil {
		return fmt.Errorf("%w: %w", ErrWire, err)
	}
	return nil
}

// refused reads a Refuse frame.
func (l *link) refused(f frame) error {
	var r refuse
	if err := json.Unmarshal(f.body, &r); err != nil {
		return fmt.Errorf("%w: %w", ErrWire, err)
	}
	return &PeerError{Node: l.peer, Code: r.Code, Text: r.Text}
}

// turnAway sends why the connection ends, and ends it.
func (l *link) turnAway(code Code, text string) {
	l.deadline(handshakeTimeout)
	if l.sendJSON(frameRefuse, refuse{Code: code, Text: text}) == nil {
		// The other side reads the reason and closes; if we closed first with its
		// bytes unread, the kernel could drop the reason with a reset.
		if c, ok := l.raw.Conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
		for {
			if _, err := l.next(); err != nil {
				break
			}
		}
	}
	l.close()
}

// refuse is the body of a Refuse frame.
type refuse struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// more reports whether more has arrived already, so that an answer can wait for
// the rest. For the reader alone.
func (l *link) more() bool {
	return l.buf.Buffered() > 0 || l.raw.r.Buffered() > 0
}
