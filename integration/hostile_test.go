package integration_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"slotfs/integration/cluster"
)

// frame is a frame of the replication protocol, as the package comment of repl
// has it.
func frame(typ, version byte, body []byte) []byte {
	h := make([]byte, 16)
	binary.BigEndian.PutUint32(h, uint32(len(body)))
	h[4], h[5] = typ, version
	binary.BigEndian.PutUint64(h[8:], xxhash.Sum64(append(bytes.Clone(h[:8]), body...)))
	return append(h, body...)
}

const frameHello = 1 // JSON, first on every connection

// hostile is a node with a good certificate and bad manners.
type hostile struct {
	*fixture
	conf  *tls.Config
	hello map[string]any // a good one
}

func newHostile(t *testing.T) *hostile {
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	x, err := f.Add("x") // never started: its certificate is what counts
	must(t, err)
	pair, err := tls.LoadX509KeyPair(filepath.Join(x.Dir, "node.pem"), filepath.Join(x.Dir, "node.key"))
	must(t, err)
	must(t, deliver(f.Nodes[0].Mount, "ann", map[string][]byte{"m": []byte("mail\n")}))
	f.equal2()
	var s struct {
		Cluster string
		Slots   []struct {
			Replication struct {
				StoreID string `json:"store_id"`
				Pos     struct{ Epoch, Seq, Chain uint64 }
				Primary string
				Members []string
			}
		}
	}
	out, err := f.Nodes[0].Run("status", "--json")
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &s))
	r := s.Slots[0].Replication
	return &hostile{fixture: f,
		conf: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13},
		hello: map[string]any{"protocol": 1, "for": "stream", "cluster": s.Cluster, "node": "x", "store": f.Store, "store_id": r.StoreID,
			"slot": strings.Repeat("9", 32), "role": "replica", "local": true, "last": map[string]any{"epoch": 0, "seq": 0, "chain": 0}}}
}

// equal2 is equal for the two nodes that run.
func (f *fixture) equal2() {
	f.t.Helper()
	_, err := f.WaitEqual()
	must(f.t, err)
}

// with is the good greeting, spoiled.
func (h *hostile) with(changes map[string]any) []byte {
	h.t.Helper()
	all := map[string]any{}
	for k, v := range h.hello {
		all[k] = v
	}
	for k, v := range changes {
		all[k] = v
	}
	text, err := json.Marshal(all)
	must(h.t, err)
	return text
}

// say sends bytes to a node and returns what came back until it hung up. It
// must hang up.
func (h *hostile) say(n *cluster.Node, what string, data []byte) []byte {
	h.t.Helper()
	c, err := tls.Dial("tcp", n.Repl, h.conf)
	must(h.t, err)
	defer c.Close()
	must(h.t, c.SetDeadline(time.Now().Add(20*time.Second)))
	if _, err := c.Write(data); err != nil {
		h.t.Errorf("%s: %v", what, err)
	}
	answer, err := io.ReadAll(c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		h.t.Errorf("%s: the connection stays open", what)
	}
	return answer
}

// TestHostilePeers: a peer with a good certificate says things that are wrong.
// Each is refused, in the log and in the status of the node that it said them
// to, by a sentence that says what is wrong; the pair goes on.
func TestHostilePeers(t *testing.T) {
	t.Parallel()
	h := newHostile(t)
	h.expect("refused", "tls handshake", "replication", "diverged")
	n1 := h.Nodes[0]
	history := func(epoch, seq, chain uint64) map[string]any {
		pos := map[string]any{"epoch": epoch, "seq": seq, "chain": chain}
		return map[string]any{"last": pos, "history": []any{map[string]any{"pos": pos, "primary": strings.Repeat("9", 32), "members": []string{strings.Repeat("9", 32)}}}}
	}
	oversized := frame(frameHello, 1, nil)
	binary.BigEndian.PutUint32(oversized, 1<<31)
	for _, c := range []struct {
		name string
		data []byte
		told string
	}{
		{"another wire version", frame(frameHello, 9, h.with(nil)), "version 9, this node speaks 1"},
		{"another protocol version", frame(frameHello, 1, h.with(map[string]any{"protocol": 99})), "speaks replication protocol 99"},
		{"another cluster", frame(frameHello, 1, h.with(map[string]any{"cluster": "0123"})), "is of cluster 0123"},
		{"another's name", frame(frameHello, 1, h.with(map[string]any{"node": "n2"})), `a node that says it is "n2" has the certificate of "x"`},
		{"another store of this name", frame(frameHello, 1, h.with(map[string]any{"store_id": strings.Repeat("7", 32)})), "two stores of one name"},
		{"an epoch that never was", frame(frameHello, 1, h.with(history(99, 1000, 7))), "is in epoch 99"},
		{"a position of another history", frame(frameHello, 1, h.with(history(1, 1, 7))), "began differently"},
		{"an oversized frame", oversized, "at most"},
		{"a malformed greeting", frame(frameHello, 1, []byte("}{")), "greeting of x"},
		{"an unknown frame", frame(77, 1, nil), "unknown type 77"},
		{"a wrong checksum", append(frame(frameHello, 1, h.with(nil))[:40], make([]byte, 4096)...), "checksum"},
	} {
		h.say(n1, c.name, c.data)
		h.tells(n1, c.told)
	}
	// After a good greeting, too.
	good := frame(frameHello, 1, h.with(nil))
	for name, rest := range map[string][]byte{
		"a frame that only a primary sends":    frame(4, 1, make([]byte, 24)),
		"an acknowledgement of what never was": frame(6, 1, bytes.Repeat([]byte{0xff}, 24)),
		"half a frame":                         frame(6, 1, make([]byte, 24))[:9],
		"noise":                                bytes.Repeat([]byte("noise"), 1000),
	} {
		if name == "half a frame" {
			c, err := tls.Dial("tcp", n1.Repl, h.conf)
			must(t, err)
			_, err = c.Write(append(bytes.Clone(good), rest...))
			must(t, err)
			must(t, c.Close())
			continue
		}
		h.say(n1, name, append(bytes.Clone(good), rest...))
	}
	h.works(h.fixture)
	h.equal2()
	for _, n := range h.Nodes[:2] {
		log, err := n.Log()
		must(t, err)
		if strings.Contains(log, "panic") {
			t.Errorf("%s panicked", n.Name)
		}
		if s, err := n.Slot(); err != nil || s.Repl.Diverged != "" || s.Repl.Faulted != "" {
			t.Errorf("%s: %+v, %v", n.Name, s.Repl, err)
		}
	}
	if _, err := os.Stat(filepath.Join(h.Nodes[0].Mount, "ann", "cur", "m:2,")); err != nil {
		t.Error(err)
	}
}
