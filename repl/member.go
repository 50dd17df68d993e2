package repl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"slotfs/meta"
	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Keys of log attributes.
const (
	keyStore = "store"
	keyPeer  = "peer"
	keyEpoch = "epoch"
	keySeq   = "seq"
	keyErr   = "err"
)

// DefaultTimeout is how long a replica may be silent.
const DefaultTimeout = 1500 * time.Millisecond

// DefaultFailoverTimeout is how long a primary may be silent before a replica
// takes its place, with a register.
const DefaultFailoverTimeout = 3 * time.Second

// DefaultFailoverPause is for how long there is no automatic failover after one;
// it doubles with each that follows soon, up to ten minutes.
const DefaultFailoverPause = 30 * time.Second

// eventQuiet is how long an event that is no alert is not told again.
const eventQuiet = 10 * time.Second

// maxEvents is how many events State keeps.
const maxEvents = 50

// Slot is what replication needs of a slot besides its log. Only a *meta.Slot
// can be resynced, too.
type Slot interface {
	SetStore(meta.StoreID) error // of a slot without store: remember it durably
	StoreID() meta.StoreID       // zero until the first EpochBegin is applied
	Faulted() error
	// Find finds an object, or one without a name whose bytes are still kept.
	Find(id op.ID) (*meta.Inode, error)
	// ReadAt reads content, verified.
	ReadAt(ctx context.Context, id op.ID, p []byte, off int64) (int, error)
}

// Options is what a member needs. All but the marked fields are required.
type Options struct {
	Node    string // this node's name
	Cluster string // the cluster's id
	Store   string // the store's name
	ID      op.SlotID
	Dir     string // the slot's data directory; the notes are kept there
	Log     *oplog.Log
	Slot    Slot
	Peers   Peers
	Hooks   Hooks
	TLS     *tls.Config // for connecting to other nodes

	// Register decides who is primary; nil: operators do.
	Register        Register
	FailoverTimeout time.Duration // optional: failover_timeout
	FailoverPause   time.Duration // optional: failover_pause

	Timeout    time.Duration // optional: replica_timeout
	StopOnLoss bool          // on_replica_loss = "stop"
	Local      bool          // durability = "local"
	LogMax     int64         // optional: bytes of log kept for absent replicas; 1 GiB
	Logger     *slog.Logger  // optional
	OnEvent    func(Event)   // optional; must not block

	Record func(...ledger.Entry) // optional: writes to the slot's ledger
	// Deliverer, if set, takes messages of lost branches while this slot is
	// primary.
	Deliverer Deliverer
	// Ready, if set, says why this slot could not serve if it became primary
	// now. It is asked often, and must not wait.
	Ready func() error
}

// Member is one slot's part in the replication of its store.
type Member struct {
	Options
	logger *slog.Logger
	start  time.Time
	in     queue
	ctx    context.Context // ends when the member has stopped
	cancel context.CancelFunc
	wg     sync.WaitGroup
	gone   chan struct{} // closed when Run has returned

	// Of the loop's goroutine alone.
	m      *machine
	follow *follower

	noteMu sync.Mutex    // held while the notes are written; before mu
	saved  atomic.Uint64 // epoch of the last history that the notes have

	mu      sync.Mutex // guards what follows; never held while waiting
	notes   notes
	hist    history
	histAt  op.Pos // Log.Last() when hist was made, by epoch
	table   map[op.SlotID]PeerSlot
	senders map[op.SlotID]*sender
	pub     published
	events  []Event
	lastErr string
	errTime time.Time
	said    map[string]time.Time // errors that were logged in the last minute
	passing bool                 // lastErr is the network's, and forgotten when that is back
	waiters map[uint64]chan error
	nextID  uint64
	conns   uint64 // number of the last replica's connection
	stopped bool
	heard   time.Time     // when, by the wall clock, a primary was last heard
	asleep  time.Duration // between the last sign of life on the disk and the start
	heardAt time.Time     // the same as heard, monotonic; zero: not since the start
	from    string
	copies  map[op.SlotID]uint64 // up to which entry others have our log

	rescues  chan struct{} // cap 1: there may be a branch to be delivered
	rescuing sync.Mutex    // one delivery at a time
	heardSeq atomic.Uint64 // the last entry that the primary is known to have

	damaged atomic.Uint64 // the log cannot be read before this seq; 0: it can
	leading atomic.Bool   // replicas may stream from here
	intent  atomic.Uint32 // what the machine tells of its path to primary
	auto    atomic.Uint64 // and of the last epoch that it began by a failover
	autoAt  atomic.Int64  // clock of when that was
	unfit   atomic.Value  // string: and of why it does not become primary by itself
	role    atomic.Value
	changed notifier
}

