package repl

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// mail arrives at whichever nodes are mounted.
type mail struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	acked  map[string][]byte // name → what was acknowledged
}

// arrive begins to deliver; a delivery is given up after patience.
func arrive(seed uint64, nodes []*node, patience time.Duration) *mail {
	m := &mail{acked: map[string][]byte{}}
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(context.Background())
	for i := range 3 {
		rng := rand.New(rand.NewPCG(seed, uint64(i+1)))
		m.wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				for _, n := range nodes {
					if n.hooks.isMounted() {
						m.deliver(ctx, n, fmt.Sprintf("%d-%d-%s", i, k, n.name), rng, patience)
					}
				}
				time.Sleep(time.Millisecond) // leave the two cores to the nodes
			}
		})
	}
	return m
}

func (m *mail) deliver(ctx context.Context, n *node, name string, rng *rand.Rand, patience time.Duration) {
	data := make([]byte, rng.IntN(8000))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	if n.put(ctx, name, data) == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.acked[name] = data
	}
}

// end stops the deliveries.
func (m *mail) end() {
	m.cancel()
	m.wg.Wait()
}

// check looks for all that was acknowledged on every node.
func (m *mail) check(t *testing.T, nodes []*node) {
	t.Helper()
	for name, data := range m.acked {
		for _, n := range nodes {
			got, err := os.ReadFile(filepath.Join(n.dir, "tree", name))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("acknowledged message %s on %s: %d bytes, %v", name, n.name, len(got), err)
			}
		}
	}
}
