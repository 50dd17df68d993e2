package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"

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
	d.step("Starting two nodes, n1 and n2, each a process with a data directory of its own. %s.", version(bin))
	d.cluster, err = cluster.New(d.scratch, 2, cluster.Options{Binary: bin, Store: store, Slot: `reserve = "192MiB"`})
	if err != nil {
		return err
	}
	if err := d.cluster.StartPair(); err != nil {
		return err
	}
	n1 := d.cluster.Nodes[0]
	say("They found each other by gossip. n1 was promoted: store %q is mounted on %s.", store, n1.Mount)
	say("n2 is its replica and in the in-sync set: every write waits for both.")
	return nil
}

func (d *demo) dovecot() error {
	d.step("Starting a stock Dovecot on that mount, its mail user unprivileged.")
	return d.serve(d.cluster.Nodes[0], "d1")
}

func (d *demo) serve(n *cluster.Node, name string) error {
	s, err := dovecot.Start(d.scratch, name, n.Mount, dovecot.Options{Password: password})
	if err != nil {
		return err
	}
	d.servers = append(d.servers, s)
	d.mail = mailbox.Server{LMTP: s.LMTP, IMAP: s.IMAP, Password: password}
	say("It takes mail by LMTP on %s and shows it by IMAP on %s.", s.LMTP, s.IMAP)
	return nil
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

func (d *demo) kill() error {
	d.step("Killing n1 with SIGKILL, in the middle of further deliveries.")
	n1 := d.cluster.Nodes[0]
	g := mailgen.New(2)
	more := make([]mailgen.Message, 5000)
	for i := range more {
		more[i] = g.Next()
	}
	killed := make(chan error, 1)
	acks, _ := d.mail.Deliver(busy, more, 4, func(n int) { // refusals after the kill are no errors
		if n == 80 {
			killed <- n1.Signal(syscall.SIGKILL)
		}
	})
	if len(acks) < 80 {
		return fmt.Errorf("only %d deliveries were acknowledged before anything was killed", len(acks))
	}
	if err := errors.Join(<-killed, n1.Kill(), d.servers[0].Kill()); err != nil {
		return err
	}
	say("%d more messages had been acknowledged. n1 and its Dovecot are gone.", len(acks))
	d.acks = append(d.acks, acks...)
	return nil
}

func (d *demo) promote() error {
	d.step("Promoting n2: slotfs promote %s --old-primary-is-down", store)
	n2 := d.cluster.Nodes[1]
	if err := n2.Promote("--old-primary-is-down"); err != nil {
		return err
	}
	say("n2 is primary, and the store is mounted on %s. Starting Dovecot there.", n2.Mount)
	return d.serve(n2, "d2")
}

func (d *demo) verify() error {
	d.step("Looking at every mailbox by IMAP.")
	after, err := d.mail.Snapshot(users())
	if err != nil {
		return err
	}
	if missing := after.Missing(d.acks); len(missing) > 0 {
		return fmt.Errorf("%d acknowledged messages are missing: %s", len(missing), strings.Join(missing, ", "))
	}
	say("Every acknowledged message that was not expunged is there: %d of %d.", len(d.acks), len(d.acks))
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
