package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/scratch"
)

// The targets, in the order of the report. All others are compared with the
// first.
const (
	bare  = "ext4"     // a directory of the backing file system, whatever that is
	slot  = "one slot" // a store of one slot
	pair  = "pair"     // a store of two slots, both nodes on this machine
	other = "other"    // a pair that runs the binary given with -against
)

var targetNames = []string{bare, slot, pair}

// target is a directory under test, and what works for it.
type target struct {
	name  string
	dir   string
	nodes *cluster.Cluster // nil for the bare directory; its first node is the primary
	imap  *dovecot.Server
}

// pids are the processes whose CPU time the target costs.
func (t *target) pids() []int {
	pids := t.nodePids()
	if t.imap != nil {
		pids = append(pids, t.imap.Pid)
	}
	return pids
}

// nodePids are those of slotfs, the primary first.
func (t *target) nodePids() []int {
	var pids []int
	if t.nodes != nil {
		for _, n := range t.nodes.Nodes {
			pids = append(pids, n.Pid())
		}
	}
	return pids
}

// cost is what a target has used so far.
func (t *target) cost() (c cost) {
	c.cpu = cpuTime(t.pids())
	for _, pid := range t.nodePids() {
		c.nodes = append(c.nodes, cpuTime([]int{pid}))
		c.switches += switches(pid)
	}
	return c
}

// measure runs a phase on the target, after it has come to rest.
func (t *target) measure(phase func() *sample) *sample {
	const limit = 10 * time.Second
	pids := t.pids()
	if len(pids) == 0 {
		return phase()
	}
	quiet(pids, limit)
	before := t.cost()
	s := phase()
	s.drain = quiet(pids, limit)
	s.cost = t.cost().since(before)
	return s
}

// bench is a run.
type bench struct {
	*options
	scratch *scratch.Dir
	inner   []*scratch.Dir // in scratch, of each store
	targets []*target
	mail    *generator
}

func newBench(o *options, dir *scratch.Dir) (*bench, error) {
	b := &bench{options: o, scratch: dir, mail: newGenerator(o.seed)}
	for _, name := range append(slices.Clone(targetNames), other) {
		if !slices.Contains(o.targets, name) {
			continue
		}
		t, err := b.start(name)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), b.close())
		}
		b.targets = append(b.targets, t)
	}
	return b, nil
}

func (b *bench) start(name string) (*target, error) {
	t := &target{name: name}
	if name == bare {
		t.dir = filepath.Join(b.scratch.Path, "bare")
		return t, os.Mkdir(t.dir, 0o755)
	}
	count, o := 2, cluster.Options{Binary: b.bin}
	switch name {
	case slot:
		count = 1
	case other:
		o.Binary, o.Slot = b.against, b.options.slot
	}
	// Each store has a scratch directory of its own, so that node names may be
	// the same.
	sub := filepath.Join(b.scratch.Path, strings.ReplaceAll(name, " ", "-"))
	if err := os.Mkdir(sub, 0o755); err != nil {
		return nil, err
	}
	d, err := scratch.Use(sub)
	if err != nil {
		return nil, err
	}
	b.inner = append(b.inner, d)
	c, err := cluster.New(d, count, o)
	if err != nil {
		return nil, err
	}
	if err := c.StartPair(); err != nil {
		return nil, err
	}
	t.nodes, t.dir = c, c.Nodes[0].Mount
	return t, nil
}

// close ends what runs in order; what it forgets, scratch ends.
func (b *bench) close() error {
	var errs []error
	for _, t := range b.targets {
		if t.imap != nil {
			problems, err := t.imap.Problems("Time moved forwards") // a busy machine
			errs = append(errs, err, t.imap.Stop())
			for _, p := range problems {
				errs = append(errs, fmt.Errorf("%s: dovecot: %s", t.name, p))
			}
		}
		if t.nodes != nil {
			err := t.nodes.Stop()
			if err != nil {
				explain(t)
			}
			errs = append(errs, err)
		}
	}
	for _, d := range b.inner {
		errs = append(errs, d.Remove())
	}
	return errors.Join(errs...)
}

// explain shows the end of the nodes' logs, which will not be there any more.
func explain(t *target) {
	for _, n := range t.nodes.Nodes {
		text, err := n.Log()
		if err != nil {
			text = err.Error()
		}
		lines := strings.SplitAfter(text, "\n")
		fmt.Fprintf(os.Stderr, "\n%s, %s:\n%s", t.name, n.Name, strings.Join(lines[max(0, len(lines)-400):], ""))
	}
}

