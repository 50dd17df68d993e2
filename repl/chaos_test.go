package repl

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"slotfs/meta/op"
)

// put logs a message with a barrier.
func (n *node) put(ctx context.Context, name string, data []byte) error {
	n.w.mu.Lock()
	log := n.log
	n.w.mu.Unlock()
	if err := log.Reserve(ctx, len(data)); err != nil {
		return err
	}
	e, err := log.Append(&op.Put{Parent: op.Root, Name: name, Attr: op.Attr{Mode: 0o100600}, Sum: op.SumOf(data), Sealed: true, Data: data})
	if err != nil {
		return err
	}
	return log.Barrier(ctx, e.Seq)
}

// TestChaos cuts cables, stops and kills nodes and changes the primary at
// random while mail arrives. With on_replica_loss = "stop" nothing acknowledged
// may be missing afterwards, whoever was promoted.
func TestChaos(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	stop := func(o *Options) { o.StopOnLoss = true }
	a, b := w.add("a", stop), w.add("b", stop)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)

	both := []*node{a, b}
	mail := arrive(seed, both, 2*time.Second)
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	for range rounds {
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond) // mail arrives
		what := rng.IntN(6)
		t.Logf("round: %d, primary %s", what, a.name)
		switch what {
		case 0:
			a.cable.drop()
		case 1:
			a.cable.set(false, true)
			time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
			a.cable.set(false, false)
		case 2:
			b.stop()
			time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
			b.start()
		case 3: // the primary dies, the replica takes over
			a.kill()
			w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
			a.start()
			a, b = b, a
		case 4: // both die; the primary resumes when it sees the replica
			a.kill()
			b.kill()
			b.start()
			a.start()
			w.wait("the primary to resume", func() bool { return a.m.State().Role == Primary })
		case 5:
			if err := a.m.Demote(context.Background()); err != nil {
				t.Fatal(err)
			}
			w.promote(b, PromoteOptions{OldPrimaryIsDown: true})
			a, b = b, a
		}
		w.inSync(a, b)
	}
	mail.end()
	w.inSync(a, b)
	if _, err := a.mkdir("the end"); err != nil {
		t.Fatal(err)
	}
	w.equal(a, b)
	mail.check(t, both)
	t.Logf("%d messages acknowledged, epoch %d", len(mail.acked), a.m.State().Epoch)
}
