package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
)

func (a *app) verifyCmd() *cobra.Command {
	var (
		req             admin.VerifyRequest
		content, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "verify STORE",
		Short: "Prove that all slots of a store are equal, or name what differs",
		Long: `Verify compares this node's slot with those of the other nodes: all of them at
one and the same entry of the log, record by record, whatever goes on meanwhile.
Digests are made anew from the records; where those of a directory differ it goes
down, and names the paths that differ.

Records contain the checksum of every message. --content proves as well that the
disks hold what the records say, and that the logs can be read: it scrubs all slots
without repairing anything. A damaged index is made anew in any case, as a node does
by itself.

With --repair everything that differs is voted on, and corrected where it was
outvoted. A node does so by itself when it notices that a digest differs.

The exit code is 0 if all are equal, 9 if anything differs (with --repair: still),
and 8 if there was nothing to compare with.`,
		Example: `  slotfs verify mail1
  slotfs verify mail1 --content
  slotfs verify mail1 --repair --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Store = args[0]
			var v admin.Verified
			if err := a.post(cmd, "/v1/verify", &req, &v); err != nil {
				return err
			}
			if req.Repair && !v.Equal() {
				if !asJSON {
					a.printVerifiedStore(&v)
				}
				again := req
				again.Repair = false
				v = admin.Verified{}
				if err := a.post(cmd, "/v1/verify", &again, &v); err != nil {
					return err
				}
			}
			if asJSON {
				if err := a.printJSON(&v); err != nil {
					return err
				}
			} else {
				a.printVerifiedStore(&v)
			}
			if v.Error != "" {
				return exit.With(exit.Refused, errors.New(v.Error))
			}
			if !v.Equal() {
				return &silentError{exit.Differences}
			}
			if content {
				return a.verifyContent(cmd, req.Store, asJSON)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&content, "content", false, "read all content from the disks of all nodes, too")
	f.BoolVar(&req.Repair, "repair", false, "vote on what differs, and correct what is outvoted")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// verifyContent scrubs all slots and repairs nothing.
func (a *app) verifyContent(cmd *cobra.Command, store string, asJSON bool) error {
	o := &scrubFlags{req: admin.ScrubRequest{Store: store, Both: true, NoRepair: true}, json: asJSON}
	err := a.scrub(cmd.Context(), o)
	var silent *silentError
	if errors.As(err, &silent) {
		return &silentError{exit.Differences}
	}
	return err
}

func (a *app) printVerifiedStore(v *admin.Verified) {
	for _, c := range v.Comparisons {
		for _, d := range c.Differences {
			path := d.Path
			if path == "" {
				path = "."
			}
			fmt.Fprintf(a.out, "%s: %s\n", path, d.Text)
		}
		if c.Omitted > 0 {
			fmt.Fprintf(a.out, "… and more\n")
		}
		verdict := "EQUAL"
		if !c.Equal {
			verdict = fmt.Sprintf("%d DIFFERENCES", len(c.Differences)+c.Omitted)
		}
		fmt.Fprintf(a.out, "%s: %s and %s at %s: %s (%d objects, digest %s)\n", v.Store, v.Node, c.Node, c.Pos, verdict, c.Objects, c.Digest)
	}
}