// turns gives the targets in the order of a round: who goes first changes.
func (b *bench) turns(round int) []*target {
	k := round % len(b.targets)
	return append(slices.Clone(b.targets[k:]), b.targets[:k]...)
}

// files runs the file-system load with a number of writers.
func (b *bench) files(ctx context.Context, writers int) (*table, error) {
	plural := "s"
	if writers == 1 {
		plural = ""
	}
	t := newTable(fmt.Sprintf("file system calls, %d writer%s, %d messages of %d KiB", writers, plural, b.fileCount/writers*writers, b.size>>10), maildirPhases, b.targets)
	body := b.mail.text[:b.size]
	for round := range b.rounds {
		loads := map[*target]*maildir{}
		for _, x := range b.targets {
			loads[x] = &maildir{dir: filepath.Join(x.dir, fmt.Sprintf("files%d-%d", writers, round)),
				writers: writers, each: b.fileCount / writers, body: body, least: b.least}
			if err := loads[x].create(); err != nil {
				return nil, err
			}
		}
		for _, phase := range maildirPhases {
			if !b.wants(phase) {
				continue
			}
			for _, x := range b.turns(round) {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				t.add(phase, x.name, x.measure(func() *sample { return loads[x].run(phase) }))
			}
		}
		for _, x := range b.targets {
			if err := loads[x].remove(); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// spare keeps processes ready, so that no phase measures how fast one starts.
const spare = `
service imap-login {
  process_min_avail = 2
}
service imap {
  process_min_avail = 8
}
service lmtp {
  process_min_avail = 8
}
`

// serve starts the target's Dovecot, if it does not run.
func (b *bench) serve(x *target) (*server, error) {
	const password = "secret"
	if x.imap == nil {
		root := filepath.Join(x.dir, "mail")
		if err := os.MkdirAll(root, 0o755); err != nil {
			return nil, err
		}
		s, err := dovecot.Start(b.scratch, "dovecot-"+fmt.Sprint(slices.Index(b.options.targets, x.name)), root, dovecot.Options{Password: password, Extra: spare})
		if err != nil {
			return nil, err
		}
		x.imap = s
	}
	return &server{lmtp: x.imap.LMTP, imap: x.imap.IMAP, password: password}, nil
}

// dovecots runs the mail load.
func (b *bench) dovecots(ctx context.Context) (*table, error) {
	t := newTable(fmt.Sprintf("Dovecot, %d connections, %d users, %d messages", b.conns, b.users, b.messages), mailPhases, b.targets)
	for round := range b.rounds {
		loads := map[*target]*mailLoad{}
		for _, x := range b.targets {
			s, err := b.serve(x)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
			loads[x] = &mailLoad{server: s, tag: fmt.Sprintf("r%d", round), users: b.users, conns: b.conns,
				messages: b.messages, least: b.least, mail: b.mail}
			if err := loads[x].open(); err != nil {
				return nil, fmt.Errorf("%s: %w", x.name, err)
			}
		}
		for _, phase := range mailPhases {
			if !b.wants(phase) {
				continue
			}
			for _, x := range b.turns(round) {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				t.add(phase, x.name, x.measure(func() *sample { return loads[x].run(phase) }))
			}
		}
		for _, l := range loads {
			l.close()
		}
	}
	return t, nil
}

// requests counts FUSE requests on the pair, or on the one slot.
func (b *bench) requests() ([]requestCount, error) {
	for _, x := range slices.Backward(b.targets) {
		if x.nodes == nil {
			continue
		}
		s, err := b.serve(x)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.name, err)
		}
		m := *b.mail
		return countRequests(&mailLoad{server: s, tag: "q", mail: &m}, func() (map[string]float64, error) { return fuseRequests(x.nodes.Nodes[0]) })
	}
	return nil, nil
}

// announce says where everything is.
func (b *bench) announce(d time.Duration) {
	fmt.Printf("\nleft running for %s, in %s\n", d, b.scratch.Path)
	for _, t := range b.targets {
		fmt.Printf("%s: %s pids %v\n", t.name, t.dir, t.pids())
		if t.imap != nil {
			fmt.Printf("\tLMTP %s IMAP %s\n", t.imap.LMTP, t.imap.IMAP)
		}
	}
}
