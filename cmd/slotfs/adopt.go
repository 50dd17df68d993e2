package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta"
)

func (a *app) adoptCmd() *cobra.Command {
	var from string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "adopt STORE",
		Short: "Make a store of existing mail, in place",
		Long: `Adopt makes a store of a Maildir tree that a mail server wrote without slotfs.
Nothing is copied, and nothing is read at first: every file gets an id as an
extended attribute, and the index is filled with names, sizes, dates and owners,
which takes seconds to minutes. UIDs, flags and dates stay, as names, control files
and times do. Stop the mail server and the node first, and take a backup as before
any migration.

The slot must be new (slotfs create). Move the mail into DATA/tree, or name it with
--from: its contents are then moved there, which needs the same file system. Mail
below DATA/tree will be at the same path below the mount.

Then start the node. The slot becomes primary, the mail server can go on, and a
replica is filled by itself. Meanwhile the node reads every message once for its
checksum, at low priority and no faster than the rate in section [scrub] of the
config; until its turn a message is "unverified": it is served as the disk has it.
Run adopt again, with the node running, to see how far it is. Nothing is lost by
an interruption, of this command or of the node: both go on where they were.

Not taken over, but moved to DATA/adopt-left/ and listed: sockets and devices, what
is in tmp/, lock files, caches that are made again, and what has no readable name
or attributes. A message whose content turns out not to be readable stays where it
is, unverified, and is reported.

The exit code is 9 if anything but temporary files, locks and caches was left out,
or a message cannot be read.`,
		Example: `  slotfs adopt mail1 --from /var/mail/vhosts
  slotfs adopt mail1            # the mail is in DATA/tree already, or go on
  slotfs adopt mail1            # with the node running: how far it has read`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := config.Parse(a.findConfig())
			if err != nil {
				return err
			}
			s, ok := c.Slot(args[0])
			if !ok {
				return exit.With(exit.Usage, fmt.Errorf("%s names no slot of store %q", c.Path, args[0]))
			}
			if from != "" {
				if err := moveInto(from, filepath.Join(s.Data, "tree")); err != nil {
					return exit.With(exit.Data, err)
				}
			}
			show := &adoptShow{w: a.err}
			r, err := meta.Adopt(cmd.Context(), s.Data, meta.AdoptOptions{Store: s.Store, Logger: a.quietLogger(), Progress: show.progress})
			show.end()
			if errors.Is(err, meta.ErrLocked) || errors.Is(err, meta.ErrHasStore) {
				return a.followAdoption(cmd.Context(), s.Store, asJSON, err)
			}
			var de *meta.DataError
			if errors.As(err, &de) {
				return exit.With(exit.Data, err)
			}
			if err != nil {
				return fmt.Errorf("%w; run it again to go on", err)
			}
			if asJSON {
				err = a.printJSON(r)
			} else {
				err = printAdopted(a.out, s, r)
			}
			if err == nil && r.Lost() > 0 {
				err = &silentError{exit.Differences}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "directory whose contents are moved into DATA/tree first")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// moveInto moves the contents of a directory into the tree, and its owner and mode.
func moveInto(from, tree string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	if err := errors.Join(os.Chown(tree, int(st.Uid), int(st.Gid)), os.Chmod(tree, os.FileMode(st.Mode&0o777))); err != nil {
		return err
	}
	for _, e := range entries {
		to := filepath.Join(tree, e.Name())
		if _, err := os.Lstat(to); err == nil {
			return fmt.Errorf("%s is there already", to)
		}
		err := os.Rename(filepath.Join(from, e.Name()), to)
		if errors.Is(err, syscall.EXDEV) {
			return fmt.Errorf("%s and %s are on two file systems: put the slot's data directory on that of the mail, or copy the mail into %s yourself", from, tree, tree)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func printAdopted(w io.Writer, s *config.Slot, r *meta.AdoptReport) error {
	for _, l := range r.Left {
		fmt.Fprintf(w, "left out: %q: %s\n", l.Path, l.Reason)
	}
	if len(r.Left) > 0 {
		fmt.Fprintf(w, "what was left out is in %s\n", filepath.Join(s.Data, "adopt-left"))
	}
	_, err := fmt.Fprintf(w, "%s: adopted %d messages and %d other files in %d directories, %d bytes; start the node to serve them: it takes their checksums meanwhile, and 'slotfs adopt %s' shows how far it is\n",
		s.Store, r.Messages, r.Other, r.Dirs, r.Bytes, s.Store)
	return err
}

// adoptShow shows how far it is: a bar in a terminal, else a line now and then.
type adoptShow struct {
	w    io.Writer
	bar  *progressbar.ProgressBar
	last time.Time
}

func (s *adoptShow) progress(r meta.AdoptReport) {
	if s.last.IsZero() {
		if s.bar = newBar(s.w, "adopt", false); s.bar != nil {
			s.bar.ChangeMax64(int64(max(r.TotalFiles, 1)))
		}
	}
	if s.bar != nil {
		_ = s.bar.Set64(int64(min(r.Messages+r.Other, r.TotalFiles))) // it only draws
	} else if time.Since(s.last) < sayEvery {
		return
	} else {
		fmt.Fprintf(s.w, "adopted %d of %d files, %d left out\n", r.Messages+r.Other, r.TotalFiles, len(r.Left))
	}
	s.last = time.Now()
}

func (s *adoptShow) end() {
	if s.bar != nil {
		_ = s.bar.Clear()
	}
}
