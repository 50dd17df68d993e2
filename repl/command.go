package repl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"slotfs/meta/op"
)

// Command is what an operator asked another node for than the one that has to
// do it. It travels over a connection of its own; both sides have proven that
// they are nodes of the cluster.
type Command struct {
	Path  string          `json:"path"`            // of the node's administration interface
	Query string          `json:"query,omitempty"` // URL-encoded
	Body  json.RawMessage `json:"body,omitempty"`  // of a POST; none: a GET
}

// CommandError is how a command ended that was not done.
type CommandError struct {
	Node string
	Exit int // the exit code of the command line
	Text string
}

func (e *CommandError) Error() string { return e.Text }

// commandReply is the first frame of an answer; content follows if Text is
// empty.
type commandReply struct {
	Exit int    `json:"exit,omitempty"`
	Text string `json:"text,omitempty"`
}

// commandBeat is the time between signs of life while a command is carried out.
const commandBeat = 5 * time.Second

// serveCommand carries out another node's operator's command.
func (s *Server) serveCommand(ctx context.Context, l *link, h hello) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.closeOn(ctx)()
	l.deadline(handshakeTimeout)
	if s.Command == nil {
		l.turnAway(CodeProtocol, fmt.Sprintf("node %s takes no commands from other nodes", s.Node))
		return
	}
	if l.sendJSON(frameWelcome, welcome{Protocol: Protocol, Node: s.Node}) != nil {
		return
	}
	f, err := l.next()
	var c Command
	if err != nil || f.typ != frameRequest || json.Unmarshal(f.body, &c) != nil {
		l.turnAway(CodeProtocol, "not a command")
		return
	}
	l.deadline(0)
	w := &commandWriter{l: l}
	defer w.beat(ctx)()
	go func() { // the asker hangs up when its operator does
		_, _ = l.next()
		cancel()
	}()
	err = s.Command(ctx, h.Node, c, w)
	w.finish(err)
}

// commandWriter sends what a command says, as it comes.
type commandWriter struct {
	l     *link
	begun bool
}

// beat keeps the connection alive while nothing is said.
func (w *commandWriter) beat(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(commandBeat)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if w.l.numbers(frameMark, 0, 0, 0) != nil {
					return
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (w *commandWriter) begin(r commandReply) error {
	if w.begun {
		return nil
	}
	w.begun = true
	return w.l.sendJSON(frameReply, r)
}

// Write implements io.Writer.
func (w *commandWriter) Write(p []byte) (n int, err error) {
	if err := w.begin(commandReply{}); err != nil {
		return 0, err
	}
	for len(p) > 0 {
		k := min(len(p), op.BlockSize)
		if err := w.l.write(frameContent, p[:k]); err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, w.l.flush()
}

func (w *commandWriter) finish(err error) {
	if err == nil {
		if err = w.begin(commandReply{}); err == nil {
			_ = errors.Join(w.l.write(frameContent, nil), w.l.flush())
		}
		return
	}
	var ce *CommandError
	r := commandReply{Exit: 1, Text: err.Error()}
	if errors.As(err, &ce) {
		r.Exit, r.Text = ce.Exit, ce.Text
	}
	if w.begun {
		_ = w.l.sendJSON(frameRefuse, refuse{Code: CodeFailed, Text: r.Text})
		return
	}
	_ = w.begin(r)
}

// Send has the node that is called name, at addr, carry out a command, and
// returns what it says. A command that was not done is a *CommandError.
func (s *Server) Send(ctx context.Context, name, addr string, c Command) (io.ReadCloser, error) {
	l, err := dial(ctx, addr, s.Client)
	if err != nil {
		return nil, fmt.Errorf("reach node %s: %w", name, err)
	}
	stop := l.closeOn(ctx)
	r, err := s.send(l, name, c)
	if err != nil {
		stop()
		l.close()
		return nil, err
	}
	r.stop = stop
	return r, nil
}

func (s *Server) send(l *link, name string, c Command) (*commandReader, error) {
	l.deadline(handshakeTimeout)
	if l.peer != name {
		return nil, fmt.Errorf("reach node %s: %s answers", name, l.peer)
	}
	err := l.sendJSON(frameHello, hello{Protocol: Protocol, For: forCommand, Cluster: s.Cluster, Node: s.Node})
	var w welcome
	if err == nil {
		err = noEOF(l.expect(frameWelcome, &w))
	}
	if err == nil {
		err = l.sendJSON(frameRequest, c)
	}
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w", name, err)
	}
	r := &commandReader{l: l, name: name}
	f, err := r.next()
	var a commandReply
	switch {
	case err != nil:
		return nil, err
	case f.typ != frameReply || json.Unmarshal(f.body, &a) != nil:
		return nil, fmt.Errorf("node %s: %w: type %d where a reply was due", name, ErrWire, f.typ)
	case a.Text != "":
		return nil, &CommandError{Node: name, Exit: a.Exit, Text: a.Text}
	}
	return r, nil
}

// commandReader reads what a command says.
type commandReader struct {
	l    *link
	name string
	rest []byte
	err  error
	stop func() bool
}

// next skips the signs of life.
func (r *commandReader) next() (frame, error) {
	for {
		r.l.deadline(6 * commandBeat)
		f, err := r.l.next()
		switch {
		case err != nil:
			return f, fmt.Errorf("node %s: the connection broke before the answer was complete; what was asked for may have been done: %w", r.name, noEOF(err))
		case f.typ == frameRefuse:
			return f, r.l.refused(f)
		case f.typ != frameMark:
			return f, nil
		}
	}
}

// Read implements io.Reader.
func (r *commandReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		f, err := r.next()
		switch {
		case err != nil:
			r.err = err
		case f.typ != frameContent:
			r.err = fmt.Errorf("node %s: %w: type %d within an answer", r.name, ErrWire, f.typ)
		case len(f.body) == 0:
			r.err = io.EOF
		default:
			r.rest = f.body
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *commandReader) Close() error {
	r.stop()
	r.l.close()
	return nil
}
