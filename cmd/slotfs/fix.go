package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta"
)

func (a *app) checkCmd() *cobra.Command {
	var (
		req    admin.CheckRequest
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "check STORE",
		Short: "Compare tree, index and log of this node's slot",
		Long: `Check proves that the slot of this node is what its log says, by invariants that
each finding names. It works while the slot is in use; if the node does not run,
the slot is opened for the check, and recovered first if need be.

  I1  every name of the index is in the tree, with that id and type
  I2  the tree has no other names
  I3  mode, owner, size, mtime, names and xattrs are those of the index
  I4  the content of every sealed file matches its checksum (with --content)
  I5  the index agrees with itself: names, sums of directories, digest
  I6  the log is whole from its first to its last entry
  I7  trash, stage and quarantine hold only what belongs there
  I8  the mark of every object says of its content what the index says

Nothing is changed without --repair or --rebuild. The exit code is 9 if anything
was found.`,
		Example: `  slotfs check mail1
  slotfs check mail1 --content --repair   # get damaged messages from the other node
  slotfs check mail1 --rebuild            # make the index anew from tree and log`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Store = args[0]
			r, err := a.check(cmd.Context(), &req)
			if err != nil {
				return err
			}
			return a.report(r, req.Store, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.Content, "content", false, "read and verify the content of all sealed files")
	f.BoolVar(&req.Repair, "repair", false, "make the tree agree with the index, and fetch good copies of damaged content")
	f.BoolVar(&req.Rebuild, "rebuild", false, "make the index anew; of a running node at its next start")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// check asks the node, or opens the slot itself if no node runs.
func (a *app) check(ctx context.Context, req *admin.CheckRequest) (*meta.Report, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	r := new(meta.Report)
	err = c.Post(ctx, "/v1/check", req, r)
	if err == nil {
		return r, nil
	}
	if exit.Of(err) != exit.NotRunning || a.socketPath != "" {
		return nil, err
	}
	cfg, err := config.Parse(a.findConfig())
	if err != nil {
		return nil, err
	}
	slot, ok := cfg.Slot(req.Store)
	if !ok {
		return nil, exit.With(exit.Usage, fmt.Errorf("%s names no slot of store %q", cfg.Path, req.Store))
	}
	return a.checkOffline(ctx, slot, req)
}

func (a *app) checkOffline(ctx context.Context, c *config.Slot, req *admin.CheckRequest) (r *meta.Report, err error) {
	s, err := meta.Open(c.Data, meta.Options{Store: c.Store, Layout: c.Layout, LogMax: c.LogMax, Logger: a.quietLogger()})
	if err != nil {
		return nil, exit.With(exit.Data, fmt.Errorf("slotfs is not running, and the slot cannot be opened: %w", err))
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	fmt.Fprintf(a.err, "slotfs is not running; checking %s directly\n", c.Data)
	return s.Check(ctx, meta.CheckOptions{Content: req.Content, Repair: req.Repair, Rebuild: req.Rebuild})
}

func (a *app) quietLogger() *slog.Logger {
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func (a *app) recoverCmd() *cobra.Command {
	var (
		o      meta.RecoverOptions
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "recover DIR",
		Short: "Make a slot's tree whole after a crash, without config, peer or network",
		Long: `Recover is the way out: it needs nothing but a slot's data directory. It applies
all that the log has and the tree lacks, and checks the result; afterwards DIR/tree
is an ordinary mail spool, with every acknowledged message, that any IMAP server can
read.

With --unlock the tree may also be changed without slotfs: the slot is marked, so
that no node serves it again by mistake.`,
		Example: `  slotfs recover /var/lib/slotfs/mail1
  slotfs recover /var/lib/slotfs/mail1 --unlock    # go on without slotfs`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Logger = a.quietLogger()
			r, err := meta.Recover(cmd.Context(), args[0], o)
			var de *meta.DataError
			if errors.As(err, &de) {
				return exit.With(exit.Data, err)
			}
			if err != nil {
				return err
			}
			if !asJSON && r.Recovery != nil {
				v := r.Recovery
				fmt.Fprintf(a.out, "recovered: %d log entries replayed, %d objects made anew, %d moved, %d rewritten, %d to trash, %d to quarantine, %d without content\n",
					v.LogEntries, v.Made, v.Moved, v.Rewritten, v.Trashed, v.Quarantined, v.Missing)
			}
			if !asJSON && o.Unlock {
				fmt.Fprintf(a.out, "unlocked: %s/tree is yours; slotfs will not serve this directory again\n", args[0])
			}
			return a.report(r, args[0], asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Unlock, "unlock", false, "hand the tree over for use without slotfs")
	f.BoolVar(&o.Content, "content", false, "verify the content of all sealed files, too")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// report prints what a check found, and makes the exit code of it.
func (a *app) report(r *meta.Report, what string, asJSON bool) error {
	if asJSON {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		for _, f := range r.Findings {
			fmt.Fprintln(a.out, f)
		}
		if r.Omitted > 0 {
			fmt.Fprintf(a.out, "… and %d more\n", r.Omitted)
		}
		if r.Pending != "" {
			fmt.Fprintln(a.out, r.Pending)
		}
		verdict := "clean"
		if !r.Clean() {
			verdict = fmt.Sprintf("%d findings", len(r.Findings)+r.Omitted)
		}
		fmt.Fprintf(a.out, "%s: %s (%d objects, %d messages, %d contents verified, at seq %d, in %v)\n",
			what, verdict, r.Stats.Objects, r.Stats.Messages, r.Verified, r.Stats.Pos.Seq, r.Took.Round(time.Millisecond))
	}
	if !r.Clean() {
		return &silentError{exit.Differences}
	}
	return nil
}
