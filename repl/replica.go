package repl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"slotfs/meta"
	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

const (
	// maxBacklog is how many bytes may be received and not applied before a
	// replica withholds acknowledgements.
	maxBacklog = 64 << 20
	// stopBacklog is how many before it stops reading, if applying can go on.
	stopBacklog = 2 * maxBacklog
)

// follower is one attempt to follow a primary: a goroutine that ends with an
// evFollowEnded.
type follower struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (r *Member) startFollow(f effFollow) {
	ctx, cancel := context.WithCancel(r.ctx)
	w := &follower{cancel, make(chan struct{})}
	r.follow = w
	r.spawn(func(context.Context) {
		defer close(w.done)
		defer cancel()
		e := r.followOnce(ctx, f.slot)
		e.slot, e.session = f.slot, f.session
		r.post(e)
	})
}

// unfollow ends following; when it returns, nothing is acknowledged any more.
func (r *Member) unfollow() {
	if r.follow == nil {
		return
	}
	r.follow.cancel()
	<-r.follow.done
	r.follow = nil
}

// followOnce connects to a primary and follows it until something ends that.
func (r *Member) followOnce(ctx context.Context, slot op.SlotID) (e evFollowEnded) {
	p, ok := r.address(slot)
	if !ok {
		e.unreachable = true
		return e
	}
	if r.resyncing() {
		// Its log is not the tree's: nothing to stream to.
		return r.resync(ctx, p, e)
	}
	l, err := dial(ctx, p.Addr, r.TLS)
	if err != nil {
		if ctx.Err() == nil {
			r.fail(fmt.Errorf("connect to the primary on %s: %w", p.Node, err))
		}
		e.unreachable, e.nobody = true, errors.Is(err, syscall.ECONNREFUSED)
		return e
	}
	defer l.close()
	defer l.closeOn(ctx)()
	f := &following{r: r, l: l, peer: p}
	err = f.stream(ctx)
	e.joined = f.joined
	if ctx.Err() != nil {
		e.stale = false
		return e
	}
	return r.judgeEnd(ctx, f, err, e)
}

// judgeEnd says what the end of a stream means.
func (r *Member) judgeEnd(ctx context.Context, f *following, err error, e evFollowEnded) evFollowEnded {
	var refused *PeerError
	var fork *oplog.ForkError
	switch {
	case errors.As(err, &refused):
		switch refused.Code {
		case CodeNotPrimary:
			e.stale = true
			return e
		case CodeSealed:
			e.unready = true
			return e
		case CodeDiverged:
			e.diverged = refused.Text
		case CodeResync:
			e = r.resync(ctx, f.peer, e)
			return e
		}
		e.refused = true
	case errors.Is(err, errNeedResync):
		return r.resync(ctx, f.peer, e)
	case errors.As(err, &fork):
		e.diverged = fmt.Sprintf("entries from %s do not continue this slot's log: %v", f.peer.Node, fork)
	case errors.Is(err, oplog.ErrFaulted) || r.faulted() != nil:
		e.refused = true
	case unacceptable(err):
		e.refused = true
	default:
		e.refused = !f.joined
	}
	if err != nil {
		r.fail(fmt.Errorf("follow the primary on %s: %w", f.peer.Node, err))
	}
	return e
}

// unacceptable is whether err is about what the primary sent.
func unacceptable(err error) bool {
	var fork *oplog.ForkError
	return errors.Is(err, ErrWire) || errors.Is(err, errContent) || errors.Is(err, oplog.ErrSealed) || errors.Is(err, oplog.ErrEpoch) || errors.As(err, &fork)
}

var (
	errNeedResync = errors.New("this slot has applied entries that the primary's history lacks")
	errContent    = errors.New("content differs from its checksum")
	errSilent     = errors.New("the primary is silent")
)

// following is the replica's end of a stream.
type following struct {
	r      *Member
	l      *link
	peer   PeerSlot
	epoch  uint64 // of the primary when it welcomed us
	silent time.Duration
	beat   time.Duration // between signs of life
	joined bool

	heard atomic.Int64 // Member.clock

	ackMu   sync.Mutex // guards what follows, and the order of acknowledgements
	backlog backlog
	told    [3]uint64
	list    []*op.Entry // scratch of the reader
}

