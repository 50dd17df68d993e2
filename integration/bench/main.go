// Bench measures slotfs beside what it is built on: the same load runs, phase
// by phase and in alternation, on a bare ext4 directory, on a mount with one
// slot, and on a mount whose replica is a second process on the same machine.
// Quote the ratios: the order of the targets turns with every round, so they
// survive a machine whose speed drifts. See README.md here.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"slotfs/integration/scratch"
)

// options are the command line.
type options struct {
	bin       string
	against   string
	slot      string
	dir       string
	only      string
	rounds    int
	phases    []string
	writers   []int
	targets   []string
	fileCount int
	size      int
	messages  int
	users     int
	conns     int
	least     time.Duration
	seed      uint64
	json      string
	keep      time.Duration
}

func parse() (*options, error) {
	o := &options{}
	var writers, targets, phases string
	flag.StringVar(&o.bin, "bin", "bin/slotfs", "the slotfs binary")
	flag.StringVar(&o.against, "against", "", "a second slotfs binary, whose pair is measured beside the first one's")
	flag.StringVar(&o.slot, "against-slot", "", "more lines for the [[slot]] sections of the pair of -against")
	flag.StringVar(&phases, "phases", "", "which phases, separated by commas (default: all); what comes after scan1 needs it, and expunge needs copy")
	flag.StringVar(&o.dir, "dir", "", "where the data directories go (default: the system's temporary directory)")
	flag.StringVar(&o.only, "only", "files,dovecot,requests,scrub", "which parts, separated by commas")
	flag.StringVar(&targets, "targets", strings.Join(targetNames, ","), "which targets, separated by commas")
	flag.IntVar(&o.rounds, "rounds", 3, "rounds of each load")
	flag.StringVar(&writers, "writers", "1,4,16", "numbers of writers of the file load")
	flag.IntVar(&o.fileCount, "files", 480, "messages of the file load, all writers together")
	flag.IntVar(&o.size, "size", 16<<10, "bytes of a message of the file load")
	flag.IntVar(&o.messages, "messages", 600, "messages of the mail load")
	flag.IntVar(&o.users, "users", 20, "users of the mail load")
	flag.IntVar(&o.conns, "conns", 8, "connections of the mail load")
	flag.DurationVar(&o.least, "least", time.Second, "a phase that can be repeated lasts at least so long")
	flag.Uint64Var(&o.seed, "seed", 1, "of the generated mail")
	flag.StringVar(&o.json, "json", "", "write the JSON report there instead of standard output")
	flag.DurationVar(&o.keep, "keep", 0, "keep the servers up so long after the run, to look at them")
	flag.Parse()
	if flag.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	for _, f := range strings.Split(writers, ",") {
		var n int
		if _, err := fmt.Sscan(f, &n); err != nil || n < 1 {
			return nil, fmt.Errorf("-writers: %q is not a number", f)
		}
		o.writers = append(o.writers, n)
	}
	for _, name := range strings.Split(targets, ",") {
		if !slices.Contains(targetNames, name) {
			return nil, fmt.Errorf("-targets: no target %q", name)
		}
		o.targets = append(o.targets, name)
	}
	if o.against != "" {
		o.targets = append(o.targets, other)
	}
	if err := o.choose(phases); err != nil {
		return nil, err
	}
	for _, part := range strings.Split(o.only, ",") {
		if part != "files" && part != "dovecot" && part != "requests" && part != "scrub" {
			return nil, fmt.Errorf("-only: no part %q", part)
		}
	}
	var err error
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return nil, err
	}
	if o.against != "" {
		o.against, err = filepath.Abs(o.against)
	}
	return o, err
}

// choose reads -phases.
func (o *options) choose(phases string) error {
	if phases == "" {
		return nil
	}
	o.phases = strings.Split(phases, ",")
	for _, p := range o.phases {
		if !slices.Contains(mailPhases, p) && !slices.Contains(maildirPhases, p) {
			return fmt.Errorf("-phases: no phase %q", p)
		}
	}
	return nil
}

// wants is whether a phase is to be run.
func (o *options) wants(phase string) bool {
	return len(o.phases) == 0 || slices.Contains(o.phases, phase)
}

func (o *options) part(name string) bool {
	return strings.Contains(","+o.only+",", ","+name+",")
}

func main() {
	scratch.Guard()
	o, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	// The mount's owner and mode bits are the daemon's business, not ours.
	syscall.Umask(0o022)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err = run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) (err error) {
	for _, bin := range []string{o.bin, o.against} {
		if _, err := os.Stat(bin); bin != "" && err != nil {
			return fmt.Errorf("no binary: %w", err)
		}
	}
	dir, err := scratch.New(o.dir, "slotfs-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Remove()) }()
	rep := &report{Time: time.Now().UTC()}
	if rep.Machine, err = machine(dir.Path); err != nil {
		return err
	}
	fmt.Println(rep.Machine)
	b, err := newBench(o, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if o.part("files") {
		for _, n := range o.writers {
			t, err := b.files(ctx, n)
			if err != nil {
				return err
			}
			t.print(os.Stdout)
			rep.Rows = append(rep.Rows, t.rows()...)
		}
	}
	if o.part("requests") {
		if rep.Requests, err = b.requests(); err != nil {
			return err
		}
		printRequests(os.Stdout, rep.Requests)
	}
	if o.part("dovecot") {
		t, err := b.dovecots(ctx)
		if err != nil {
			return err
		}
		t.print(os.Stdout)
		rep.Rows = append(rep.Rows, t.rows()...)
	}
	if o.part("scrub") {
		if rep.Scrub, err = b.scrubs(ctx); err != nil {
			return err
		}
		rep.Scrub.print(os.Stdout)
	}
	if err := rep.save(o.json); err != nil {
		return err
	}
	if o.keep > 0 {
		b.announce(o.keep)
		select {
		case <-ctx.Done():
		case <-time.After(o.keep):
		}
	}
	return rep.failed()
}
