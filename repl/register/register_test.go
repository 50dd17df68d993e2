package register_test

import (
	"strings"
	"testing"
	"time"

	"slotfs/repl"
	"slotfs/repl/register"
)

// TestThreeMembers: the members find each other in any order; Get and Swap do
// what they promise; two of three are enough; one of three fails within the
// stated time; members come back.
func TestThreeMembers(t *testing.T) {
	c := newCluster(t, "n1", "n2", "w")
	c.start("w", "n2")
	if text := c.members["w"].await(t, register.Forming); !strings.Contains(text, "n1 at "+c.members["n1"].Config.Listen) {
		t.Errorf("it does not say for whom it waits: %s", text)
	}
	c.start("n1")
	for _, m := range c.members {
		m.await(t, register.Running)
	}
	e := c.client("n1", "n2", "w")
	ready(t, e)
	if _, found, err := e.Get(t.Context(), "mail1"); found || err != nil {
		t.Fatalf("found=%v err=%v", found, err)
	}
	if now, won, err := e.Swap(t.Context(), "mail1", 1, record(2)); won || now.Epoch != 0 || err != nil {
		t.Fatalf("swap of a record that is not there: now=%+v won=%v err=%v", now, won, err)
	}
	put(t, e, "mail1", 0, record(1))
	if now, won, err := e.Swap(t.Context(), "mail1", 0, record(3)); won || now.Epoch != 1 || err != nil {
		t.Fatalf("a second creation: now=%+v won=%v err=%v", now, won, err)
	}
	put(t, e, "mail1", 1, record(2))
	if now, won, err := e.Swap(t.Context(), "mail1", 1, record(3)); won || now.Epoch != 2 || err != nil {
		t.Fatalf("swap with an old epoch: now=%+v won=%v err=%v", now, won, err)
	}
	if now, won, err := e.Swap(t.Context(), "mail1", 1, record(2)); !won || now.Epoch != 2 || err != nil {
		t.Fatalf("the winner's second attempt: now=%+v won=%v err=%v", now, won, err)
	}
	put(t, e, "mail2", 0, record(9))

	c.members["n1"].halt()
	put(t, e, "mail1", 2, record(3))
	c.members["w"].halt()
	start := time.Now()
	if _, _, err := e.Get(t.Context(), "mail1"); err == nil {
		t.Error("one of three answered")
	}
	if _, _, err := e.Swap(t.Context(), "mail1", 3, record(4)); err == nil {
		t.Error("one of three changed the record")
	}
	if took := time.Since(start); took > 2*repl.RegisterPatience+time.Second {
		t.Errorf("they failed after %s", took)
	}
	if r := e.Reach(); r.OK() || r.Error == "" {
		t.Errorf("reach says %+v", r)
	}
	c.start("n1", "w")
	ready(t, e)
	eventually(t, "reach", func() error {
		if r := e.Reach(); !r.OK() {
			return errString("unreachable: " + r.Error)
		}
		return nil
	})
	if r := mustGet(t, e, "mail1"); r.Epoch < 3 || r.Epoch > 4 {
		t.Errorf("record after the restart: %+v", r)
	}
	if r := mustGet(t, e, "mail2"); r.Epoch != 9 {
		t.Errorf("record of the other store: %+v", r)
	}
}

type errString string

func (e errString) Error() string { return string(e) }
