package repl

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"slotfs/meta/op"
)

// greet connects to n as node name of ca, and says h.
func greet(t *testing.T, n *node, ca *authority, name string, h hello) (*link, error) {
	t.Helper()
	_, client := ca.node(name)
	client.VerifyConnection = nil
	l, err := dial(context.Background(), n.cable.addr(), client)
	if err != nil {
		return nil, err
	}
	t.Cleanup(l.close)
	if err := l.sendJSON(frameHello, h); err != nil {
		return nil, err
	}
	var w welcome
	return l, l.expect(frameWelcome, &w)
}

func TestGreetingsRefused(t *testing.T) {
	w, a, b := pair(t, nil)
	good := b.m.hello(forStream)
	good.Node, good.Slot = "x", op.SlotID{9}
	for _, c := range []struct {
		name  string
		code  Code
		words string
		spoil func(h *hello)
	}{
		{"protocol", CodeProtocol, "same version", func(h *hello) { h.Protocol++ }},
		{"cluster", CodeCluster, "cluster other", func(h *hello) { h.Cluster = "other" }},
		{"certificate", CodeCluster, "certificate of \"x\"", func(h *hello) { h.Node = "y" }},
		{"store name", CodeNoStore, "no store", func(h *hello) { h.Store = "news" }},
		{"store id", CodeStoreID, "two stores of one name", func(h *hello) { h.StoreID[0] ^= 1 }},
		{"slot id", CodeSlot, "copy of the other", func(h *hello) { h.Slot = a.id }},
		{"purpose", CodeProtocol, "dance", func(h *hello) { h.For = "dance" }},
		{"diverged", CodeDiverged, "two primaries", func(h *hello) {
			h.History = append(history(nil), h.History...)
			h.History[len(h.History)-1].Pos.Chain ^= 1
		}},
		{"behind", CodeBehind, "epoch 99", func(h *hello) { h.Last.Epoch = 99 }},
	} {
		h := good
		c.spoil(&h)
		_, err := greet(t, a, w.ca, "x", h)
		var p *PeerError
		if !errors.As(err, &p) || p.Code != c.code || !strings.Contains(p.Text, c.words) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Two nodes of one name.
	h := good
	h.Node = "a"
	if _, err := greet(t, a, w.ca, "a", h); err == nil || !strings.Contains(err.Error(), "two nodes are named a") {
		t.Errorf("same node name: %v", err)
	}
	if _, err := greet(t, a, newAuthority(t), "x", good); err == nil {
		t.Error("a stranger's certificate was accepted")
	}
	w.wait("the refusal to be noted", func() bool { return strings.Contains(a.server.LastRefusal().Reason, "tls handshake") })
	a.mustMkdir("still fine")
	w.inSync(a, b)
}

// Whatever arrives on a connection, the node goes on.
func TestGarbageConnections(t *testing.T) {
	w, a, b := pair(t, nil)
	_, client := w.ca.node("x")
	h, err := json.Marshal(func() hello { h := b.m.hello(forStream); h.Node, h.Slot, h.Local = "x", op.SlotID{9}, true; return h }())
	if err != nil {
		t.Fatal(err)
	}
	greeting := encode(frameHello, h, nil)
	join := func(b ...[]byte) []byte { return bytes.Join(b, nil) }
	for name, b := range map[string][]byte{
		"nothing":     nil,
		"text":        []byte("GET / HTTP/1.0\r\n\r\n"),
		"oversized":   {0xff, 0xff, 0xff, 0xff, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"no json":     encode(frameHello, []byte("}{"), nil),
		"wrong first": encode(frameAck, make([]byte, 24), nil),
		"short ack":   join(greeting, encode(frameAck, make([]byte, 7), nil)),
		"mad ack":     join(greeting, encode(frameAck, bytes.Repeat([]byte{0xff}, 24), nil)),
		"odd type":    join(greeting, encode(frameEntries, make([]byte, marksSize), nil)),
	} {
		c, err := tls.Dial("tcp", a.cable.addr(), client)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if b == nil {
			_ = c.Close()
			continue
		}
		// Closed by the node, sooner or later.
		buf := make([]byte, 64<<10)
		for err == nil {
			_, err = c.Read(buf)
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("%s: the connection stays open", name)
		}
		_ = c.Close()
	}
	a.mustMkdir("still fine")
	w.inSync(a, b)
}

// A primary that sends what does not verify gets no acknowledgement for it.
func TestBadEntriesRefused(t *testing.T) {
	w, a, b := pair(t, func(o *Options) { o.StopOnLoss = true })
	a.mustMkdir("x")
	data := []byte("some mail")
	sum := op.SumOf(data)
	sum.Blocks[0] ^= 1
	e, err := a.log.Append(&op.Put{Parent: op.Root, Name: "bad", Attr: op.Attr{Mode: 0o100600}, Sum: sum, Sealed: true, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	a.log.Flush(e.Seq)
	w.wait("both to complain", func() bool {
		return strings.Contains(b.m.State().LastError, "content differs") && strings.Contains(a.m.State().LastError, "content differs")
	})
	if got := b.log.Appended.Get(); got >= e.Seq {
		t.Errorf("the replica took seq %d in", got)
	}
	a.kill() // it could not commit that entry when it stops
}

// A node is asked about one store; what it answers must not grow with how many
// others it has: a frame is limited.
func TestStatusOfOneStore(t *testing.T) {
	w, a, b := pair(t, nil)
	a.server.mu.Lock()
	for i := range 5000 {
		a.server.members[fmt.Sprint("other", i)] = a.m
	}
	a.server.mu.Unlock()
	_, client := w.ca.node("b")
	got, err := askNode(t.Context(), a.cable.addr(), client, b.m.hello(forStatus))
	if err != nil {
		t.Fatal(err)
	}
	if got.Node != "a" || len(got.Slots) != 1 || got.Slots[0].Slot != a.id || got.Slots[0].Role != Primary {
		t.Errorf("%+v", got)
	}
	if _, err := json.Marshal(a.m.State()); err != nil {
		t.Error(err)
	}
}
