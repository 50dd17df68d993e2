package integration_test

import (
	"fmt"
	"testing"

	"slotfs/integration/cluster"
	"slotfs/integration/imap"
	"slotfs/integration/mailgen"
)

// requests is how many FUSE requests the mount has served.
func (f *fixture) requests(n *cluster.Node) (sum float64, by map[string]float64) {
	f.t.Helper()
	traffic, err := n.Traffic()
	must(f.t, err)
	by = map[string]float64{}
	for op, v := range traffic {
		sum += float64(v)
		by[op] = float64(v)
	}
	return sum, by
}

// TestRequestsPerOperation counts FUSE requests under Dovecot. They do not
// depend on the machine, and each costs tens of microseconds, so a change
// that brings more of them is noticed here. What a plain loopback needs: 76
// per delivery, 4 per fetch, 24 per flag.
func TestRequestsPerOperation(t *testing.T) {
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	n := f.Nodes[0]
	_, mail := f.mail(n, "d1")
	const count = 60
	g := mailgen.New(1)
	g.Max = 64 << 10
	batch := func() (messages []mailgen.Message) {
		for range count {
			messages = append(messages, g.Next())
		}
		return messages
	}
	deliver := func() {
		t.Helper()
		if acks, err := mail.Deliver([]string{"ann"}, batch(), 1, nil); err != nil || len(acks) != count {
			t.Fatalf("%d delivered, %v", len(acks), err)
		}
	}
	deliver() // the mailbox exists, caches are warm
	var c *imap.Client
	each := func(do func(uid string) error) func() {
		return func() {
			t.Helper()
			for uid := 1; uid <= count; uid++ {
				must(t, do(fmt.Sprint(uid)))
			}
		}
	}
	fetch := each(func(uid string) error { _, err := c.Bodies(uid); return err })
	for _, op := range []struct {
		name string
		most float64
		run  func()
	}{
		{"delivery", 46, deliver},
		{"first fetch", 3, fetch},
		{"second fetch", 2, fetch},
		{"flag", 22, each(func(uid string) error { return c.Store(uid, "+FLAGS", `\Seen`) })},
	} {
		if op.name == "first fetch" {
			var err error
			c, err = imap.Open(mail.IMAP, "ann", mail.Password)
			must(t, err)
			defer c.Close()
			_, err = c.Select("INBOX")
			must(t, err)
		}
		before, was := f.requests(n)
		op.run()
		after, is := f.requests(n)
		per := (after - before) / count
		t.Logf("%s: %.1f requests (at most %.0f)", op.name, per, op.most)
		for name := range is {
			if d := (is[name] - was[name]) / count; d > 0.2 {
				t.Logf("  %s %.1f", name, d)
			}
		}
		if per > op.most || per == 0 {
			t.Errorf("%.1f requests per %s; at most %.0f", per, op.name, op.most)
		}
	}
}
