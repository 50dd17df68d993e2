package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
)

func (a *app) rescueCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "Look at what a former primary had that the store's history has not, and deliver it",
		Long: `A primary that went on alone while another slot was promoted comes back with
entries that the store's history has not: a lost branch. Its slot keeps them, and
follows the new primary. Messages that had been acknowledged are delivered again by
themselves, as new messages: into the mailbox where they were, or the user's INBOX
if that is gone; once, whatever crashes; and not if the mailbox has the same content
since the fork. What remains is for you: messages that nobody was promised, those
without a mailbox, and changes of flags, moves and deletions, which are not repeated.

The commands are about the node that is asked: the one that keeps the branch.`,
		Example: `  slotfs rescue list
  slotfs rescue show mail1 813-902-1f2e3d4c5b6a7988`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.rescueListCmd(), a.rescueShowCmd(), a.rescueDeliverCmd(), a.rescueDropCmd())
	return cmd
}

func (a *app) rescueListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list [STORE]",
		Short:   "List the lost branches that this node keeps",
		Long:    `List shows when each branch was kept, where it left the store's history, in which epochs, whose history went on, and what became of its messages.`,
		Example: "  slotfs rescue list mail1 --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if len(args) == 1 {
				q.Set("store", args[0])
			}
			var l admin.RescueList
			if err := a.get(cmd, "/v1/rescue", q, &l); err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(&l)
			}
			return printBranches(a.out, &l)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printBranches(w io.Writer, l *admin.RescueList) error {
	if len(l.Branches) == 0 {
		fmt.Fprintf(w, "%s keeps no lost branches\n", l.Node)
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "STORE\tBRANCH\tKEPT\tFORK\tEPOCHS\tGOES ON ON\tMESSAGES\tDELIVERED\tTHERE ALREADY\tLEFT\tOTHER CHANGES")
	for _, b := range l.Branches {
		fork := fmt.Sprint(b.Fork)
		if b.Unknown {
			fork = "unknown"
		}
		epochs := "-"
		if n := len(b.Epochs); n > 0 {
			epochs = fmt.Sprintf("%d-%d", b.Epochs[0].Epoch, b.Epochs[n-1].Epoch)
		}
		c := b.Changes
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d flags, %d moves, %d deletions\n", b.StoreName, b.Name, b.Time.Local().Format("2006-01-02 15:04"),
			fork, epochs, dash(b.From), b.Messages, b.Decided["delivered"], b.Decided["present"], b.Left, c.Flags, c.Moved, c.Removed)
	}
	return t.Flush()
}

func (a *app) rescueShowCmd() *cobra.Command {
	var (
		asJSON bool
		raw    uint64
	)
	cmd := &cobra.Command{
		Use:   "show STORE BRANCH",
		Short: "Show every message and every entry of a lost branch",
		Long: `Show lists the branch's messages, each with its seq, Message-ID, path and what
became of it, and then all that was done in the branch, in words: changes of flags,
moves and deletions are not repeated in the store. With --raw it prints one message.`,
		Example: `  slotfs rescue show mail1 813-902-1f2e3d4c5b6a7988
  slotfs rescue show mail1 813-902-1f2e3d4c5b6a7988 --raw 815 > message.eml`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, path, show := url.Values{"store": {args[0]}, "name": {args[1]}}, "/v1/rescue/show", a.copyOut
			switch {
			case raw > 0:
				q.Set("seq", strconv.FormatUint(raw, 10))
				path = "/v1/rescue/content"
			case !asJSON:
				show = func(r io.Reader) error { return printBranch(a.out, r) }
			}
			return a.stream(cmd, path, q, show)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	cmd.Flags().Uint64Var(&raw, "raw", 0, "print the message with this seq as it is")
	return cmd
}

func printBranch(w io.Writer, r io.Reader) error {
	out := bufio.NewWriter(w)
	dec := json.NewDecoder(r)
	part := ""
	head := func(text string) {
		if part != text {
			part = text
			fmt.Fprintf(out, "\n%s\n", text)
		}
	}
	for {
		var l admin.RescueLine
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return out.Flush()
		} else if err != nil {
			return errors.Join(fmt.Errorf("read the answer: %w", err), out.Flush())
		}
		switch {
		case l.Branch != nil:
			fmt.Fprintln(out, l.Branch.Text())
			for _, e := range l.Branch.Epochs {
				fmt.Fprintf(out, "epoch %d from seq %d: %s in sync (%s)\n", e.Epoch, e.From, counted(uint64(len(e.Members)), "slot"), e.Reason)
			}
		case l.Mail != nil:
			head("Messages:")
			m, what := l.Mail, "not delivered"
			switch d := l.Decision; {
			case d != nil:
				what = d.Outcome
				for _, x := range []string{d.Path, d.Text} {
					if x != "" {
						what += ", " + x
					}
				}
			case m.Offer:
				what = "will be delivered"
			case !m.Offer:
				what = "never acknowledged"
			}
			fmt.Fprintf(out, "%8d  %s  %9s  %s  %s  (%s)\n", m.Seq, time.Unix(0, m.Time).Local().Format("2006-01-02 15:04:05"), size(uint64(m.Size)), dash(m.MessageID), m.Path, what)
		case l.Entry != nil:
			head("Entries:")
			printLogLine(out, l.Entry, l.MessageID)
		}
	}
}

