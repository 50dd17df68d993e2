package meta

import (
	"container/list"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// fdCache keeps file descriptors of objects open, by id, so that most work on
// the tree needs no path. A descriptor stays right whatever is renamed; only
// who replaces an object's file (repair) has to forget it.
type fdCache struct {
	max int

	mu   sync.Mutex
	byID map[op.ID]*handle
	idle list.List // of *handle without users, least recently used first
}

// handle is a descriptor in use; give it back with release.
type handle struct {
	fd    int
	id    op.ID
	cache *fdCache // nil: open as long as the tree is, release does nothing
	users int      // under cache.mu
	gone  bool     // no longer in the cache: the last user closes it
	elem  *list.Element

	// lost: the mark says that the content is not on this slot (mark.Lost).
	lost atomic.Bool
}

func newFDCache(max int) *fdCache {
	return &fdCache{max: max, byID: make(map[op.ID]*handle)}
}

// get returns the descriptor of id, or nil if it is not in the cache.
func (c *fdCache) get(id op.ID) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.byID[id]
	if h == nil {
		return nil
	}
	c.use(h)
	return h
}

func (c *fdCache) use(h *handle) {
	h.users++
	if h.elem != nil {
		c.idle.Remove(h.elem)
		h.elem = nil
	}
}

// add takes over fd, opened for id, and returns its handle. If somebody was
// faster, that one is returned and fd closed.
func (c *fdCache) add(id op.ID, fd int) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.byID[id]; h != nil {
		unix.Close(fd)
		c.use(h)
		return h
	}
	h := &handle{fd: fd, id: id, cache: c, users: 1}
	c.byID[id] = h
	for len(c.byID) > c.max && c.idle.Len() > 0 {
		c.remove(c.idle.Front().Value.(*handle))
	}
	return h
}

// remove takes h out of the cache; mu is held.
func (c *fdCache) remove(h *handle) {
	delete(c.byID, h.id)
	h.gone = true
	if h.elem != nil {
		c.idle.Remove(h.elem)
		h.elem = nil
	}
	if h.users == 0 {
		unix.Close(h.fd)
	}
}

// forget closes the descriptor of id as soon as nobody uses it.
func (c *fdCache) forget(id op.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.byID[id]; h != nil {
		c.remove(h)
	}
}

// forgetAll empties the cache.
func (c *fdCache) forgetAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.byID {
		c.remove(h)
	}
}

func (h *handle) release() {
	c := h.cache
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.users--
	if h.users > 0 {
		return
	}
	if h.gone {
		unix.Close(h.fd)
		return
	}
	h.elem = c.idle.PushBack(h)
}
