package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/fs"
	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
)

// unmountTimeout bounds a graceful unmount; then it is done lazily.
const unmountTimeout = 5 * time.Second

// Slot is one slot of a node.
type Slot struct {
	Conf   config.Slot
	Meta   *meta.Slot
	Member *repl.Member

	node *Node
	log  *slog.Logger

	mismatches chan struct{} // a digest differed; see mendMismatches

	change sync.Mutex // held while the mount is made or ended; before hook and mu
	hook   sync.Mutex // held while a hook runs

	rescue sync.Mutex  // one message of a lost branch is delivered at a time; before mu
	since  *meta.Since // under rescue

	mu         sync.Mutex
	fs         *fs.FS             // nil: not mounted
	epoch      uint64             // from Mount to Unmount: in which it is primary; else 0
	unmounted  chan struct{}      // closed when that ends
	role       context.Context    // from Mount to Unmount: ends hooks that run as its primary; else nil
	endRole    context.CancelFunc // of role
	served     bool               // on_promote of this role has ended, or there is none
	lastHook   *admin.HookOutcome
	lastHooks  map[string]*admin.HookOutcome // by hook
	mountError string
	refusedAt  time.Time          // when the mount last began to refuse changes
	decided    map[string]decided // of lost branches, by name
	hooks      sync.WaitGroup     // on_promote runs

	recheck chan struct{} // wakes watchDegraded
}

// Mount implements repl.Hooks: it mounts the store and starts on_promote.
func (s *Slot) Mount(_ context.Context, epoch uint64) error {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.mount(epoch); err != nil {
		return err
	}
	s.rescue.Lock()
	s.since = nil // what it knows may be of another history
	s.rescue.Unlock()
	role, cancel := context.WithCancelCause(context.Background())
	s.mu.Lock()
	s.epoch, s.unmounted = epoch, make(chan struct{})
	s.role, s.served = role, false
	s.endRole = func() { cancel(errHookSuperseded) }
	s.mu.Unlock()
	if len(s.Conf.OnPromote) > 0 {
		s.startOnPromote(role, epoch)
	} else {
		s.serves(role)
	}
	return nil
}

// mount mounts the store and watches the mount. The caller holds s.change.
func (s *Slot) mount(epoch uint64) error {
	f, err := fs.Mount(s.Conf.Mount, s.Meta, fs.Options{
		ProtectMountPoint: s.Conf.ProtectMountPoint,
		NoXAttr:           !s.Conf.Xattrs,
		Status:            s.statusJSON,
		Logger:            s.log,
		OnPanic:           func(v any) { s.log.Error("panic in a file system call", "panic", v) },
	})
	s.mu.Lock()
	s.mountError = ""
	if err != nil {
		s.mountError = err.Error()
	}
	s.fs = f
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", s.Conf.Store, s.Conf.Mount, err)
	}
	s.log.Info("mounted", "mount", s.Conf.Mount, "epoch", epoch)
	s.node.publishSoon()
	go func() {
		f.Wait()
		s.lost(f, epoch)
	}()
	return nil
}

// remountEvery is the time between attempts to mount again.
const remountEvery = 2 * time.Second

// lost mounts again if f ended without our doing: somebody ran umount.
func (s *Slot) lost(f *fs.FS, epoch uint64) {
	s.change.Lock()
	s.mu.Lock()
	ours, unmounted := s.fs != f, s.unmounted
	s.mu.Unlock()
	if ours {
		s.change.Unlock()
		return
	}
	s.log.Error("the mount was taken away; mounting again", "mount", s.Conf.Mount)
	ctx, cancel := context.WithTimeout(context.Background(), unmountTimeout)
	defer cancel()
	if err := f.Unmount(ctx); err != nil { // it is gone; this cleans up
		s.log.Warn("clean up after the mount", "err", err)
	}
	s.mu.Lock()
	s.fs = nil
	s.mu.Unlock()
	s.node.publishSoon()
	for s.remount(epoch) != nil {
		select {
		case <-unmounted:
			return
		case <-time.After(remountEvery):
		}
		s.change.Lock()
	}
}

