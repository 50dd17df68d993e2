package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// move is one rename(2) or link(2).
type move struct {
	from    uint64 // directory of the old name; 0: a link
	oldName string
	node    uint64 // what is linked, of a link
	to      uint64
	newName string
	flags   uint32 // RENAME_NOREPLACE, RENAME_EXCHANGE
}

// found is what the names of a move stand for. It is valid under mu.
type found struct {
	d1, d2 *node
	old    *dirent // nil for a link
	victim *dirent // what has the new name; nil: nothing
	n      *node   // what is renamed or linked
	logged bool    // the new name is one that the log knows
}

// startRename renames.
func (f *FS) startRename(in *fuse.RenameIn, oldName, newName string) (wait, error) {
	f.enter(&in.InHeader)
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return wait{}, syscall.EINVAL
	}
	m := move{from: in.NodeId, oldName: oldName, to: in.Newdir, newName: newName, flags: in.Flags}
	_, w, err := f.move(&m)
	return w, err
}

// startLink links; the kernel gets a reference to the node when the wait is over.
func (f *FS) startLink(in *fuse.LinkIn, name string) (*node, wait, error) {
	f.enter(&in.InHeader)
	m := move{node: in.Oldnodeid, to: in.NodeId, newName: name, flags: unix.RENAME_NOREPLACE}
	return f.move(&m)
}

// move carries m out, and returns what was renamed or linked.
func (f *FS) move(m *move) (*node, wait, error) {
	if err := checkName(m.newName); err != nil {
		return nil, wait{}, err
	}
	if err := f.admit(0, m.from == 0); err != nil {
		return nil, wait{}, err
	}
	for {
		var pub *node
		err := f.locked(func() error {
			x, err := f.find(m)
			if err == nil && x.mustPut() {
				pub = x.n
			}
			return err
		})
		if err != nil {
			return nil, wait{}, err
		}
		n, w, err := f.moveWith(m, pub)
		if err != errAgain {
			return n, w, err
		}
	}
}

// moveWith is one try of move; pub is what must be published for it, or nil.
func (f *FS) moveWith(m *move, pub *node) (n *node, w wait, err error) {
	var p *parcel
	if pub != nil {
		f.lockData(pub)
		defer pub.data.Unlock()
		if p, err = f.pack(pub); err != nil {
			return nil, w, err
		}
	}
	err = f.locked(func() error {
		x, err := f.find(m)
		if err != nil {
			return err
		}
		if x.mustPut() != (p != nil) || p != nil && x.n != p.n {
			return errAgain
		}
		if x.victim != nil && x.victim.n == x.n && m.flags&unix.RENAME_EXCHANGE == 0 {
			return nil // rename(2): two names of one file, nothing to do
		}
		if m.flags&unix.RENAME_EXCHANGE != 0 {
			return f.exchange(x)
		}
		n = x.n
		w, err = f.perform(m, x, p)
		return err
	})
	return n, w, err
}

// find looks up what m is about and checks that it may be done. mu is held.
func (f *FS) find(m *move) (x found, err error) {
	if isRoot(m.to) && m.newName == virtualDir || isRoot(m.from) && m.oldName == virtualDir {
		return x, syscall.EPERM
	}
	if x.d2, err = f.dirNode(m.to); err != nil {
		return x, err
	}
	if m.from == 0 {
		if x.n, err = f.node(m.node); err != nil {
			return x, err
		}
	} else {
		if x.d1, err = f.dirNode(m.from); err != nil {
			return x, err
		}
		if x.old, x.n, err = f.child(x.d1, m.oldName); err != nil {
			return x, err
		}
		if x.n == nil {
			return x, syscall.ENOENT
		}
	}
	if x.d2.nlog == 0 {
		return x, syscall.ENOENT
	}
	if x.victim, _, err = f.child(x.d2, m.newName); err != nil {
		return x, err
	}
	x.logged = x.old != nil && x.old.logged || x.victim != nil && x.victim.logged ||
		!x.n.isRegular() || f.class(x.d2, m.newName) != classVolatile
	return x, f.permit(m, &x)
}

// permit checks what rename(2) and link(2) forbid. mu is held.
func (f *FS) permit(m *move, x *found) error {
	exchange := m.flags&unix.RENAME_EXCHANGE != 0
	switch {
	case m.flags&unix.RENAME_NOREPLACE != 0 && x.victim != nil:
		return syscall.EEXIST
	case m.from == 0 && x.n.isDir():
		return syscall.EPERM
	case m.from == 0 && x.n.nlink() >= maxLinks:
		return syscall.EMLINK
	case exchange && x.victim == nil:
		return syscall.ENOENT
	case exchange && x.victim.logged != x.old.logged:
		return syscall.EXDEV // one is in the log, the other in memory
	}
	if x.victim != nil && !exchange && x.victim.n != x.n {
		v := x.victim.n
		switch {
		case v.isDir() && !x.n.isDir():
			return syscall.EISDIR
		case !v.isDir() && x.n.isDir():
			return syscall.ENOTDIR
		}
		if err := f.empty(v); err != nil {
			return err
		}
	}
	if x.n.isDir() && x.d1 != x.d2 && x.victim == nil && x.d2.subs+2 >= maxLinks {
		return syscall.EMLINK
	}
	if err := f.sameKind(x.n, x.d2, m.newName); err != nil {
		return err
	}
	if exchange {
		return f.sameKind(x.victim.n, x.d1, m.oldName)
	}
	return nil
}

