package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/mailbox"
	"slotfs/integration/mailgen"
	"slotfs/integration/treediff"
)

const (
	store    = "mail"
	password = "secret"
)

// quiet users get no mail while the primary is killed: everything about their
// mailboxes must be the same afterwards. busy ones do.
var (
	quiet = []string{"ann", "bob", "cat", "dan"}
	busy  = []string{"eve", "fay"}
)

func users() []string { return append(append([]string{}, quiet...), busy...) }

func (d *demo) nodes() error {
	bin, err := cluster.Binary()
	if err != nil {
		return err
	}
	d.step("Starting two nodes with mail, n1 and n2, and a witness, w: three processes with directories of their own. %s.", version(bin))
	d.cluster, err = cluster.New(d.scratch, 2, cluster.Options{Binary: bin, Store: store, Slot: `reserve = "192MiB"`, Witness: true})
	if err != nil {
		return err
	}
	for i, n := range d.cluster.Nodes {
		s, err := dovecot.NewService(d.scratch, fmt.Sprint("d", i+1), n.Mount, dovecot.Options{Password: password})
		if err != nil {
			return err
		}
		d.servers = append(d.servers, s)
		if err := n.Edit("[[slot]]\n", fmt.Sprintf("[[slot]]\non_promote = [%q, \"start\"]\non_demote = [%q, \"stop\"]\n", s.Hook, s.Hook)); err != nil {
			return err
		}
	}
	if err := d.cluster.StartPair(); err != nil {
		return err
	}
	n1 := d.cluster.Nodes[0]
	say("They found each other by gossip, and formed the register that decides who is primary.")
	say("n1 was promoted: store %q is mounted on %s.", store, n1.Mount)
	say("n2 is its replica and in the in-sync set: every write waits for both.")
	return nil
}

func (d *demo) dovecot() error {
	d.step("n1's on_promote hook starts a stock Dovecot on that mount, its mail user unprivileged.")
	return d.serve(0)
}

// serve waits for the mail server of node i.
func (d *demo) serve(i int) error {
	s := d.servers[i]
	err := d.cluster.Wait("Dovecot on "+d.cluster.Nodes[i].Name, func() error {
		if !s.Answers() {
			return errors.New("it does not answer")
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.mail = d.server(i)
	say("It takes mail by LMTP on %s and shows it by IMAP on %s.", s.LMTP, s.IMAP)
	return nil
}

func (d *demo) server(i int) mailbox.Server {
	return mailbox.Server{LMTP: d.servers[i].LMTP, IMAP: d.servers[i].IMAP, Password: password}
}

func (d *demo) deliver() error {
	g := mailgen.New(1)
	messages := g.Hard(25 << 20)
	for len(messages) < 300 {
		messages = append(messages, g.Next())
	}
	d.step("Delivering %d messages by LMTP to %d users: 8-bit text, NULs, huge headers, endless lines, nested MIME, an empty one, a 25 MB attachment …", len(messages), len(users()))
	acks, err := d.mail.Deliver(users(), messages, 4, nil)
	if err != nil {
		return err
	}
	if len(acks) != len(messages) {
		return fmt.Errorf("only %d of %d were acknowledged", len(acks), len(messages))
	}
	d.acks = acks
	shot, err := d.mail.Snapshot(users())
	if err != nil {
		return err
	}
	if missing := shot.Missing(acks); len(missing) > 0 {
		return fmt.Errorf("acknowledged, but IMAP does not show: %s", strings.Join(missing, ", "))
	}
	say("All were acknowledged, and IMAP shows each with the bytes that were sent.")
	return nil
}

func (d *demo) change() error {
	d.step("Changing flags and keywords, copying, moving and expunging by IMAP.")
	rng := rand.New(rand.NewPCG(1, 1))
	var all mailbox.Changed
	for _, user := range users() {
		done, gone, err := d.mail.Change(user, rng)
		if err != nil {
			return fmt.Errorf("%s: %w", user, err)
		}
		all.Add(done)
		d.acks = mailbox.Without(d.acks, gone)
	}
	say("%s.", all)
	var err error
	d.before, err = d.mail.Snapshot(users())
	if err != nil {
		return err
	}
	say("%d messages in %d mailboxes now.", d.before.Count(), len(d.before))
	return nil
}

// compare compares the two slots.
func (d *demo) compare() error {
	d.step("Comparing the two slots.")
	digest, err := d.cluster.WaitEqual()
	if err != nil {
		return err
	}
	say("Both have applied the same entries and have the same digest, %s.", digest)
	n1, n2 := d.cluster.Nodes[0], d.cluster.Nodes[1]
	r, err := treediff.Compare(n1.Tree(), n2.Tree(), treediff.Options{})
	if err != nil {
		return err
	}
	if len(r.Diff) > 0 {
		return fmt.Errorf("the trees differ:\n%s", strings.Join(r.Diff, "\n"))
	}
	say("%d files (%.1f MB) and %d directories in n2's tree are identical to n1's: bytes, mode, owner, mtime.", r.Files, float64(r.Bytes)/1e6, r.Dirs)
	return nil
}

func (d *demo) verify() error {
	d.step("Looking at every mailbox by IMAP, on n2.")
	after, err := d.mail.Snapshot(users())
	if err != nil {
		return err
	}
	missing := after.Missing(d.acks)
	say("Acknowledged and not expunged: %d messages. Found: %d.", len(d.acks), len(d.acks)-len(missing))
	if len(missing) > 0 {
		return fmt.Errorf("%d acknowledged messages are missing: %s", len(missing), strings.Join(missing, ", "))
	}
	var grow []string
	for _, user := range busy {
		grow = append(grow, user+"/INBOX")
	}
	if diff := after.Diff(d.before, grow...); len(diff) > 0 {
		return fmt.Errorf("IMAP shows differences:\n%s", strings.Join(diff, "\n"))
	}
	say("For all %d messages of before: same UIDVALIDITY, UIDs, flags, keywords, INTERNALDATEs, MODSEQs and bytes;", d.before.Count())
	say("and for all %d mailboxes that got no new mail: same HIGHESTMODSEQ and UIDNEXT.", len(d.before)-len(grow))
	return nil
}

func (d *demo) rejoin() error {
	d.step("Starting n1 again. It comes back as a replica and gets what it missed.")
	if err := d.cluster.Nodes[0].Start(); err != nil {
		return err
	}
	if err := d.cluster.WaitInSync(); err != nil {
		return err
	}
	return d.compare()
}