// remount is one attempt to mount again; nil if it succeeded or is not wanted
// any more. The caller holds s.change, which it releases.
func (s *Slot) remount(epoch uint64) error {
	defer s.change.Unlock()
	s.mu.Lock()
	wanted := s.epoch == epoch
	s.mu.Unlock()
	if !wanted {
		return nil
	}
	err := s.mount(epoch)
	if err != nil {
		s.log.Error("mount again", "err", err)
	}
	return err
}

func (s *Slot) startOnPromote(role context.Context, epoch uint64) {
	s.hooks.Go(func() {
		s.hook.Lock()
		defer s.hook.Unlock()
		if role.Err() != nil {
			return
		}
		s.runHook(role, hookRun{"on_promote", s.Conf.OnPromote, epoch, s.hookEnv(epoch, "primary", "promoted")})
		s.serves(role)
	})
}

// Unmount implements repl.Hooks: on_demote, refuse changes, unmount.
func (s *Slot) Unmount(ctx context.Context, reason string) error {
	s.mu.Lock()
	stop := s.endRole
	s.role, s.endRole, s.served = nil, nil, false
	s.mu.Unlock()
	if stop != nil {
		stop()
	}
	s.hooks.Wait()
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	f, epoch := s.fs, s.epoch
	s.mu.Unlock()
	if len(s.Conf.OnDemote) > 0 && epoch > 0 {
		s.hook.Lock()
		s.runHook(context.WithoutCancel(ctx), hookRun{"on_demote", s.Conf.OnDemote, epoch, s.hookEnv(epoch, "replica", reason)})
		s.hook.Unlock()
	}
	s.mu.Lock()
	s.fs = nil
	if s.epoch > 0 {
		s.epoch = 0
		close(s.unmounted)
	}
	s.mu.Unlock()
	defer s.node.publishSoon()
	if f == nil {
		return nil
	}
	s.mu.Lock()
	s.refusedAt = time.Now()
	s.mu.Unlock()
	f.Refuse(syscall.EROFS)
	uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unmountTimeout)
	defer cancel()
	err := f.Unmount(uctx)
	var held *fs.HeldError
	if errors.As(err, &held) {
		s.log.Warn("the mount was in use; what these processes have cached stays readable to them", "mount", s.Conf.Mount, "err", err)
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", s.Conf.Mount, err)
	}
	s.log.Info("unmounted", "mount", s.Conf.Mount, "reason", reason)
	return nil
}

// onUnfit is told when the slot has lost what it cannot do without.
func (s *Slot) onUnfit(error) {
	s.node.publishSoon()
	if m := s.Member; m != nil {
		m.Look()
	}
}

// fetch is meta's read repair: it asks the other slots for good content.
func (s *Slot) fetch(ctx context.Context, id op.ID, want op.Sum) (meta.Copy, error) {
	m := s.Member
	if m == nil {
		return meta.Copy{}, errNotRunning
	}
	return m.Fetch(ctx, id, want)
}

// fetchLog asks the other slots for entries that cannot be read here.
func (s *Slot) fetchLog(ctx context.Context, from, to uint64) ([]*op.Entry, string, error) {
	m := s.Member
	if m == nil {
		return nil, "", errNotRunning
	}
	return m.FetchLog(ctx, from, to)
}

var errNotRunning = errors.New("replication is not running yet")

// status is everything about the slot.
func (s *Slot) status() admin.SlotStatus {
	st := s.Member.State()
	held := s.Meta.Stats()
	events := s.Meta.Events.List()
	if n := len(events) - 20; n > 0 {
		events = events[n:]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := admin.SlotStatus{
		Store: s.Conf.Store, Mount: s.Conf.Mount, Mounted: s.fs != nil, Data: s.Conf.Data,
		Messages: held.Messages, Bytes: held.Bytes, Digest: held.Digest, DigestAt: held.Pos.Seq,
		Repl: st, Scrub: s.Meta.ScrubStatus(), Brake: s.Meta.Brake(), Adoption: s.Meta.Adoption(), Findings: events, Hook: s.lastHook, Hooks: s.outcomes(), Error: s.mountError,
	}
	if s.fs != nil {
		out.Mail = &admin.MountTraffic{Requests: s.fs.Stats()}
	}
	return out
}

// statusJSON is what .slotfs/status shows inside the mount.
func (s *Slot) statusJSON() []byte {
	st := s.status()
	b, err := json.MarshalIndent(&st, "", "  ")
	if err != nil {
		return []byte("{}\n")
	}
	return append(b, '\n')
}
