package meta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Slot is one copy of a store's mailboxes on this node: log, index and tree.
// All methods are safe for concurrent use.
type Slot struct {
	// Log is the slot's oplog. Whatever it commits, the slot applies.
	Log *oplog.Log
	// ID never changes; it was made with the data directory.
	ID op.SlotID
	// StoreName is the store's name, given when the data directory was made.
	StoreName string
	// Layout says which files are messages.
	Layout *Layout
	// Events are the slot's findings.
	Events *Events
	// Ledger keeps them for good; see Record.
	Ledger *ledger.Ledger

	dir    string
	opt    Options
	log    *slog.Logger
	lock   *os.File
	ix     *index
	tree   *tree
	home   home // which file the lock is
	copied bool // it was another one when the slot was last settled
	// rescued is what was delivered again from lost branches.
	rescued *rescuedSet
	trash   *trash
	space   *space

	verified *verifiedCache
	repairs  keyed // one repair of an object at a time

	ctx       context.Context // ends with the slot
	cancel    context.CancelCauseFunc
	work      sync.WaitGroup // verification of seals, and what it repairs
	recording sync.WaitGroup // of what is found, in the ledger

	applier applier
	keeper  *keeper
	brake   *brake
	scrub   scrubber
	reads   atomic.Uint64 // by users of the mount and other slots

	adopting adopting // of adopted messages, whose checksums are taken

	unfit atomic.Pointer[unfitness] // why the slot waits to be refilled
	gone  error                     // of Open alone: what it found lost

	mu       sync.Mutex // guards what follows
	identity Identity
	fault    error
	closed   bool
	pins     map[*pin]struct{}
	retain   func() uint64
	suspects map[op.ID]struct{} // reported as damaged and not repaired since
	resync   *resyncing         // the resync under way, nil if there is none
	started  bool               // Start was called

	sealed     []op.ID          // see verifySeal; a goroutine is at it while not empty
	sums       map[op.ID]dirSum // see confirmed
	unrecorded []ledger.Entry   // for the ledger; a goroutine is at it while not empty

	recovered *ReconcileReport // what Open had to do

	// admin is held by what needs the applier to stand still for a moment: a
	// Snapshot's checkpoint, Check, the steps of a resync. Before mu.
	admin sync.Mutex
}

// Open locks a data directory, and brings log, index and tree to one state. It
// starts nothing.
func Open(dir string, o Options) (*Slot, error) {
	o = o.withDefaults()
	identity, err := ReadIdentity(dir)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, fileIdentity)
	if err := errors.Join(identity.check(file, o), checkUnlocked(file, identity, o)); err != nil {
		return nil, err
	}
	if err := refuseStrange(dir, identity); err != nil {
		return nil, err
	}
	layout, err := LayoutByName(identity.Layout)
	if err != nil {
		return nil, &DataError{File: file, Reason: ErrLayout, Detail: err.Error(), Remedy: "use a program version that knows it"}
	}
	s := &Slot{
		ID: identity.Slot, StoreName: identity.Store, Layout: layout, identity: identity,
		dir: dir, opt: o,
		log:      o.Logger.With(keyStore, identity.Store),
		verified: newVerifiedCache(o.VerifiedCache),
		pins:     make(map[*pin]struct{}),
		suspects: make(map[op.ID]struct{}),
		keeper:   newKeeper(),
	}
	s.Events = newEvents(s.log, o.OnEvent)
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	if err := s.open(); err != nil {
		s.cancel(err)
		return nil, errors.Join(err, s.closeFiles())
	}
	return s, nil
}

// open opens everything, in an order in which each may rely on those before.
func (s *Slot) open() (err error) {
	if s.lock, err = lockData(s.dir); err != nil {
		return err
	}
	if !s.StoreID().IsZero() {
		// A tree that is missing is noticed when it is found empty.
		if err := os.MkdirAll(filepath.Join(s.dir, dirTree), 0o700); err != nil {
			return fmt.Errorf("complete data directory: %w", err)
		}
	}
	if err := s.openHome(); err != nil {
		return err
	}
	for _, name := range remade() {
		if err := os.MkdirAll(filepath.Join(s.dir, name), 0o700); err != nil {
			return fmt.Errorf("complete data directory: %w", err)
		}
	}
	if err := emptyDir(filepath.Join(s.dir, dirVolatile)); err != nil {
		return fmt.Errorf("empty %s: %w", dirVolatile, err)
	}
	if err := s.openLedger(); err != nil {
		return err
	}
	if err := s.checkBacking(); err != nil {
		return err
	}
	if s.space, err = openSpace(s.dir, s.opt.Reserve, s.Events); err != nil {
		return err
	}
	if s.rescued, err = openRescued(s.dir); err != nil {
		return err
	}
	if err := s.openLog(); err != nil {
		return err
	}
	if err := s.openWhole(); err != nil {
		return err
	}
	if err := s.tree.clearRepairs(); err != nil {
		return err
	}
	if s.trash, err = openTrash(s.tree); err != nil {
		return err
	}
	if err := s.openBrake(); err != nil {
		return err
	}
	st := s.ix.current()
	s.openScrub()
	s.Log.SetApplied(min(st.Pos.Seq, s.Log.Last().Seq))
	s.Log.NotBefore(st.Time) // the log may be empty, after a resync
	return nil
}

