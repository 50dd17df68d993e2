package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"slotfs/integration/cluster"
)

// noise is what etcd and the others say while members come and go.
var noise = []string{"register", "etcd", "level=WARN msg=replication", "one copy left", "no primary", "replica on", "gossip", "memberlist", "does not answer", "drop", "lost", "alone"}

// witnessed is a pair with a witness, in sync.
func witnessed(t *testing.T) *fixture {
	t.Helper()
	f := newCluster(t, 2, cluster.Options{Witness: true, Timeout: 25 * time.Second})
	f.expect(noise...)
	must(t, f.StartPair())
	return f
}

func (f *fixture) deliver(n *cluster.Node, user string) {
	f.t.Helper()
	must(f.t, deliver(n.Mount, user, map[string][]byte{"m": []byte("to " + user + "\n")}))
}

// members waits until a node sees these members, all up.
func (f *fixture) members(n *cluster.Node, names ...string) {
	f.t.Helper()
	must(f.t, n.WaitRegister(fmt.Sprintf("with members %v, all up", names), func(r *cluster.Register) bool {
		var up []string
		for _, m := range r.Members {
			if m.State == "up" && !m.Learner {
				up = append(up, m.Name)
			}
		}
		slices.Sort(up)
		return slices.Equal(up, names) && len(r.Members) == len(names)
	}))
}

// fails runs a command that must be refused with a code and texts.
func (f *fixture) fails(n *cluster.Node, code int, args []string, texts ...string) {
	f.t.Helper()
	out, err := n.Run(args...)
	var exit *cluster.ExitError
	if !errors.As(err, &exit) || exit.Code != code {
		f.t.Fatalf("%v: want exit code %d: %v %s", args, code, err, out)
	}
	for _, text := range texts {
		if !strings.Contains(out+exit.Output, text) {
			f.t.Errorf("%v does not say %q: %s%s", args, text, out, exit.Output)
		}
	}
}

func (f *fixture) run(n *cluster.Node, args ...string) string {
	f.t.Helper()
	out, err := n.Run(args...)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// survives kills the primary: the other node takes over, and is joined again.
func (f *fixture) survives(primary, other *cluster.Node) {
	f.t.Helper()
	must(f.t, primary.Kill())
	must(f.t, other.WaitMounted())
	must(f.t, primary.Clear())
	must(f.t, primary.Start())
	must(f.t, f.WaitInSync())
}

// TestRegisterWitness: the witness is shown and leads; the register survives
// the loss of the witness and of the data node that it is not.
func TestRegisterWitness(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	must(t, n2.WaitRegister("led by the witness", func(r *cluster.Register) bool { return r.Leader == "w" }))
	status := f.run(n2, "status")
	for _, text := range []string{"w (witness)", "register: embedded; members n1, n2, w (leads); answered"} {
		if !strings.Contains(status, text) {
			t.Errorf("status does not say %q:\n%s", text, status)
		}
	}
	if out := f.run(f.Witness, "register", "status"); !strings.Contains(out, "replica on n2 caught up") || !strings.Contains(out, "n1, n2") {
		t.Errorf("the witness does not show the record:\n%s", out)
	}
	m, err := f.Witness.Metrics()
	must(t, err)
	if m["slotfs_register_up"] != 1 || m[`slotfs_register_member_leads{member="w"}`] != 1 {
		t.Errorf("metrics: %v %v", m["slotfs_register_up"], m[`slotfs_register_member_leads{member="w"}`])
	}

	// Without the witness the pair serves, says so, and can still fail over.
	must(t, f.Witness.Kill())
	f.deliver(n1, "ann")
	must(t, n2.WaitRegister("without the witness", func(r *cluster.Register) bool { return r.Leader != "w" && r.Leader != "" }))
	must(t, f.Wait("a warning", func() error {
		s, err := n2.Status()
		if err == nil && !strings.Contains(strings.Join(s.Warnings, "\n"), "2 of 3 register members are up") {
			err = fmt.Errorf("warnings are %q", s.Warnings)
		}
		return err
	}))
	must(t, f.Witness.Start())
	must(t, n1.WaitRegister("led by the witness again", func(r *cluster.Register) bool { return r.Leader == "w" }))
	must(t, n1.Kill())
	start := time.Now()
	must(t, n2.WaitMounted())
	t.Logf("n2 mounted %v after the kill of n1", time.Since(start).Round(time.Millisecond))
	f.deliver(n2, "bob")
	must(t, n1.Clear())
	must(t, n1.Start())
	must(t, f.WaitInSync())
}

// TestRegisterDemote: a slot that was demoted does not resume; another one in
// sync takes over, and if there is none, the store stays down.
func TestRegisterDemote(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	f.expect("mount was in use")
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, n1.Demote())
	must(t, n2.WaitMounted())
	must(t, f.WaitInSync())
	must(t, n1.Stop())
	must(t, f.Wait("n2 to be alone", func() error {
		s, err := n2.Slot()
		if err == nil && len(s.Repl.Members) != 1 {
			err = fmt.Errorf("in sync are %v", s.Repl.Members)
		}
		return err
	}))
	must(t, n2.Demote())
	f.staysDown(n2)
	must(t, n2.Stop())
	must(t, n2.Start())
	f.staysDown(n2)
	must(t, n1.Start())
	f.staysDown(n1)
	must(t, n2.Promote())
	must(t, f.WaitInSync())
}