func (a *app) rescueDeliverCmd() *cobra.Command {
	var (
		req    admin.RescueDeliver
		seqs   []uint
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "deliver STORE BRANCH",
		Short: "Deliver messages of a lost branch again",
		Long: `Deliver publishes the chosen messages through the store's primary, as new ones: in
the mailbox where they were, else in the user's INBOX, or where --into says. None is
delivered twice, and none that the mailbox has since the fork with the same content.`,
		Example: `  slotfs rescue deliver mail1 813-902-1f2e3d4c5b6a7988 --seq 815,820
  slotfs rescue deliver mail1 813-902-1f2e3d4c5b6a7988 --all
  slotfs rescue deliver mail1 813-902-1f2e3d4c5b6a7988 --all --into mail/postmaster/.Found`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if req.All == (len(seqs) > 0) {
				return &usageError{errors.New("deliver wants either --all or --seq")}
			}
			req.Store, req.Name = args[0], args[1]
			for _, s := range seqs {
				req.Seqs = append(req.Seqs, uint64(s))
			}
			var d admin.RescueDelivered
			if err := a.post(cmd, "/v1/rescue/deliver", &req, &d); err != nil {
				return err
			}
			if asJSON {
				if err := a.printJSON(&d); err != nil {
					return err
				}
			} else {
				for _, x := range d.Decisions {
					fmt.Fprintf(a.out, "%8d  %-9s  %s", x.Seq, x.Outcome, x.Path)
					if x.Text != "" {
						fmt.Fprintf(a.out, "  (%s)", x.Text)
					}
					fmt.Fprintln(a.out)
				}
				fmt.Fprintf(a.out, "%s\n", counted(uint64(len(d.Decisions)), "message"))
			}
			if d.Error != "" {
				return exit.With(exit.General, errors.New(d.Error))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&req.All, "all", false, "all messages of the branch that are not in the store")
	f.UintSliceVar(&seqs, "seq", nil, "the messages with these seqs, as \"rescue show\" has them")
	f.StringVar(&req.Into, "into", "", "deliver into this mailbox (a path in the store)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) rescueDropCmd() *cobra.Command {
	var req admin.RescueDrop
	cmd := &cobra.Command{
		Use:   "drop STORE BRANCH",
		Short: "Remove a lost branch for good",
		Long: `Drop removes what is kept of a lost branch, messages that were not delivered
included. It wants --yes (exit code 10 without), and the slot's ledger notes it.`,
		Example: "  slotfs rescue drop mail1 813-902-1f2e3d4c5b6a7988 --yes",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Store, req.Name = args[0], args[1]
			var b admin.LostBranch
			if err := a.post(cmd, "/v1/rescue/drop", &req, &b); err != nil {
				return err
			}
			fmt.Fprintf(a.out, "dropped %s: %s, %d of which were not delivered again\n", req.Name, counted(b.Messages, "message"), b.Left)
			return nil
		},
	}
	cmd.Flags().BoolVar(&req.Yes, "yes", false, "remove it")
	return cmd
}