// openWhole opens index and tree, and brings them and the log to one state; or
// makes the slot wait for being refilled.
func (s *Slot) openWhole() (err error) {
	// Before anything looks at names: a tree that is not ours is no evidence.
	if s.gone == nil {
		if s.gone, err = s.judgeTree(s.guardRoot()); err != nil {
			return err
		}
	}
	if s.gone == nil {
		var gone *LogLostError
		err = s.openIndex()
		if errors.Is(err, ErrTreeLost) || errors.As(err, &gone) {
			if s.gone, err = s.judgeLoss(err); err != nil {
				return err
			}
		}
	}
	if s.gone != nil {
		err = s.openIndexAnyway()
	}
	if err != nil {
		return err
	}
	if s.tree, err = openTree(s.dir, s.ix, s.finding); err != nil {
		return err
	}
	s.tree.wait, s.tree.over, s.tree.ctx = s.space.wait, s.space.over, s.ctx
	if err = s.recover(); err != nil {
		if s.gone, err = s.judgeLoss(err); err != nil {
			return err
		}
		s.needsRefill(s.gone)
	}
	if s.gone == nil && s.Log.Last().Seq > 0 {
		return claimTree(s.dir, s.ID) // made before trees had owners
	}
	return nil
}

// Start begins to apply what the log commits, and to write checkpoints.
func (s *Slot) Start() {
	s.mu.Lock()
	again := s.started
	s.started = true
	s.mu.Unlock()
	if !s.Resyncing() {
		s.startApplier()
	}
	if !again {
		s.startKeeper()
		s.startLogVerifier()
	}
}

// Close stops the slot: it applies nothing more, writes a last checkpoint and
// closes the log, which flushes. A faulted slot writes no checkpoint, nor one
// on a full disk: the next start replays the log instead.
func (s *Slot) Close() error {
	s.mu.Lock()
	was := s.closed
	s.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	s.cancel(ErrClosed) // ends waiting for disk space, and repairs
	s.admin.Lock()      // the keeper is not making another index
	s.stopApplier()
	s.admin.Unlock()
	var err error
	if s.Faulted() == nil && !s.applier.torn && !s.Resyncing() && s.space.forCheckpoint() {
		err = s.checkpoint()
	}
	s.work.Wait()
	if s.brake != nil {
		err = errors.Join(err, s.brake.save(time.Now(), true))
	}
	return errors.Join(err, s.scrub.save(), s.closeFiles())
}

// closeFiles closes what open has opened.
func (s *Slot) closeFiles() error {
	var errs []error
	if s.Log != nil {
		errs = append(errs, s.Log.Close())
	}
	if s.tree != nil {
		s.tree.close()
	}
	if s.ix != nil {
		errs = append(errs, s.ix.close())
	}
	if s.rescued != nil {
		errs = append(errs, s.rescued.close())
	}
	if s.Ledger != nil {
		s.recording.Wait()
		errs = append(errs, s.Ledger.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Fault stops the slot for good: something happened that it cannot judge, and
// only a new start, with recovery, helps. The first one counts.
func (s *Slot) Fault(err error) {
	s.mu.Lock()
	first := s.fault == nil
	if first {
		s.fault = fmt.Errorf("%w: %w", ErrFaulted, err)
	}
	fault := s.fault
	s.mu.Unlock()
	if !first {
		return
	}
	if s.Log != nil {
		s.Log.Fail(fault)
	}
	s.cancel(fault)
	s.Events.Add(Event{Kind: EventFault, Text: fault.Error()})
	if s.opt.OnFault != nil {
		s.opt.OnFault(fault)
	}
}

// Faulted returns why the slot has stopped, or nil.
func (s *Slot) Faulted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fault
}
