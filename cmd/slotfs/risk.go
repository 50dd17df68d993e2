package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta"
)

// atRisk shows the messages that only one node has.
func (a *app) atRisk(cmd *cobra.Command, store string, asJSON bool) error {
	return a.stream(cmd, "/v1/at-risk", url.Values{"store": {store}}, func(r io.Reader) error {
		if asJSON {
			return riskJSON(a.out, r)
		}
		_, err := printRisk(a.out, r, "on one node only")
		return err
	})
}

// risks calls f for every line of an answer.
func risks(r io.Reader, f func(*admin.RiskLine) error) error {
	dec := json.NewDecoder(r)
	for {
		var l admin.RiskLine
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if err := f(&l); err != nil {
			return err
		}
	}
}

// riskJSON writes one object with an array of messages, as they come.
func riskJSON(w io.Writer, r io.Reader) error {
	out := bufio.NewWriter(w)
	n, why := 0, ""
	err := risks(r, func(l *admin.RiskLine) error {
		switch {
		case l.Head != nil:
			b, err := json.Marshal(l.Head)
			if err != nil {
				return err
			}
			why = l.Head.Why
			fmt.Fprintf(out, "%s, \"messages\": [", b[:len(b)-1])
		case l.Mail != nil:
			b, err := json.Marshal(&struct {
				*meta.Mail
				Why string `json:"why"`
			}{l.Mail, why})
			if err != nil {
				return err
			}
			if n > 0 {
				out.WriteString(",")
			}
			n++
			fmt.Fprintf(out, "\n  %s", b)
		case l.Total != nil:
			b, err := json.Marshal(l.Total)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "], \"total\": %s}\n", b)
		}
		return nil
	})
	return errors.Join(err, out.Flush())
}

// printRisk shows an answer to people, and says how many messages it names and
// how many entries it cannot name.
func printRisk(w io.Writer, r io.Reader, where string) (found bool, err error) {
	out := bufio.NewWriter(w)
	parts := 0
	err = risks(r, func(l *admin.RiskLine) error {
		switch {
		case l.Head != nil:
			if parts++; parts > 1 {
				fmt.Fprintln(out)
			}
			h := l.Head
			found = found || h.Unknown || h.Entries > 0
			fmt.Fprintf(out, "%s on %s: epoch %d, seq %d", h.Store, h.Node, h.Epoch, h.Seq)
			switch {
			case h.Unknown && h.Entries > 0:
				fmt.Fprintf(out, "; at least %d entries after seq %d are there only, and cannot be named: %s\n", h.Entries, h.After, h.Why)
			case h.Unknown:
				fmt.Fprintf(out, "; no entry after seq %d is known of: %s\n", h.After, h.Why)
			case h.Entries > 0:
				fmt.Fprintf(out, "; %d entries after seq %d: %s\n", h.Entries, h.After, h.Why)
			default:
				fmt.Fprintf(out, "; nothing after it\n")
			}
		case l.Mail != nil:
			m := l.Mail
			fmt.Fprintf(out, "%8d  %s  %9s  %s  %s\n", m.Seq, time.Unix(0, m.Time).Local().Format("2006-01-02 15:04:05"), size(uint64(m.Size)), dash(m.MessageID), m.Path)
		case l.Total != nil:
			printTotal(out, l.Total, where)
		}
		return nil
	})
	return found, errors.Join(err, out.Flush())
}

func printTotal(w io.Writer, t *admin.RiskTotal, where string) {
	if t.Messages == 0 {
		fmt.Fprintf(w, "no message is %s\n", where)
		return
	}
	fmt.Fprintf(w, "%s (%s) of %s are %s:\n", counted(t.Messages, "message"), size(t.Bytes), counted(uint64(len(t.Users)), "user"), where)
	users := slices.SortedFunc(maps.Keys(t.Users), func(a, b string) int {
		if t.Users[a] != t.Users[b] {
			return int(t.Users[b]) - int(t.Users[a])
		}
		if a < b {
			return -1
		}
		return 1
	})
	for _, u := range users {
		fmt.Fprintf(w, "%8d  %s\n", t.Users[u], dash(u))
	}
}

func counted(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// beforeForce shows what a forced promotion gives up, as far as this node
// knows; without yes that is all.
func (a *app) beforeForce(cmd *cobra.Command, store string, yes bool) error {
	var found bool
	err := a.stream(cmd, "/v1/missing", url.Values{"store": {store}}, func(r io.Reader) (err error) {
		found, err = printRisk(a.out, r, "there only")
		return err
	})
	if err != nil {
		return err
	}
	if !found {
		fmt.Fprintf(a.out, "%s: nothing is known that this node's slot lacks\n", store)
	}
	if !yes {
		return exit.With(exit.Unconfirmed, fmt.Errorf("nothing was changed: to promote this node's slot without what is listed, repeat with --yes"))
	}
	return nil
}
