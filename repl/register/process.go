package register

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	againAfter = 500 * time.Millisecond // a first attempt to start the member again
	againMax   = 10 * time.Second
	healthy    = 30 * time.Second // after so long a member has started well
	stopOrder  = "stop\n"
)

// Process keeps a member running in a process of its own, and starts it again
// when it ends.
type Process struct {
	Command func() *exec.Cmd // a command that runs Serve
	Log     *slog.Logger
	Changed func() // after each change of State; may be nil; must not block

	mu      sync.Mutex // guards what follows
	config  MemberConfig
	state   ProcessState
	restart chan struct{} // closed to end the present process and start another
}

// ProcessState is what the process does.
type ProcessState struct {
	Phase    Phase     `json:"phase"`
	Text     string    `json:"text,omitempty"`
	Since    time.Time `json:"since"` // of the phase
	PID      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts"`
}

// NewProcess makes a Process; Run starts it.
func NewProcess(c MemberConfig, log *slog.Logger) *Process {
	return &Process{config: c, Log: log, restart: make(chan struct{}), state: ProcessState{Phase: Starting, Since: time.Now()}}
}

// State tells what the process does.
func (p *Process) State() ProcessState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Config is the member's configuration.
func (p *Process) Config() MemberConfig {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.config
}

// Restart ends the process and starts it again; with force the member makes a
// new register of one from its data, once.
func (p *Process) Restart(force bool) {
	p.mu.Lock()
	p.config.Force = force
	p.state = ProcessState{Phase: Starting, Since: time.Now(), Restarts: p.state.Restarts}
	close(p.restart)
	p.restart = make(chan struct{})
	p.mu.Unlock()
	p.notify()
}

func (p *Process) notify() {
	if p.Changed != nil {
		p.Changed()
	}
}

func (p *Process) set(f func(*ProcessState)) {
	p.mu.Lock()
	was := p.state
	f(&p.state)
	if p.state.Phase != was.Phase {
		p.state.Since = time.Now()
	}
	changed := p.state != was
	p.mu.Unlock()
	if changed {
		p.notify()
	}
}

// Run keeps the member running until ctx ends.
func (p *Process) Run(ctx context.Context) {
	wait := againAfter
	for ctx.Err() == nil {
		p.mu.Lock()
		config, restart := p.config, p.restart
		p.config.Force = false
		p.mu.Unlock()
		started := time.Now()
		err := p.once(ctx, restart, config)
		if ctx.Err() != nil {
			return
		}
		select {
		case <-restart:
			wait = againAfter
			continue
		default:
		}
		if time.Since(started) > healthy {
			wait = againAfter
		}
		p.ended(err)
		select {
		case <-time.After(wait):
		case <-restart:
		case <-ctx.Done():
		}
		wait = min(2*wait, againMax)
	}
}

// ended notes why the process is gone.
func (p *Process) ended(err error) {
	was := p.State()
	p.set(func(s *ProcessState) {
		s.PID = 0
		s.Restarts++
		switch {
		case s.Phase == Stopped && s.Text != "" && err == nil: // it has said why
			return
		case s.Text == "" && err != nil:
			s.Text = err.Error()
		case s.Text == "":
			s.Text = "it ended without a reason"
		}
		s.Phase = Stopped
	})
	if now := p.State(); now.Text != was.Text || was.Restarts == 0 {
		p.Log.Error("the register's member on this node does not run; mail is served without it", "err", now.Text)
	}
}

// once runs the process until it ends, ctx ends or restart is closed.
func (p *Process) once(ctx context.Context, restart <-chan struct{}, config MemberConfig) error {
	cmd := p.Command()
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start register member: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start register member: %w", err)
	}
	last := &lastWords{to: cmd.Stderr}
	cmd.Stderr = last
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start register member: %w", err)
	}
	p.set(func(s *ProcessState) { s.PID = cmd.Process.Pid })
	if err := json.NewEncoder(in).Encode(&config); err != nil {
		p.Log.Debug("tell the register member its config", "err", err)
	}
	stopped := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-restart:
		case <-stopped:
			return
		}
		if _, err := io.WriteString(in, stopOrder); err != nil {
			p.Log.Debug("tell the register member to stop", "err", err)
		}
		select {
		case <-stopped:
		case <-time.After(2 * closeTimeout):
			p.Log.Warn("the register member does not stop; killing it")
			if err := cmd.Process.Kill(); err != nil {
				p.Log.Debug("kill register member", "err", err)
			}
		}
	})
	p.listen(out)
	err = cmd.Wait()
	close(stopped)
	watch.Wait()
	if words := last.String(); words != "" && err != nil {
		p.set(func(s *ProcessState) { s.Text = words })
	}
	return err
}

// lastWords passes standard error on, and remembers of what the process died.
type lastWords struct {
	to io.Writer // may be nil

	mu   sync.Mutex
	line []byte // the last one, as far as it was written
	text string
}

// Write implements io.Writer.
func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	for _, c := range b {
		if c != '\n' {
			l.line = append(l.line, c)
			continue
		}
		for _, start := range []string{"panic: ", "fatal error: ", "unexpected fault address", "slotfs: "} {
			if l.text == "" && strings.HasPrefix(string(l.line), start) {
				l.text = string(l.line)
			}
		}
		l.line = l.line[:0]
	}
	l.mu.Unlock()
	if l.to == nil {
		return len(b), nil
	}
	return l.to.Write(b)
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}

// listen reads what the process tells until it closes its output.
func (p *Process) listen(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var g Progress
		if err := json.Unmarshal(lines.Bytes(), &g); err != nil {
			p.Log.Debug("register member said something unknown", "err", err)
			continue
		}
		was := p.State()
		p.set(func(s *ProcessState) { s.Phase, s.Text = g.Phase, g.Text })
		if was.Phase != g.Phase || was.Text != g.Text {
			p.Log.Info("register member", "phase", string(g.Phase), "text", g.Text)
		}
	}
}

// Serve is the other side: the process's main function. It reads its config
// and orders from in and tells its progress on out. When in ends the node is
// dead, and so is the member, at once.
func Serve(in io.Reader, out io.Writer, made func(MemberConfig) (*Member, error)) error {
	orders := bufio.NewReader(in)
	line, err := orders.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the register member's config: %w", err)
	}
	var c MemberConfig
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("read the register member's config: %w", err)
	}
	var mu sync.Mutex
	tell := func(g Progress) {
		mu.Lock()
		defer mu.Unlock()
		// Without a reader the node is dead, which the other direction notices.
		_ = json.NewEncoder(out).Encode(&g)
	}
	m, err := made(c)
	if err != nil {
		tell(Progress{Stopped, err.Error()})
		return nil
	}
	m.Tell = tell
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	orphan := make(chan struct{})
	go func() {
		line, _ := orders.ReadString('\n')
		if line != stopOrder {
			close(orphan)
		}
		cancel(nil)
	}()
	ended := make(chan error, 1)
	go func() { ended <- m.Run(ctx) }()
	select {
	case <-orphan:
		return nil
	case err = <-ended:
	}
	if err != nil {
		tell(Progress{Stopped, err.Error()})
	}
	return nil
}
