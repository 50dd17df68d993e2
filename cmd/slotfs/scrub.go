package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta"
)

// The exit codes of scrub are its own: they are for whoever runs it at night.
const (
	scrubClean      exit.Code = 0
	scrubRepaired   exit.Code = 1
	scrubUnrepaired exit.Code = 2
	scrubFailed     exit.Code = 3
)

// scrubFlags is what the command line of scrub says.
type scrubFlags struct {
	req           admin.ScrubRequest
	since, rate   string
	pause, resume bool
	json          bool
}

func (a *app) scrubCmd() *cobra.Command {
	var o scrubFlags
	cmd := &cobra.Command{
		Use:   "scrub STORE",
		Short: "Read everything from the disk, verify it, repair what is damaged",
		Long: `Scrub reads every message of this node's slot from the medium, not from memory,
compares it with its checksum, and names, attributes and marks with the index.
What is damaged is replaced by the copy of another node; who is right is voted on
by everything that noted the checksum at delivery. Bad copies are kept in
quarantine/, and every finding is in the ledger. It works while the store is in
use, at low priority, and makes way for users. The index is verified first; without
--user and --since the log is read, too.

A node does this continuously by itself (section [scrub] of the config); --pause
stops that, --resume lets it go on.

Exit codes, which are this command's own:
  0  clean
  1  damage was found, and all of it repaired
  2  damage is left that could not be repaired
  3  the scrub could not run, or not to its end`,
		Example: `  slotfs scrub mail1
  slotfs scrub mail1 --both --rate 50MB/s       # the other nodes' slots, too
  slotfs scrub mail1 --user alice --since 2026-11-01
  slotfs scrub mail1 --json | jq 'select(.finding)'
  slotfs scrub mail1 --pause`,
		Args: cobra.ArbitraryArgs, // checked below: wrong use has another exit code here
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return exit.With(scrubFailed, errors.New("scrub wants one STORE; see slotfs scrub --help"))
			}
			o.req.Store = args[0]
			err := a.scrub(cmd.Context(), &o)
			var silent *silentError
			if err != nil && !errors.As(err, &silent) {
				return exit.With(scrubFailed, errors.New(err.Error()))
			}
			return err
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return exit.With(scrubFailed, err) })
	f := cmd.Flags()
	f.StringVar(&o.req.User, "user", "", "only below a directory of this name (or this path from the root)")
	f.StringVar(&o.since, "since", "", "only what was delivered or changed since this date (2026-11-01, or with a time: RFC 3339)")
	f.StringVar(&o.rate, "rate", "", "read no faster than this, for example 50MB/s")
	f.BoolVar(&o.req.Both, "both", false, "scrub the slots of the other nodes, too, at the same time")
	f.BoolVar(&o.req.NoRepair, "no-repair", false, "only report")
	f.BoolVar(&o.json, "json", false, "print one JSON object per line, as it goes on")
	f.BoolVar(&o.pause, "pause", false, "stop the continuous scrub of this node's slot, until --resume")
	f.BoolVar(&o.resume, "resume", false, "let the continuous scrub go on")
	return cmd
}

func (a *app) scrub(ctx context.Context, o *scrubFlags) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if o.pause || o.resume {
		if o.pause && o.resume {
			return errors.New("--pause or --resume, not both")
		}
		var st meta.ScrubStatus
		if err := c.Post(ctx, "/v1/scrub/pause", &admin.PauseRequest{Store: o.req.Store, Paused: o.pause}, &st); err != nil {
			return err
		}
		if o.json {
			return a.printJSON(&st)
		}
		fmt.Fprintf(a.out, "%s: %s\n", o.req.Store, scrubText(&st, time.Now()))
		return nil
	}
	if o.since != "" {
		if o.req.Since, err = parseDate(o.since); err != nil {
			return err
		}
	}
	if o.rate != "" {
		if o.req.Rate, err = config.ParseRate(o.rate); err != nil {
			return fmt.Errorf("--rate: %w", err)
		}
	}
	body, err := c.PostStream(ctx, "/v1/scrub", &o.req)
	if err != nil {
		return err
	}
	defer body.Close()
	t := a.scrubTerminal(o)
	err = t.read(body)
	if ctx.Err() != nil {
		err = errors.New("interrupted; what was found so far is in the ledger")
	}
	if err := errors.Join(err, t.end()); err != nil {
		return err
	}
	if code := t.code(); code != scrubClean {
		return &silentError{code}
	}
	return nil
}

// parseDate reads a day, in local time, or a moment.
func parseDate(v string) (time.Time, error) {
	if t, err := time.ParseInLocation(time.DateOnly, v, time.Local); err == nil {
		return t, nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return t, fmt.Errorf("--since: %q is neither a day (2026-11-01) nor a moment (2026-11-01T06:00:00Z)", v)
	}
	return t, nil
}

// scrubTerminal shows scrubs of one or more nodes.
type scrubTerminal struct {
	out   io.Writer
	json  bool
	bar   *progressbar.ProgressBar // nil: plain lines
	nodes map[string]*meta.ScrubProgress
	errs  []error
	said  time.Time
}

