package integration_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/workload"
)

// TestRecoverWithoutAnything is the way out: both nodes are killed under load,
// and "slotfs recover" makes each tree whole with nothing but the data
// directory. The tree is then an ordinary Maildir, and no node serves it again by
// mistake.
func TestRecoverWithoutAnything(t *testing.T) {
	t.Parallel()
	s := seed(t)
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	must(t, f.StartPair())
	w := workload.New("user", s)
	end, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- w.Run(f.Nodes[0].Mount, end) }()
	time.Sleep(time.Second)
	must(t, f.Nodes[1].Kill()) // first: the other may not go on alone in that moment
	must(t, f.Nodes[0].Kill())
	<-done
	for _, n := range f.Nodes {
		must(t, n.Clear())
		if _, err := n.RunBare("recover", n.Data, "--unlock"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Verify(f.Nodes[0].Tree(), workload.Durable); err != nil {
		t.Error(err)
	}
	refused(t, f.Nodes[0].Start(), 4, f.Nodes[0].Data)
	names, err := filepath.Glob(filepath.Join(f.Nodes[1].Tree(), "user", "cur", "*"))
	if err != nil || len(names) == 0 {
		t.Errorf("the replica's tree has %d messages in cur/, %v", len(names), err)
	}
}

// TestStateInsideTheMount: .slotfs/ shows the state to a program that knows
// only the mount, and listings do not show it.
func TestStateInsideTheMount(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 1, cluster.Options{})
	must(t, f.StartPair())
	mount := f.Nodes[0].Mount
	text, err := os.ReadFile(filepath.Join(mount, ".slotfs", "status"))
	must(t, err)
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil || len(v) == 0 {
		t.Errorf(".slotfs/status is %.200q, %v", text, err)
	}
	names, err := os.ReadDir(mount)
	if err != nil || len(names) != 0 {
		t.Errorf("an empty store lists %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(mount, ".slotfs", "status"), []byte("x"), 0o644); err == nil {
		t.Error(".slotfs/status can be written")
	}
}
