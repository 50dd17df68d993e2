// Package loopback gives each user an address of its own in 127.0.0.0/8, on
// which it may use whatever ports it likes: tests that run at one time, in one
// process or in many, never meet at a port.
//
// An address is reserved by listening on one port of it, [guard], for as long
// as it is held. So the kernel keeps the reservations, for all processes of the
// machine, and takes back those of a process that has died.
//
// Who takes an address listens below the ports that the kernel gives to
// outgoing connections (net.ipv4.ip_local_port_range), and not on a port that a
// server of the machine may have on all addresses.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// guard is the port that reserves an address.
const guard = 29999

// Host is a reserved address.
type Host struct {
	IP string

	held net.Listener
}

// Take reserves an address. 127.0.0.x is left to everybody else.
func Take() (*Host, error) {
	var last error
	for range 100 {
		h := &Host{IP: fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))}
		if h.held, last = net.Listen("tcp4", h.Addr(guard)); last == nil {
			return h, nil
		}
	}
	return nil, fmt.Errorf("take an address of 127.0.0.0/8: %w", last)
}

// Addr is a port of it.
func (h *Host) Addr(port int) string { return net.JoinHostPort(h.IP, strconv.Itoa(port)) }

// Close gives the address back.
func (h *Host) Close() error { return h.held.Close() }
