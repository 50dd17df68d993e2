package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// Hooks are what tests may see of a mount. Set them before it is used.
type Hooks struct {
	Request func(op string)               // at the start of every request
	Wait    func(kind string, seq uint64) // before every wait
}

// SetHooks sets the test seams of f.
func (f *FS) SetHooks(h Hooks) {
	s := &seams{wait: h.Wait}
	if h.Request != nil {
		s.request = func(in *fuse.InHeader) { h.Request(opName(in.Opcode)) }
	}
	f.seams.Store(s)
}

// Table is the number of nodes in memory, and how many of them are volatile.
func (f *FS) Table() (nodes, volatile int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range f.nodes {
		if n.vol != nil {
			volatile++
		}
	}
	return len(f.nodes), volatile
}

// SpillUsed is how many bytes volatile files have in memory.
func (f *FS) SpillUsed() int64 { return f.spill.used.Load() }

// PanicLocked makes the next creation of a file panic with the lock held.
func (f *FS) PanicLocked() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layout = nil
}
