package fs

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"slotfs/meta/op"
)

// Deliver publishes a message without a system call: one that was rescued from
// a lost branch. It comes into the directory dir as a new file called name, with
// attr as it is, and is committed when Deliver returns. The caller sees to it
// that name is unique; if it is taken the error is EEXIST, and ENOENT if there is
// no such directory.
//
// It does not come from the kernel, so the kernel, which keeps attributes and
// listings without end, is told of it.
func (f *FS) Deliver(ctx context.Context, dir op.ID, name string, attr op.Attr, content []byte) (op.ID, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	if e := f.refused.Load(); e != 0 {
		return 0, syscall.Errno(e)
	}
	n, err := f.volatileNode(attr, content)
	if err != nil {
		return 0, err
	}
	e, d, err := f.deliver(n, dir, name)
	if err != nil {
		f.discard(n)
		return 0, err
	}
	if err := f.oplog.Barrier(ctx, e.Seq); err != nil {
		return 0, fmt.Errorf("commit seq %d: %w", e.Seq, err)
	}
	f.tellKernel(d, name)
	f.forgetAbove(d)
	return op.ID(e.Seq), nil
}

// volatileNode is a new file in memory, without a name.
func (f *FS) volatileNode(attr op.Attr, content []byte) (*node, error) {
	b := f.spill.blob()
	if _, err := b.WriteAt(content, 0); err != nil {
		b.release()
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.newNode(0, attr.Mode)
	n.uid, n.gid, n.xattr = attr.UID, attr.GID, attr.Xattr
	n.mtime, n.size = attr.Mtime, int64(len(content))
	n.ctime, n.atime = now(), attr.Mtime
	n.vol = b
	return n, nil
}

// discard frees what volatileNode made.
func (f *FS) discard(n *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.nlog == 0 {
		f.release(n)
	}
}

// deliver appends the Put and does in memory what it does.
func (f *FS) deliver(n *node, dir op.ID, name string) (*op.Entry, *node, error) {
	n.data.Lock()
	defer n.data.Unlock()
	p, err := f.pack(n)
	if err != nil {
		return nil, nil, err
	}
	var e *op.Entry
	var d *node
	err = f.locked(func() error {
		if d = f.byID[dir]; d == nil {
			return &missing{ids: []op.ID{dir}}
		}
		switch {
		case !d.isDir():
			return syscall.ENOTDIR
		case d.nlog == 0:
			return syscall.ENOENT
		case !d.dir.loaded:
			return &missing{dir: d}
		case d.dir.ents[name] != nil:
			return syscall.EEXIST
		}
		if err := f.kindOf(d); err != nil {
			return err
		}
		if f.class(d, name) != classMessage {
			return fmt.Errorf("%q in directory %d would be no message: %w", name, dir, syscall.EINVAL)
		}
		if e, err = f.put(p, d, name, 0); err != nil {
			return err
		}
		n.ino = uint64(n.id) // nobody has seen another number
		d.add(name, n, n.id, true, 0)
		d.touch(e.Time)
		n.ctime = max(n.ctime, e.Time)
		return nil
	})
	return e, d, err
}

// kindOf makes d's kind known if it came into memory by its id: that depends on
// its name and on what is beside it. mu is held.
func (f *FS) kindOf(d *node) error {
	if len(d.names) > 0 || d.id == op.Root {
		return nil // by its name
	}
	above := f.byID[d.dir.parent]
	if above == nil {
		return &missing{ids: []op.ID{d.dir.parent}}
	}
	if !above.dir.loaded {
		return &missing{dir: above}
	}
	for _, e := range above.dir.ents {
		if e.id == d.id {
			_, err := f.target(e)
			return err
		}
	}
	return syscall.ENOENT
}

// forgetAbove frees d and what is above it, as far as the kernel knows nothing of
// them.
func (f *FS) forgetAbove(d *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for d != nil && !isRoot(d.nodeid) {
		above := f.byID[d.dir.parent]
		if f.nodes[d.nodeid] == d {
			f.release(d)
		}
		d = above
	}
}

// tellKernel makes the kernel forget what it knows of d, and that name did not
// exist.
func (f *FS) tellKernel(d *node, name string) {
	nodeids := []uint64{d.nodeid}
	if isRoot(d.nodeid) {
		nodeids = []uint64{kernelRoot, rootNode}
	}
	f.tell(func() error {
		var err error
		for _, id := range nodeids {
			err = errors.Join(err, f.dev.forgetNode(id), f.dev.forgetName(id, name))
		}
		return err
	})
}

// tell has the kernel forget what it was told of a directory or file. It is called
// without locks: the kernel may wait for a request under way.
func (f *FS) tell(forget func() error) {
	// Not once the connection may be closed: its descriptor may be another's then.
	f.telling.Lock()
	defer f.telling.Unlock()
	if f.ended {
		return
	}
	if err := forget(); err != nil {
		f.log.Debug("kernel not told of a change", keyErr, err)
	}
}
