package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
)

func (a *app) promoteCmd() *cobra.Command {
	var req admin.PromoteRequest
	cmd := &cobra.Command{
		Use:   "promote STORE",
		Short: "Make this node's slot the primary of its store",
		Long: `Promote makes the slot of the node that the config (or --socket) names the
primary: it takes over the longest history of the reachable members, begins a new
epoch and mounts the store. On a new store it makes the store. A primary that can
be reached has to be demoted first, on its node.

Without a register nobody but you can know that an unreachable primary is down.
If it is not, it may go on accepting mail that will be set aside later; so
promote then wants --old-primary-is-down.

A slot that is not in sync lacks mail that was acknowledged. --force promotes it
all the same, and first lists by path and Message-ID what only other slots are
known to have: all of it where the other node answers; where it does not, the
number of entries that this slot has heard of. Without --yes that is all that
happens (exit code 10). What is given up is not lost as long as the other disk is
there: it is delivered again when that node comes back; see "slotfs rescue".`,
		Example: `  slotfs promote mail1
  slotfs promote mail1 --old-primary-is-down      # the other machine is off
  slotfs promote mail1 --force                    # lists what would be given up
  slotfs promote mail1 --force --yes
  slotfs promote mail1 --config /etc/slotfs/n2.toml`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Store = args[0]
			if req.Force {
				if err := a.beforeForce(cmd, req.Store, req.Yes); err != nil {
					return err
				}
			}
			return a.act(cmd, "/v1/promote", &req)
		},
	}
	cmd.Flags().BoolVar(&req.OldPrimaryIsDown, "old-primary-is-down", false, "you made sure that members which cannot be reached are down")
	cmd.Flags().BoolVar(&req.Force, "force", false, "promote although acknowledged mail may be missing here: lists it, and wants --yes")
	cmd.Flags().BoolVar(&req.Yes, "yes", false, "you have seen what --force gives up")
	return cmd
}

func (a *app) demoteCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "demote STORE",
		Short: "Make this node's slot a replica",
		Long: `Demote runs on_demote, commits what was accepted and unmounts the store. Without a
register it then has no primary until one of its slots is promoted; with one,
another slot in sync takes over by itself. This slot does not resume by itself,
not after a restart either. To move a store, use "slotfs switch".`,
		Example: "  slotfs demote mail1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.act(cmd, "/v1/demote", &admin.DemoteRequest{Store: args[0]})
		},
	}
}

func (a *app) rejoinCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rejoin STORE",
		Short: "Give up this slot's diverged history for that of its peers",
		Long: `When both slots of a store were primary in the same epoch, their histories differ
and both refuse to go on until an operator chooses. Run rejoin on the node whose
history is to be given up: what it has beyond the common point is cut from its log
and kept in DATA/rescue, and the slot follows the other one.`,
		Example: "  slotfs rejoin mail1",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.act(cmd, "/v1/rejoin", &admin.RejoinRequest{Store: args[0]})
		},
	}
}

func (a *app) act(cmd *cobra.Command, path string, req any) error {
	var o admin.Outcome
	if err := a.post(cmd, path, req, &o); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "%s on %s is %s: epoch %d, seq %d", o.Store, o.Node, o.Role, o.Epoch, o.Pos.Seq)
	if o.Mount != "" {
		fmt.Fprintf(a.out, ", mounted on %s", o.Mount)
	}
	if o.Text != "" {
		fmt.Fprintf(a.out, "\n%s", o.Text)
	}
	fmt.Fprintln(a.out)
	return nil
}