func (f *following) stream(ctx context.Context) error {
	h := f.r.hello(forStream)
	f.l.deadline(handshakeTimeout)
	if err := f.l.sendJSON(frameHello, h); err != nil {
		return err
	}
	var w welcome
	if err := f.l.expect(frameWelcome, &w); err != nil {
		return err
	}
	if err := f.r.meetPrimary(w, h); err != nil {
		return err
	}
	f.l.deadline(0)
	f.epoch = w.Last.Epoch
	theirs := time.Duration(w.TimeoutMS) * time.Millisecond
	f.silent = max(theirs, f.r.Timeout)
	// The primary loses patience by its own replica_timeout, which may be less.
	f.beat = max(min(theirs, f.r.Timeout)/4, 5*time.Millisecond)
	f.joined = true
	f.r.joined(f.peer, w)
	f.heard.Store(int64(f.r.clock()))
	f.r.noteHeard(f.peer.Node)
	f.backlog.reset(f.r.Log.Applied.Get())
	f.r.Log.Commit(w.Committed)

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { f.acknowledge(ctx) })
	err := f.receive(ctx)
	if unacceptable(err) {
		// Say so before closing: the other side would only see us go.
		f.l.turnAway(CodeFailed, err.Error())
	}
	cancel()
	f.l.close()
	wg.Wait()
	return err
}

// meetPrimary brings this slot's log to the common point that the primary found.
func (r *Member) meetPrimary(w welcome, h hello) error {
	if own := r.storeID(); !own.IsZero() && own != w.StoreID {
		return &PeerError{w.Node, CodeStoreID, fmt.Sprintf("the store on %s is another one of the same name (%s; this one is %s)", w.Node, w.StoreID, own)}
	}
	if err := r.Slot.SetStore(w.StoreID); err != nil {
		return err
	}
	if w.Common.Seq > h.Last.Seq {
		return fmt.Errorf("%w: common point %s after this log's end %s", ErrWire, w.Common, h.Last)
	}
	if w.Common.Seq+1 < r.Log.First() {
		return errNeedResync
	}
	have, err := r.Log.PosAt(w.Common.Seq)
	if err != nil {
		return fmt.Errorf("look up seq %d: %w", w.Common.Seq, err)
	}
	if have.Chain != w.Common.Chain {
		return &PeerError{w.Node, CodeDiverged, fmt.Sprintf("seq %d is %s here and %s on %s", w.Common.Seq, have, w.Common, w.Node)}
	}
	if w.Common.Seq == h.Last.Seq {
		return nil
	}
	if r.Log.Applied.Get() > w.Common.Seq || r.Log.Committed.Get() > w.Common.Seq {
		return errNeedResync
	}
	return r.cutBranch(w)
}

// record writes to the slot's ledger.
func (r *Member) record(e ledger.Entry) {
	if r.Record != nil {
		r.Record(e)
	}
}

// joined notes that this slot follows peer now.
func (r *Member) joined(peer PeerSlot, w welcome) {
	r.heardSeq.Store(w.Last.Seq)
	r.mu.Lock()
	yield := r.notes.Yield
	if r.passing {
		r.lastErr, r.errTime, r.passing = "", time.Time{}, false
	}
	r.mu.Unlock()
	if yield {
		if err := r.note(func(n *notes) { n.Yield = false }); err != nil {
			r.fail(err)
		}
	}
	r.tell(false, fmt.Sprintf("following %s from seq %d (it is at %d)", peer.Node, w.Common.Seq, w.Last.Seq))
}

// noteHeard remembers when a primary was last heard.
func (r *Member) noteHeard(node string) {
	r.mu.Lock()
	// Without its monotonic part the time is for people; heardAt is for deciding.
	r.heardAt = time.Now()
	r.heard, r.from = r.heardAt.Round(0), node
	r.mu.Unlock()
}

