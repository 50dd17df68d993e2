package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
)

func (a *app) undeleteCmd() *cobra.Command {
	var (
		r      admin.UndeleteRequest
		since  string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "undelete STORE --since TIME",
		Short: "Bring back messages that were removed not long ago",
		Long: `Undelete brings back the messages of a store that were removed at TIME or later
and whose bytes are still kept: all for ten minutes (brake_window), and for a week
(brake_keep) what an implausible burst of removals took; "slotfs status" says when
there was one. Each comes back to its mailbox, which is made again if it is gone,
under its old name, or under a new one if that is taken; its date stays, and the
flag \Deleted goes. A message comes back once: a second run finds nothing.

TIME is a time (2026-11-23T14:00:00Z, "2026-11-23 14:00" in local time) or how long
ago (90m, 26h). USER is the path of a user's directory, local@domain, or its name.

Run it on the primary; with --dry-run also elsewhere. The exit code is 9 if a
message could not be brought back.`,
		Example: `  slotfs undelete mail1 --since 2h --dry-run
  slotfs undelete mail1 --since "2026-11-23 14:00" --user alice@example.org`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Since, err = parseSince(since, time.Now()); err != nil {
				return &usageError{err}
			}
			r.Store = args[0]
			var u admin.Undeleted
			if err := a.post(cmd, "/v1/undelete", &r, &u); err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(&u)
			} else {
				err = printUndeleted(a.out, &u)
			}
			if err == nil && u.Failed > 0 {
				err = &silentError{exit.Differences}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&since, "since", "", "removed at this time or later (required)")
	f.StringVar(&r.User, "user", "", "only this user's")
	f.BoolVar(&r.DryRun, "dry-run", false, "only list what would come back")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// parseSince reads a time or how long ago it was.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, errors.New("--since is missing: from when on, as a time or how long ago")
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since %q is neither a time such as \"2026-11-23 14:00\" nor how long ago, such as 90m", text)
}

func printUndeleted(w io.Writer, u *admin.Undeleted) error {
	for _, i := range u.Items {
		fmt.Fprintf(w, "%s  %s", i.Removed.Local().Format(time.DateTime), i.Path)
		switch {
		case i.Error != "":
			fmt.Fprintf(w, "  not brought back: %s", i.Error)
		case i.To != "" && i.To != i.Path:
			fmt.Fprintf(w, " -> %s", i.To)
		}
		fmt.Fprintln(w)
	}
	what := "brought back"
	if u.DryRun {
		what = "would come back"
	}
	_, err := fmt.Fprintf(w, "%s: %d messages %s, %d could not\n", u.Store, u.Restored, what, u.Failed)
	return err
}
