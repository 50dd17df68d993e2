package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// manyStores is how many stores the nodes have besides the cluster's.
const manyStores = 7

// stores is a pair of nodes that hold many.
type stores struct {
	*fixture
	names  []string
	mounts map[*cluster.Node]map[string]string // by store
	mail   map[string][]string                 // by store: ids of what was acknowledged
}

// TestManyStores: two nodes share eight stores, each primary of half of them.
// When one dies the other has them all, by itself; when it is back it gets its
// half again, and nothing is missing.
func TestManyStores(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 2, cluster.Options{Witness: true})
	f.expect(provoked...)
	f.expect("the register is unreachable") // while one member of three is away and another comes or goes
	s := &stores{fixture: f, mounts: map[*cluster.Node]map[string]string{}, mail: map[string][]string{}}
	for _, n := range f.Nodes {
		s.mounts[n] = map[string]string{f.Store: n.Mount}
	}
	s.names = append(s.names, f.Store)
	for i := range manyStores {
		name := fmt.Sprint("more", i)
		s.names = append(s.names, name)
		for _, n := range f.Nodes {
			mount, err := n.AddSlot(name)
			must(t, err)
			s.mounts[n][name] = mount
		}
	}
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	home := map[string]*cluster.Node{}
	for i, name := range s.names {
		home[name] = f.Nodes[i%2]
	}
	s.atOnce(s.names[1:], func(name string) error { return ran(home[name].Run("promote", name)) })
	s.wait("each store to have its primary and a replica", func(name string) error { return s.whole(name, home[name]) })
	for _, name := range s.names {
		s.deliver(home[name], name)
	}

	must(t, n1.Kill())
	died := time.Now()
	s.wait("the other node to serve all stores", func(name string) error {
		slot, err := n2.SlotOf(name)
		if err != nil {
			return err
		}
		return slot.Serves()
	})
	t.Logf("%d stores failed over after %v", (len(s.names)+1)/2, time.Since(died).Round(10*time.Millisecond))
	for _, name := range s.names {
		s.deliver(n2, name)
	}

	must(t, n1.Start())
	s.wait("the node that died to be in sync", func(name string) error { return s.whole(name, n2) })
	s.atOnce(s.names, func(name string) error {
		if home[name] == n2 {
			return nil
		}
		return ran(n1.Run("switch", name))
	})
	s.wait("each store to be back where it was", func(name string) error { return s.whole(name, home[name]) })
	for _, name := range s.names {
		s.deliver(home[name], name)
		s.read(home[name], name)
	}
	s.atOnce(s.names, func(name string) error { return ran(n1.Run("verify", name)) })
}

// atOnce does something to all stores at one time.
func (s *stores) atOnce(names []string, do func(name string) error) {
	s.t.Helper()
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = do(name) })
	}
	wg.Wait()
	must(s.t, errors.Join(errs...))
}

// ran is the error of a command whose output says nothing more.
func ran(_ string, err error) error { return err }

// wait waits until cond holds for each store.
func (s *stores) wait(what string, cond func(name string) error) {
	s.t.Helper()
	must(s.t, s.Wait(what, func() error {
		var errs []error
		for _, name := range s.names {
			if err := cond(name); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
		return errors.Join(errs...)
	}))
}

// whole says why a store is not served by n with two copies.
func (s *stores) whole(name string, n *cluster.Node) error {
	slot, err := n.SlotOf(name)
	if err == nil {
		err = slot.Serves()
	}
	if err == nil && len(slot.Repl.Members) != 2 {
		err = fmt.Errorf("%d slots are in sync", len(slot.Repl.Members))
	}
	return err
}

// deliver delivers a message to a store on n.
func (s *stores) deliver(n *cluster.Node, name string) {
	s.t.Helper()
	id := fmt.Sprintf("%s-%d", name, len(s.mail[name]))
	must(s.t, deliver(s.mounts[n][name], "user", map[string][]byte{id: mail(id)}))
	s.mail[name] = append(s.mail[name], id)
}

// read compares all mail of a store with what was delivered.
func (s *stores) read(n *cluster.Node, name string) {
	s.t.Helper()
	for _, id := range s.mail[name] {
		b, err := os.ReadFile(filepath.Join(s.mounts[n][name], "user", "cur", id+":2,"))
		if err != nil || string(b) != string(mail(id)) {
			s.t.Errorf("acknowledged and not there: %s: %d bytes, %v", id, len(b), err)
		}
	}
}
