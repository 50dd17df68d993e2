package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// helloTimeout bounds the introduction at the start of an accepted stream.
const helloTimeout = 2 * time.Second

// transport carries memberlist's packets and streams over UDP and TCP with
// the introductions that the package comment describes.
type transport struct {
	key, tag []byte
	self     func() hello
	report   func(Problem)
	log      *slog.Logger

	tcp     *net.TCPListener
	udp     *net.UDPConn
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	wg      sync.WaitGroup
	closed  atomic.Bool
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens both sockets at bind, on the same port.
func listen(bind string) (*net.TCPListener, *net.UDPConn, error) {
	addr, err := net.ResolveTCPAddr("tcp", bind)
	if err != nil {
		return nil, nil, fmt.Errorf("listen for gossip: %w", err)
	}
	// A port that the kernel chose for TCP may be taken for UDP.
	attempts := 1
	if addr.Port == 0 {
		attempts = 10
	}
	for range attempts {
		var tcp *net.TCPListener
		if tcp, err = net.ListenTCP("tcp", addr); err != nil {
			continue
		}
		port := tcp.Addr().(*net.TCPAddr).Port
		var udp *net.UDPConn
		if udp, err = net.ListenUDP("udp", &net.UDPAddr{IP: addr.IP, Port: port, Zone: addr.Zone}); err == nil {
			return tcp, udp, nil
		}
		tcp.Close()
	}
	return nil, nil, fmt.Errorf("listen for gossip: %w", err)
}

func (t *transport) start() {
	t.packets = make(chan *memberlist.Packet)
	t.streams = make(chan net.Conn)
	t.done = make(chan struct{})
	t.wg.Add(2)
	go t.readPackets()
	go t.accept()
}

func (t *transport) readPackets() {
	defer t.wg.Done()
	buf := make([]byte, 1<<16)
	head := len(magic) + tagSize
	for {
		n, from, err := t.udp.ReadFromUDP(buf)
		if err != nil {
			if t.closed.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			// A connected peer's port unreachable and the like; the socket lives.
			t.log.Debug("read gossip packet", "err", err)
			continue
		}
		if n <= head || string(buf[:len(magic)]) != magic {
			continue
		}
		if string(buf[len(magic):head]) != string(t.tag) {
			t.report(&KeyMismatch{Addr: from.String()})
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[head:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.done:
			return
		}
	}
}

func (t *transport) accept() {
	defer t.wg.Done()
	for {
		conn, err := t.tcp.Accept()
		if err != nil {
			if t.closed.Load() || errors.Is(err, net.ErrClosed) {
				return
			}
			t.log.Warn("accept gossip stream", "err", err)
			select {
			case <-time.After(50 * time.Millisecond): // out of descriptors: let some be closed
			case <-t.done:
				return
			}
			continue
		}
		t.wg.Add(1)
		go func() {
			defer t.wg.Done()
			if err := t.admit(conn); err != nil {
				conn.Close()
				t.log.Debug("gossip stream refused", "from", conn.RemoteAddr(), "err", err)
				return
			}
			select {
			case t.streams <- conn:
			case <-t.done:
				conn.Close()
			}
		}()
	}
}

// admit does the accepting side's part of the introduction.
func (t *transport) admit(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(helloTimeout))
	h, genuine, err := readHello(conn, t.key)
	if err != nil {
		return err
	}
	me := t.self()
	verdict := welcome
	var problem Problem
	switch {
	case !genuine:
		verdict, problem = otherKey, &KeyMismatch{Addr: claimed(conn.RemoteAddr(), h.Addr), Name: h.Name}
	case h.Name == me.Name && h.Incarnation != me.Incarnation:
		verdict, problem = nameTaken, &NameConflict{Name: me.Name, Self: true, Addr: me.Addr, With: h.Addr}
	}
	answer, err := me.encode(t.key)
	if err != nil {
		return err
	}
	if problem != nil {
		t.report(problem) // before the other side knows, which may hang up
	}
	if _, err := conn.Write(append([]byte{verdict}, answer...)); err != nil {
		return fmt.Errorf("answer hello: %w", err)
	}
	if problem != nil {
		return problem
	}
	return conn.SetDeadline(time.Time{})
}

// claimed is the address of a stranger for the operator: the IP address that
// it has, and the gossip port that it says.
func claimed(remote net.Addr, says string) string {
	host, _, err := net.SplitHostPort(remote.String())
	_, port, err2 := net.SplitHostPort(says)
	if _, err3 := strconv.ParseUint(port, 10, 16); err != nil || err2 != nil || err3 != nil {
		return remote.String()
	}
	return net.JoinHostPort(host, port)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport. A refusal is
// reported, and returned as a Problem.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.dial(a.Addr, timeout)
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.dial(addr, timeout)
}

func (t *transport) dial(addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(timeout))
	if err := t.introduce(conn, addr); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, conn.SetDeadline(time.Time{})
}

// introduce does the dialling side's part.
func (t *transport) introduce(conn net.Conn, addr string) error {
	me := t.self()
	b, err := me.encode(t.key)
	if err != nil {
		return err
	}
	if _, err := conn.Write(b); err != nil {
		return fmt.Errorf("send hello: %w", err)
	}
	var verdict [1]byte
	if _, err := conn.Read(verdict[:]); err != nil {
		return fmt.Errorf("read verdict: %w", err)
	}
	h, genuine, err := readHello(conn, t.key)
	if err != nil {
		return err
	}
	var problem Problem
	switch {
	case !genuine || verdict[0] == otherKey:
		problem = &KeyMismatch{Addr: addr, Name: h.Name}
	case verdict[0] == nameTaken:
		problem = &NameConflict{Name: me.Name, Self: true, Addr: me.Addr, With: h.Addr}
	case verdict[0] != welcome:
		return fmt.Errorf("unknown verdict %d: %w", verdict[0], errNotGossip)
	default:
		return nil
	}
	t.report(problem)
	return problem
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return time.Time{}, err
	}
	p := make([]byte, 0, len(magic)+tagSize+len(b))
	p = append(append(append(p, magic...), t.tag...), b...)
	_, err = t.udp.WriteToUDP(p, to)
	return time.Now(), err
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// FinalAdvertiseAddr implements memberlist.Transport. ip and port are what
// Start found out.
func (t *transport) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	addr := net.ParseIP(ip)
	if addr == nil {
		return nil, 0, fmt.Errorf("advertise gossip address: %q is not an IP address", ip)
	}
	if v4 := addr.To4(); v4 != nil {
		addr = v4
	}
	return addr, port, nil
}

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	if t.closed.Swap(true) {
		return nil
	}
	close(t.done)
	t.tcp.Close()
	t.udp.Close()
	t.wg.Wait()
	return nil
}
