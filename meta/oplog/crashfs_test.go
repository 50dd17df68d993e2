package oplog

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// crashFS is a file system in memory that knows what is on its disk. It keeps
// what a kernel may do: writes reach the disk when synced, or at any earlier
// time, sector by sector; names reach it in order; after a failed fsync the
// pages in question count as clean, though they never reached the disk.
type crashFS struct {
	mu     sync.Mutex
	rnd    *rand.Rand
	life   int // handles of earlier lives are dead
	names  map[string]*crashFile
	onDisk map[string]*crashFile
	ops    []func(names map[string]*crashFile) // since the last SyncDir

	// fault is asked before every operation, with its label; an error is that
	// operation's result.
	fault func(label, path string) error
	// space is how many bytes all files may have.
	space int64
	// synced counts Datasync and Sync by kind.
	syncs int
}

const sector = 512

type crashFile struct {
	cur, disk []byte
	dirty     map[int64]bool // sectors
	bad       map[int64]bool // sectors that cannot be read
}

func newCrashFS(rnd *rand.Rand) *crashFS {
	return &crashFS{rnd: rnd, names: map[string]*crashFile{}, onDisk: map[string]*crashFile{}, space: 1 << 40}
}

type crashHandle struct {
	fs   *crashFS
	f    *crashFile
	path string
	life int
}

var errDead = errors.New("the process is dead")

func (c *crashFS) check(label, path string, life int) error {
	if life != c.life {
		return errDead
	}
	if c.fault != nil {
		if err := c.fault(label, path); err != nil {
			return &os.PathError{Op: label, Path: path, Err: err}
		}
	}
	return nil
}

func (c *crashFS) name(o func(map[string]*crashFile)) {
	o(c.names)
	c.ops = append(c.ops, o)
}

func (c *crashFS) used() (n int64) {
	for _, f := range c.names {
		n += int64(len(f.cur))
	}
	return n
}

func (c *crashFS) Create(path string) (file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check("create", path, c.life); err != nil {
		return nil, err
	}
	if c.names[path] != nil {
		return nil, &os.PathError{Op: "create", Path: path, Err: os.ErrExist}
	}
	f := &crashFile{dirty: map[int64]bool{}}
	c.name(func(m map[string]*crashFile) { m[path] = f })
	return &crashHandle{c, f, path, c.life}, nil
}

func (c *crashFS) Open(path string, _ bool) (file, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check("open", path, c.life); err != nil {
		return nil, err
	}
	f := c.names[path]
	if f == nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: os.ErrNotExist}
	}
	return &crashHandle{c, f, path, c.life}, nil
}

func (c *crashFS) Rename(from, to string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check("rename", from, c.life); err != nil {
		return err
	}
	if c.names[from] == nil {
		return &os.PathError{Op: "rename", Path: from, Err: os.ErrNotExist}
	}
	c.name(func(m map[string]*crashFile) { m[to] = m[from]; delete(m, from) })
	return nil
}

func (c *crashFS) Remove(path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check("remove", path, c.life); err != nil {
		return err
	}
	if c.names[path] == nil {
		return &os.PathError{Op: "remove", Path: path, Err: os.ErrNotExist}
	}
	c.name(func(m map[string]*crashFile) { delete(m, path) })
	return nil
}

