package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
)

func (a *app) registerCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "register",
		Short: "Look at the register, and change or restore its members",
		Long: `The register decides who is primary. It needs a majority of its members: two of
three. These commands ask the node that the config (or --socket) names.`,
		Example: "  slotfs register status",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.registerStatusCmd(), a.registerAddCmd(), a.registerRemoveCmd(), a.registerRestoreCmd())
	return cmd
}

func (a *app) registerStatusCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the register's members and its records",
		Example: `  slotfs register status
  slotfs register status --json | jq .records`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r admin.RegisterReport
			if err := a.get(cmd, "/v1/register", nil, &r); err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(&r)
			}
			return printRegister(a.out, &r)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) registerAddCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME HOST:PORT",
		Short: "Let a new member into the register",
		Long: `Add lets the node NAME become a member at HOST:PORT, its address for the other
members. It joins when it is started with an empty register directory and a config
that lists it, and has a vote when it has caught up. Run it on a node that is a
member.`,
		Example: `  slotfs register add w 192.0.2.3:7948`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeMembers(cmd, "/v1/register/add", &admin.AddMemberRequest{Name: args[0], Addr: args[1]})
		},
	}
}

func (a *app) registerRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a member's vote away",
		Long: `Remove takes a member out of the register, for good: one whose data is lost, or
that is not wanted any more. If it comes back it puts its old data aside and waits
to be added. A majority of the members has to be up. A member that was added and
has never started is named by its address.`,
		Example: `  slotfs register remove w                  # its disk is dead
  slotfs register add w 192.0.2.3:7948      # and this is its replacement`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.changeMembers(cmd, "/v1/register/remove", &admin.RemoveMemberRequest{Member: args[0]})
		},
	}
}

func (a *app) changeMembers(cmd *cobra.Command, path string, req any) error {
	var o admin.MembersOutcome
	if err := a.post(cmd, path, req, &o); err != nil {
		return err
	}
	fmt.Fprintln(a.out, o.Text)
	return nil
}

func (a *app) registerRestoreCmd() *cobra.Command {
	var req admin.RestoreRequest
	cmd := &cobra.Command{
		Use:   "restore [STORE]",
		Short: "Make a lost register, or a lost record, anew",
		Long: `Without STORE: a majority of the register's members is lost for good. The register
begins anew with this node's member alone, from its data; if it has none, empty.
What was decided without this member is forgotten, so run it on the one that was up
last, and make sure that the others are down and stay down. Grow it again with
slotfs register add.

With STORE: the store's record is missing, garbage, or older than the store itself;
or the store comes from a time without a register. It is written anew from what this
node's slot has on its disk. A slot that was not in the in-sync set, or that is
damaged, is refused; so is one when a slot of the set is silent that may have gone
on without it, unless you say --force.

Without --yes it says what it would do, and does nothing (exit code 10).`,
		Example: `  slotfs register restore                 # what would be done?
  slotfs register restore --yes
  slotfs register restore mail1 --yes`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.Store = args[0]
			}
			var o admin.RestoreOutcome
			if err := a.post(cmd, "/v1/register/restore", &req, &o); err != nil {
				return err
			}
			if !o.Done {
				fmt.Fprintf(a.out, "This would be done: %s.\nNothing was done; repeat with --yes.\n", strings.TrimSuffix(o.Text, "."))
				return &silentError{exit.Unconfirmed}
			}
			fmt.Fprintf(a.out, "Done: %s.\n", strings.TrimSuffix(o.Text, "."))
			return nil
		},
	}
	cmd.Flags().BoolVar(&req.Yes, "yes", false, "do it")
	cmd.Flags().BoolVar(&req.Force, "force", false, "although a slot that cannot be asked may know a later epoch")
	return cmd
}

// printRegisterLine is the register in a line of status.
func printRegisterLine(w io.Writer, s *admin.Status) {
	r := &s.Register
	if r.Mode == "" || r.Mode == config.RegisterNone {
		return
	}
	line := "register: " + r.Mode
	var members []string
	for _, m := range r.Members {
		text := m.Name
		if text == "" {
			text = m.Peer
		}
		switch {
		case m.State != "up":
			text += " (" + m.State + ")"
		case m.Leads:
			text += " (leads)"
		}
		members = append(members, text)
	}
	if len(members) > 0 {
		line += "; members " + strings.Join(members, ", ")
	}
	switch {
	case r.Answers:
		line += fmt.Sprintf("; answered %s ago", age(s.Time, r.Heard))
	case r.Heard.IsZero():
		line += "; has not answered yet"
	default:
		line += "; DOES NOT ANSWER since " + age(s.Time, r.Since)
	}
	fmt.Fprintf(w, "\n%s\n", line)
}

// printRegister shows the report of register status.
func printRegister(w io.Writer, r *admin.RegisterReport) error {
	fmt.Fprintf(w, "mode      %s\n", r.Mode)
	if r.Mode == config.RegisterNone {
		fmt.Fprintln(w, "changes of primary are commands on this node; there is no register")
		return nil
	}
	switch {
	case r.Answers:
		fmt.Fprintf(w, "answers   yes, last at %s\n", r.Heard.Local().Format("15:04:05"))
	case r.Heard.IsZero():
		fmt.Fprintf(w, "answers   NO, not once since this node started: %s\n", r.Error)
	default:
		fmt.Fprintf(w, "answers   NO, since %s: %s. Roles cannot change.\n", r.Since.Local().Format("15:04:05"), r.Error)
	}
	if r.Member != nil {
		fmt.Fprintf(w, "here      %s %s\n", r.Member.Phase, r.Member.Text)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Members) > 0 {
		fmt.Fprintf(t, "\nMEMBER\tSTATE\tLEADS\tADDRESS\tCLIENTS\n")
	}
	for _, m := range r.Members {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", dash(m.Name), m.State, yes(m.Leads), m.Peer, dash(m.Client))
	}
	if len(r.Records) > 0 {
		fmt.Fprintf(t, "\nSTORE\tEPOCH\tPRIMARY\tIN SYNC\tSINCE\tREASON\n")
	}
	for _, store := range slices.Sorted(maps.Keys(r.Records)) {
		rec := r.Records[store]
		if rec.Error == "" {
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\n", store, rec.Epoch, rec.Leader, strings.Join(rec.Nodes, ", "), rec.Time.Local().Format("2006-01-02 15:04:05"), rec.Reason)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, m := range r.Members {
		if m.Trouble != "" {
			fmt.Fprintf(w, "! %s: %s\n", m.Name, m.Trouble)
		}
	}
	for _, store := range slices.Sorted(maps.Keys(r.Records)) {
		if rec := r.Records[store]; rec.Error != "" {
			fmt.Fprintf(w, "! %s: %s\n", store, rec.Error)
		}
	}
	if r.Problem != "" {
		fmt.Fprintf(w, "! %s\n", r.Problem)
	}
	return nil
}
