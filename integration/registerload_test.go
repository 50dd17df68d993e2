package integration_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"slotfs/integration/cluster"
)

func (f *fixture) etcd(n *cluster.Node) *clientv3.Client {
	f.t.Helper()
	c, err := n.Etcd()
	must(f.t, err)
	f.t.Cleanup(func() { c.Close() })
	return c
}

// revision is how often the register was changed.
func (f *fixture) revision(c *clientv3.Client) int64 {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := c.Get(ctx, "x")
	must(f.t, err)
	return r.Header.Revision
}

// proposals is how many entries the members of the register have agreed upon:
// changes, and whatever else would be written to their disks.
func (f *fixture) proposals(c *clientv3.Client) uint64 {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := c.Status(ctx, c.Endpoints()[0])
	must(f.t, err)
	return s.RaftIndex
}

// TestRegisterIdle: an hour's worth of mail, one message a second, each read and
// half of them deleted soon, writes nothing to the register: no record, no lease,
// no sign of life.
func TestRegisterIdle(t *testing.T) {
	t.Parallel()
	const users, each = 12, 300
	f := newCluster(t, 2, cluster.Options{Witness: true, Replication: `replica_timeout = "30s"`})
	f.expect(noise...)
	f.expect("event=brake") // many are deleted
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	must(t, n2.WaitRegister("led by the witness", func(r *cluster.Register) bool { return r.Leader == "w" }))
	c := f.etcd(n2)
	revision, proposals, start := f.revision(c), f.proposals(c), time.Now()
	var wg sync.WaitGroup
	for u := range users {
		wg.Go(func() {
			user := fmt.Sprint("user", u)
			for i := range each {
				if err := liveMail(n1.Mount, user, i); err != nil {
					t.Errorf("%s, message %d: %v", user, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	_, err := f.WaitEqual()
	must(t, err)
	if r, p := f.revision(c), f.proposals(c); r != revision || p != proposals {
		t.Errorf("by mail, the register was changed %d times, and its members agreed upon %d entries", r-revision, p-proposals)
	}
	t.Logf("%d deliveries, as many flags, and %d deletions in %v", users*each, users*each/2, time.Since(start).Round(time.Second))
}

// liveMail delivers the i-th message of a user, flags it, and deletes every
// second one some messages later.
func liveMail(mount, user string, i int) error {
	name := func(i int) string { return fmt.Sprint("m", i) }
	cur := filepath.Join(mount, user, "cur")
	if err := deliver(mount, user, map[string][]byte{name(i): mail(name(i))}); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(cur, name(i)+":2,"), filepath.Join(cur, name(i)+":2,S")); err != nil {
		return err
	}
	if old := i - 9; i%2 == 1 && old >= 0 {
		return os.Remove(filepath.Join(cur, name(old)+":2,S"))
	}
	return nil
}

// TestRegisterFive: a register of three grows to five while it is in use, and
// then decides without two of them, the primary being one.
func TestRegisterFive(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	list := fmt.Sprintf("%q, %q, %q", "w="+f.Witness.RegisterAddr(), "n1="+n1.RegisterAddr(), "n2="+n2.RegisterAddr())
	added, err := f.AddWitnesses("w2", "w3")
	must(t, err)
	names := []string{"n1", "n2", "w"}
	for _, w := range added {
		f.run(n1, "register", "add", w.Name, w.RegisterAddr())
		must(t, w.Start())
		names = append(names, w.Name)
		f.members(n1, names...)
		f.deliver(n1, "with"+w.Name)
	}
	// As documented, the others read the list of five at their next start.
	five := fmt.Sprintf("%s, %q, %q", list, "w2="+added[0].RegisterAddr(), "w3="+added[1].RegisterAddr())
	for _, n := range []*cluster.Node{f.Witness, n1, n2} {
		must(t, n.Edit("members = ["+list+"]", "members = ["+five+"]"))
	}
	must(t, n2.Stop())
	must(t, n2.Start())
	must(t, f.WaitInSync())
	f.members(n1, names...)

	must(t, f.Witness.Kill())
	must(t, n1.Kill())
	must(t, n2.WaitMounted())
	f.deliver(n2, "bob")
	must(t, f.Witness.Start())
	must(t, n1.Clear())
	must(t, n1.Start())
	must(t, f.WaitInSync())
	f.members(n2, names...)
	f.equal()
}
