package netns_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/integration/netns"
	"slotfs/integration/scratch"
)

// ownerEnv makes the test binary play an owner that dies.
const ownerEnv = "NETNS_TEST_OWNER"

func TestMain(m *testing.M) {
	scratch.Guard()
	if path := os.Getenv(ownerEnv); path != "" {
		owner(path)
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func network(t *testing.T, names ...string) (*netns.Net, []*netns.Host) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	d, err := scratch.New("", "slotfs-netns-")
	must(t, err)
	t.Cleanup(func() {
		if found, err := d.Left(); err != nil || len(found) > 0 {
			t.Errorf("left: %q, %v", found, err)
		}
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	n, err := netns.New(d)
	must(t, err)
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	var hosts []*netns.Host
	for _, name := range names {
		h, err := n.Add(name)
		must(t, err)
		hosts = append(hosts, h)
	}
	return n, hosts
}

// listen answers datagrams on a host with what they hold, and reports them.
func listen(t *testing.T, h *netns.Host) (addr string, got <-chan string) {
	t.Helper()
	var conn net.PacketConn
	must(t, h.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", h.Addr(5000))
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	seen := make(chan string, 100)
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			seen <- string(buf[:n])
			conn.WriteTo(buf[:n], from)
		}
	}()
	return h.Addr(5000), seen
}

// sent says whether a datagram arrives, and whether its echo does. What is
// expected is waited for as long as a busy machine may take; what is not, for
// a moment.
func sent(t *testing.T, from *netns.Host, addr string, got <-chan string, text string, there, back bool) (bool, bool) {
	t.Helper()
	patience := func(expected bool) time.Duration {
		if expected {
			return 10 * time.Second
		}
		return 300 * time.Millisecond
	}
	conn, err := from.DialContext(context.Background(), "udp4", addr)
	must(t, err)
	defer conn.Close()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Errorf("a cut must be silent: %v", err)
	}
	conn.SetReadDeadline(time.Now().Add(patience(back)))
	there = arrives(got, text, patience(there))
	n, err := conn.Read(make([]byte, 100))
	back = err == nil && n == len(text)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cut must be silent: %v", err)
	}
	return there, back
}

// arrives waits for a text.
func arrives(got <-chan string, text string, patience time.Duration) bool {
	end := time.After(patience)
	for {
		select {
		case g := <-got:
			if g == text {
				return true
			}
		case <-end:
			return false
		}
	}
}

func TestCuts(t *testing.T) {
	n, hosts := network(t, "a", "b", "w")
	a, b, w := hosts[0], hosts[1], hosts[2]
	addr, got := listen(t, b)
	check := func(what string, from *netns.Host, there, back bool) {
		t.Helper()
		if th, bk := sent(t, from, addr, got, what, there, back); th != there || bk != back {
			t.Errorf("%s: arrived %t, answered %t; want %t, %t", what, th, bk, there, back)
		}
	}
	check("whole", a, true, true)
	must(t, n.Cut(netns.Direction{From: a, To: b}))
	must(t, n.Cut(netns.Direction{From: a, To: b})) // again does no harm
	check("a to b cut", a, false, false)
	check("w is not concerned", w, true, true)
	must(t, n.Heal())
	check("healed", a, true, true)
	must(t, n.Cut(netns.Direction{From: b, To: a}))
	check("b to a cut", a, true, false)
	must(t, n.CutBoth(a, b))
	check("both cut", a, false, false)
	must(t, n.Heal())
	must(t, n.Isolate(b))
	check("b isolated from a", a, false, false)
	check("b isolated from w", w, false, false)
	must(t, n.Heal())
	must(t, n.Heal())
	check("healed again", a, true, true)
}

func TestDelay(t *testing.T) {
	n, hosts := network(t, "a", "b", "far")
	must(t, n.Delay(hosts[2], 50*time.Millisecond))
	l, err := hosts[0].Listen("tcp4", hosts[0].Addr(80))
	must(t, err)
	defer l.Close()
	took := func(from *netns.Host) time.Duration {
		start := time.Now()
		conn, err := from.DialContext(context.Background(), "tcp4", l.Addr().String())
		must(t, err)
		conn.Close()
		return time.Since(start)
	}
	if d := took(hosts[2]); d < 100*time.Millisecond {
		t.Errorf("a connection from afar was there after %v; want a round trip of 100ms", d)
	}
	if d := took(hosts[1]); d > 90*time.Millisecond {
		t.Errorf("a connection from near took %v", d)
	}
	must(t, n.CutBoth(hosts[0], hosts[2]))
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if conn, err := hosts[2].DialContext(ctx, "tcp4", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("the slow link cannot be cut")
	}
}

// owner makes a network with a process in it and waits to be killed.
func owner(path string) {
	check := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	d, err := scratch.Use(path)
	check(err)
	n, err := netns.New(d)
	check(err)
	h, err := n.Add("a")
	check(err)
	check(h.Do(func() error { return d.Start(exec.Command("sleep", "1000")) }))
	os.Stdout.WriteString("ready\n")
	time.Sleep(time.Hour) // until killed
}

func TestNothingOutlivesAKilledOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	path, err := os.MkdirTemp("", "slotfs-netns-")
	must(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ownerEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	_, err = out.Read(make([]byte, 1))
	must(t, err)
	cmd.Process.Kill()
	cmd.Wait()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(mounts), filepath.Base(path)) {
		t.Error("a namespace is still mounted")
	}
}
