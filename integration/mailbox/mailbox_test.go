package mailbox_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"slotfs/integration/dovecot"
	"slotfs/integration/imap"
	"slotfs/integration/mailbox"
	"slotfs/integration/mailgen"
	"slotfs/integration/scratch"
)

func TestMain(m *testing.M) {
	scratch.Guard()
	os.Exit(m.Run())
}

func start(t *testing.T, d *scratch.Dir, name, root string) (*dovecot.Server, mailbox.Server) {
	t.Helper()
	s, err := dovecot.Start(d, name, root, dovecot.Options{})
	if errors.Is(err, dovecot.ErrMissing) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if problems, err := s.Problems(); err != nil || len(problems) > 0 {
			t.Errorf("dovecot's log: %q, %v", problems, err)
		}
	})
	return s, mailbox.Server{LMTP: s.LMTP, IMAP: s.IMAP, Password: "secret"}
}

// TestPlainDirectory shows on a plain directory, without slotfs, that the
// tools tell the truth: what is delivered is found, a copy of the directory
// under another Dovecot is the same mail, and a difference is a difference.
func TestPlainDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to run as another user")
	}
	d, err := scratch.New("", "slotfs-mailbox-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if found, err := d.Left(); err != nil || len(found) > 0 {
			t.Errorf("left: %q, %v", found, err)
		}
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	first, second := filepath.Join(d.Path, "1"), filepath.Join(d.Path, "2")
	if err := os.Mkdir(first, 0o755); err != nil {
		t.Fatal(err)
	}
	server, mail := start(t, d, "d1", first)
	users := []string{"ann", "bob"}
	g := mailgen.New(1)
	messages := g.Hard(3 << 20)
	for range 30 {
		messages = append(messages, g.Next())
	}
	acks, err := mail.Deliver(users, messages, 4, nil)
	if err != nil || len(acks) != len(messages) {
		t.Fatalf("%d of %d acknowledged, %v", len(acks), len(messages), err)
	}
	shot, err := mail.Snapshot(users)
	if err != nil {
		t.Fatal(err)
	}
	if missing := shot.Missing(acks); len(missing) > 0 {
		t.Errorf("missing: %q", missing)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, user := range users {
		done, gone, err := mail.Change(user, rng)
		if err != nil {
			t.Fatal(err)
		}
		if done.Expunged == 0 || done.Moved == 0 {
			t.Errorf("%s: %s", user, done)
		}
		acks = mailbox.Without(acks, gone)
	}
	if shot, err = mail.Snapshot(users); err != nil {
		t.Fatal(err)
	}
	if missing := shot.Missing(acks); len(missing) > 0 {
		t.Errorf("missing after changes: %q", missing)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", first, second).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	_, mail = start(t, d, "d2", second)
	again, err := mail.Snapshot(users)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range again.Diff(shot) {
		t.Error(line)
	}
	differences(t, mail, again, acks)
}

// differences makes some, and expects them to be seen.
func differences(t *testing.T, mail mailbox.Server, before mailbox.Snapshot, acks []mailbox.Ack) {
	t.Helper()
	c, err := imap.Open(mail.IMAP, "ann", mail.Password)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ready := make(chan struct{})
	watcher, err := imap.Open(mail.IMAP, "ann", mail.Password)
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	if _, err := watcher.Select("INBOX"); err != nil {
		t.Fatal(err)
	}
	idle := make(chan error, 1)
	go func() { idle <- watcher.Idle("EXISTS", func() { close(ready) }) }()
	<-ready
	if err := c.Append("INBOX", []string{`\Seen`}, time.Unix(1e9, 0), []byte("Subject: a\r\n\r\nb\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := <-idle; err != nil {
		t.Error(err)
	}
	after, err := mail.Snapshot([]string{"ann", "bob"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := after.Diff(before); len(diff) < 3 {
		t.Errorf("one message more gives only %q", diff)
	}
	if diff := after.Diff(before, "ann"); len(diff) > 0 {
		t.Errorf("%q, although ann's mail may grow", diff)
	}
	if missing := after.Missing(append(acks, mailbox.Ack{User: "ann", Name: "never sent"})); len(missing) != 1 {
		t.Errorf("missing = %q, want the one never sent", missing)
	}
}
