package repl

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// drainTimeout bounds how long a demotion waits for commits; what is not
// committed then stays in the log.
const drainTimeout = 10 * time.Second

// execute carries out one effect. It runs in the loop and must not wait for
// anything but the disk.
func (r *Member) execute(f effect) {
	if _, ok := f.(effEvent); !ok {
		r.logger.Debug("effect", "do", f.text(r.m.label))
	}
	switch f := f.(type) {
	case effAsk:
		r.ask(f.slot)
	case effFollow:
		r.startFollow(f)
	case effUnfollow:
		r.unfollow()
	case effTail:
		r.spawn(func(ctx context.Context) { r.post(evTail{f.slot, r.fetchTail(ctx, f.slot)}) })
	case effBegin:
		r.begin(f)
	case effChange:
		r.change(f)
	case effRequire:
		r.Log.Lead(f.epoch, f.peers)
		r.reack()
	case effPrepare:
		if r.Register != nil {
			r.prepare(f)
			break
		}
		if s := r.sender(f.slot); s != nil {
			s.prepare(f.epoch)
		}
	case effSeal:
		r.post(evSealed{f.epoch, r.Log.Seal(f.epoch)})
	case effGet:
		r.getRecord(f)
	case effSwap:
		r.swapRecord(f)
	case effHangUp:
		if s := r.sender(f.slot); s != nil {
			s.end(f.why)
		}
	case effStepDown:
		r.stepDown(f)
	case effMount:
		r.spawn(func(ctx context.Context) { r.post(evMounted{r.Hooks.Mount(ctx, f.epoch)}) })
	case effUnmount:
		r.spawn(func(ctx context.Context) { r.post(evUnmounted{r.Hooks.Unmount(ctx, f.reason)}) })
	case effDrain:
		r.spawn(func(ctx context.Context) { r.post(evDrained{r.drain(ctx)}) })
	case effHandover:
		r.spawn(func(ctx context.Context) { r.post(evHandover{f.slot, r.handOver(ctx, f.slot)}) })
	case effRole:
		r.setRole(f.role)
	case effNote:
		if err := r.note(func(n *notes) { n.Yield = f.yield }); err != nil {
			r.fail(err)
		}
	case effEvent:
		r.tell(f.alert, f.words)
	case effReply:
		r.reply(f.id, f.err)
	}
}

func (r *Member) setRole(role Role) {
	r.role.Store(role)
	r.mu.Lock()
	r.pub.role, r.pub.since = role, time.Now()
	r.mu.Unlock()
	r.logger.Info("role", "role", string(role), keySeq, r.Log.Last().Seq)
}

// begin makes the log lead and starts the epoch.
func (r *Member) begin(f effBegin) {
	seq, err := r.beginEpoch(f)
	if err != nil {
		r.post(evReady{f.epoch, err})
		return
	}
	r.leading.Store(true)
	r.spawn(func(ctx context.Context) { r.post(evReady{f.epoch, r.begun(ctx, seq)}) })
}

// begun waits until the epoch's first entry is applied. The identity of a new
// store is noted once its first entry is durable, not before.
func (r *Member) begun(ctx context.Context, seq uint64) error {
	if err := r.Log.Durable.Wait(ctx, seq); err != nil {
		return err
	}
	if err := r.knowStore(); err != nil {
		return err
	}
	return r.Log.Applied.Wait(ctx, seq)
}

// knowStore gives a slot without store the one that its log names.
func (r *Member) knowStore() error {
	if !r.Slot.StoreID().IsZero() {
		return nil
	}
	if e := r.Log.Epochs(); len(e) > 0 {
		return r.Slot.SetStore(meta.StoreID(e[0].Begin.Store))
	}
	return nil
}

func (r *Member) beginEpoch(f effBegin) (seq uint64, err error) {
	if err := r.note(func(n *notes) { n.Demoted, n.Yield = 0, false }); err != nil {
		return 0, err
	}
	if err := r.Log.Seal(f.epoch - 1); err != nil {
		return 0, fmt.Errorf("seal: %w", err)
	}
	store := r.Slot.StoreID()
	if f.create {
		store = f.store
	}
	if store.IsZero() {
		if _, err := rand.Read(store[:]); err != nil {
			return 0, fmt.Errorf("make a store id: %w", err)
		}
	}
	r.Log.Lead(f.epoch, r.without(f.members, r.ID))
	return r.appendEpoch(f.epoch, f.members, store, f.reason, f.nonce)
}

func (r *Member) appendEpoch(epoch uint64, members []op.SlotID, store meta.StoreID, reason string, nonce Nonce) (uint64, error) {
	b := &op.EpochBegin{Epoch: epoch, Primary: r.ID, Members: members, Store: store, Reason: reason, Nonce: nonce}
	if nonce != (Nonce{}) {
		// The register's, so that log and record prove each other.
	} else if _, err := rand.Read(b.Nonce[:]); err != nil {
		return 0, fmt.Errorf("make a nonce: %w", err)
	}
	e, err := r.Log.Append(b)
	if err != nil {
		return 0, fmt.Errorf("append the epoch's first entry: %w", err)
	}
	r.Log.Flush(e.Seq)
	r.logger.Info("epoch begins", keyEpoch, epoch, keySeq, e.Seq, "members", list(members, r.m.label), "reason", reason)
	return e.Seq, nil
}

func (r *Member) without(slots []op.SlotID, x op.SlotID) []op.SlotID {
	return slices.DeleteFunc(slices.Clone(slots), func(s op.SlotID) bool { return s == x })
}