func (a *app) scrubTerminal(o *scrubFlags) *scrubTerminal {
	t := &scrubTerminal{out: a.out, json: o.json, nodes: map[string]*meta.ScrubProgress{}, said: time.Now()}
	if !o.json {
		t.bar = newBar(a.err, "scrub", true)
	}
	return t
}

// read shows what comes until it ends.
func (t *scrubTerminal) read(r io.Reader) error {
	for dec := json.NewDecoder(r); ; {
		var line admin.ScrubLine
		if err := dec.Decode(&line); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if line.Error != "" {
			t.errs = append(t.errs, fmt.Errorf("%s: %s", line.Node, line.Error))
		}
		if line.Progress != nil {
			t.nodes[line.Node] = line.Progress
		}
		if t.json {
			if err := json.NewEncoder(t.out).Encode(&line); err != nil {
				return err
			}
			continue
		}
		t.show(&line)
	}
}

func (t *scrubTerminal) show(line *admin.ScrubLine) {
	if f := line.Finding; f != nil {
		if t.bar != nil {
			_ = t.bar.Clear()
		}
		fmt.Fprintf(t.out, "%s: %s: %s: %s (%s)\n", line.Node, f.Path, f.Kind, f.Text, f.Outcome)
	}
	if line.Progress == nil {
		return
	}
	var bytes, total int64
	var found uint64
	for _, p := range t.nodes {
		bytes, total = bytes+p.Bytes, total+max(p.TotalBytes, p.Bytes)
		found += p.Repaired + p.Unrepaired
	}
	switch {
	case t.bar != nil:
		t.bar.ChangeMax64(max(total, 1))
		t.bar.Describe(fmt.Sprintf("scrub, %d found", found))
		_ = t.bar.Set64(bytes)
	case time.Since(t.said) >= sayEvery:
		t.said = time.Now()
		p := line.Progress
		fmt.Fprintf(t.out, "%s: %s of about %s, %d messages, %s, %d found\n", line.Node, size(uint64(p.Bytes)), size(uint64(p.TotalBytes)), p.Messages, rate(p), p.Repaired+p.Unrepaired)
	}
}

func rate(p *meta.ScrubProgress) string {
	return size(uint64(float64(p.Bytes)/max(p.Took.Seconds(), 1e-9))) + "/s"
}

// end prints the result; an error if a scrub did not get to its end.
func (t *scrubTerminal) end() error {
	if t.bar != nil {
		_ = t.bar.Clear()
	}
	var names []string
	for name := range t.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	errs := t.errs
	for _, name := range names {
		p := t.nodes[name]
		if !p.Done && len(t.errs) == 0 {
			errs = append(errs, fmt.Errorf("%s: the scrub ended before its end", name))
		}
		if t.json {
			continue
		}
		verdict := "clean"
		if !p.Clean() {
			var kinds []string
			for k, n := range p.Found {
				kinds = append(kinds, fmt.Sprintf("%d %s", n, k))
			}
			slices.Sort(kinds)
			verdict = fmt.Sprintf("%d repaired, %d NOT repaired (%s)", p.Repaired, p.Unrepaired, strings.Join(kinds, ", "))
		}
		note := ""
		if p.Unverified > 0 {
			note = fmt.Sprintf("; %d adopted messages have no checksum yet", p.Unverified)
		}
		if n := p.Medium[meta.MediumCached]; n > 0 {
			note += fmt.Sprintf("; %d files could only be read through memory", n)
		}
		fmt.Fprintf(t.out, "%s: %s (%d objects, %d messages, %s read in %v, %s%s)\n", name, verdict, p.Objects, p.Messages, size(uint64(p.Bytes)), p.Took.Round(time.Millisecond), rate(p), note)
	}
	if len(names) == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("the node ended the scrub without a result"))
	}
	return errors.Join(errs...)
}

func (t *scrubTerminal) code() exit.Code {
	code := scrubClean
	for _, p := range t.nodes {
		switch {
		case p.Unrepaired > 0:
			return scrubUnrepaired
		case !p.Clean():
			code = scrubRepaired
		}
	}
	return code
}

// scrubText says in words how far scrubbing of a slot is.
func scrubText(s *meta.ScrubStatus, now time.Time) string {
	var t []string
	switch {
	case s.Progress != nil && s.Asked:
		t = append(t, fmt.Sprintf("scrub under way: %s of about %s", size(uint64(s.Progress.Bytes)), size(uint64(s.Progress.TotalBytes))))
	case s.Paused:
		t = append(t, "continuous scrub PAUSED")
	case s.Cycle <= 0:
		t = append(t, "no continuous scrub")
	default:
		t = append(t, "scrubbed once in "+config.DurationText(s.Cycle))
	}
	if s.LastPass.IsZero() {
		t = append(t, "no full pass yet")
	} else {
		t = append(t, "last full pass ended "+age(now, s.LastPass)+" ago")
	}
	if !s.Oldest.IsZero() {
		what := "oldest verification "
		if s.Never {
			what = "oldest message never verified "
		}
		t = append(t, what+age(now, s.Oldest)+" ago")
	}
	if s.Damaged > 0 {
		t = append(t, fmt.Sprintf("%d objects DAMAGED and not repaired", s.Damaged))
	}
	return strings.Join(t, "; ")
}
