package fs

import (
	"sort"
	"sync"
	"syscall"

	"slotfs/meta"
	"slotfs/meta/op"
)

// node is one inode in memory. FS.mu guards it, but for what is said below.
type node struct {
	nodeid uint64 // the kernel's name for it; never used twice during a mount
	// ino is the st_ino that is shown: the id of what was loaded or created
	// logged. What began volatile keeps its own number as long as it is in
	// memory, because st_ino of an open file may not change.
	ino     uint64
	id      op.ID // in the log; 0: not logged (volatile)
	mode    uint32
	uid     uint32
	gid     uint32
	rdev    uint32
	size    int64
	mtime   int64 // ns since 1970, as are the others
	ctime   int64
	atime   int64 // not kept beyond memory
	xattr   map[string][]byte
	target  string // of a symlink
	lookups uint64 // references that the kernel holds

	names  []*dirent // those that are loaded and point here
	nlog   int       // names in the log; of a directory 1, or 0 once it is removed
	nmem   int       // names in memory only
	subs   int       // of a directory: directories in it
	sealed bool      // a message, write-once
	debt   bool      // fsynced while it was volatile

	lastSeq uint64 // the last entry that concerns it
	changed uint64 // the last entry that changed its content

	// data is held exclusively by whoever changes content or turns it from
	// volatile to logged or back, shared by readers of vol. It comes before
	// FS.mu in the lock order, and a node's before no other node's.
	data sync.RWMutex
	vol  *blob // content of a volatile file; set and cleared under data and FS.mu
	base *blob // content at entry baseSeq, until that is applied; never changed
	// baseSeq is the Put or Create that base belongs to.
	baseSeq uint64
	pend    []change // later changes of the content that may not be applied yet

	dir *dir // of a directory
}

// dir is what a directory has beside its attributes.
type dir struct {
	parent  op.ID
	kind    meta.DirKind
	loaded  bool
	loading chan struct{} // closed when a load under way ends; nil: none
	ents    map[string]*dirent
	// order has the entries by ascending cookie. Removed ones leave an empty
	// place, until half of the places are.
	order   []place
	dead    int
	cookie  uint64 // the last one given out
	nmem    int    // entries that are in memory only
	volTime int64  // mtime set by a change that is not logged; 0: none
}

// place is where an entry stands in a listing.
type place struct {
	cookie uint64
	e      *dirent
}

// dirent is one entry of a loaded directory.
type dirent struct {
	dir    *node
	name   string
	cookie uint64
	id     op.ID  // what it names; 0: a volatile file, found in n
	typ    uint32 // S_IFMT bits
	logged bool   // the log knows this name
	n      *node  // nil: not in memory, or not linked yet; see FS.target
}

// firstCookie is that of the first entry; "." and ".." come before.
const firstCookie = 3

func (n *node) isDir() bool     { return n.dir != nil }
func (n *node) isRegular() bool { return n.mode&syscall.S_IFMT == syscall.S_IFREG }

// volatile reports whether the log does not know n (any more): what happens to
// it is not logged.
func (n *node) volatile() bool { return n.nlog == 0 }

func (n *node) nlink() uint32 {
	if n.dir == nil {
		return uint32(n.nlog + n.nmem)
	}
	if n.nlog == 0 {
		return 0
	}
	return uint32(2 + n.subs)
}

// add puts a new entry into the loaded directory d, under the cookie of the one
// that it replaces, if any: a listing under way then shows the name once.
func (d *node) add(name string, n *node, id op.ID, logged bool, cookie uint64) *dirent {
	e := &dirent{dir: d, name: name, id: id, typ: n.mode & syscall.S_IFMT, logged: logged, n: n}
	if cookie == 0 {
		d.dir.cookie++
		e.cookie = d.dir.cookie
		d.dir.order = append(d.dir.order, place{e.cookie, e})
	} else {
		e.cookie = cookie
		d.dir.order[d.dir.find(cookie)].e = e
		d.dir.dead--
	}
	d.dir.ents[name] = e
	n.names = append(n.names, e)
	if n.isDir() {
		n.dir.parent = d.id
		d.subs++
	}
	if logged {
		n.nlog++
	} else {
		n.nmem++
		d.dir.nmem++
	}
	return e
}

// drop takes entry e of its directory away. compact says that its cookie is
// not going to be used again.
func (e *dirent) drop(compact bool) {
	d, n := e.dir, e.n
	delete(d.dir.ents, e.name)
	d.dir.order[d.dir.find(e.cookie)].e = nil
	d.dir.dead++
	if compact && d.dir.dead > 64 && d.dir.dead > len(d.dir.order)/2 {
		d.dir.compact()
	}
	if n.isDir() {
		d.subs--
	}
	if e.logged {
		n.nlog--
	} else {
		n.nmem--
		d.dir.nmem--
	}
	e.unlink()
}

// unlink forgets that e points to its node.
func (e *dirent) unlink() {
	names := e.n.names
	for i, x := range names {
		if x == e {
			names[i] = names[len(names)-1]
			names[len(names)-1] = nil
			e.n.names = names[:len(names)-1]
			break
		}
	}
	e.n = nil
}

// find is the index in order of the first place whose cookie is not below c.
func (d *dir) find(c uint64) int {
	return sort.Search(len(d.order), func(i int) bool { return d.order[i].cookie >= c })
}

func (d *dir) compact() {
	live := make([]place, 0, len(d.order)-d.dead)
	for _, p := range d.order {
		if p.e != nil {
			live = append(live, p)
		}
	}
	d.order, d.dead = live, 0
}