// TestRegisterElection: how soon the register answers a survivor after a
// member's kill; with the leader's an election is needed.
func TestRegisterElection(t *testing.T) {
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, n2.WaitRegister("led by the witness", func(r *cluster.Register) bool { return r.Leader == "w" }))
	f.members(n1, "n1", "n2", "w")
	c := f.etcd(n2)
	outage := func(victim *cluster.Node) time.Duration {
		must(t, victim.Kill())
		start := time.Now()
		must(t, f.Wait("an answer", func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 250*time.Millisecond)
			defer cancel()
			_, err := c.Get(ctx, "x")
			return err
		}))
		return time.Since(start)
	}
	// Generous: the machine is shared. Alone it takes a few milliseconds, and
	// 0.5 to 1.1 s with an election.
	if d := outage(n1); d > 1500*time.Millisecond {
		t.Errorf("no answer for %v after the kill of a member that does not lead", d)
	} else {
		t.Logf("%v after the kill of a member that does not lead", d.Round(time.Millisecond))
	}
	must(t, n1.Clear())
	must(t, n1.Start())
	f.members(n2, "n1", "n2", "w")
	if d := outage(f.Witness); d > 5*time.Second {
		t.Errorf("no answer for %v after the kill of the leader", d)
	} else {
		t.Logf("%v after the kill of the leader", d.Round(time.Millisecond))
	}
	must(t, f.Witness.Start())
	must(t, f.WaitInSync())
}

// TestRegisterMemberReplaced: a member that lost its disk must not vote again
// under its old name; it is removed and added, and catches up.
func TestRegisterMemberReplaced(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1 := f.Nodes[0]
	f.members(n1, "n1", "n2", "w")
	must(t, f.Witness.Kill())
	must(t, os.RemoveAll(f.Witness.RegisterDir()))
	must(t, f.Witness.Start())
	must(t, f.Wait("the witness to be refused", func() error {
		r, err := f.Witness.Register()
		if err == nil && (r.Member.Phase != "refused" || !strings.Contains(r.Member.Text, "has been a member") || !strings.Contains(r.Member.Text, "slotfs register remove w")) {
			err = fmt.Errorf("its member is %+v", r.Member)
		}
		return err
	}))
	must(t, f.Wait("n1 to tell", func() error {
		s, err := n1.Status()
		if err == nil && !strings.Contains(strings.Join(s.Warnings, "\n"), "w's register member refused") {
			err = fmt.Errorf("warnings are %q", s.Warnings)
		}
		return err
	}))
	f.deliver(n1, "ann")
	f.fails(n1, 8, []string{"register", "add", "w", f.Witness.RegisterAddr()}, "w is a member already", "slotfs register remove w")
	f.fails(n1, 8, []string{"register", "restore"}, "a majority of its members lives")
	f.fails(n1, 2, []string{"register", "remove", "x"}, `no register member "x"`)
	if out := f.run(n1, "register", "remove", "w"); !strings.Contains(out, "slotfs register add w "+f.Witness.RegisterAddr()) {
		t.Errorf("remove does not say what is next: %s", out)
	}
	out := f.run(n1, "register", "add", "w", f.Witness.RegisterAddr())
	if !strings.Contains(out, `"w=`+f.Witness.RegisterAddr()+`"`) || !strings.Contains(out, `"n1=`+n1.RegisterAddr()+`"`) {
		t.Errorf("add does not show the member list: %s", out)
	}
	f.members(n1, "n1", "n2", "w")
	// It is a full member: the other two can lose one.
	f.survives(n1, f.Nodes[1])
}

