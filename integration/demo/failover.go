package main

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"slotfs/integration/history"
	"slotfs/integration/mailbox"
	"slotfs/integration/sender"
)

// traffic is what goes on while the store moves: MTAs that retry at whichever
// node answers, and an IMAP client that keeps reconnecting.
type traffic struct {
	senders []*sender.Sender
	record  history.Recorder
	stop    chan struct{}
	done    sync.WaitGroup

	mu       sync.Mutex
	seen     []time.Time // when the IMAP client was shown its mailbox
	sessions int
}

func (d *demo) traffic(name string) *traffic {
	t := &traffic{stop: make(chan struct{})}
	for i, user := range busy {
		var targets []sender.Target
		for j, n := range d.cluster.Nodes {
			targets = append(targets, sender.LMTP(n.Name, d.server(j), user))
		}
		s := sender.New(fmt.Sprintf("%s-%s", name, user), uint64(i), &t.record, targets...)
		s.Sum, s.Pause = func(b []byte) history.Sum { return mailbox.SumOf(b) }, 5*time.Millisecond
		t.senders = append(t.senders, s)
		t.done.Go(func() { s.Run(t.stop) })
	}
	t.done.Go(func() { t.watch([]mailbox.Server{d.server(0), d.server(1)}) })
	return t
}

// watch looks at a mailbox again and again, wherever somebody shows it.
func (t *traffic) watch(servers []mailbox.Server) {
	for i := 0; ; i++ {
		_ = t.session(servers[i%len(servers)]) // it ends when the store moves
		select {
		case <-t.stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (t *traffic) session(s mailbox.Server) error {
	c, err := s.OpenIMAP(busy[0], 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	for first := true; ; first = false {
		if _, err := c.Select("INBOX"); err != nil {
			return err
		}
		t.mu.Lock()
		t.seen = append(t.seen, time.Now())
		if first {
			t.sessions++
		}
		t.mu.Unlock()
		select {
		case <-t.stop:
			return c.Logout()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end stops it and returns what was acknowledged, user by user.
func (t *traffic) end() ([]mailbox.Ack, error) {
	close(t.stop)
	t.done.Wait()
	for _, s := range t.senders {
		if err := s.Wait(30 * time.Second); err != nil {
			return nil, err
		}
	}
	var acks []mailbox.Ack
	for _, d := range t.record.Take() {
		for i, s := range t.senders {
			if d.Acked && d.From == s.Name {
				acks = append(acks, mailbox.Ack{User: busy[i], Name: d.Key, Sum: d.Sum})
			}
		}
	}
	return acks, nil
}

// outage is how long nobody took mail, and how long the IMAP client saw
// nothing, from a moment on.
func (t *traffic) outage(from time.Time) (mail, imap time.Duration, ok bool) {
	end, ok := t.record.FirstAfter(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, at := range t.seen {
		if at.After(from.Add(100 * time.Millisecond)) { // an answer that was under way does not count
			return end.Sub(from), at.Sub(from), ok
		}
	}
	return 0, 0, false
}

// until waits for what the traffic shows.
func (d *demo) until(what string, cond func() bool) error {
	return d.cluster.Wait(what, func() error {
		if !cond() {
			return errors.New("not yet")
		}
		return nil
	})
}

func (d *demo) kill() error {
	d.step("Killing n1 with SIGKILL, and its Dovecot, while two senders deliver and an IMAP client looks on.")
	n1 := d.cluster.Nodes[0]
	t := d.traffic("kill")
	if err := d.until("deliveries", func() bool { return t.record.Acks() >= 80 }); err != nil {
		return err
	}
	before := t.record.Acks()
	at := time.Now()
	if err := errors.Join(n1.Signal(syscall.SIGKILL), d.servers[0].Kill(d.scratch), n1.Kill()); err != nil {
		return err
	}
	say("%d messages had been acknowledged. Nobody does anything now but the nodes.", before)
	if err := d.until("n2 to take over", func() bool { _, _, ok := t.outage(at); return ok }); err != nil {
		return err
	}
	mail, imap, _ := t.outage(at)
	if err := d.until("more deliveries", func() bool { return t.record.Acks() >= before+40 }); err != nil {
		return err
	}
	acks, err := t.end()
	if err != nil {
		return err
	}
	d.acks = append(d.acks, acks...)
	say("n2 has become primary by itself, and its on_promote hook has started Dovecot there.")
	say("Seen from outside: the next delivery was acknowledged %d ms after the kill; the IMAP client, which", mail.Milliseconds())
	say("had to connect again, saw its mailbox %d ms after the kill. %d messages were acknowledged in all.", imap.Milliseconds(), len(acks))
	return d.serve(1)
}

func (d *demo) handOver() error {
	d.step("Handing the store back to n1 in good order, under the same traffic: slotfs switch %s --to n1", store)
	t := d.traffic("switch")
	if err := d.until("deliveries", func() bool { return t.record.Acks() >= 40 }); err != nil {
		return err
	}
	at := time.Now()
	if _, err := d.cluster.Nodes[1].Run("switch", store, "--to", d.cluster.Nodes[0].Name); err != nil {
		return err
	}
	took := time.Since(at)
	if err := d.until("deliveries on n1", func() bool { _, _, ok := t.outage(at.Add(took)); return ok }); err != nil {
		return err
	}
	acks, err := t.end()
	if err != nil {
		return err
	}
	d.acks = append(d.acks, acks...)
	say("n1 is primary again, %d ms after the command; both hooks, which stop and start Dovecot, included.", took.Milliseconds())
	if err := d.serve(0); err != nil {
		return err
	}
	shot, err := d.mail.Snapshot(users())
	if err != nil {
		return err
	}
	missing := shot.Missing(d.acks)
	say("Acknowledged and not expunged: %d messages. Found: %d.", len(d.acks), len(d.acks)-len(missing))
	if len(missing) > 0 {
		return fmt.Errorf("%d acknowledged messages are missing: %v", len(missing), missing)
	}
	if err := d.cluster.WaitInSync(); err != nil {
		return err
	}
	return d.compare()
}
