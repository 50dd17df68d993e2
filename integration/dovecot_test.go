package integration_test

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/imap"
	"slotfs/integration/mailgen"
)

// mixedMail is the hard messages, some of the corpus if there is one, and
// generated ones.
func mixedMail(t *testing.T, seed uint64, n int) []mailgen.Message {
	t.Helper()
	g := mailgen.New(seed)
	messages := g.Hard(25 << 20)
	real, err := mailgen.Corpus(corpus)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	rng := newRand(seed)
	rng.Shuffle(len(real), func(i, j int) { real[i], real[j] = real[j], real[i] })
	messages = append(messages, real[:min(len(real), n)]...)
	for len(messages) < n+50 {
		messages = append(messages, g.Next())
	}
	t.Logf("%d messages, %d of them from the corpus", len(messages), min(len(real), n))
	return messages
}

// TestDovecotSurvivesThePrimary is the main job: mail goes in through a stock
// Dovecot, the primary is killed while more is being delivered, and a Dovecot
// on the promoted replica shows the same mail.
func TestDovecotSurvivesThePrimary(t *testing.T) {
	t.Parallel()
	s := seed(t)
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	// It loses its mount: whatever it says then is expected.
	first, mail := f.mail(n1, "d1", "")

	quiet, busy := []string{"ann", "bob", "cat", "dan"}, []string{"eve", "fay"}
	users := append(append([]string{}, quiet...), busy...)
	acks, err := mail.Deliver(users, mixedMail(t, s, 200), 4, nil)
	must(t, err)
	before, err := mail.Snapshot(users)
	must(t, err)
	if missing := before.Missing(acks); len(missing) > 0 {
		t.Fatalf("delivered, but not there: %q", missing)
	}
	rng := newRand(s)
	for _, user := range users {
		if _, _, err := mail.Change(user, rng); err != nil {
			t.Fatal(err)
		}
	}
	before, err = mail.Snapshot(users)
	must(t, err)
	f.equal()

	g := mailgen.New(s + 1)
	g.Median = 8 << 10
	more := make([]mailgen.Message, 3000)
	for i := range more {
		more[i] = g.Next()
	}
	killed := make(chan error, 1)
	late, err := mail.Deliver(busy, more, 4, func(n int) {
		if n == 60 {
			killed <- errors.Join(n1.Signal(syscall.SIGKILL))
		}
	})
	must(t, <-killed)
	// A refusal (4xx) after the kill is an answer too; only a 250 counts.
	t.Logf("%d deliveries were acknowledged until the kill (%v)", len(late), err)
	must(t, n1.Kill())
	must(t, first.Kill())

	must(t, n2.Promote("--old-primary-is-down"))
	_, mail = f.mail(n2, "d2")
	after, err := mail.Snapshot(users)
	must(t, err)
	for _, line := range after.Diff(before, "eve/INBOX", "fay/INBOX") {
		t.Error(line)
	}
	if missing := after.Missing(late); len(missing) > 0 {
		t.Errorf("acknowledged and lost: %q", missing)
	}
	// The old primary comes back as a replica and gets what it missed.
	must(t, n1.Start())
	must(t, f.WaitInSync())
	f.equal()
}

// TestIdle: inotify drives IDLE, and fires for what happens through the mount.
func TestIdle(t *testing.T) {
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	_, mail := f.mail(f.Nodes[0], "d1")
	if _, err := mail.Deliver([]string{"ann"}, []mailgen.Message{mailgen.New(1).Next()}, 1, nil); err != nil {
		t.Fatal(err)
	}
	c, err := imap.Open(mail.IMAP, "ann", mail.Password)
	must(t, err)
	defer c.Close()
	_, err = c.Select("INBOX")
	must(t, err)
	ready, idle := make(chan struct{}), make(chan error, 1)
	go func() { idle <- c.Idle("EXISTS", func() { close(ready) }) }()
	<-ready
	if _, err := mail.Deliver([]string{"ann"}, []mailgen.Message{mailgen.New(2).Next()}, 1, nil); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	must(t, <-idle)
	t.Logf("IDLE told of the message %v after its 250", time.Since(start).Round(time.Millisecond))
}

// TestSwitchover: a planned change of primary loses nothing, in both
// directions.
func TestSwitchover(t *testing.T) {
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	users := []string{"ann", "bob"}
	n1, n2 := f.Nodes[0], f.Nodes[1]
	d1, mail := f.mail(n1, "d1")
	g := mailgen.New(1)
	if _, err := mail.Deliver(users, append(g.Hard(1<<20), g.Next()), 2, nil); err != nil {
		t.Fatal(err)
	}
	before, err := mail.Snapshot(users)
	must(t, err)
	must(t, d1.Stop())
	for i, to := range []*cluster.Node{n2, n1, n2} {
		must(t, []*cluster.Node{n1, n2, n1}[i].Demote())
		must(t, to.Promote())
		must(t, f.WaitInSync())
		d, mail := f.mail(to, []string{"d2", "d3", "d4"}[i])
		after, err := mail.Snapshot(users)
		must(t, err)
		for _, line := range after.Diff(before) {
			t.Errorf("after switchover %d: %s", i+1, line)
		}
		must(t, d.Stop())
		f.equal()
	}
}
