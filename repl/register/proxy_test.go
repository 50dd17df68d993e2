package register_test

import (
	"io"
	"net"
	"sync"
	"testing"
)

// proxy passes TCP connections on, and can fall silent in one direction when a
// large request comes by, such as a transaction with a record in it.
type proxy struct {
	net.Listener
	to string

	mu      sync.Mutex
	armed   cutting
	cut     cutting
	tripped bool
	conns   []net.Conn
}

type cutting int

const (
	nothing  cutting = iota
	answers          // the request arrives, its answer does not
	requests         // the request does not arrive
)

// large is a request of more bytes than a read has.
const large = 450

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, to: to}
	go p.accept()
	t.Cleanup(p.stop)
	return p
}

func (p *proxy) accept() {
	for {
		c, err := p.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.to)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, c, s)
		p.mu.Unlock()
		go p.pass(c, s, requests)
		go p.pass(s, c, answers)
	}
}

// pass copies what is not cut.
func (p *proxy) pass(from, to net.Conn, kind cutting) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && !p.swallow(kind, n) {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err == io.EOF || err != nil {
			return
		}
	}
}

func (p *proxy) swallow(kind cutting, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if kind == requests && n > large && p.armed != nothing {
		p.cut, p.armed, p.tripped = p.armed, nothing, true
	}
	return p.cut == kind
}

// arm makes the next large request trip it.
func (p *proxy) arm(c cutting) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed, p.cut, p.tripped = c, nothing, false
}

func (p *proxy) hasTripped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tripped
}

func (p *proxy) stop() {
	p.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}
