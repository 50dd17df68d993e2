package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/cmd/slotfs/pki"
	"slotfs/evidence"
)

func (a *app) evidenceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "evidence STORE USER",
		Short: "Write a signed list of a user's messages, to be held against the store later",
		Long: `Evidence prints a list of all messages that the store holds for a user at this
moment: path, Message-ID, size, date, when it arrived, xxHash64 and SHA-256. Each
content is read and verified for it. The list is plain text, signed with the
node's key; "slotfs evidence verify" tells later whether a message is unchanged,
renamed, gone (and when and by which entry of the log), or altered, and notices
any change of the list itself.

USER is the path of the user's directory in the store, or local@domain for
domain/local, or the name of the only such directory.`,
		Example: `  slotfs evidence mail1 alice@example.org > alice-2026-11.evidence
  slotfs evidence verify alice-2026-11.evidence`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.stream(cmd, "/v1/evidence", url.Values{"store": {args[0]}, "user": {args[1]}}, func(r io.Reader) error {
				if err := a.copyOut(r); err != nil {
					return fmt.Errorf("the list is not complete: %w", err)
				}
				return nil
			})
		},
	}
	cmd.AddCommand(a.evidenceVerifyCmd())
	return cmd
}

func (a *app) evidenceVerifyCmd() *cobra.Command {
	var asJSON bool
	var ca string
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Hold a list against the store",
		Long: `Verify proves that the list is as a node of this cluster signed it, and asks the
node what has become of each message on it:

  unchanged  there, under the same name, its content read and equal
  moved      the same content under another name (flags are part of the name)
  gone       removed; when, by which entry, and on which node, if the log still says
  altered    the store has another content for it, or only damaged ones

The exit code is 0 if nothing is gone or altered, 9 if something is, and 11 if the
list is not as it was signed.

With --ca the list alone is verified, with a copy of the cluster's ca.pem; no node
is asked.`,
		Example: `  slotfs evidence verify alice-2026-11.evidence
  slotfs evidence verify alice-2026-11.evidence --ca ca.pem`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			defer f.Close()
			if ca != "" {
				return a.verifySignature(f, ca, asJSON)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			var r admin.EvidenceReport
			if err := c.PostText(cmd.Context(), "/v1/evidence", f, &r); err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(&r)
			} else {
				err = printEvidence(a.out, &r)
			}
			if err == nil && !r.Clean() {
				err = &silentError{exit.Differences}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&ca, "ca", "", "verify the signature only, with this CA certificate")
	return cmd
}

// verifySignature reads a list without asking a node.
func (a *app) verifySignature(f io.Reader, ca string, asJSON bool) error {
	authority, err := pki.Authority(ca)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	l, err := evidence.Read(f, func(c *x509.Certificate) error { return authority.Trusted(c) })
	if errors.Is(err, evidence.ErrForged) {
		return exit.With(exit.Forged, err)
	}
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(&admin.EvidenceReport{Head: l.Head, Signer: l.Signer.Subject.CommonName, Messages: len(l.Messages)})
	}
	_, err = fmt.Fprintf(a.out, "signed by %s at %s: %d messages of %s in store %s, at %s; whether they are still there was not looked at\n",
		l.Signer.Subject.CommonName, l.Time.Format(time.RFC3339), len(l.Messages), l.User, l.Store, l.Position)
	return err
}

func printEvidence(w io.Writer, r *admin.EvidenceReport) error {
	fmt.Fprintf(w, "signed by %s at %s: %d messages of %s in store %s, at %s\n",
		r.Signer, r.Head.Time.Format(time.RFC3339), r.Messages, r.Head.User, r.Head.Store, r.Head.Position)
	for _, i := range r.Items {
		fmt.Fprintf(w, "%-9s %s", i.State, i.Path)
		if i.Now != "" {
			fmt.Fprintf(w, " -> %s", i.Now)
		}
		if i.MessageID != "" {
			fmt.Fprintf(w, "  %s", i.MessageID)
		}
		switch {
		case i.Seq > 0:
			fmt.Fprintf(w, "  %s by entry %d at %s", i.Text, i.Seq, i.Time.Format(time.RFC3339))
			if i.By != "" {
				fmt.Fprintf(w, ", primary was %s", i.By)
			}
		case i.Text != "":
			fmt.Fprintf(w, "  %s", i.Text)
		}
		fmt.Fprintln(w)
	}
	reach := "all the way back to the list"
	if !r.LogComplete {
		reach = fmt.Sprintf("back to entry %d only", r.LogFrom)
		if !r.LogFromTime.IsZero() {
			reach += " of " + r.LogFromTime.Format(time.RFC3339)
		}
	}
	_, err := fmt.Fprintf(w, "%s: %d unchanged, %d moved, %d gone, %d altered; the log of %s reaches %s\n",
		r.Head.User, r.Unchanged, r.Moved, r.Gone, r.Altered, r.VerifiedBy, reach)
	return err
}
