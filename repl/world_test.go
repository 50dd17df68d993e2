package repl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// testTimeout is replica_timeout in tests: short, but longer than a busy
// machine's hiccups.
const testTimeout = 700 * time.Millisecond

// world is some nodes with one slot of one store each, in this process.
type world struct {
	t     testing.TB
	ca    *authority
	mu    sync.Mutex
	nodes map[string]*node
	bell  notifier
	fake  bool // slots that only count
}

type node struct {
	w        *world
	name     string
	dir      string
	id       op.SlotID
	cable    *proxy // in front of its listener
	opts     func(*Options)
	hooks    *testHooks
	line     *line // to the register, if there is one
	slot     testSlot
	log      *oplog.Log
	m        *Member
	server   *Server
	cancel   context.CancelFunc
	done     sync.WaitGroup
	up       bool
	serverUp func()
}

// testSlot is a slot as a test opens and closes it.
type testSlot interface {
	Slot
	close() error
}

func newWorld(t testing.TB) *world {
	return &world{t: t, ca: newAuthority(t), nodes: map[string]*node{}}
}

// logger shows what the members say when the test is verbose.
func logger(t testing.TB, name string) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

func (w *world) add(name string, opts func(*Options)) *node {
	w.t.Helper()
	n := &node{w: w, name: name, dir: filepath.Join(w.t.TempDir(), name), opts: opts, hooks: &testHooks{}}
	n.cable = newProxy(w.t, "127.0.0.1:1")
	n.create()
	w.mu.Lock()
	w.nodes[name] = n
	w.mu.Unlock()
	n.start()
	w.t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) create() {
	n.w.t.Helper()
	if n.w.fake {
		copy(n.id[:], n.name)
		return
	}
	id, err := meta.Create(n.dir, meta.Identity{Store: "mail"})
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.id = id
}

func (n *node) start() {
	t := n.w.t
	t.Helper()
	slot, log := n.open()
	n.w.mu.Lock()
	n.slot, n.log = slot, log
	n.w.mu.Unlock()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, client := n.w.ca.node(n.name)
	o := Options{
		Node: n.name, Cluster: "c", Store: "mail", ID: n.id, Dir: n.dir, Log: n.log, Slot: n.slot, Peers: n, Hooks: n.hooks,
		TLS: client, Timeout: testTimeout, Logger: logger(t, n.name),
	}
	if m, ok := n.slot.(*metaSlot); ok {
		o.Slot = m.Slot
	}
	if n.opts != nil {
		n.opts(&o)
	}
	m, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	n.w.mu.Lock()
	n.m = m
	n.w.mu.Unlock()
	n.server = NewServer(n.name, "c", server, o.Logger)
	n.server.Add(n.m)
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.cable.mu.Lock()
	n.cable.target = ln.Addr().String()
	n.cable.mu.Unlock()
	sctx, scancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { _ = n.server.Serve(sctx, ln) })
	n.serverUp = func() { scancel(); served.Wait() }
	n.done.Go(func() { _ = n.m.Run(ctx) })
	n.w.mu.Lock()
	n.up = true
	n.w.mu.Unlock()
	n.cable.drop()
	n.w.bell.notify()
}

// stop ends the node in an orderly way.
func (n *node) stop() {
	if !n.halt() {
		return
	}
	n.cancel()
	n.done.Wait()
	n.serverUp()
	if err := n.slot.close(); err != nil && !errors.Is(err, oplog.ErrFaulted) {
		n.w.t.Errorf("close %s: %v", n.name, err)
	}
}

func (n *node) halt() bool {
	n.w.mu.Lock()
	was := n.up
	n.up = false
	n.w.mu.Unlock()
	n.cable.set(true, false)
	n.w.bell.notify()
	return was
}

// Slots implements Peers: gossip that knows everything at once.
func (n *node) Slots(store string) (list []PeerSlot) {
	n.w.mu.Lock()
	defer n.w.mu.Unlock()
	for _, o := range n.w.nodes {
		if o == n || o.m == nil {
			continue
		}
		s := PeerSlot{Node: o.name, Addr: o.cable.addr(), Slot: o.id, Store: o.slot.StoreID(), Alive: o.up}
		s.Role = o.m.role.Load().(Role)
		list = append(list, s)
	}
	return list
}

// Changed implements Peers.
func (n *node) Changed() <-chan struct{} { return n.w.bell.changed() }

// testHooks counts mounts.
type testHooks struct {
	mu      sync.Mutex
	mounted bool
	mounts  int
	fail    error
}

