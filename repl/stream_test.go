package repl

import (
	"fmt"
	"testing"
)

func TestPair(t *testing.T) {
	w := newFakeWorld(t)
	a := w.add("a", nil)
	b := w.add("b", nil)
	w.promote(a, PromoteOptions{})
	w.inSync(a, b)
	for i := range 50 {
		seq := a.mustMkdir(fmt.Sprint("d", i))
		if got := b.log.Durable.Get(); got < seq {
			t.Fatalf("seq %d acknowledged, the replica has %d", seq, got)
		}
	}
	last := a.log.Last()
	w.wait("applied on the replica", func() bool { return b.log.Applied.Get() >= last.Seq })
	if b.log.Last() != last {
		t.Errorf("replica at %v, primary at %v", b.log.Last(), last)
	}
}
