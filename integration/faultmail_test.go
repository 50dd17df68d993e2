package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/history"
	"slotfs/integration/mailbox"
	"slotfs/integration/sender"
)

// TestFaultsMail is the campaign with a real Dovecot on each node, started and
// stopped by the hooks: deliveries by LMTP, and IMAP clients that set flags and
// keep reconnecting.
func TestFaultsMail(t *testing.T) {
	t.Parallel()
	s := seed(t)
	w := newWorld(t, s, false, cluster.Options{}, mailHooks)
	c := &mailCampaign{campaign: campaign{world: w, seed: s, kinds: chosen(t, kinds(false)), outages: outages{}}}
	c.extra, c.judged = c.run, c.judgeMail
	for i := range 3 {
		f := &flagger{user: fmt.Sprint("user", i), uids: &c.uids, rng: newRand(s + uint64(i)), set: map[uint64][]confirmed{}, logs: map[string]string{}}
		for _, n := range w.Nodes {
			f.logs[n.Name] = filepath.Join(w.services[n].Run, "log")
			f.nodes, f.servers = append(f.nodes, n.Name), append(f.servers, w.server(n))
		}
		c.flaggers = append(c.flaggers, f)
	}
	n := 6
	if soak := rounds(t, 0); soak > 0 {
		n = (soak + 3) / 4
	}
	start := time.Now()
	for round := range n {
		c.round(round)
	}
	flags, lied := 0, 0
	for _, f := range c.flaggers {
		flags, lied = flags+f.count, lied+f.lied
	}
	t.Logf("%d rounds with Dovecot in %v: %d deliveries, %d acknowledged, each found exactly once; %d more of unknown outcome; %d flags confirmed, none lost but %d for which Dovecot said OK after the file system had refused them; no UID given out twice\n%s",
		n, time.Since(start).Round(time.Second), c.made, c.acked, c.made-c.acked, flags, lied, c.outages)
}

type mailCampaign struct {
	campaign
	flaggers []*flagger
	uids     history.UIDs
}

// mailHooks gives each node a Dovecot that its hooks start and stop.
func mailHooks(w *world) {
	w.services = map[*cluster.Node]*dovecot.Service{}
	for _, n := range w.Nodes {
		s, err := dovecot.NewService(w.scratch, "d-"+n.Name, n.Mount, dovecot.Options{})
		must(w.t, err)
		w.services[n] = s
		must(w.t, n.Edit("[[slot]]\n", fmt.Sprintf("[[slot]]\non_promote = [%q, \"start\"]\non_demote = [%q, \"stop\"]\n", s.Hook, s.Hook)))
	}
	w.atEnd = append(w.atEnd, func() {
		for n, s := range w.services {
			if err := s.Kill(w.scratch); err != nil {
				w.t.Error(err)
			}
			if keep := os.Getenv("SLOTFS_KEEP_LOGS"); keep != "" && w.t.Failed() {
				text, err := s.Log()
				must(w.t, errors.Join(err, os.WriteFile(filepath.Join(keep, fmt.Sprintf("%s-dovecot-%s.log", w.t.Name(), n.Name)), []byte(text), 0o644)))
			}
		}
	})
}

// server is a node's Dovecot, which only listens on the node itself.
func (w *world) server(n *cluster.Node) mailbox.Server {
	s := w.services[n]
	return mailbox.Server{LMTP: s.LMTP, IMAP: s.IMAP, Password: "secret", Dial: func(addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return n.Host.DialContext(ctx, "tcp4", addr)
	}}
}

// run replaces the senders of a round by LMTP ones, and returns what else runs.
func (c *mailCampaign) run(dir string) (more []func(end <-chan struct{})) {
	c.senders = nil
	for i, f := range c.flaggers {
		var targets []sender.Target
		for j, n := range c.Nodes {
			targets = append(targets, sender.LMTP(n.Name, f.servers[j], f.user))
		}
		s := sender.New(fmt.Sprintf("%s-s%d", dir, i), c.rng.Uint64(), &c.record, targets...)
		s.Sum, s.Pause = func(b []byte) history.Sum { return mailbox.SumOf(b) }, 20*time.Millisecond
		c.senders = append(c.senders, s)
		more = append(more, f.run)
	}
	return more
}

// judgeMail looks through IMAP, and at the log.
func (c *mailCampaign) judgeMail(dir string, since history.Epoch) {
	c.t.Helper()
	c.remember(dir, since)
	primary, _ := c.roles()
	names, err := sender.Names(primary.Mount)
	must(c.t, err)
	keys := map[string]string{}
	for key, name := range names {
		keys[name] = key
	}
	log := c.log(c.sinceOld(), func(p string) (string, bool) {
		base, _, _ := strings.Cut(path.Base(p), ":2,")
		key, ok := keys[base]
		return key, ok && slices.Contains([]string{"new", "cur"}, filepath.Base(path.Dir(p)))
	})
	var held []history.Held
	for _, f := range c.flaggers {
		h, broken, err := f.judge(c.server(primary))
		must(c.t, err)
		c.report(broken)
		held = append(held, h...)
	}
	var all []history.Delivery
	for _, o := range c.old {
		all = append(all, o.made...)
	}
	c.report(history.Check(all, held, log))
	if len(held) > 500 && !c.t.Failed() {
		for _, f := range c.flaggers {
			must(c.t, f.expunge(c.server(primary)))
		}
		c.old = nil
	}
}
