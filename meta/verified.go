package meta

import (
	"container/list"
	"context"
	"errors"
	"iter"
	"strings"
	"sync"

	"slotfs/meta/op"
)

// blockKey names verified content: a block of an object as a change left it.
type blockKey struct {
	id      op.ID
	changed uint64
	block   int
}

// verifiedCache keeps blocks that were verified, for reads that take less than
// a block at a time: a message over the kernel's read size would otherwise be
// read and verified once per piece. It is small; the kernel caches what it got.
type verifiedCache struct {
	max int64 // bytes

	mu     sync.Mutex
	blocks map[blockKey]*list.Element // of *verifiedBlock
	recent list.List                  // least recently used first
	bytes  int64
}

type verifiedBlock struct {
	key   blockKey
	ready chan struct{} // closed once b or err is there
	b     []byte
	err   error
}

func newVerifiedCache(max int64) *verifiedCache {
	return &verifiedCache{max: max, blocks: make(map[blockKey]*list.Element)}
}

// get returns the block of key, loading it if need be. Who asks for a block
// that is being loaded waits for it.
func (c *verifiedCache) get(ctx context.Context, key blockKey, load func() ([]byte, error)) ([]byte, error) {
	for {
		c.mu.Lock()
		elem := c.blocks[key]
		if elem == nil {
			v := &verifiedBlock{key: key, ready: make(chan struct{})}
			c.blocks[key] = c.recent.PushBack(v)
			c.mu.Unlock()
			v.b, v.err = load()
			c.loaded(v)
			return v.b, v.err
		}
		c.recent.MoveToBack(elem)
		c.mu.Unlock()
		v := elem.Value.(*verifiedBlock)
		select {
		case <-v.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if !errors.Is(v.err, context.Canceled) && !errors.Is(v.err, context.DeadlineExceeded) {
			return v.b, v.err
		}
		// The one who loaded it was interrupted; that is not our error.
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

func (c *verifiedCache) loaded(v *verifiedBlock) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(v.ready)
	if v.err != nil {
		c.remove(c.blocks[v.key])
		return
	}
	c.bytes += int64(len(v.b))
	for e := c.recent.Front(); e != nil && c.bytes > c.max; {
		next := e.Next()
		if old := e.Value.(*verifiedBlock); old.b != nil && old.isReady() {
			c.bytes -= int64(len(old.b))
			c.remove(e)
		}
		e = next
	}
}

func (v *verifiedBlock) isReady() bool {
	select {
	case <-v.ready:
		return true
	default:
		return false
	}
}

func (c *verifiedCache) remove(e *list.Element) {
	if e == nil {
		return
	}
	delete(c.blocks, e.Value.(*verifiedBlock).key)
	c.recent.Remove(e)
}

// keyed lets one caller at a time work on an id.
type keyed struct {
	mu   sync.Mutex
	busy map[op.ID]chan struct{}
}

// lock waits for id and returns what gives it back.
func (k *keyed) lock(ctx context.Context, id op.ID) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.busy == nil {
			k.busy = make(map[op.ID]chan struct{})
		}
		c := k.busy[id]
		if c == nil {
			c = make(chan struct{})
			k.busy[id] = c
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.busy, id)
				k.mu.Unlock()
				close(c)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-c:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// splitPath yields the names in a path; empty ones and "." do not count.
func splitPath(path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range strings.SplitSeq(path, "/") {
			if name != "" && name != "." && !yield(name) {
				return
			}
		}
	}
}
