package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"slotfs/cmd/slotfs/admin"
)

// hookRun is one run of a hook.
type hookRun struct {
	name  string // on_promote, on_demote or on_degraded
	argv  []string
	epoch uint64
	env   []string
}

// runHook runs h, logs what it prints, and remembers how it ended. The caller
// holds s.hook.
func (s *Slot) runHook(ctx context.Context, h hookRun) error {
	out := &admin.HookOutcome{Hook: h.name, Epoch: h.epoch}
	s.setHook(out)
	start := time.Now()
	log := s.log.With("hook", h.name, "epoch", h.epoch)
	log.Info("hook starts", "argv", h.argv)
	ctx, cancel := context.WithTimeoutCause(ctx, s.Conf.HookTimeout, errHookTimeout)
	defer cancel()

	cmd := exec.CommandContext(ctx, h.argv[0], h.argv[1:]...)
	cmd.Env = append(append(os.Environ(), h.env...), "SLOTFS_HOOK="+h.name)
	cmd.Dir = "/"
	// A group of its own, so that what it started ends with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			log.Info("hook says", "line", lines.Text())
		}
		io.Copy(io.Discard, r) // a line that is too long must not block it
	}()
	err := cmd.Run()
	w.Close()
	<-printed
	// A server that the hook left running keeps our pipe; that is its right.
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	done := *out
	done.Ended, done.Duration = time.Now(), time.Since(start).Round(time.Millisecond).String()
	if err != nil {
		done.Error = err.Error()
		log.Error("hook failed", "err", err, "after", done.Duration)
		err = fmt.Errorf("%s: %w", h.name, err)
	} else {
		log.Info("hook done", "after", done.Duration)
	}
	s.setHook(&done)
	return err
}

var (
	errHookTimeout    = errors.New("took longer than hook_timeout and was killed")
	errHookSuperseded = errors.New("ended because the slot stops being primary")
)

func (s *Slot) hookEnv(epoch uint64, role, reason string) []string {
	return []string{
		"SLOTFS_STORE=" + s.Conf.Store,
		"SLOTFS_DATA=" + s.Conf.Data,
		"SLOTFS_NODE=" + s.node.Config.Node,
		"SLOTFS_EPOCH=" + strconv.FormatUint(epoch, 10),
		"SLOTFS_MOUNT=" + s.Conf.Mount,
		"SLOTFS_ROLE=" + role,
		"SLOTFS_REASON=" + reason,
	}
}

func (s *Slot) setHook(o *admin.HookOutcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastHook = o
	if s.lastHooks == nil {
		s.lastHooks = map[string]*admin.HookOutcome{}
	}
	s.lastHooks[o.Hook] = o
}

// outcomes are how the hooks last ended, each of them. The caller holds s.mu.
func (s *Slot) outcomes() []admin.HookOutcome {
	var list []admin.HookOutcome
	for _, name := range []string{"on_promote", "on_demote", "on_degraded"} {
		if o := s.lastHooks[name]; o != nil {
			list = append(list, *o)
		}
	}
	return list
}
