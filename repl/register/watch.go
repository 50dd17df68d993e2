package register

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"slotfs/repl"
)

const (
	probeEvery   = time.Second
	probeTimeout = time.Second
	watchAgain   = 250 * time.Millisecond
)

// answered notes that a majority has answered through p.
func (e *Etcd) answered(p *endpoint) {
	e.mu.Lock()
	e.good, p.why = p, nil
	was := e.reach
	e.reach = repl.Reach{Heard: time.Now()}
	var back chan struct{}
	if !was.Since.IsZero() {
		back, e.back = e.back, make(chan struct{})
	}
	e.mu.Unlock()
	if back != nil {
		close(back)
		e.logger.Info("the register answers again", "after", time.Since(was.Since).Round(time.Millisecond).String())
	}
}

// failed notes that nobody answered in time, and makes the error of it.
func (e *Etcd) failed(last, cause error) error {
	err := fmt.Errorf("no majority answered: %w", last)
	if errors.Is(cause, context.Canceled) {
		return cause // the caller lost interest: that says nothing
	}
	e.mu.Lock()
	if why := e.knownLocked(); why != nil {
		last = why
		err = fmt.Errorf("no majority answered: %w", last)
	}
	news := e.reach.Since.IsZero()
	if news {
		e.reach.Since = time.Now()
	}
	e.reach.Error = last.Error()
	never := e.reach.Heard.IsZero()
	e.mu.Unlock()
	if news && !never {
		e.logger.Warn("the register is unreachable; roles cannot change", "err", last)
	}
	return err
}

// Reach implements repl.Register.
func (e *Etcd) Reach() repl.Reach {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.reach
}

// probe keeps Reach up to date: one linearizable read about once a second, of
// a key that never exists.
func (e *Etcd) probe() {
	t := time.NewTicker(probeEvery)
	defer t.Stop()
	for {
		if len(e.Endpoints()) > 0 && time.Since(e.Reach().Heard) > probeEvery/2 {
			ctx, cancel := context.WithTimeout(e.ctx, probeTimeout)
			// What matters is whether there is an answer; failed notes the rest.
			_, _ = ask(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
				return c.Get(ctx, prefix(e.options.Cluster)+"probe", clientv3.WithCountOnly())
			})
			cancel()
		}
		select {
		case <-t.C:
		case <-e.ctx.Done():
			return
		}
	}
}

// Watch implements repl.Register.
func (e *Etcd) Watch(ctx context.Context, store string, f func(repl.Record, bool)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	for skip := 0; ctx.Err() == nil; skip++ {
		c, err := e.read(ctx, store)
		if err == nil {
			f(c.rec, c.found)
		}
		if err == nil || errors.Is(err, repl.ErrRecord) {
			e.follow(ctx, store, skip, f)
		}
		select {
		case <-time.After(watchAgain):
		case <-ctx.Done():
		}
	}
}

// follow watches at one endpoint until the connection fails, the member there
// loses the majority, or the register was unreachable and is back. skip makes
// the next attempt begin at another endpoint.
func (e *Etcd) follow(ctx context.Context, store string, skip int, f func(repl.Record, bool)) {
	list := e.ordered()
	if len(list) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := e.client(ctx, list[skip%len(list)])
	if err != nil {
		return
	}
	e.mu.Lock()
	back := e.back
	e.mu.Unlock()
	// Watch itself waits for the connection.
	slow := time.AfterFunc(attempt, cancel)
	defer slow.Stop()
	changes := c.Watch(clientv3.WithRequireLeader(ctx), e.key(store), clientv3.WithCreatedNotify())
	// The client connects again by itself, for ever, to this endpoint: another one
	// may be there.
	lost := make(chan struct{})
	for {
		select {
		case <-back:
			return
		case <-lost:
			return
		case <-ctx.Done():
			return
		case r, ok := <-changes:
			switch {
			case !ok || r.Err() != nil:
				return
			case r.Created:
				slow.Stop()
				go func() {
					defer close(lost)
					for conn := c.ActiveConnection(); conn.GetState() == connectivity.Ready && conn.WaitForStateChange(ctx, connectivity.Ready); {
					}
				}()
				// What changed between the read and the watch's beginning would be missed.
				if now, err := e.read(ctx, store); err == nil {
					f(now.rec, now.found)
				}
			}
			for _, ev := range r.Events {
				if ev.Type == clientv3.EventTypeDelete {
					f(repl.Record{}, false)
				} else if now, err := e.decode(store, ev.Kv.Value, ev.Kv.ModRevision); err == nil {
					f(now.rec, true)
				}
			}
		}
	}
}