// receive reads entries and marks until the connection ends.
func (f *following) receive(ctx context.Context) error {
	noted := time.Duration(0)
	for {
		fr, err := f.l.next()
		if err != nil {
			return err
		}
		now := f.r.clock()
		f.heard.Store(int64(now))
		if now-noted > 100*time.Millisecond {
			noted = now
			f.r.noteHeard(f.peer.Node)
		}
		switch fr.typ {
		case frameEntries:
			err = f.entries(ctx, fr.body)
		case frameMark:
			if len(fr.body) != marksSize {
				return fmt.Errorf("%w: marks of %d bytes", ErrWire, len(fr.body))
			}
			err = f.marks(readMarks(fr.body))
		case framePrepare:
			if len(fr.body) != 8 {
				return fmt.Errorf("%w: prepare of %d bytes", ErrWire, len(fr.body))
			}
			err = f.prepare(binary.BigEndian.Uint64(fr.body))
		case frameRefuse:
			err = f.l.refused(fr)
		default:
			err = fmt.Errorf("%w: type %d from a primary", ErrWire, fr.typ)
		}
		if err != nil {
			return err
		}
	}
}

// entries takes one frame of entries in: verified first, acknowledged after.
func (f *following) entries(ctx context.Context, body []byte) (err error) {
	log := f.r.Log
	f.list, err = splitEntries(body[marksSize:], f.list[:0])
	defer func() { clear(f.list) }()
	if err != nil {
		return err
	}
	var bytes int64
	for _, e := range f.list {
		if err := verifyContent(e.Op); err != nil {
			return fmt.Errorf("seq %d: %w", e.Seq, err)
		}
		if b, ok := e.Op.(*op.EpochBegin); ok {
			if err := f.checkEpoch(b); err != nil {
				return err
			}
			// Not below what it was: earlier epochs come as history, and a slot that
			// had sealed one of them has to take it.
			f.epoch = max(f.epoch, e.Epoch)
		}
		bytes += int64(len(e.Raw))
	}
	if err := log.AppendFrom(f.epoch, f.list); err != nil {
		return err
	}
	if len(f.list) > 0 {
		f.ackMu.Lock()
		f.backlog.add(f.list[len(f.list)-1].Seq, bytes)
		f.ackMu.Unlock()
	}
	if err := f.marks(readMarks(body)); err != nil {
		return err
	}
	return f.throttle(ctx)
}

// checkEpoch refuses an epoch of another store or another primary.
func (f *following) checkEpoch(b *op.EpochBegin) error {
	if own := f.r.storeID(); !own.IsZero() && own != meta.StoreID(b.Store) {
		return fmt.Errorf("%w: an epoch of store %s", ErrWire, meta.StoreID(b.Store))
	}
	return nil
}

// marks takes the primary's marks in. Receipt is acknowledged at once if
// somebody waits for it, or if much was received; otherwise together with the
// durability of the same entries, which is a matter of milliseconds.
func (f *following) marks(m marks) error {
	log := f.r.Log
	log.Commit(m.committed)
	f.r.heardSeq.Store(max(m.committed, m.wanted, m.awaited, log.Appended.Get(), f.r.heardSeq.Load()))
	if m.wanted > log.Durable.Get() {
		log.Flush(m.wanted)
	}
	f.ackMu.Lock()
	told := f.told[0]
	f.ackMu.Unlock()
	have := log.Appended.Get()
	if have > told && (m.awaited > told || have-told >= gatherEntries) && !f.l.more() {
		return f.ack(false)
	}
	return nil
}

// verifyContent compares content with the checksum beside it.
func verifyContent(o op.Op) error {
	p, ok := o.(*op.Put)
	if !ok || p.Stage != 0 {
		return nil // chunks are covered by their entries; the applier verifies the whole
	}
	if p.Sum.Size != int64(len(p.Data)) {
		return fmt.Errorf("%w: %d bytes for a size of %d", errContent, len(p.Data), p.Sum.Size)
	}
	for i, off := 0, 0; off < len(p.Data); i, off = i+1, off+op.BlockSize {
		if !p.Sum.VerifyBlock(i, p.Data[off:min(off+op.BlockSize, len(p.Data))]) {
			return fmt.Errorf("%w: block %d", errContent, i)
		}
	}
	return nil
}

// prepare notes durably that this slot may be a member of the epoch.
func (f *following) prepare(epoch uint64) error {
	if err := f.r.note(func(n *notes) { n.Prepared = max(n.Prepared, epoch) }); err != nil {
		return err
	}
	return f.l.numbers(framePrepared, epoch)
}
