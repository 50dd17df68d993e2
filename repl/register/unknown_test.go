package register_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"slotfs/repl"
	"slotfs/repl/register"
)

// single is a register of one member that runs, with a client.
func single(t *testing.T) (*cluster, *register.Etcd) {
	t.Helper()
	c := newCluster(t, "n1")
	c.start("n1")
	e := c.client("n1")
	ready(t, e)
	return c, e
}

// raw is etcd's own client.
func (c *cluster) raw(name string) *clientv3.Client {
	c.t.Helper()
	k, err := clientv3.New(clientv3.Config{Endpoints: []string{c.members[name].Config.ClientAdvertise}, TLS: c.auth.tls(c.t, "raw"), Logger: zap.NewNop()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { k.Close() })
	return k
}

// TestUnknownOutcome: the answer to a change gets lost. The change may have
// happened; asking again shows whether, and who won.
func TestUnknownOutcome(t *testing.T) {
	c, direct := single(t)
	p := newProxy(t, c.members["n1"].Config.ClientAdvertise)
	e := c.clientAt(p.Addr().String())
	ready(t, e)
	put(t, e, "mail1", 0, record(1))

	p.arm(answers)
	start := time.Now()
	_, won, err := e.Swap(t.Context(), "mail1", 1, record(2))
	if err == nil || won || !p.hasTripped() {
		t.Fatalf("without an answer: won=%v err=%v, cut=%v", won, err, p.hasTripped())
	}
	if took := time.Since(start); took > repl.RegisterPatience+2*time.Second {
		t.Errorf("it took %v", took)
	}
	if r := e.Reach(); r.OK() || r.Since.IsZero() {
		t.Errorf("reach says %+v", r)
	}
	if now := mustGet(t, direct, "mail1"); now.Nonce != record(2).Nonce {
		t.Errorf("the change did not happen: %+v", now)
	}
	p.arm(nothing)
	if now, won, err := direct.Swap(t.Context(), "mail1", 1, record(2)); err != nil || !won || now.Epoch != 2 {
		t.Errorf("the same change once more: now=%+v won=%v err=%v", now, won, err)
	}

	// A request that never arrives.
	e = c.clientAt(p.Addr().String())
	ready(t, e)
	p.arm(requests)
	if _, won, err := e.Swap(t.Context(), "mail1", 2, record(3)); err == nil || won || !p.hasTripped() {
		t.Fatalf("without arriving: won=%v err=%v, cut=%v", won, err, p.hasTripped())
	}
	if now := mustGet(t, direct, "mail1"); now.Epoch != 2 {
		t.Errorf("the change happened: %+v", now)
	}
}

// TestSecondEndpoint: an endpoint that falls silent in the middle of a change
// costs a moment; the change happens once, and is known to be ours.
func TestSecondEndpoint(t *testing.T) {
	c, direct := single(t)
	p := newProxy(t, c.members["n1"].Config.ClientAdvertise)
	for _, cut := range []cutting{answers, requests} {
		store := map[cutting]string{answers: "a", requests: "b"}[cut]
		p.arm(nothing)
		e := c.clientAt(p.Addr().String())
		ready(t, e)
		put(t, e, store, 0, record(1))
		e.SetEndpoints([]string{p.Addr().String(), c.members["n1"].Config.ClientAdvertise})
		p.arm(cut)
		start := time.Now()
		now, won, err := e.Swap(t.Context(), store, 1, record(2))
		if err != nil || !won || now.Nonce != record(2).Nonce || !p.hasTripped() {
			t.Fatalf("cut %d: now=%+v won=%v err=%v, cut=%v", cut, now, won, err, p.hasTripped())
		}
		t.Logf("cut %d: %v", cut, time.Since(start).Round(time.Millisecond))
		r, err := c.raw("n1").Get(t.Context(), register.Key(clusterID, store))
		if err != nil || len(r.Kvs) != 1 || r.Kvs[0].Version != 2 {
			t.Errorf("cut %d: the record was written more often than twice: %+v, %v", cut, r, err)
		}
		if r := mustGet(t, direct, store); r.Epoch != 2 {
			t.Errorf("record: %+v", r)
		}
	}
}

// TestRace: of many who want the same epoch one wins, and all agree who.
func TestRace(t *testing.T) {
	_, e := single(t)
	put(t, e, "mail1", 0, record(1))
	var winners atomic.Int32
	done := make(chan repl.Nonce)
	for i := range 8 {
		go func() {
			next := record(2)
			next.Nonce[5] = byte(i)
			now, won, err := e.Swap(t.Context(), "mail1", 1, next)
			if err != nil {
				t.Error(err)
			}
			if won != (now.Nonce == next.Nonce) {
				t.Errorf("won=%v, but the record is %+v", won, now)
			}
			if won {
				winners.Add(1)
			}
			done <- now.Nonce
		}()
	}
	first := <-done
	for range 7 {
		if n := <-done; n != first {
			t.Errorf("two records: %s and %s", first, n)
		}
	}
	if winners.Load() != 1 {
		t.Errorf("%d winners", winners.Load())
	}
}

// TestGarbage: a record that cannot be used is an error of its own kind, is
// told, and does not reach who watches.
func TestGarbage(t *testing.T) {
	c, e := single(t)
	put(t, e, "mail1", 0, record(1))
	put(t, e, "mail2", 0, record(5))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan uint64, 100)
	go e.Watch(ctx, "mail1", func(r repl.Record, _ bool) { seen <- r.Epoch })
	if got := <-seen; got != 1 {
		t.Fatalf("watch began with epoch %d", got)
	}
	if _, err := c.raw("n1").Put(t.Context(), register.Key(clusterID, "mail1"), "garbage"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Get(t.Context(), "mail1"); !errors.Is(err, repl.ErrRecord) {
		t.Errorf("get: %v", err)
	}
	if _, won, err := e.Swap(t.Context(), "mail1", 1, record(2)); won || !errors.Is(err, repl.ErrRecord) {
		t.Errorf("swap: won=%v %v", won, err)
	}
	if g := e.Garbage(); len(g) != 1 || g["mail1"] == "" {
		t.Errorf("garbage: %v", g)
	}
	if r := e.Reach(); !r.OK() {
		t.Errorf("a register with garbage in it is unreachable: %+v", r)
	}
	if r := mustGet(t, e, "mail2"); r.Epoch != 5 {
		t.Errorf("the other store: %+v", r)
	}
	if list, err := e.List(t.Context()); err != nil || list["mail1"].Err == nil || list["mail2"].Record.Epoch != 5 {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := e.Put(t.Context(), "mail1", record(7)); err != nil {
		t.Fatal(err)
	}
	for got := range seen {
		if got == 7 {
			break
		}
		if got != 1 {
			t.Errorf("watch showed epoch %d", got)
		}
	}
	if g := e.Garbage(); len(g) != 0 {
		t.Errorf("garbage: %v", g)
	}
}

// TestWatchGoesOn: who watches hears of changes also after the member that it
// asked was restarted.
func TestWatchGoesOn(t *testing.T) {
	c := newCluster(t, "n1", "n2", "w")
	c.start("n1", "n2", "w")
	e, other := c.client("n1", "n2", "w"), c.client("n2")
	ready(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan uint64, 100)
	go e.Watch(ctx, "mail1", func(r repl.Record, _ bool) { seen <- r.Epoch })
	until := func(want uint64) {
		t.Helper()
		limit := time.After(15 * time.Second)
		for {
			select {
			case got := <-seen:
				if got == want {
					return
				}
			case <-limit:
				t.Fatalf("no news of epoch %d", want)
			}
		}
	}
	until(0)
	put(t, other, "mail1", 0, record(1))
	until(1)
	c.members["n1"].halt()
	put(t, other, "mail1", 1, record(2))
	until(2)
	c.start("n1")
	put(t, other, "mail1", 2, record(3))
	until(3)
}

// TestForeignCertificate: neither a client nor a member of another cluster
// gets in, and a member does not believe another cluster's register.
func TestForeignCertificate(t *testing.T) {
	c, _ := single(t)
	foreign := newAuthority(t)
	e := register.New(register.Options{Cluster: clusterID, TLS: foreign.tls(t, "stranger")})
	t.Cleanup(func() { e.Close() })
	e.SetEndpoints([]string{c.members["n1"].Config.ClientAdvertise})
	if _, _, err := e.Get(t.Context(), "mail1"); err == nil || !strings.Contains(err.Error(), "is not accepted here") {
		t.Errorf("a stranger asked the register: %v", err)
	}
	if _, won, err := e.Swap(t.Context(), "mail1", 0, record(1)); err == nil || won {
		t.Error("a stranger changed the register")
	}
	// A member elsewhere that lists ours: it waits, and says why.
	s := &cluster{t: t, auth: foreign, members: map[string]*member{}}
	peers := []register.Peer{{Name: "n1", Addr: c.members["n1"].Config.Listen}, {Name: "x", Addr: freeAddr(t)}, {Name: "y", Addr: freeAddr(t)}}
	m := s.prepare(peers[1], peers)
	t.Cleanup(m.halt)
	s.start("x")
	if text := m.await(t, register.Forming); text == "" {
		t.Error("it does not say what it waits for")
	}
	if r, err := c.raw("n1").MemberList(t.Context()); err != nil || len(r.Members) != 1 {
		t.Errorf("members: %+v, %v", r, err)
	}
}

// TestUser: an etcd that wants a user and a password, and gives it no more than
// the keys of slotfs.
func TestUser(t *testing.T) {
	c, _ := single(t)
	admin := c.raw("n1")
	ctx := t.Context()
	var errs []error
	add := func(_ any, err error) { errs = append(errs, err) }
	add(admin.UserAdd(ctx, "root", "r00t"))
	add(admin.UserGrantRole(ctx, "root", "root"))
	add(admin.RoleAdd(ctx, "mail"))
	add(admin.RoleGrantPermission(ctx, "mail", "/slotfs/", clientv3.GetPrefixRangeEnd("/slotfs/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	add(admin.UserAdd(ctx, "slotfs", "secret"))
	add(admin.UserGrantRole(ctx, "slotfs", "mail"))
	add(admin.AuthEnable(ctx))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	connect := func(password string) *register.Etcd {
		// The user counts, not the certificate, whose name etcd would take.
		tls := c.auth.tls(t, "slotfs")
		e := register.New(register.Options{Cluster: clusterID, TLS: tls, User: "slotfs", Password: password})
		t.Cleanup(func() { e.Close() })
		e.SetEndpoints([]string{c.members["n1"].Config.ClientAdvertise})
		return e
	}
	e := connect("secret")
	ready(t, e)
	put(t, e, "mail1", 0, record(1))
	if r := mustGet(t, e, "mail1"); r.Epoch != 1 {
		t.Errorf("record: %+v", r)
	}
	if _, err := e.List(ctx); err != nil {
		t.Error(err)
	}
	wrong := connect("wrong")
	for end := time.Now().Add(30 * time.Second); ; { // a busy etcd takes its time to say so
		_, _, err := wrong.Get(ctx, "mail1")
		if err != nil && strings.Contains(err.Error(), "does not accept the user or the password: see register.user and register.password_file") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with a wrong password: %v", err)
		}
	}
}
