package netns

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// delayer is a tun device of the router through which the packets of one host
// pass, in both directions, some time late.
type delayer struct {
	tun   *os.File
	delay time.Duration
	queue chan packet
}

type packet struct {
	due  time.Time
	data []byte
}

// maxQueue bounds the packets under way; more are dropped, as a router would.
const maxQueue = 4096

// Delay makes each packet to or from a host arrive this much later; once for
// each host.
func (n *Net) Delay(h *Host, by time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := fmt.Sprintf("slow%d", len(n.slow))
	table := 100 + len(n.slow)
	var fd int
	err := n.router.Do(func() error {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("no tun devices here: %w", err)
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return errors.Join(fmt.Errorf("make a tun device: %w", err), unix.Close(fd))
		}
		return ip("link set "+name+" up txqueuelen 4096",
			fmt.Sprintf("route add default dev %s table %d", name, table),
			// What has been delayed goes on to where it belongs.
			"rule add pref 10 iif "+name+" lookup main",
			fmt.Sprintf("rule add pref 20 to %s lookup %d", h.IP, table),
			fmt.Sprintf("rule add pref 20 from %s lookup %d", h.IP, table))
	})
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that Close ends a Read
		return err
	}
	d := &delayer{tun: os.NewFile(uintptr(fd), "/dev/net/tun"), delay: by, queue: make(chan packet, maxQueue)}
	n.slow = append(n.slow, d)
	go d.read()
	go d.write()
	return nil
}

func (d *delayer) read() {
	defer close(d.queue)
	buf := make([]byte, 64<<10)
	for {
		k, err := d.tun.Read(buf)
		if err != nil {
			return
		}
		select {
		case d.queue <- packet{time.Now().Add(d.delay), append([]byte(nil), buf[:k]...)}:
		default:
		}
	}
}

func (d *delayer) write() {
	for p := range d.queue {
		time.Sleep(time.Until(p.due))
		if _, err := d.tun.Write(p.data); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

func (d *delayer) close() error { return d.tun.Close() }
