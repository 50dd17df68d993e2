package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
)

func (a *app) switchCmd() *cobra.Command {
	var (
		req    admin.SwitchRequest
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "switch STORE",
		Short: "Hand a store over to another node",
		Long: `Switch makes another slot of the store primary, in good order: the target is
checked (connected, in sync, not far behind, not drained, able to mount); on_demote
runs on the old primary; calls in flight complete, later ones on the old mount get
EROFS; all that was accepted is committed on the target; it becomes primary, mounts
and runs on_promote. The old primary stays in the in-sync set. If the target fails,
the old primary is primary again.

Any node may be asked; the primary does it. Nothing acknowledged is lost. What was
refused is said, with exit code 8, and nothing has changed then.`,
		Example: `  slotfs switch mail1
  slotfs switch mail1 --to n2`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Store = args[0]
			if !asJSON {
				return a.act(cmd, "/v1/switch", &req)
			}
			var o admin.Outcome
			if err := a.post(cmd, "/v1/switch", &req, &o); err != nil {
				return err
			}
			return a.printJSON(&o)
		},
	}
	cmd.Flags().StringVar(&req.To, "to", "", "node whose slot becomes primary (default: the replica that lacks least)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) drainCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move all primaries away from a node, before maintenance",
		Long: `Drain switches every store whose primary is on the node over to another one, and
notes on the node's disk that its slots do not become primary by themselves until
"slotfs undrain": not after a restart, nor when another node is lost. An operator's
"slotfs promote" still counts. Its slots go on as replicas, in sync.

Any node may be asked. A store that cannot be moved keeps its primary there; drain
says why, and exits with 8.`,
		Example: "  slotfs drain n1",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.drain(cmd, args[0], true, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) undrainCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "undrain NODE",
		Short:   "Let a node's slots become primary again",
		Long:    `Undrain takes back "slotfs drain". It moves nothing: use "slotfs switch" for that.`,
		Example: "  slotfs undrain n1",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.drain(cmd, args[0], false, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) drain(cmd *cobra.Command, node string, on, asJSON bool) error {
	var d admin.Drained
	if err := a.post(cmd, "/v1/drain", &admin.DrainRequest{Node: node, On: on}, &d); err != nil {
		return err
	}
	stuck := 0
	for _, s := range d.Stores {
		if s.Error != "" {
			stuck++
		}
	}
	if asJSON {
		if err := a.printJSON(&d); err != nil {
			return err
		}
	} else {
		what := "drained: its slots do not become primary by themselves"
		if !on {
			what = "no longer drained"
		}
		fmt.Fprintf(a.out, "%s is %s\n", d.Node, what)
		for _, s := range d.Stores {
			switch {
			case s.Error != "":
				fmt.Fprintf(a.out, "! %s: still primary on %s: %s\n", s.Store, d.Node, s.Error)
			case s.To != "":
				fmt.Fprintf(a.out, "%s: primary on %s now, in epoch %d\n", s.Store, s.To, s.Epoch)
			}
		}
	}
	if stuck > 0 {
		return exit.With(exit.Refused, fmt.Errorf("%d of %d stores could not be moved away from %s", stuck, len(d.Stores), d.Node))
	}
	return nil
}
