package fs

import (
	"errors"
	"fmt"
	"maps"
	"syscall"

	"slotfs/meta"
	"slotfs/meta/op"
)

// What is loaded from meta is the applied state, and it is complete: whatever
// an entry concerns stays in memory until that entry is applied (release), and
// Mount begins only when everything is. Nobody changes what is not loaded, and
// two loads of one thing never run at a time, so nothing stale can come in.

// loadInode brings the inode of id into memory.
func (f *FS) loadInode(id op.ID) error {
	f.mu.Lock()
	for {
		if f.byID[id] != nil {
			f.mu.Unlock()
			return nil
		}
		busy, ok := f.loading[id]
		if !ok {
			break
		}
		f.mu.Unlock()
		<-busy
		f.mu.Lock()
	}
	done := make(chan struct{})
	f.loading[id] = done
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.loading, id)
		f.mu.Unlock()
		close(done)
	}()
	in, err := f.slot.Inode(id)
	if err != nil {
		return fmt.Errorf("load inode %d: %w", id, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.insert(in)
	return nil
}

// insert makes a node of an inode of meta. mu is held.
func (f *FS) insert(in *meta.Inode) *node {
	n := f.newNode(in.ID, in.Mode)
	n.uid, n.gid, n.rdev = in.UID, in.GID, in.Rdev
	n.size, n.target = in.Size, in.Target
	n.mtime, n.ctime, n.atime = in.Mtime, in.Ctime, in.Mtime
	n.sealed, n.changed = in.Sealed, in.Changed
	n.nlog = int(in.Nlink)
	n.xattr = maps.Clone(in.Xattr) // in is the index's
	if n.isDir() {
		n.nlog, n.subs = 1, max(int(in.Nlink)-2, 0)
		if len(in.Names) > 0 {
			n.dir.parent = in.Names[0].Dir
		} else {
			n.dir.parent = op.Root
		}
		if t, ok := f.dirTimes[in.ID]; ok {
			delete(f.dirTimes, in.ID)
			if t > n.mtime {
				n.mtime, n.dir.volTime = t, t
			}
		}
	}
	if n.isRegular() && in.Sum == nil && !n.sealed {
		f.wantSeal(n)
	}
	return n
}

// loadDir brings the entries of d into memory.
func (f *FS) loadDir(d *node) error {
	f.mu.Lock()
	for d.dir.loading != nil {
		busy := d.dir.loading
		f.mu.Unlock()
		<-busy
		f.mu.Lock()
	}
	if d.dir.loaded {
		f.mu.Unlock()
		return nil
	}
	done := make(chan struct{})
	d.dir.loading = done
	id := d.id
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		d.dir.loading = nil
		f.mu.Unlock()
		close(done)
	}()
	list, err := f.slot.Children(id)
	if err != nil {
		if errors.Is(err, meta.ErrNotExist) {
			return syscall.ESTALE
		}
		return fmt.Errorf("load directory %d: %w", id, err)
	}
	var fresh dir // made without the lock: it may be long
	fresh.cookie = firstCookie - 1
	fresh.fill(d, list)
	f.mu.Lock()
	defer f.mu.Unlock()
	d.dir.ents, d.dir.order, d.dir.cookie, d.dir.loaded = fresh.ents, fresh.order, fresh.cookie, true
	return nil
}

// fill sets the entries of a directory just made (list is empty) or loaded.
func (d *dir) fill(n *node, list []meta.Child) {
	d.ents = make(map[string]*dirent, len(list))
	d.order = make([]place, 0, len(list))
	d.loaded = true
	for _, c := range list {
		d.cookie++
		e := &dirent{dir: n, name: c.Name, cookie: d.cookie, id: c.ID, typ: c.Type & syscall.S_IFMT, logged: true}
		d.ents[c.Name] = e
		d.order = append(d.order, place{e.cookie, e})
	}
}

// follow trims what waits for being applied, until the mount ends.
func (f *FS) follow() {
	defer f.wg.Done()
	for f.oplog.Applied.Err() == nil {
		changed := f.oplog.Applied.Changed() // not Wait: nobody need hurry
		f.trim(f.oplog.Applied.Get())
		select {
		case <-changed:
		case <-f.ctx.Done():
			return
		}
	}
}

// trim drops what entries up to seq have made superfluous.
func (f *FS) trim(seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := 0
	for ; i < len(f.fifo) && f.fifo[i].seq <= seq; i++ {
		n := f.fifo[i].n
		f.fifo[i].n = nil
		if n.base != nil && n.baseSeq <= seq {
			n.base.release()
			n.base = nil
		}
		for len(n.pend) > 0 && n.pend[0].seq <= seq {
			n.pend = n.pend[1:]
		}
		if len(n.pend) == 0 {
			n.pend = nil
		}
		if n.lookups == 0 && n.lastSeq <= seq && f.nodes[n.nodeid] == n {
			f.release(n)
		}
	}
	f.fifo = f.fifo[i:]
	if len(f.fifo) == 0 {
		f.fifo = nil
	}
}

// keeps tells meta whether content in its trash may still be read.
func (f *FS) keeps(id op.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.byID[id] != nil
}
