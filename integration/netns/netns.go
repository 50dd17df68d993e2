// Package netns is a network of a test's own: hosts, each a network namespace,
// and a router between them, in which each direction of each link can be cut
// or made slow. Nothing of it touches the machine's own network, and the same
// addresses are used by every network, because none can see another.
//
//	host a ─ veth ┐
//	host b ─ veth ┼─ router (forwards; drops by policy rules) ─ tun ─ this process, for delays
//	host w ─ veth ┘
//
// A cut is a policy rule "blackhole" of the router: packets of one direction
// vanish without a word to anybody, as with a broken cable. (In the sender's
// own namespace it would be an error of its system call.) It needs no module of
// the kernel beyond namespaces, veth, tun and policy routing, which every
// Debian kernel has; the delay is made by this process for the same reason.
//
// Only the network namespace differs: mounts that a process on a host makes
// are seen by everybody, and Unix sockets are reached by their paths.
//
// A namespace is kept alive by a bind mount in the scratch directory and by its
// processes. Both end with the scratch directory, and with them the devices.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"slotfs/integration/scratch"
)

// Net is a network.
type Net struct {
	dir    string
	router *Host

	mu    sync.Mutex // guards what follows
	hosts []*Host
	cuts  map[Direction]bool
	slow  []*delayer
}

// Direction is one direction of the link between two hosts.
type Direction struct{ From, To *Host }

// Host is a machine in it. Processes are started on it with Do.
type Host struct {
	Name string
	IP   string

	file string // bind mount of the namespace
}

// New makes a network without hosts.
func New(d *scratch.Dir) (*Net, error) {
	n := &Net{dir: filepath.Join(d.Path, "net"), cuts: map[Direction]bool{}}
	if err := os.Mkdir(n.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if n.router, err = n.namespace("router"); err != nil {
		return nil, err
	}
	err = n.router.Do(func() error {
		// Of the namespace of the thread that opens it.
		for file, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0", "conf/all/send_redirects": "0", "conf/default/send_redirects": "0"} {
			if err := os.WriteFile("/proc/sys/net/ipv4/"+file, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// namespace makes one, with nothing in it but lo.
func (n *Net) namespace(name string) (*Host, error) {
	h := &Host{Name: name, file: filepath.Join(n.dir, name)}
	if err := os.WriteFile(h.file, nil, 0o600); err != nil {
		return nil, err
	}
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("no network namespaces here: %w", err)
		}
		if err := unix.Mount(thisNamespace, h.file, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("keep the namespace of %s: %w", name, err)
		}
		return ip("link set lo up")
	})
	return h, err
}

// thisNamespace is the network namespace of the thread that opens it.
const thisNamespace = "/proc/thread-self/ns/net"

// onThread runs f on a thread that may change its namespace, and puts the
// thread back; one that cannot be put back ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(thisNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer unix.Close(home)
		err = f()
		if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
			done <- errors.Join(err, fmt.Errorf("leave the namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// Do runs f on a thread whose network is this host's. Processes that it starts
// and sockets that it makes stay there; goroutines that it starts do not.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		ns, err := unix.Open(h.file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the namespace of %s: %w", h.Name, err)
		}
		return f()
	})
}

// DialContext connects from this host to an address given by number.
func (h *Host) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens on this host.
func (h *Host) Listen(network, addr string) (l net.Listener, err error) {
	err = h.Do(func() error {
		l, err = net.Listen(network, addr)
		return err
	})
	return l, err
}

// Addr is an address on this host.
func (h *Host) Addr(port int) string { return net.JoinHostPort(h.IP, fmt.Sprint(port)) }

// ip runs commands of ip(8) in the namespace of the calling thread.
func ip(lines ...string) error {
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(lines, "; "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Add makes one more host, connected to all others.
func (n *Net) Add(name string) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	i := len(n.hosts) + 1
	h, err := n.namespace(fmt.Sprintf("%d-%s", i, name))
	if err != nil {
		return nil, err
	}
	h.Name, h.IP = name, fmt.Sprintf("10.66.%d.2", i)
	err = n.router.Do(func() error {
		return ip(fmt.Sprintf("link add r%d type veth peer name eth0 netns %s", i, h.file),
			fmt.Sprintf("addr add 10.66.%d.1/24 dev r%d", i, i), fmt.Sprintf("link set r%d up", i))
	})
	if err != nil {
		return nil, err
	}
	err = h.Do(func() error {
		return ip(fmt.Sprintf("addr add %s/24 dev eth0", h.IP), "link set eth0 up", fmt.Sprintf("route add default via 10.66.%d.1", i))
	})
	if err != nil {
		return nil, err
	}
	n.hosts = append(n.hosts, h)
	return h, nil
}

// Cut makes packets of the given directions vanish, all at one moment; other
// directions go on.
func (n *Net) Cut(directions ...Direction) error { return n.set(true, directions...) }

// CutBoth cuts both directions between two hosts.
func (n *Net) CutBoth(a, b *Host) error { return n.set(true, Direction{a, b}, Direction{b, a}) }

// Isolate cuts a host from all others.
func (n *Net) Isolate(h *Host) error {
	var all []Direction
	for _, other := range n.others(h) {
		all = append(all, Direction{h, other}, Direction{other, h})
	}
	return n.set(true, all...)
}

func (n *Net) others(h *Host) []*Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	var list []*Host
	for _, other := range n.hosts {
		if other != h {
			list = append(list, other)
		}
	}
	return list
}

// Heal mends everything that was cut.
func (n *Net) Heal() error {
	n.mu.Lock()
	var all []Direction
	for d := range n.cuts {
		all = append(all, d)
	}
	n.mu.Unlock()
	return n.set(false, all...)
}

// set cuts or mends directions, all in one go.
func (n *Net) set(cut bool, directions ...Direction) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var lines []string
	for _, d := range directions {
		if n.cuts[d] == cut {
			continue
		}
		verb := "del"
		if cut {
			verb = "add"
		}
		lines = append(lines, fmt.Sprintf("rule %s pref 1 from %s to %s blackhole", verb, d.From.IP, d.To.IP))
	}
	if len(lines) == 0 {
		return nil
	}
	if err := n.router.Do(func() error { return ip(lines...) }); err != nil {
		return err
	}
	for _, d := range directions {
		if cut {
			n.cuts[d] = true
		} else {
			delete(n.cuts, d)
		}
	}
	return nil
}

// Close takes the network away. Processes on its hosts should have ended.
func (n *Net) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, d := range n.slow {
		errs = append(errs, d.close())
	}
	n.slow = nil
	all := append([]*Host(nil), n.hosts...)
	if n.router != nil {
		all = append(all, n.router)
	}
	for _, h := range all {
		if err := unix.Unmount(h.file, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount the namespace of %s: %w", h.Name, err))
		}
	}
	n.hosts, n.router = nil, nil
	return errors.Join(errs...)
}
