package register

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"

	"slotfs/repl"
)

// Options is what a client of the register needs.
type Options struct {
	Cluster  string      // id of the slotfs cluster
	TLS      *tls.Config // nil: no TLS (external etcd only)
	User     string      // of an external etcd; empty: none
	Password string
	Logger   *slog.Logger // optional
}

// Etcd is a repl.Register kept in etcd.
type Etcd struct {
	options Options
	logger  *slog.Logger
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	mu        sync.Mutex // guards what follows; never held while waiting
	endpoints []*endpoint
	good      *endpoint // the one that answered last; may be nil
	closed    bool
	reach     repl.Reach
	back      chan struct{} // closed when the register answers again
	garbage   map[string]string
}

var _ repl.Register = (*Etcd)(nil)

var errClosed = errors.New("the register client is closed")

// New makes a client; SetEndpoints tells it where the register is. It asks
// about once a second whether a majority answers, until Close.
func New(o Options) *Etcd {
	e := &Etcd{options: o, logger: o.Logger, back: make(chan struct{}), garbage: map[string]string{}}
	if e.logger == nil {
		e.logger = slog.New(slog.DiscardHandler)
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	e.wg.Go(e.probe)
	return e
}

// Close ends all requests and watches.
func (e *Etcd) Close() error {
	e.mu.Lock()
	e.closed = true
	list := e.endpoints
	e.mu.Unlock()
	e.cancel()
	for _, p := range list {
		if p.client != nil {
			closeClient(p.client, e.logger)
		}
	}
	e.wg.Wait()
	return nil
}

// Key is where the record of a store is.
func Key(cluster, store string) string { return prefix(cluster) + "store/" + store }

func prefix(cluster string) string { return "/slotfs/" + cluster + "/" }

func (e *Etcd) key(store string) string { return Key(e.options.Cluster, store) }

// current is what stands under a key.
type current struct {
	rec      repl.Record
	found    bool
	revision int64 // of its last change
}

// Get implements repl.Register.
func (e *Etcd) Get(ctx context.Context, store string) (repl.Record, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, repl.RegisterPatience)
	defer cancel()
	c, err := e.read(ctx, store)
	if err != nil {
		return repl.Record{}, false, fmt.Errorf("read register: %w", err)
	}
	return c.rec, c.found, nil
}

func (e *Etcd) read(ctx context.Context, store string) (current, error) {
	r, err := ask(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, e.key(store))
	})
	if err != nil || len(r.Kvs) == 0 {
		return current{}, err
	}
	return e.decode(store, r.Kvs[0].Value, r.Kvs[0].ModRevision)
}

// decode reads a record and remembers whether it is garbage, for Garbage.
func (e *Etcd) decode(store string, value []byte, revision int64) (current, error) {
	key := e.key(store)
	rec, err := Decode(key, value)
	e.mu.Lock()
	text := ""
	if err != nil {
		text = err.Error()
	}
	news := e.garbage[store] != text
	if e.garbage[store] = text; text == "" {
		delete(e.garbage, store)
	}
	e.mu.Unlock()
	if err != nil && news {
		e.logger.Error("register", "store", store, "err", err)
	}
	return current{rec, err == nil, revision}, err
}

// Garbage tells which records were found to be of no use, by store.
func (e *Etcd) Garbage() map[string]string {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make(map[string]string, len(e.garbage))
	for k, v := range e.garbage {
		out[k] = v
	}
	return out
}

// Swap implements repl.Register. A request whose answer got lost is repeated
// with the same nonce, which is harmless: its condition is on the revision that
// was read, so one of them at most has an effect.
func (e *Etcd) Swap(ctx context.Context, store string, expect uint64, next repl.Record) (repl.Record, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, repl.RegisterPatience)
	defer cancel()
	value, err := Encode(&next)
	if err != nil {
		return repl.Record{}, false, err
	}
	if next.Epoch <= expect {
		return repl.Record{}, false, fmt.Errorf("swap from epoch %d to %d: epochs only grow", expect, next.Epoch)
	}
	now, err := e.read(ctx, store)
	for err == nil && now.rec.Epoch == expect {
		// No other change is possible in between; one that was asked for twice is.
		now, err = e.swap(ctx, store, now.revision, value)
	}
	if err != nil {
		return repl.Record{}, false, fmt.Errorf("change register: %w", err)
	}
	return now.rec, now.rec.Nonce == next.Nonce, nil
}

// swap puts value if the key was last changed at the revision, and tells what
// stands there afterwards.
func (e *Etcd) swap(ctx context.Context, store string, revision int64, value []byte) (current, error) {
	key := e.key(store)
	r, err := ask(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.TxnResponse, error) {
		return c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
			Then(clientv3.OpPut(key, string(value))).Else(clientv3.OpGet(key)).Commit()
	})
	if err != nil {
		return current{}, err
	}
	if r.Succeeded {
		return e.decode(store, value, r.Header.Revision)
	}
	kvs := r.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return current{}, nil
	}
	return e.decode(store, kvs[0].Value, kvs[0].ModRevision)
}

// Put writes a record whatever stands there, even garbage: for restore only. It
// fails if the record changes meanwhile.
func (e *Etcd) Put(ctx context.Context, store string, rec repl.Record) error {
	value, err := Encode(&rec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, repl.RegisterPatience)
	defer cancel()
	r, err := ask(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, e.key(store))
	})
	if err != nil {
		return fmt.Errorf("read register: %w", err)
	}
	revision := int64(0)
	if len(r.Kvs) > 0 {
		revision = r.Kvs[0].ModRevision
	}
	now, err := e.swap(ctx, store, revision, value)
	if err != nil {
		return fmt.Errorf("write register: %w", err)
	}
	if now.rec.Nonce != rec.Nonce || now.rec.Epoch != rec.Epoch {
		return fmt.Errorf("the record of %s has just been changed to epoch %d", store, now.rec.Epoch)
	}
	return nil
}

// Entry is a record as List found it.
type Entry struct {
	Record repl.Record
	Err    error // why it cannot be used; else nil
}

// List reads the records of all stores.
func (e *Etcd) List(ctx context.Context) (map[string]Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, repl.RegisterPatience)
	defer cancel()
	from := e.key("")
	r, err := ask(ctx, e, func(ctx context.Context, c *clientv3.Client) (*clientv3.GetResponse, error) {
		return c.Get(ctx, from, clientv3.WithPrefix())
	})
	if err != nil {
		return nil, fmt.Errorf("read register: %w", err)
	}
	out := map[string]Entry{}
	for _, kv := range r.Kvs {
		store := string(kv.Key[len(from):])
		c, err := e.decode(store, kv.Value, kv.ModRevision)
		out[store] = Entry{c.rec, err}
	}
	return out, nil
}