// TestRegisterRemovedMemberReturns: removal and addition of a member that lives.
func TestRegisterRemovedMemberReturns(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	f.expect("panic: failed to find local ID") // etcd's way of finding that out, at times
	// A member that runs is removed: it stops voting, puts its data aside, and
	// joins when it is added again. Mail does not notice.
	f.run(n1, "register", "remove", "n2")
	must(t, f.Wait("n2 to be out", func() error {
		r, err := n2.Register()
		if err == nil && (r.Member.Phase != "refused" || !strings.Contains(r.Member.Text, "slotfs register add n2")) {
			err = fmt.Errorf("its member is %+v", r.Member)
		}
		return err
	}))
	aside, err := filepath.Glob(filepath.Join(n2.RegisterDir(), "removed-*"))
	if err != nil || len(aside) != 1 {
		t.Errorf("its data is not aside: %q, %v", aside, err)
	}
	f.deliver(n1, "ann")
	f.run(n1, "register", "add", "n2", n2.RegisterAddr())
	f.members(n1, "n1", "n2", "w")
	must(t, f.WaitInSync())
}

// TestRegisterMajorityLost: two members' data are gone for good. The third one
// makes a new register; the others are added again.
func TestRegisterMajorityLost(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	must(t, f.Witness.Kill())
	must(t, n2.Kill())
	must(t, os.RemoveAll(f.Witness.RegisterDir()))
	must(t, os.RemoveAll(n2.RegisterDir()))
	must(t, n1.WaitUnreachable())
	f.fails(n1, 10, []string{"register", "restore"}, "This would be done", "n1 as its only member", "Nothing was done")
	if out := f.run(n1, "register", "restore", "--yes"); !strings.Contains(out, "Done") {
		t.Errorf("restore says %s", out)
	}
	f.members(n1, "n1")
	f.deliver(n1, "ann") // it could drop n2 now
	must(t, n2.Clear())
	must(t, n2.Start())
	must(t, f.Witness.Start())
	f.run(n1, "register", "add", "n2", n2.RegisterAddr())
	f.members(n1, "n1", "n2")
	f.run(n1, "register", "add", "w", f.Witness.RegisterAddr())
	f.members(n1, "n1", "n2", "w")
	must(t, f.WaitInSync())
	f.survives(n1, n2)
}

// TestRegisterAllLost: no member has data any more, and the witness is gone.
// The register begins empty, and the record is made from a slot.
func TestRegisterAllLost(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.deliver(n1, "ann")
	for _, n := range []*cluster.Node{f.Witness, n2, n1} { // no role changes meanwhile
		must(t, n.Kill())
		must(t, os.RemoveAll(n.RegisterDir()))
	}
	for _, n := range f.Nodes {
		must(t, n.Clear())
		must(t, n.Start())
	}
	must(t, f.Wait("n1 to wait for the witness", func() error {
		r, err := n1.Register()
		if err == nil && (r.Member.Phase != "forming" || !strings.Contains(r.Member.Text, "waiting for w at")) {
			err = fmt.Errorf("its member is %+v", r.Member)
		}
		return err
	}))
	f.run(n1, "register", "restore", "--yes")
	f.members(n1, "n1")
	must(t, f.Wait("the record to be restored", func() error {
		_, err := n1.Run("register", "restore", f.Store, "--yes")
		return err
	}))
	must(t, f.WaitInSync())
	f.run(n1, "register", "add", "n2", n2.RegisterAddr())
	f.members(n1, "n1", "n2")
	f.run(n1, "register", "add", "w", f.Witness.RegisterAddr())
	must(t, f.Witness.Start())
	f.members(n1, "n1", "n2", "w")
	must(t, n1.Stop()) // in good order, with a register that it is part of
	must(t, n2.WaitMounted())
	must(t, n1.Start())
	must(t, f.WaitInSync())
}

// TestRegisterNone: without a register nothing of it runs.
func TestRegisterNone(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 1, cluster.Options{})
	n := f.Nodes[0]
	must(t, n.Start())
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", n.Pid(), n.Pid()))
	must(t, err)
	if len(strings.TrimSpace(string(children))) > 0 {
		t.Errorf("it has child processes: %s", children)
	}
	f.fails(n, 8, []string{"register", "restore"}, "this node has no register")
	if out := f.run(n, "register", "status"); !strings.Contains(out, "there is no register") {
		t.Errorf("register status: %s", out)
	}
}
