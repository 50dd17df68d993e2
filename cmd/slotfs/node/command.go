package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/gossip"
	"slotfs/repl"
)

// Paths that other nodes may ask for.
const (
	pathAtRisk = "/v1/at-risk"
)

// forwarded marks a request that came from another node: it is not passed on
// again.
type forwarded struct{}

// command carries out what another node's operator asked for: the same handlers
// as on the admin socket, as far as they are in n.remote.
func (n *Node) command(ctx context.Context, from string, c repl.Command, w io.Writer) error {
	method := http.MethodGet
	if len(c.Body) > 0 {
		method = http.MethodPost
	}
	ctx = context.WithValue(ctx, forwarded{}, from)
	r, err := http.NewRequestWithContext(ctx, method, "http://slotfs"+(&url.URL{Path: c.Path, RawQuery: c.Query}).String(), bytes.NewReader(c.Body))
	if err != nil {
		return &repl.CommandError{Node: n.Config.Node, Exit: int(exit.Usage), Text: err.Error()}
	}
	n.Log.Info("command from another node", "node", from, "path", c.Path)
	a := &commandAnswer{w: w, header: http.Header{}}
	n.remote.ServeHTTP(a, r)
	return a.err(n.Config.Node)
}

// commandAnswer is a response on its way to another node.
type commandAnswer struct {
	w       io.Writer
	header  http.Header
	refused bool
	problem bytes.Buffer
}

func (a *commandAnswer) Header() http.Header { return a.header }

func (a *commandAnswer) WriteHeader(status int) { a.refused = status >= 400 }

func (a *commandAnswer) Write(p []byte) (int, error) {
	if a.refused {
		return a.problem.Write(p)
	}
	return a.w.Write(p)
}

func (a *commandAnswer) err(node string) error {
	if !a.refused {
		return nil
	}
	e := &repl.CommandError{Node: node, Exit: int(exit.General), Text: fmt.Sprintf("%s: %s", node, a.problem.String())}
	var p admin.Problem
	if json.Unmarshal(a.problem.Bytes(), &p) == nil && p.Error != "" {
		e.Exit, e.Text = int(p.Code), fmt.Sprintf("%s: %s", node, p.Error)
	}
	return e
}

// primaryOf finds the node whose slot is primary of store, as gossip knows.
func (n *Node) primaryOf(store string) (m gossip.Member, ok bool) {
	var epoch uint64
	for _, x := range n.Gossip.Members() {
		for _, g := range x.Slots {
			if x.Alive && g.Store == store && g.Role == string(repl.Primary) && g.Epoch >= epoch {
				m, epoch, ok = x, g.Epoch, true
			}
		}
	}
	return m, ok
}

// passOn has the store's primary answer a GET.
func (n *Node) passOn(w http.ResponseWriter, r *http.Request, store string) {
	m, ok := n.primaryOf(store)
	switch {
	case r.Context().Value(forwarded{}) != nil:
		problem(w, exit.With(exit.Refused, fmt.Errorf("node %s is not primary of store %q any more: ask again", n.Config.Node, store)))
		return
	case !ok:
		problem(w, exit.With(exit.Refused, fmt.Errorf("store %q has no primary that can be reached", store)))
		return
	case m.Self:
		problem(w, exit.With(exit.Refused, fmt.Errorf("the slot of store %q is changing its role: ask again", store)))
		return
	}
	body, err := n.Server.Send(r.Context(), m.Name, m.Repl, repl.Command{Path: r.URL.Path, Query: r.URL.RawQuery})
	if err != nil {
		problem(w, commandProblem(err))
		return
	}
	defer body.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	if _, err := io.Copy(w, body); err != nil && r.Context().Err() == nil {
		n.Log.Warn("answer of another node cut short", "node", m.Name, "err", err)
		panic(http.ErrAbortHandler)
	}
}

// send has another node carry out a POST.
func (n *Node) send(ctx context.Context, m gossip.Member, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	body, err := n.Server.Send(ctx, m.Name, m.Repl, repl.Command{Path: path, Body: b})
	if err != nil {
		return commandProblem(err)
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("read the answer of node %s: %w", m.Name, err)
	}
	return nil
}

// commandProblem gives the exit code of the other node to its error.
func commandProblem(err error) error {
	var ce *repl.CommandError
	if errors.As(err, &ce) {
		return exit.With(exit.Code(ce.Exit), err)
	}
	return err
}
