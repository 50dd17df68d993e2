package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta/ledger"
)

func (a *app) ledgerCmd() *cobra.Command {
	var asJSON, verify bool
	var dir, head string
	cmd := &cobra.Command{
		Use:   "ledger STORE",
		Short: "Show what was found wrong and what was decided about it",
		Long: `Every slot keeps a ledger: each damage found, each repair, each thing set aside,
with the checksums that the decision rested on. It is append-only, and each entry
holds the SHA-256 of the one before it.

--verify proves that chain. The exit code is 9 if a line was changed, removed or
inserted, and the first broken line is named. That lines are missing at the very
end, or that all was written anew, the chain alone cannot show: note the head that
--verify prints elsewhere from time to time, and give it back with --head.

Each node has its own ledger; ask the other one with its --config or --socket.
--dir reads the ledger of a data directory of which no node runs.`,
		Example: `  slotfs ledger mail1
  slotfs ledger mail1 --verify
  slotfs ledger mail1 --json | jq 'select(.outcome == "unrepaired")'
  slotfs ledger mail1 --verify --dir /var/lib/slotfs/mail1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if verify {
				return a.verifyLedger(cmd, args[0], dir, head, asJSON)
			}
			if dir != "" {
				return ledger.Read(filepath.Join(dir, "ledger"), func(e ledger.Entry) error { return a.printLedgerEntry(a.out, &e, asJSON) })
			}
			show := a.copyOut
			if !asJSON {
				show = a.printLedger
			}
			return a.stream(cmd, "/v1/ledger", url.Values{"store": {args[0]}}, show)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print one JSON object per line")
	f.BoolVar(&verify, "verify", false, "prove the chain of hashes")
	f.StringVar(&head, "head", "", "with --verify: the chain must go through this head, noted earlier (number:hash)")
	f.StringVar(&dir, "dir", "", "read the ledger of this data directory; no node is asked")
	return cmd
}

// verifyLedger proves the chain: that of a running node, or of a directory.
func (a *app) verifyLedger(cmd *cobra.Command, store, dir, head string, asJSON bool) error {
	v := admin.LedgerVerified{Store: store, Dir: filepath.Join(dir, "ledger")}
	if dir == "" {
		q := url.Values{"store": {store}, "verify": {"1"}}
		if head != "" {
			q.Set("head", head)
		}
		if err := a.get(cmd, "/v1/ledger", q, &v); err != nil {
			return err
		}
	} else {
		var known []ledger.Head
		if head != "" {
			k, err := ledger.ParseHead(head)
			if err != nil {
				return &usageError{err}
			}
			known = append(known, k)
		}
		var err error
		if v.Result, err = ledger.Verify(v.Dir, known...); err != nil {
			return err
		}
	}
	if asJSON {
		if err := a.printJSON(&v); err != nil {
			return err
		}
	} else {
		printVerified(a.out, &v)
	}
	if !v.Whole() {
		return &silentError{exit.Differences}
	}
	return nil
}

func printVerified(w io.Writer, v *admin.LedgerVerified) {
	switch {
	case !v.Whole():
		fmt.Fprintf(w, "%s: BROKEN at line %d of %s/%s: %s\n", v.Store, v.Line, v.Dir, v.File, v.Broken)
	case v.Entries == 0:
		fmt.Fprintf(w, "%s: the ledger is empty\n", v.Store)
	default:
		fmt.Fprintf(w, "%s: %d entries verified, from %d on; head %s\n", v.Store, v.Entries, v.First, v.Head)
		if v.First > 1 {
			fmt.Fprintf(w, "entries before %d are not here: archived?\n", v.First)
		}
	}
}

func (a *app) printLedger(r io.Reader) error {
	out := bufio.NewWriter(a.out)
	for dec := json.NewDecoder(r); ; {
		var e ledger.Entry
		if err := dec.Decode(&e); err == io.EOF {
			return out.Flush()
		} else if err != nil {
			out.Flush()
			return fmt.Errorf("read the answer: %w", err)
		}
		if err := a.printLedgerEntry(out, &e, false); err != nil {
			return err
		}
	}
}

func (a *app) printLedgerEntry(w io.Writer, e *ledger.Entry, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(e)
	}
	fmt.Fprintf(w, "%6d  %s  %-11s", e.Seq, e.Time.Local().Format("2006-01-02 15:04:05"), e.Kind)
	for _, s := range []string{e.Outcome, e.Path, e.MessageID, e.Text} {
		if s != "" {
			fmt.Fprintf(w, "  %s", s)
		}
	}
	fmt.Fprintln(w)
	printSums(w, "expected", e.Expected)
	printSums(w, "found", e.Found)
	return nil
}

func printSums(w io.Writer, what string, sums map[string]string) {
	var said []string
	for _, who := range slices.Sorted(maps.Keys(sums)) {
		said = append(said, who+" "+sums[who])
	}
	if len(said) > 0 {
		fmt.Fprintf(w, "        %-8s  %s\n", what, strings.Join(said, "; "))
	}
}