// sameKind refuses to turn a directory with something in it into one of
// another kind (tmp into an ordinary one): its files would change their class.
// mu is held.
func (f *FS) sameKind(n, d *node, name string) error {
	if !n.isDir() || f.kind(d, name) == n.dir.kind {
		return nil
	}
	if err := f.empty(n); err == syscall.ENOTEMPTY {
		return syscall.EXDEV
	} else if err != nil {
		return err
	}
	return nil
}

// mustPut reports whether the content has to go into the log.
func (x *found) mustPut() bool { return x.logged && x.n.volatile() }

// perform does a rename without exchange, or a link. mu is held.
func (f *FS) perform(m *move, x found, p *parcel) (w wait, err error) {
	n := x.n
	if !x.logged {
		f.moveInMemory(m, x)
		return w, nil
	}
	var victim op.ID
	var lost *node
	if x.victim != nil {
		lost = x.victim.n
		if x.victim.logged {
			victim = lost.id
		}
	}
	var e *op.Entry
	switch {
	case p != nil:
		e, err = f.put(p, x.d2, m.newName, victim, x.d1, lost)
	case x.old != nil && x.old.logged:
		e, err = f.append(&op.Rename{
			ID: n.id, OldParent: x.d1.id, OldName: m.oldName,
			NewParent: x.d2.id, NewName: m.newName, Victim: victim,
		}, x.d1, x.d2, n, lost)
	default:
		e, err = f.append(&op.Link{ID: n.id, Parent: x.d2.id, Name: m.newName, Victim: victim}, x.d1, x.d2, n, lost)
	}
	if err != nil {
		return w, err
	}
	w = f.waitFor(m, &x, e.Seq)
	if x.victim != nil {
		f.lose(x.victim, e, false)
	}
	x.place(n, m.newName, true)
	switch {
	case x.old != nil && !x.old.logged && x.d1 != x.d2:
		x.d1.touchVolatile()
	case x.old != nil && x.d1 != x.d2:
		x.d1.touch(e.Time)
	}
	x.d2.touch(e.Time)
	n.ctime = max(n.ctime, e.Time)
	n.debt = false
	f.moved(m, x)
	if lost != nil {
		f.release(lost)
	}
	return w, nil
}

// place adds the new name and takes the old one away; the victim is dropped
// already. The name stands in listings where the victim was, or, within one
// directory, where the old name was: so a reader of the directory who renames
// what he finds does not find it again for ever.
func (x *found) place(n *node, name string, logged bool) {
	cookie := uint64(0)
	switch {
	case x.victim != nil:
		cookie = x.victim.cookie
	case x.old != nil && x.d1 == x.d2:
		cookie = x.old.cookie
		x.old.drop(false)
		x.d2.add(name, n, n.id, logged, cookie)
		return
	}
	x.d2.add(name, n, n.id, logged, cookie)
	if x.old != nil {
		x.old.drop(true)
	}
}

// moveInMemory is perform when neither name is one that the log knows.
func (f *FS) moveInMemory(m *move, x found) {
	if x.victim != nil {
		lost := x.victim.n
		x.victim.drop(false)
		lost.ctime = now()
		defer f.release(lost)
	}
	x.place(x.n, m.newName, false)
	if x.old != nil && x.d1 != x.d2 {
		x.d1.touchVolatile()
	}
	x.d2.touchVolatile()
	x.n.ctime = now()
}

// moved sees to the kinds of directories after a rename. mu is held.
func (f *FS) moved(m *move, x found) {
	if !x.n.isDir() {
		return
	}
	x.n.dir.kind = f.kind(x.d2, m.newName)
	f.rekind(x.d1, m.oldName)
	f.rekind(x.d2, m.newName)
}

// exchange swaps two names. mu is held.
func (f *FS) exchange(x found) error {
	a, b := x.old, x.victim
	n, v := a.n, b.n
	logged := a.logged
	t := now()
	if logged {
		e, err := f.append(&op.Rename{
			ID: n.id, OldParent: x.d1.id, OldName: a.name,
			NewParent: x.d2.id, NewName: b.name, Victim: v.id, Exchange: true,
		}, x.d1, x.d2, n, v)
		if err != nil {
			return err
		}
		t = e.Time
	}
	a.drop(false)
	b.drop(false)
	x.d2.add(b.name, n, n.id, logged, b.cookie)
	x.d1.add(a.name, v, v.id, logged, a.cookie)
	for _, d := range []*node{x.d1, x.d2} {
		switch {
		case d == x.d1 && d == x.d2 && d.mtime == t:
		case logged:
			d.touch(t)
		default:
			d.touchVolatile()
		}
	}
	n.ctime, v.ctime = max(n.ctime, t), max(v.ctime, t)
	m := &move{oldName: a.name, newName: b.name}
	f.moved(m, x)
	f.moved(&move{oldName: b.name, newName: a.name}, found{d1: x.d2, d2: x.d1, n: v})
	return nil
}

// waitFor says what a rename or link that gives a logged name has to wait for.
// A message that appears in a mailbox, and whatever was fsynced while it was
// volatile, must be committed; what replaces a control file received. mu is
// held, and nothing is changed yet.
func (f *FS) waitFor(m *move, x *found, seq uint64) wait {
	if !x.n.isRegular() {
		return wait{}
	}
	fromMemory := x.old == nil || !x.old.logged
	if fromMemory && x.n.debt {
		return wait{seq, waitBarrier}
	}
	if f.class(x.d2, m.newName) == classMessage {
		if fromMemory || x.d1.dir.parent != x.d2.dir.parent {
			return wait{seq, waitBarrier}
		}
		return wait{}
	}
	return wait{seq, waitReceived}
}
