package register

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Times of requests.
const (
	// hedge is how long one endpoint may take before the next is asked as well.
	hedge = 300 * time.Millisecond
	// attempt bounds a request to one endpoint.
	attempt = 1500 * time.Millisecond
	// pause is between two rounds over all endpoints.
	pause = 50 * time.Millisecond
	// keepalive: gRPC pings an idle connection no more often than this.
	keepalive        = 10 * time.Second
	keepaliveTimeout = 2 * time.Second
	reconnectMax     = 500 * time.Millisecond
)

// endpoint is one etcd server and the connection to it.
type endpoint struct {
	url    string
	client *clientv3.Client // nil: not connected yet
	dial   chan struct{}    // not nil: somebody connects; closed when that has ended
	why    error            // what is wrong with it, if that is known; see diagnose
	looked time.Time        // when that was last looked into
}

var (
	errNoEndpoints = errors.New("no register member is known yet")
	errNoAnswer    = errors.New("no answer in time")
)

// SetEndpoints says where the register is, in the order of preference: URLs,
// or host:port for TLS. Connections to endpoints that stay are kept.
func (e *Etcd) SetEndpoints(urls []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	var next []*endpoint
	for _, u := range urls {
		if slices.ContainsFunc(next, func(p *endpoint) bool { return p.url == u }) {
			continue
		}
		if i := slices.IndexFunc(e.endpoints, func(p *endpoint) bool { return p.url == u }); i >= 0 {
			next = append(next, e.endpoints[i])
		} else {
			next = append(next, &endpoint{url: u})
		}
	}
	for _, p := range e.endpoints {
		if !slices.Contains(next, p) && p.client != nil {
			go closeClient(p.client, e.logger)
		}
	}
	e.endpoints = next
}

// Endpoints is the list in use.
func (e *Etcd) Endpoints() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, p := range e.endpoints {
		out = append(out, p.url)
	}
	return out
}

func closeClient(c *clientv3.Client, logger *slog.Logger) {
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		logger.Debug("close register connection", "err", err)
	}
}

// client gives the connection to p. With a user it authenticates first, which
// takes a request that costs etcd a good deal of work: one at a time.
func (e *Etcd) client(ctx context.Context, p *endpoint) (*clientv3.Client, error) {
	for {
		e.mu.Lock()
		c, closed, dial := p.client, e.closed, p.dial
		if c == nil && !closed && dial == nil {
			p.dial = make(chan struct{})
		}
		e.mu.Unlock()
		switch {
		case c != nil || closed:
			return c, e.closedError(closed)
		case dial == nil:
			return e.connect(ctx, p)
		}
		select {
		case <-dial:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// connect is client for the one who does it.
func (e *Etcd) connect(ctx context.Context, p *endpoint) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{p.url}, TLS: e.options.TLS, Username: e.options.User, Password: e.options.Password,
		DialTimeout: e.dialTimeout(), DialKeepAliveTime: keepalive, DialKeepAliveTimeout: keepaliveTimeout,
		MaxUnaryRetries: 1, Logger: zap.NewNop(), Context: e.ctx,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMax},
			MinConnectTimeout: attempt,
		})},
	})
	e.mu.Lock()
	defer e.mu.Unlock()
	close(p.dial)
	p.dial = nil
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	if e.closed {
		go closeClient(c, e.logger)
		return nil, errClosed
	}
	p.client = c
	return c, ctx.Err()
}

func (e *Etcd) closedError(closed bool) error {
	if closed {
		return errClosed
	}
	return nil
}

// ordered lists the endpoints, the one that answered last first.
func (e *Etcd) ordered() []*endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.Clone(e.endpoints)
	if i := slices.Index(out, e.good); i > 0 {
		out = slices.Concat(out[i:i+1], out[:i], out[i+1:])
	}
	return out
}

// ask does f at one endpoint after the other until one answers or ctx ends. A
// slow endpoint is not waited for: the next is asked as well, and the first
// answer counts; so f must be harmless when done twice.
func ask[T any](ctx context.Context, e *Etcd, f func(context.Context, *clientv3.Client) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx) // ends what was overtaken
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	last := errNoEndpoints
	for {
		list := e.ordered()
		if len(list) > 0 && last == errNoEndpoints {
			last = errNoAnswer
		}
		value, ok, err := round(ctx, e, list, f)
		if ok {
			return value, nil
		}
		if err != nil {
			last = err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return value, e.failed(last, ctx.Err())
		}
	}
}

// round is ask for each endpoint of list once; err is the last failure, nil if
// there was none before ctx ended.
func round[T any](ctx context.Context, e *Etcd, list []*endpoint, f func(context.Context, *clientv3.Client) (T, error)) (value T, ok bool, err error) {
	type answer struct {
		from  *endpoint
		value T
		err   error
	}
	answers := make(chan answer, len(list))
	timer := time.NewTimer(hedge)
	defer timer.Stop()
	running := 0
	start := func() {
		if len(list) == 0 {
			return
		}
		p := list[0]
		list = list[1:]
		running++
		timer.Reset(hedge)
		go func() {
			actx, stop := context.WithTimeout(ctx, attempt)
			defer stop()
			a := answer{from: p}
			var c *clientv3.Client
			if c, a.err = e.client(actx, p); a.err == nil {
				a.value, a.err = f(actx, c)
			}
			answers <- a
			if a.err != nil {
				e.diagnose(p, a.err, ctx.Err() == context.Canceled)
			}
		}()
	}
	for start(); running > 0; {
		select {
		case <-timer.C:
			start()
		case a := <-answers:
			running--
			if a.err == nil {
				e.answered(a.from)
				return a.value, true, nil
			}
			if ctx.Err() == nil {
				err = fmt.Errorf("%s: %w", a.from.url, a.err)
			}
			start()
		case <-ctx.Done():
			return value, false, err
		}
	}
	return value, false, err
}

// dialTimeout bounds the connection to an endpoint. With a user it includes the
// check of the password, which is slow on purpose.
func (e *Etcd) dialTimeout() time.Duration {
	if e.options.User != "" {
		return 4 * attempt
	}
	return attempt
}
