package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/gossip"
)

func (a *app) statusCmd() *cobra.Command {
	var asJSON, atRisk bool
	cmd := &cobra.Command{
		Use:   "status [STORE]",
		Short: "Show every node and every slot",
		Long: `Status asks one node about all: every node that gossip knows, and of every slot
its role, epoch, position, lag, whether it is in sync, mount, messages, bytes and
last error. What other nodes say of themselves is a second old at most.

With --at-risk it lists, live, the messages of a store that are not on two nodes:
what would be lost if the primary's disk failed now. Path, Message-ID, size, time,
seq, and how many of each user. The primary answers, whichever node is asked.`,
		Example: `  slotfs status
  slotfs status --json | jq '.nodes[].slots[] | {store, role, lag_entries}'
  slotfs status mail1 --at-risk`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if atRisk {
				if len(args) == 0 {
					return &usageError{errors.New("--at-risk wants a STORE")}
				}
				return a.atRisk(cmd, args[0], asJSON)
			}
			var s admin.Status
			if err := a.get(cmd, "/v1/status", nil, &s); err != nil {
				return err
			}
			if len(args) == 1 && !onlyStore(&s, args[0]) {
				return exit.With(exit.Usage, fmt.Errorf("no node has a slot of store %q", args[0]))
			}
			if asJSON {
				return a.printJSON(&s)
			}
			return printStatus(a.out, &s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&atRisk, "at-risk", false, "list the messages that are not on two nodes")
	return cmd
}

// onlyStore leaves out what is not about one store; false if nothing is.
func onlyStore(s *admin.Status, store string) bool {
	found := false
	for i := range s.Nodes {
		s.Nodes[i].Slots = slices.DeleteFunc(s.Nodes[i].Slots, func(g gossip.Slot) bool { return g.Store != store })
		found = found || len(s.Nodes[i].Slots) > 0
	}
	s.Slots = slices.DeleteFunc(s.Slots, func(g admin.SlotStatus) bool { return g.Store != store })
	return found
}

func (a *app) get(cmd *cobra.Command, path string, query url.Values, out any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return c.Get(cmd.Context(), path, query, out)
}

func (a *app) post(cmd *cobra.Command, path string, in, out any) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	return c.Post(cmd.Context(), path, in, out)
}

// stream asks the node and has show read the answer while it comes.
func (a *app) stream(cmd *cobra.Command, path string, q url.Values, show func(io.Reader) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	body, err := c.Stream(cmd.Context(), path, q)
	if err != nil {
		return err
	}
	defer body.Close()
	return show(body)
}

// copyOut prints an answer as it is.
func (a *app) copyOut(r io.Reader) error {
	_, err := io.Copy(a.out, r)
	return err
}

func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func (a *app) digestCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "digest STORE [PATH]",
		Short: "Show the digest of a slot or of a directory in it",
		Long: `Two slots with the same digest at the same seq hold the same names, attributes
and content. With a PATH the digest is that of the directory and all below it,
and is compared by running the command on both nodes.`,
		Example: `  slotfs digest mail1
  slotfs digest mail1 example.org/alice/Maildir`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"store": {args[0]}}
			if len(args) == 2 {
				q.Set("path", args[1])
			}
			if !asJSON {
				q.Set("wait", "1") // people want to compare
			}
			var d admin.Digest
			if err := a.get(cmd, "/v1/digest", q, &d); err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(&d)
			}
			printDigest(a.out, &d)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) logCmd() *cobra.Command {
	var (
		asJSON bool
		since  uint64
		user   string
	)
	cmd := &cobra.Command{
		Use:   "log STORE",
		Short: "Show who delivered, renamed and removed what, and when",
		Long: `Log prints the committed entries that the slot's log still holds, oldest first.
Paths are those at the time of the entry where the log shows how they came about,
else the present ones; an object that is gone and was made before the log begins
is shown by its id.`,
		Example: `  slotfs log mail1 --user alice
  slotfs log mail1 --since 120000 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"store": {args[0]}}
			if since > 0 {
				q.Set("since", strconv.FormatUint(since, 10))
			}
			if user != "" {
				q.Set("user", user)
			}
			show := a.copyOut
			if !asJSON {
				show = func(r io.Reader) error { return printLog(a.out, r) }
			}
			return a.stream(cmd, "/v1/log", q, show)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object per line")
	f.Uint64Var(&since, "since", 0, "begin at this seq")
	f.StringVar(&user, "user", "", "only entries below a directory of this name (or this path from the root)")
	return cmd
}

func printLog(w io.Writer, r io.Reader) error {
	out := bufio.NewWriter(w)
	dec := json.NewDecoder(r)
	for {
		var l admin.LogLine
		if err := dec.Decode(&l); err == io.EOF {
			return out.Flush()
		} else if err != nil {
			out.Flush()
			return fmt.Errorf("read the answer: %w", err)
		}
		printLogLine(out, &l, "")
	}
}

// printLogLine shows one entry.
func printLogLine(out io.Writer, l *admin.LogLine, messageID string) {
	fmt.Fprintf(out, "%8d  %s  %-9s", l.Seq, l.Time.Local().Format("2006-01-02 15:04:05.000"), l.Op)
	if messageID != "" {
		fmt.Fprintf(out, " %s", messageID)
	}
	if l.Path != "" {
		fmt.Fprintf(out, " %s", l.Path)
	}
	if l.To != "" {
		fmt.Fprintf(out, " -> %s", l.To)
	}
	if l.Size > 0 {
		fmt.Fprintf(out, "  %d bytes", l.Size)
	}
	if l.UID != nil {
		fmt.Fprintf(out, "  uid %d", *l.UID)
	}
	if l.Text != "" {
		fmt.Fprintf(out, "  (%s)", l.Text)
	}
	fmt.Fprintln(out)
}

func (a *app) metricsCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "metrics",
		Short:   "Print the node's metrics in Prometheus' text format",
		Example: "  slotfs metrics | grep slotfs_slot_lag",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.stream(cmd, "/metrics", nil, a.copyOut)
		},
	}
}