// change begins an epoch with another in-sync set while this slot leads.
func (r *Member) change(f effChange) {
	r.Log.Lead(f.epoch, f.peers)
	seq, err := r.appendEpoch(f.epoch, f.members, r.storeID(), f.reason, f.nonce)
	r.reack()
	if err != nil {
		r.fail(err)
		return // the log has stopped leading, or has failed
	}
	r.spawn(func(ctx context.Context) {
		if err := r.Log.Durable.Wait(ctx, seq); err != nil {
			r.fail(fmt.Errorf("begin epoch %d: %w", f.epoch, err))
			return
		}
		r.post(evBegun{f.epoch})
	})
}

// reack tells the log again what the replicas acknowledged: it only counts
// what it hears from those that it waits for.
func (r *Member) reack() {
	for _, s := range r.allSenders() {
		s.ackMu.Lock()
		if received, durable := s.received.Load(), s.durable.Load(); received > 0 {
			r.Log.Ack(s.slot, received, durable)
		}
		s.ackMu.Unlock()
	}
}

func (r *Member) stepDown(f effStepDown) {
	r.leading.Store(false)
	r.Log.Follow()
	r.closeSenders(f.reason)
	if !f.keepDown {
		return
	}
	epoch := r.Log.Last().Epoch
	if err := r.note(func(n *notes) { n.Demoted = epoch }); err != nil {
		r.fail(err)
	}
}

// drain waits until everything accepted is committed and applied.
func (r *Member) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	last := r.Log.Appended.Get()
	if err := r.Log.Barrier(ctx, last); err != nil {
		return fmt.Errorf("commit seq %d: %w", last, err)
	}
	if err := r.Log.Applied.Wait(ctx, last); err != nil {
		return fmt.Errorf("apply seq %d: %w", last, err)
	}
	return nil
}

// ask puts the question to the peer's node.
func (r *Member) ask(slot op.SlotID) {
	p, ok := r.address(slot)
	if !ok || p.Addr == "" {
		r.post(evNoAnswer{slot: slot})
		return
	}
	r.spawn(func(ctx context.Context) {
		h := r.hello(forStatus) // it may look at the mount point: not in the loop
		ctx, cancel := context.WithTimeout(ctx, max(r.Timeout, time.Second))
		defer cancel()
		w, err := askNode(ctx, p.Addr, r.TLS, h)
		if err != nil {
			if ctx.Err() == nil && !absent(err) {
				r.fail(fmt.Errorf("ask %s: %w", p.Node, err))
			}
			r.post(evNoAnswer{slot: slot, refused: errors.Is(err, syscall.ECONNREFUSED)})
			return
		}
		for _, s := range w.Slots {
			if s.Slot == slot {
				r.answered(s, w.Node, false)
				return
			}
		}
		// Another process has taken the address.
		r.post(evNoAnswer{slot: slot})
	})
}

// absent is whether err is the network's: nobody there, or gone in between.
func absent(err error) bool {
	var late net.Error
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.EHOSTUNREACH, syscall.ENETUNREACH, net.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.As(err, &late) && late.Timeout()
}

// answered passes on what a slot said about itself, after looking at what it is.
func (r *Member) answered(s SlotStatus, node string, poke bool) {
	own := r.storeID()
	if !own.IsZero() && !s.StoreID.IsZero() && s.StoreID != own {
		r.fail(fmt.Errorf("the slot of %q on %s belongs to another store of the same name (%s; this one is %s): rename one of them", r.Store, node, s.StoreID, own))
		if !poke {
			r.post(evNoAnswer{slot: s.Slot})
		}
		return
	}
	r.post(evAnswer{slot: s.Slot, node: node, poke: poke, answer: answer{
		hasStore: !s.StoreID.IsZero(), leading: s.Leading, intent: s.Intent, yield: s.Yield, last: s.Last, hist: s.History, Condition: s.Condition,
	}})
}

// hello introduces this slot.
func (r *Member) hello(f purpose) hello {
	s := r.status()
	return hello{
		Protocol: Protocol, For: f, Cluster: r.Cluster, Node: r.Node, Store: r.Store, StoreID: s.StoreID, Slot: r.ID,
		Role: s.Role, Leading: s.Leading, Intent: s.Intent, Local: r.Local, Last: s.Last, Applied: s.Applied, History: s.History, Yield: s.Yield, Condition: s.Condition,
	}
}

// status is what this slot answers about itself.
func (r *Member) status() SlotStatus {
	r.refresh()
	r.mu.Lock()
	hist, split, yield, drained := r.hist, r.pub.split, r.notes.Yield, r.notes.Drained
	r.mu.Unlock()
	auto, ago := r.auto.Load(), time.Duration(0)
	if auto > 0 {
		ago = r.clock() - time.Duration(r.autoAt.Load())
	}
	s := SlotStatus{
		Store: r.Store, StoreID: r.storeID(), Slot: r.ID, Role: r.role.Load().(Role), Leading: r.leading.Load(),
		Intent: intent(r.intent.Load()),
		Last:   r.Log.Last(), Applied: r.Log.Applied.Get(), History: hist, Diverged: split, Yield: yield,
		Condition: Condition{Resyncing: r.resyncing() || r.incomplete(), Drained: drained, Sealed: r.Log.Sealed(), Auto: auto, AutoAgo: ago, Unfit: r.unfit.Load().(string)},
	}
	if r.Ready != nil {
		if err := r.Ready(); err != nil {
			s.Unready = err.Error()
		}
	}
	if err := r.faulted(); err != nil {
		s.Faulted, s.Leading = err.Error(), false
	}
	return s
}
