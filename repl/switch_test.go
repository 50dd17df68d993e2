package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// TestSwitch hands a store to and fro, with a register and without one.
func TestSwitch(t *testing.T) {
	for _, reg := range []bool{false, true} {
		t.Run(fmt.Sprint("register=", reg), func(t *testing.T) {
			var w *world
			var a, b *node
			if reg {
				var nodes []*node
				w, _, nodes = registered(t, "a", "b")
				a, b = nodes[0], nodes[1]
			} else {
				w, a, b = pair(t, nil)
			}
			for round := range 4 {
				last := a.mustMkdir(fmt.Sprint("before", round))
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				err := a.m.Switch(ctx, op.SlotID{})
				cancel()
				if err != nil {
					t.Fatal(err)
				}
				if a.hooks.isMounted() || !b.hooks.isMounted() || b.m.State().Role != Primary {
					t.Fatalf("round %d: %+v", round, b.m.State())
				}
				if b.log.Last().Seq <= last {
					t.Errorf("b is at seq %d, a had %d", b.log.Last().Seq, last)
				}
				w.inSync(b, a)
				a, b = b, a
			}
			if err := b.m.Switch(t.Context(), op.SlotID{}); !errors.Is(err, ErrRefused) {
				t.Errorf("switch asked of a replica: %v", err)
			}
			if err := b.m.Drain(true); err != nil {
				t.Fatal(err)
			}
			err := a.m.Switch(t.Context(), b.id)
			a.refusal("switch to a drained slot", err, "drained")
			if !a.hooks.isMounted() {
				t.Error("a refused switchover has unmounted the store")
			}
		})
	}
}

// TestSwitchBack: the target cannot mount, so the old primary is primary again.
func TestSwitchBack(t *testing.T) {
	w, a, b := pair(t, nil)
	b.hooks.mu.Lock()
	b.hooks.fail = errors.New("no FUSE here")
	b.hooks.mu.Unlock()
	err := a.m.Switch(t.Context(), op.SlotID{})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "no FUSE here") {
		t.Errorf("switch: %v", err)
	}
	w.wait("a to be primary again", func() bool { return a.m.State().Role == Primary && a.hooks.isMounted() })
	w.inSync(a, b)
	a.mustMkdir("after")
}

// TestCommand: a node carries out what another one asks for, and says what went
// wrong.
func TestCommand(t *testing.T) {
	w, a, b := pair(t, nil)
	long := strings.Repeat("x", 3<<20)
	b.server.Command = func(_ context.Context, from string, c Command, w io.Writer) error {
		switch c.Path {
		case "/long":
			_, err := io.WriteString(w, from+long)
			return err
		case "/refused":
			return &CommandError{Exit: 8, Text: "not now"}
		case "/late":
			if _, err := io.WriteString(w, "begun"); err != nil {
				return err
			}
			return errors.New("it broke")
		}
		return nil
	}
	_, a.server.Client = w.ca.node("a")
	send := func(path string) (string, error) {
		r, err := a.server.Send(t.Context(), "b", b.cable.addr(), Command{Path: path})
		if err != nil {
			return "", err
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		return string(got), err
	}
	if got, err := send("/long"); err != nil || got != "a"+long {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := send("/empty"); err != nil || got != "" {
		t.Errorf("%q, %v", got, err)
	}
	var ce *CommandError
	if _, err := send("/refused"); !errors.As(err, &ce) || ce.Exit != 8 || ce.Text != "not now" || ce.Node != "b" {
		t.Errorf("refused: %v", err)
	}
	if got, err := send("/late"); err == nil || got != "begun" || !strings.Contains(err.Error(), "it broke") {
		t.Errorf("broken off: %q, %v", got, err)
	}
	if _, err := a.server.Send(t.Context(), "c", b.cable.addr(), Command{Path: "/long"}); err == nil {
		t.Error("another node than the one that was meant was asked")
	}
	b.server.Command = nil
	if _, err := send("/long"); err == nil {
		t.Error("a node that takes no commands took one")
	}
}

// keeper takes what is offered.
type keeper struct{ got []*meta.Lost }

func (k *keeper) Deliver(_ context.Context, l *meta.Lost, content []byte) (meta.Decision, error) {
	if l.Seq == 99 {
		return meta.Decision{}, errors.New("not mounted")
	}
	k.got = append(k.got, l)
	return meta.Decision{Seq: l.Seq, Outcome: meta.Delivered, Text: string(content)}, nil
}

// TestOffers: what a peer offers of a lost branch is taken only if it is what it
// says, and by a primary only.
func TestOffers(t *testing.T) {
	k := &keeper{}
	w, a, b := pair(t, func(o *Options) { o.Deliverer = k })
	h := b.m.hello(forRescue)
	h.Node, h.Slot = "x", op.SlotID{9}
	good := func(data string) *meta.Lost {
		l := &meta.Lost{}
		l.Seq, l.Size, l.SHA256 = 7, int64(len(data)), fmt.Sprintf("%x", op.SumOf([]byte(data)).SHA256)
		return l
	}
	offer := func(l *meta.Lost, pieces ...string) (rescueReply, error) {
		t.Helper()
		c, err := greet(t, a, w.ca, "x", h)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		if err := c.writeJSON(frameRequest, request{Rescue: l}); err != nil {
			t.Fatal(err)
		}
		for _, p := range append(pieces, "") {
			if err := c.write(frameContent, []byte(p)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.flush(); err != nil {
			t.Fatal(err)
		}
		var r rescueReply
		return r, c.expect(frameReply, &r)
	}
	c, err := greet(t, a, w.ca, "x", h)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := (&remote{c}).Deliver(t.Context(), good("hello"), []byte("hello")); err != nil || d.Outcome != meta.Delivered || d.Text != "hello" {
		t.Errorf("%+v, %v", d, err)
	}
	late := good("hello")
	late.Seq = 99
	if _, err := (&remote{c}).Deliver(t.Context(), late, []byte("hello")); err == nil || !strings.Contains(err.Error(), "not mounted") {
		t.Errorf("an error of the primary: %v", err)
	}
	for name, try := range map[string]func() (rescueReply, error){
		"other content":  func() (rescueReply, error) { return offer(good("hello"), "hullo") },
		"too long":       func() (rescueReply, error) { return offer(good("hello"), "hello", "more") },
		"too short":      func() (rescueReply, error) { return offer(good("hello"), "hell") },
		"negative size":  func() (rescueReply, error) { l := good("hello"); l.Size = -1; return offer(l, "hello") },
		"enormous":       func() (rescueReply, error) { l := good("hello"); l.Size = 1 << 60; return offer(l, "hello") },
		"nothing at all": func() (rescueReply, error) { return offer(nil, "hello") },
	} {
		if r, err := try(); err == nil {
			t.Errorf("%s was taken: %+v", name, r)
		}
	}
	if len(k.got) != 1 {
		t.Errorf("%d were taken", len(k.got))
	}
	h.Slot = op.SlotID{8}
	var p *PeerError
	if _, err := greet(t, b, w.ca, "x", h); !errors.As(err, &p) || p.Code != CodeNotPrimary {
		t.Errorf("offered to a replica: %v", err)
	}
	other := h
	other.StoreID[0] ^= 1
	if _, err := greet(t, a, w.ca, "x", other); !errors.As(err, &p) || p.Code != CodeStoreID {
		t.Errorf("offered to another store: %v", err)
	}
}