func (c *crashFS) List(dir string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for p := range c.names {
		if filepath.Dir(p) == dir {
			names = append(names, filepath.Base(p))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (c *crashFS) SyncDir(dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.check("syncdir", dir, c.life); err != nil {
		return err
	}
	c.syncNames(len(c.ops))
	return nil
}

func (c *crashFS) syncNames(n int) {
	for _, o := range c.ops[:n] {
		o(c.onDisk)
	}
	c.ops = slices.Clone(c.ops[n:])
}

// kill ends the process; the kernel lives on.
func (c *crashFS) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life++
	c.fault = nil
}

// power ends the power: what was not synced is there or not, by sector.
func (c *crashFS) power() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life++
	c.fault = nil
	c.syncNames(c.rnd.IntN(len(c.ops) + 1))
	c.ops = nil
	c.names = make(map[string]*crashFile)
	all := c.rnd.IntN(4) // 0: nothing of it, 1: all of it
	for path, f := range c.onDisk {
		g := &crashFile{disk: slices.Clone(f.disk), dirty: map[int64]bool{}}
		for s := range f.dirty {
			if all == 0 || all > 1 && c.rnd.IntN(2) == 0 {
				continue
			}
			f.copySector(&g.disk, s)
		}
		g.cur = slices.Clone(g.disk)
		c.names[path] = g
	}
	c.onDisk = make(map[string]*crashFile)
	for path, f := range c.names {
		c.onDisk[path] = f
	}
}

func (f *crashFile) copySector(to *[]byte, s int64) {
	lo, hi := s*sector, min((s+1)*sector, int64(len(f.cur)))
	if lo >= hi {
		return
	}
	if n := int64(len(*to)); n < hi {
		*to = append(*to, make([]byte, hi-n)...)
	}
	copy((*to)[lo:hi], f.cur[lo:hi])
}

func (h *crashHandle) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.check("read", h.path, h.life); err != nil {
		return 0, err
	}
	if off >= int64(len(h.f.cur)) {
		return 0, io.EOF
	}
	for s := off / sector; s*sector < off+int64(len(p)); s++ {
		if h.f.bad[s] {
			return 0, &os.PathError{Op: "read", Path: h.path, Err: syscall.EIO}
		}
	}
	n := copy(p, h.f.cur[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *crashHandle) WriteAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.fs.check("write", h.path, h.life)
	if errors.Is(err, errDead) {
		return 0, err
	}
	if err != nil { // part of it may have got there
		p = p[:h.fs.rnd.IntN(len(p)+1)]
	}
	end := off + int64(len(p))
	if grow := end - int64(len(h.f.cur)); grow > 0 {
		if h.fs.used()+grow > h.fs.space {
			return 0, &os.PathError{Op: "write", Path: h.path, Err: errNoSpc}
		}
		h.f.cur = append(h.f.cur, make([]byte, grow)...)
	}
	copy(h.f.cur[off:], p)
	for s := off / sector; s*sector < end; s++ {
		h.f.dirty[s] = true
	}
	return len(p), err
}

// CommitAt is told from its parts by nobody but the disk.
func (h *crashHandle) CommitAt(p []byte, off int64) error {
	if _, err := h.WriteAt(p, off); err != nil {
		return err
	}
	return h.Datasync()
}

func (h *crashHandle) Close() error { return nil }

func (h *crashHandle) Allocate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.check("allocate", h.path, h.life); err != nil {
		return err
	}
	if h.fs.used()+size > h.fs.space {
		return &os.PathError{Op: "allocate", Path: h.path, Err: errNoSpc}
	}
	return nil
}

func (h *crashHandle) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.check("truncate", h.path, h.life); err != nil {
		return err
	}
	if size > int64(len(h.f.cur)) {
		return fmt.Errorf("truncate grows %s", h.path)
	}
	h.f.cur = slices.Clone(h.f.cur[:size])
	if int64(len(h.f.disk)) > size && h.fs.rnd.IntN(2) == 0 {
		h.f.disk = h.f.disk[:size]
	}
	return nil
}

func (h *crashHandle) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return int64(len(h.f.cur)), h.fs.check("stat", h.path, h.life)
}

func (h *crashHandle) Datasync() error { return h.sync("fdatasync") }
func (h *crashHandle) Sync() error     { return h.sync("fsync") }

func (h *crashHandle) sync(label string) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.fs.syncs++
	err := h.fs.check(label, h.path, h.life)
	if errors.Is(err, errDead) {
		return err
	}
	for s := range h.f.dirty {
		// A failed fsync writes some, and forgets the rest.
		if err == nil || h.fs.rnd.IntN(2) == 0 {
			h.f.copySector(&h.f.disk, s)
		}
	}
	clear(h.f.dirty)
	return err
}
