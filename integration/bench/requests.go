package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"slotfs/integration/cluster"
)

// The FUSE requests of an operation do not depend on the machine, so they say
// better than any rate what a change of the mount's cache policy did. One user,
// one connection, messages of one size.
const (
	requestMessages = 60
	requestSize     = 20 << 10
)

// floor is what a loopback needs that answers every request from its own disk
// and lets the kernel cache all it can: measured on Linux 6.18 with go-fuse
// 2.12.1 and Dovecot 2.3.19, messages of 20 KiB, mail_fsync=always. plain is
// the same loopback with go-fuse's defaults.
var floor = map[string]struct{ plain, floor float64 }{
	"deliver": {76.6, 37.2},
	"scan1":   {302, 283}, // of 65 new messages
	"scan":    {32, 13.1},
	"body":    {4.1, 2.1},
	"reread":  {4.2, 1.1},
	"store":   {23.9, 18.0},
	"copy":    {56.4, 36.1},
	"move":    {115.8, 72.1},
	"expunge": {62.7, 43.4},
}

// requestPhases are the phases that requests are counted in.
var requestPhases = []string{"deliver", "scan1", "scan", "body", "reread", "store", "copy", "move", "expunge"}

// requestCount is what one operation of a phase cost.
type requestCount struct {
	Phase  string             `json:"phase"`
	Per    float64            `json:"per_op"`
	Plain  float64            `json:"plain_loopback"`
	Floor  float64            `json:"best_loopback"`
	ByName map[string]float64 `json:"by_request"`
}

// countRequests runs every phase once on a store of which read returns the FUSE
// requests so far, by name.
func countRequests(m *mailLoad, read func() (map[string]float64, error)) ([]requestCount, error) {
	m.users, m.conns, m.messages, m.least = 1, 1, requestMessages, 0
	m.mail.fixed = requestSize
	// The mailbox is made by a delivery and a login of their own.
	if err := m.open(); err != nil {
		return nil, err
	}
	defer m.close()
	var counts []requestCount
	for _, phase := range requestPhases {
		before, err := read()
		if err != nil {
			return nil, err
		}
		name := phase
		if phase == "reread" {
			name = "body"
		}
		s := m.run(name)
		if s.errs > 0 {
			return nil, fmt.Errorf("%s: %d errors, the first: %s", phase, s.errs, s.first)
		}
		after, err := read()
		if err != nil {
			return nil, err
		}
		c := requestCount{Phase: phase, Plain: floor[phase].plain, Floor: floor[phase].floor, ByName: map[string]float64{}}
		for op, n := range after {
			if per := (n - before[op]) / float64(s.ops); per > 0 {
				c.ByName[op] = round(per)
				c.Per += per
			}
		}
		c.Per = round(c.Per)
		counts = append(counts, c)
	}
	return counts, nil
}

// fuseRequests reads a node's counters of FUSE requests, by opcode.
func fuseRequests(n *cluster.Node) (map[string]float64, error) {
	traffic, err := n.Traffic()
	if err != nil {
		return nil, err
	}
	counts := map[string]float64{}
	for op, v := range traffic {
		counts[op] = float64(v)
	}
	return counts, nil
}

func printRequests(w io.Writer, counts []requestCount) {
	fmt.Fprintf(w, "\nFUSE requests per operation under Dovecot, %d messages of %d KiB, one connection\n\n", requestMessages, requestSize>>10)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "phase\tslotfs\tbest loopback\tplain loopback\twhich")
	for _, c := range counts {
		names := slices.SortedFunc(maps.Keys(c.ByName), func(a, b string) int {
			if d := c.ByName[b] - c.ByName[a]; d > 0 {
				return 1
			} else if d < 0 {
				return -1
			}
			return strings.Compare(a, b)
		})
		var which []string
		for _, n := range names {
			which = append(which, fmt.Sprintf("%s %.1f", n, c.ByName[n]))
		}
		fmt.Fprintf(tw, "%s\t%.1f\t%.1f\t%.1f\t%s\n", c.Phase, c.Per, c.Floor, c.Plain, strings.Join(which, ", "))
	}
	tw.Flush()
}