func (h *testHooks) Mount(context.Context, uint64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return h.fail
	}
	h.mounted, h.mounts = true, h.mounts+1
	return nil
}

func (h *testHooks) Unmount(context.Context, string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mounted = false
	return nil
}

func (h *testHooks) isMounted() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mounted
}

// counter is a slot that only counts what is committed: for tests and
// measurements of the stream alone.
type counter struct {
	dir    string
	log    *oplog.Log
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     sync.Mutex
	store  meta.StoreID
	fault  error
}

func (n *node) open() (testSlot, *oplog.Log) {
	t := n.w.t
	t.Helper()
	if !n.w.fake {
		return n.openMeta()
	}
	if err := os.MkdirAll(filepath.Join(n.dir, "rescue"), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := oplog.Open(filepath.Join(n.dir, "oplog"), oplog.Options{Logger: logger(t, n.name)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &counter{dir: n.dir, log: log, cancel: cancel}
	if b, err := os.ReadFile(filepath.Join(n.dir, "store")); err == nil {
		_ = c.store.UnmarshalText(b)
	}
	log.SetApplied(log.RecoveredCommitted())
	c.wg.Go(func() {
		for { // a wait may end without anything having been committed
			committed := log.Committed.Get()
			log.SetApplied(committed)
			if log.Committed.Wait(ctx, committed+1) != nil && ctx.Err() != nil {
				return
			}
		}
	})
	return c, log
}

func (c *counter) StoreID() meta.StoreID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.store
}

func (c *counter) SetStore(id meta.StoreID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store = id
	return os.WriteFile(filepath.Join(c.dir, "store"), []byte(id.String()), 0o600)
}
func (c *counter) Faulted() error                  { c.mu.Lock(); defer c.mu.Unlock(); return c.fault }
func (c *counter) Find(op.ID) (*meta.Inode, error) { return nil, meta.ErrNotExist }
func (c *counter) ReadAt(context.Context, op.ID, []byte, int64) (int, error) {
	return 0, meta.ErrNotExist
}
func (c *counter) close() error {
	c.cancel()
	c.wg.Wait()
	return c.log.Close()
}

// wait polls until ok is true; conditions here span several members, so there
// is no single channel to wait on.
func (w *world) wait(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute) // a busy machine is slow
	for !ok() {
		if time.Now().After(deadline) {
			for _, n := range w.nodes {
				if n.m != nil {
					w.t.Logf("%s: %+v", n.name, n.m.State())
				}
			}
			w.t.Fatalf("waited in vain for: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *world) promote(n *node, o PromoteOptions) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.m.Promote(ctx, o); err != nil {
		w.t.Fatalf("promote %s: %v", n.name, err)
	}
	if !n.hooks.isMounted() {
		w.t.Fatalf("%s is primary and not mounted", n.name)
	}
}

// inSync waits until every one of the nodes is in n's in-sync set.
func (w *world) inSync(n *node, others ...*node) {
	w.t.Helper()
	w.wait(fmt.Sprintf("%d replicas of %s in sync", len(others), n.name), func() bool {
		return len(n.m.State().Members) == 1+len(others) && n.m.State().Role == Primary
	})
}

// kill ends the node as a power cut would end its part in the network: nobody
// hears of it any more, and nothing is unmounted. (What a crash does to the
// files is for meta's tests.)
func (n *node) kill() {
	if !n.halt() {
		return
	}
	n.m.leading.Store(false)
	n.log.Follow()
	n.serverUp()
	n.hooks.mu.Lock()
	n.hooks.mounted = false
	n.hooks.mu.Unlock()
	n.cancel()
	n.done.Wait()
	_ = n.slot.close()
}

// mkdir logs a directory with a barrier, as the mount would.
func (n *node) mkdir(name string) (uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.log.Reserve(ctx, 100); err != nil {
		return 0, err
	}
	e, err := n.log.Append(&op.Mkdir{Parent: op.Root, Name: name, Attr: op.Attr{Mode: 0o40755}})
	if err != nil {
		return 0, err
	}
	return e.Seq, n.log.Barrier(ctx, e.Seq)
}

func (n *node) mustMkdir(name string) uint64 {
	n.w.t.Helper()
	seq, err := n.mkdir(name)
	if err != nil {
		n.w.t.Fatalf("mkdir %s on %s: %v", name, n.name, err)
	}
	return seq
}

func newFakeWorld(t testing.TB) *world {
	w := newWorld(t)
	w.fake = true
	return w
}