// published is what the loop tells State.
type published struct {
	role    Role
	since   time.Time
	doing   string
	split   string
	epoch   uint64
	members []op.SlotID
	primary op.SlotID
	target  op.SlotID
	peers   map[op.SlotID]PeerState
	nodes   map[op.SlotID]string // of the members

	register *RegisterState
	barred   string
}

// New makes a member; Run starts it.
func New(o Options) (*Member, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.FailoverTimeout == 0 {
		o.FailoverTimeout = DefaultFailoverTimeout
	}
	if o.FailoverPause == 0 {
		o.FailoverPause = DefaultFailoverPause
	}
	if o.LogMax == 0 {
		o.LogMax = 1 << 30
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	n, err := readNotes(o.Dir)
	if err != nil {
		return nil, err
	}
	r := &Member{
		Options: o, logger: o.Logger.With(keyStore, o.Store), start: time.Now(), notes: n,
		table: map[op.SlotID]PeerSlot{}, senders: map[op.SlotID]*sender{}, waiters: map[uint64]chan error{},
		gone: make(chan struct{}), said: map[string]time.Time{}, heard: n.Heard, from: n.From,
	}
	r.in.wake = make(chan struct{}, 1)
	r.rescues = make(chan struct{}, 1)
	r.heardSeq.Store(n.HeardSeq)
	r.copies = maps.Clone(n.Copies)
	r.role.Store(Replica)
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.hist = n.Epochs
	r.saved.Store(n.Epochs.last().Pos.Epoch)
	r.m = newMachine(o.ID, o.Timeout, o.StopOnLoss, r.label, r.start)
	r.m.local = o.Local
	if !n.Alive.IsZero() {
		r.asleep = r.start.Round(0).Sub(n.Alive)
	}
	if o.Register != nil {
		r.m.reg = &registry{failover: o.FailoverTimeout, pause: o.FailoverPause, nonce: newNonce}
	}
	r.unfit.Store("")
	r.pub = published{role: Replica, since: r.start}
	r.refresh()
	if err := errors.Join(r.become(), r.knowStore(), r.noteCopied()); err != nil {
		return nil, err
	}
	return r, nil
}

// Run takes part in the store's replication until ctx ends; a primary is then
// unmounted and what it accepted committed.
func (r *Member) Run(ctx context.Context) error {
	defer close(r.gone)
	tick := time.NewTicker(r.tick())
	defer tick.Stop()
	peers := r.Peers.Changed()
	r.spawn(r.rescueLoop)
	r.step(evPeers{r.listPeers()})
	r.watchRegister()
	stop := ctx.Done()
	ending := false
	for {
		select {
		case <-stop:
			stop, ending = nil, true
			r.m.ending = true
		case <-peers:
			peers = r.Peers.Changed()
			r.step(evPeers{r.listPeers()})
		case <-r.in.wake:
			for _, e := range r.in.take() {
				r.step(e)
			}
		case <-tick.C:
			r.step(evAcks{r.takeAcks()})
			r.keepHeard()
		}
		if ending && r.ended() {
			break
		}
	}
	r.shutdown()
	return nil
}

// ended brings the role to an end; true when nothing is left to do.
func (r *Member) ended() bool {
	if r.m.op != nil {
		switch {
		case r.m.op.kind == opPromote && r.m.op.phase == phaseBegin:
			r.step(evDemote{reason: "slotfs stops", stopping: true})
		case r.m.op.kind != opPromote || r.m.op.phase > phaseBegin:
			return false // let it finish first
		}
		return true
	}
	if r.m.role == Primary {
		r.step(evDemote{reason: "slotfs stops", stopping: true})
		return false
	}
	return true
}

func (r *Member) shutdown() {
	r.leading.Store(false)
	r.cancel()
	r.unfollow()
	r.closeSenders("slotfs stops")
	r.wg.Wait()
	r.saveNotes()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	for id, c := range r.waiters {
		c <- ErrStopped
		delete(r.waiters, id)
	}
}

// tick is how often time is looked at: often enough for the timeout to mean
// something.
func (r *Member) tick() time.Duration {
	return min(max(r.Timeout/15, 5*time.Millisecond), 100*time.Millisecond)
}

// listPeers asks gossip, and remembers the addresses.
func (r *Member) listPeers() []PeerSlot {
	slots := r.Peers.Slots(r.Store)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range slots {
		r.table[s.Slot] = s
	}
	return slots
}

func (r *Member) address(slot op.SlotID) (PeerSlot, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.table[slot]
	return s, ok
}

// clock is the time since the start: what silence is measured by. The wall clock
// may jump.
func (r *Member) clock() time.Duration { return time.Since(r.start) }

// label names a slot that the machine has no name for.
func (r *Member) label(slot op.SlotID) string {
	if slot == r.ID {
		return r.Node
	}
	if s, ok := r.address(slot); ok && s.Node != "" {
		return s.Node
	}
	return "slot " + slot.String()[:8]
}

// view is what is true of the slot now.
func (r *Member) view() view {
	r.refresh()
	r.mu.Lock()
	defer r.mu.Unlock()
	v := view{
		last: r.Log.Last(), hist: r.hist, durable: r.Log.Durable.Get(), committed: r.Log.Committed.Get(),
		applied: r.Log.Applied.Get(), demoted: r.notes.Demoted, sealed: r.Log.Sealed(),
		yield: r.notes.Yield, heard: r.heard, heardFrom: r.from, heardAt: r.heardAt, asleep: r.asleep,
		prepared: r.notes.Preparations, drained: r.notes.Drained,
	}
	if r.Register != nil {
		v.reach = r.Register.Reach()
	}
	v.store = r.storeID()
	v.hasStore = v.last.Seq > 0
	v.restored = r.notes.Restored > 0 && !v.hist.memberAfter(r.ID, r.notes.Restored, v.durable)
	v.adopted = !v.hasStore && !r.Slot.StoreID().IsZero()
	v.resync = r.resyncing() || r.incomplete()
	if err := r.faulted(); err != nil {
		v.faulted = err.Error()
	}
	v.bereft = r.bereft()
	return v
}

func (r *Member) faulted() error {
	if err := r.Slot.Faulted(); err != nil {
		return err
	}
	if err := r.Log.Appended.Err(); errors.Is(err, oplog.ErrFaulted) {
		return err
	}
	return nil
}

// refresh brings hist up to what the log holds.
func (r *Member) refresh() {
	last := r.Log.Last()
	r.mu.Lock()
	defer r.mu.Unlock()
	if last.Epoch == r.histAt.Epoch && last.Seq >= r.histAt.Seq && r.histAt.Seq > 0 {
		r.histAt = last
		return
	}
	r.histAt = last
	r.hist = r.hist.with(r.Log.Epochs(), last)
}

// step hands one event to the machine and carries out the effects.
func (r *Member) step(e event) {
	fx := r.m.step(time.Now(), r.view(), e)
	r.intent.Store(uint32(r.m.intent())) // before anybody is asked
	if r.m.reg != nil {
		r.unfit.Store(r.m.unfit())
		if r.auto.Load() != r.m.tookOver {
			r.autoAt.Store(int64(r.clock()))
			r.auto.Store(r.m.tookOver)
		}
	}
	for _, f := range fx {
		r.execute(f)
	}
	r.publish(len(fx) > 0)
	if r.m.v.hist.last().Pos.Epoch != r.saved.Load() {
		r.saveNotes()
	}
}

// post queues an event; it never blocks.
func (r *Member) post(e event) { r.in.put(e) }

// spawn runs f in a goroutine that the member waits for at its end.
func (r *Member) spawn(f func(ctx context.Context)) {
	r.wg.Go(func() { f(r.ctx) })
}

// fail notes an error that has no other reader.
func (r *Member) fail(err error) {
	r.mu.Lock()
	now := time.Now()
	maps.DeleteFunc(r.said, func(_ string, at time.Time) bool { return now.Sub(at) >= time.Minute })
	_, same := r.said[err.Error()]
	r.lastErr, r.passing = err.Error(), absent(err)
	if !same {
		r.said[err.Error()], r.errTime = now, now
	}
	level := slog.LevelWarn
	if r.passing {
		level = slog.LevelInfo // a node was stopped, or a cable cut: its peers say what it means
	}
	r.mu.Unlock()
	if !same {
		r.logger.Log(context.Background(), level, "replication", keyErr, err)
	}
	r.changed.notify()
}

// tell makes an event known.
func (r *Member) tell(alert bool, text string) {
	e := Event{Time: time.Now(), Alert: alert, Text: text}
	r.mu.Lock()
	for _, x := range r.events {
		if !alert && x.Text == text && e.Time.Sub(x.Time) < eventQuiet {
			r.mu.Unlock()
			return
		}
	}
	r.events = append(r.events, e)
	if n := len(r.events) - maxEvents; n > 0 {
		r.events = append(r.events[:0], r.events[n:]...)
	}
	r.mu.Unlock()
	if alert {
		r.logger.Error(text)
	} else {
		r.logger.Info(text)
	}
	if r.OnEvent != nil {
		r.OnEvent(e)
	}
	r.changed.notify()
}

// Promote makes this slot primary. The error of a refusal is a full sentence
// and wraps ErrRefused.
func (r *Member) Promote(ctx context.Context, o PromoteOptions) error {
	return r.command(ctx, func(id uint64) event { return evPromote{id, o} })
}

// Demote makes the primary a replica: unmounted, everything committed. It does
// not become primary again by itself.
func (r *Member) Demote(ctx context.Context) error {
	return r.command(ctx, func(id uint64) event { return evDemote{id: id, reason: "demoted by operator"} })
}

// Rejoin is the operator's choice between two histories: with giveUpMine this
// slot's branch goes into rescue/, and the slot follows the primary.
func (r *Member) Rejoin(ctx context.Context, giveUpMine bool) error {
	return r.command(ctx, func(id uint64) event { return evRejoin{id, giveUpMine} })
}

func (r *Member) command(ctx context.Context, made func(id uint64) event) error {
	c := make(chan error, 1)
	r.mu.Lock()
	if r.stopped {
		r.mu.Unlock()
		return ErrStopped
	}
	r.nextID++
	id := r.nextID
	r.waiters[id] = c
	r.mu.Unlock()
	r.post(made(id))
	select {
	case err := <-c:
		return err
	case <-r.gone:
		return ErrStopped
	case <-ctx.Done():
		r.mu.Lock()
		delete(r.waiters, id)
		r.mu.Unlock()
		return fmt.Errorf("still going on: %w", ctx.Err())
	}
}

// reply answers the caller of a command.
func (r *Member) reply(id uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.waiters[id]; c != nil {
		c <- err
		delete(r.waiters, id)
	}
}