// from lists entries with a cookie above after, at most limit.
func (d *dir) from(after uint64, limit int) []*dirent {
	list := make([]*dirent, 0, min(limit, len(d.order)))
	for i := d.find(after + 1); i < len(d.order) && len(list) < limit; i++ {
		if e := d.order[i].e; e != nil {
			list = append(list, e)
		}
	}
	return list
}

// touch sets the times of a directory whose entries changed by an entry of the
// log at time t. The log's times only grow, so that is what apply will set,
// unless a change that is not logged came with a later clock.
func (d *node) touch(t int64) {
	d.ctime = max(d.ctime, t)
	if d.dir.volTime == 0 || t > d.dir.volTime {
		d.mtime, d.dir.volTime = t, 0
		return
	}
	d.dir.volTime = max(d.mtime, d.dir.volTime) + 1
	d.mtime = d.dir.volTime
}

// touchVolatile is touch for a change that the log does not know.
func (d *node) touchVolatile() {
	t := max(now(), d.mtime+1)
	d.mtime, d.dir.volTime = t, t
	d.ctime = max(d.ctime, t)
}

// newNode makes a node and gives it a nodeid. mu is held.
func (f *FS) newNode(id op.ID, mode uint32) *node {
	f.lastNode++
	n := &node{nodeid: f.lastNode, id: id, mode: mode}
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		n.dir = &dir{cookie: firstCookie - 1}
	}
	f.nodes[n.nodeid] = n
	if id != 0 {
		n.ino = uint64(id)
		f.byID[id] = n
	} else {
		f.lastVol++
		n.ino = volatileIno | f.lastVol
	}
	return n
}

// volatileIno marks inode numbers of what was made volatile.
const volatileIno = 1 << 62

// node finds a node by the kernel's name for it. mu is held.
func (f *FS) node(nodeid uint64) (*node, error) {
	if n := f.nodes[nodeid]; n != nil {
		return n, nil
	}
	if f.virt[nodeid] != nil {
		return nil, syscall.EROFS
	}
	return nil, syscall.ESTALE
}

// dirNode finds a directory whose entries are loaded. mu is held.
func (f *FS) dirNode(nodeid uint64) (*node, error) {
	n, err := f.node(nodeid)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, syscall.ENOTDIR
	}
	if !n.dir.loaded {
		return nil, &missing{dir: n}
	}
	return n, nil
}

// target is the node that e names, a *missing if it is not in memory. mu is
// held.
func (f *FS) target(e *dirent) (*node, error) {
	if e.n != nil {
		return e.n, nil
	}
	n := f.byID[e.id]
	if n == nil {
		return nil, &missing{ids: []op.ID{e.id}}
	}
	e.n = n
	n.names = append(n.names, e)
	if n.isDir() {
		n.dir.parent = e.dir.id
		n.dir.kind = f.kind(e.dir, e.name)
	}
	return n, nil
}

// child finds name in the loaded directory d; nil if there is none. mu is held.
func (f *FS) child(d *node, name string) (*dirent, *node, error) {
	e := d.dir.ents[name]
	if e == nil {
		return nil, nil, nil
	}
	n, err := f.target(e)
	return e, n, err
}

// kind is what a directory called name in d is. mu is held.
func (f *FS) kind(d *node, name string) meta.DirKind {
	return f.layout.DirKind(name, func(sibling string) bool {
		e := d.dir.ents[sibling]
		return e != nil && e.typ == syscall.S_IFDIR
	})
}

// rekind is called when a directory called name came into d or left it: the
// kinds of those beside it may depend on that.
func (f *FS) rekind(d *node, name string) {
	alone := f.layout.DirKind(name, func(string) bool { return true })
	if alone == meta.Plain {
		return
	}
	for sibling, e := range d.dir.ents {
		if e.typ != syscall.S_IFDIR || f.layout.DirKind(sibling, func(string) bool { return true }) == meta.Plain {
			continue
		}
		if e.n == nil && f.byID[e.id] == nil {
			continue
		}
		if n, err := f.target(e); err == nil {
			n.dir.kind = f.kind(d, sibling)
		}
	}
}

// release frees n if nothing needs it any more. mu is held.
func (f *FS) release(n *node) {
	if n.lookups > 0 || n.nmem > 0 || n.nodeid == rootNode || n.lastSeq > f.oplog.Applied.Get() {
		return
	}
	if n.isDir() {
		if n.dir.nmem > 0 || n.dir.loading != nil {
			return
		}
		for _, e := range n.dir.ents {
			if e.n != nil {
				e.unlink()
			}
		}
		if n.dir.volTime != 0 && n.nlog > 0 {
			f.dirTimes[n.id] = n.dir.volTime
		}
	}
	for len(n.names) > 0 {
		n.names[0].unlink()
	}
	if n.vol != nil {
		n.vol.release()
	}
	if n.base != nil {
		n.base.release()
	}
	delete(f.nodes, n.nodeid)
	if n.id != 0 {
		delete(f.byID, n.id)
	}
}

// Forget implements fuse.RawFileSystem.
func (f *FS) Forget(nodeid, nlookup uint64) {
	f.stats[opForget].Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.virt[nodeid]; v != nil {
		f.forgetVirtual(nodeid, v, nlookup)
		return
	}
	n := f.nodes[nodeid]
	if n == nil {
		return
	}
	n.lookups -= min(nlookup, n.lookups)
	f.release(n)
}
