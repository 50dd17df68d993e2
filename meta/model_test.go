package meta

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// model is what a store should hold, kept in the simplest way: objects with
// their content, found by walking. It shares no code with index and tree.
type model struct {
	objects map[op.ID]*object
	stages  map[uint64][]byte
}

type object struct {
	id           op.ID
	mode         uint32
	uid, gid     uint32
	mtime, ctime int64
	data         []byte // of a regular file
	target       string
	xattr        map[string][]byte
	entries      map[string]op.ID // of a directory
	sealed       bool
	sum          *op.Sum
}

func newModel() *model {
	return &model{objects: map[op.ID]*object{}, stages: map[uint64][]byte{}}
}

func (m *model) apply(e *op.Entry) {
	self := op.ID(e.Seq)
	switch o := e.Op.(type) {
	case *op.EpochBegin:
		m.stages = map[uint64][]byte{}
		if e.Seq == 1 {
			m.objects[op.Root] = &object{id: op.Root, mode: 0o40755, mtime: e.Time, ctime: e.Time, entries: map[string]op.ID{}}
		}
	case *op.Mkdir:
		n := m.add(e, o.Parent, o.Name, o.Attr)
		n.entries = map[string]op.ID{}
	case *op.Create:
		m.add(e, o.Parent, o.Name, o.Attr).target = o.Target
	case *op.Put:
		n := m.add(e, o.Parent, o.Name, o.Attr)
		n.data, n.sealed, n.sum = o.Data, o.Sealed, &o.Sum
		if o.Stage != 0 {
			n.data = m.stages[o.Stage]
			delete(m.stages, o.Stage)
		}
		n.data = slices.Clone(n.data)
	case *op.Chunk:
		stage := o.Stage
		if stage == 0 {
			stage = e.Seq
		}
		m.stages[stage] = overwrite(m.stages[stage], o.Off, o.Data)
	case *op.Write:
		m.write(e, o.ID, func(b []byte) []byte { return overwrite(b, o.Off, o.Data) })
	case *op.Truncate:
		m.write(e, o.ID, func(b []byte) []byte { return resize(b, o.Size) })
	case *op.Fallocate:
		m.write(e, o.ID, func(b []byte) []byte { return allocate(b, o) })
	case *op.SetAttr:
		m.setAttr(e, o)
	case *op.SetXattr:
		n := m.objects[o.ID]
		n.xattr = maps.Clone(n.xattr)
		if n.xattr == nil {
			n.xattr = map[string][]byte{}
		}
		delete(n.xattr, o.Name)
		if !o.Remove {
			n.xattr[o.Name] = o.Value
		}
		n.ctime = e.Time
	case *op.Link:
		m.enter(e, o.Parent, o.Name, o.ID)
	case *op.Rename:
		if o.Exchange {
			m.enter(e, o.OldParent, o.OldName, o.Victim)
			m.enter(e, o.NewParent, o.NewName, o.ID)
			break
		}
		m.leave(e, o.OldParent, o.OldName)
		m.enter(e, o.NewParent, o.NewName, o.ID)
	case *op.Unlink:
		m.leave(e, o.Parent, o.Name)
		m.objects[o.ID].ctime = e.Time
	case *op.Seal:
		m.objects[o.ID].sum = &o.Sum // the test's history has no void ones
	}
	m.collect(self)
}

func overwrite(b []byte, off int64, data []byte) []byte {
	b = resize(b, max(int64(len(b)), off+int64(len(data))))
	copy(b[off:], data)
	return b
}

func resize(b []byte, size int64) []byte {
	n := make([]byte, size)
	copy(n, b)
	return n
}

func allocate(b []byte, o *op.Fallocate) []byte {
	if o.Mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		b = resize(b, max(int64(len(b)), o.Off+o.Len))
	}
	if o.Mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
		b = slices.Clone(b)
		for i := o.Off; i < min(int64(len(b)), o.Off+o.Len); i++ {
			b[i] = 0
		}
	}
	return b
}

func (m *model) add(e *op.Entry, dir op.ID, name string, a op.Attr) *object {
	n := &object{id: op.ID(e.Seq), mode: a.Mode, uid: a.UID, gid: a.GID, mtime: a.Mtime, ctime: e.Time, xattr: a.Xattr}
	if n.mtime == 0 {
		n.mtime = e.Time
	}
	m.objects[n.id] = n
	m.enter(e, dir, name, n.id)
	return n
}

func (m *model) enter(e *op.Entry, dir op.ID, name string, id op.ID) {
	d := m.objects[dir]
	if old := m.objects[d.entries[name]]; old != nil {
		old.ctime = e.Time
	}
	d.entries[name] = id
	d.mtime, d.ctime = e.Time, e.Time
	m.objects[id].ctime = e.Time
}

func (m *model) leave(e *op.Entry, dir op.ID, name string) {
	d := m.objects[dir]
	delete(d.entries, name)
	d.mtime, d.ctime = e.Time, e.Time
}

func (m *model) write(e *op.Entry, id op.ID, f func([]byte) []byte) {
	n := m.objects[id]
	n.data = f(n.data)
	n.mtime, n.ctime, n.sum = e.Time, e.Time, nil
}

func (m *model) setAttr(e *op.Entry, o *op.SetAttr) {
	n := m.objects[o.ID]
	n.ctime = e.Time
	if o.Valid&op.SetMode != 0 {
		n.mode = n.mode&0o170000 | o.Mode
	}
	if o.Valid&op.SetUID != 0 {
		n.uid = o.UID
	}
	if o.Valid&op.SetGID != 0 {
		n.gid = o.GID
	}
	if o.Valid&op.SetMtime != 0 {
		n.mtime = o.Mtime
	}
}

// names finds every name of every object.
func (m *model) names() map[op.ID][]Name {
	all := map[op.ID][]Name{}
	for dir, d := range m.objects {
		for name, id := range d.entries {
			all[id] = append(all[id], Name{dir, name})
		}
	}
	return all
}

// collect removes objects without a name.
func (m *model) collect(op.ID) {
	names := m.names()
	for id := range m.objects {
		if id != op.Root && len(names[id]) == 0 {
			delete(m.objects, id)
		}
	}
}

// treeState is what the function of that name should find.
func (m *model) treeState() map[string]string {
	all := map[string]string{}
	names := m.names()
	var walk func(path string, n *object)
	walk = func(path string, n *object) {
		var b strings.Builder
		fmt.Fprintf(&b, "%06o %d:%d", n.mode, n.uid, n.gid)
		fmt.Fprintf(&b, " id %d %v", n.id, nil)
		if n.sealed {
			fmt.Fprintf(&b, " %+v", mark{ID: n.id, Sized: true, Sealed: true, Size: n.sum.Size, XXH: n.sum.XXH(), Changed: uint64(n.id)})
		}
		fmt.Fprintf(&b, " mtime %d", n.mtime)
		xs := n.xattr
		if xs == nil {
			xs = map[string][]byte{}
		}
		fmt.Fprintf(&b, " xattrs %q %v", xs, nil)
		switch n.mode & 0o170000 {
		case 0o100000:
			fmt.Fprintf(&b, " size %d nlink %d sum %x", len(n.data), len(names[n.id]), op.BlockSumOf(n.data).Blocks)
			if strings.Trim(string(n.data), "\x00") == "" {
				b.WriteString(" zeros")
			}
		case 0o120000:
			fmt.Fprintf(&b, " -> %s %v", n.target, nil)
		}
		all[path] = b.String()
		for name, id := range n.entries {
			walk(filepath.Join(path, name), m.objects[id])
		}
	}
	walk(".", m.objects[op.Root])
	return all
}

// compareIndex checks everything that the index says, digests summed up anew.
func (m *model) compareIndex(t testing.TB, x *index) {
	t.Helper()
	names := m.names()
	var digest op.Digest
	var messages, size uint64
	seen := 0
	err := x.eachInode(func(n *Inode) error {
		seen++
		o := m.objects[n.ID]
		if o == nil {
			t.Errorf("index has id %d, the model has not", n.ID)
			return nil
		}
		if err := o.compare(n, names[n.ID]); err != nil {
			t.Errorf("id %d: %v", n.ID, err)
		}
		digest.Add(ownElements(n))
		if o.sealed {
			messages++
		}
		size += uint64(len(o.data))
		if n.IsDir() {
			m.compareDir(t, x, o, n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	st := x.current()
	if st.Digest != digest {
		t.Errorf("digest %v, summed up %v", st.Digest, digest)
	}
	if st.Objects != uint64(seen) || seen != len(m.objects) || st.Messages != messages || st.Bytes != size {
		t.Errorf("totals %+v, want %d objects, %d messages, %d bytes", st, len(m.objects), messages, size)
	}
	unsealed, err := x.lacking(lacksSeal, 0, math.MaxInt)
	if err != nil {
		t.Fatal(err)
	}
	var want []op.ID
	for id, o := range m.objects {
		if o.mode&0o170000 == 0o100000 && o.sum == nil {
			want = append(want, id)
		}
	}
	slices.Sort(want)
	if !slices.Equal(unsealed, want) {
		t.Errorf("unsealed %v, want %v", unsealed, want)
	}
}

func (o *object) compare(n *Inode, names []Name) error {
	if n.Mode != o.mode || n.UID != o.uid || n.GID != o.gid || n.Mtime != o.mtime || n.Ctime != o.ctime {
		return fmt.Errorf("attributes %+v, want %+v", n, o)
	}
	if n.Sealed != o.sealed || n.Target != o.target || (n.Sum == nil) != (o.sum == nil) {
		return fmt.Errorf("content %+v, want %+v", n, o)
	}
	if n.Sum != nil && !n.Sum.Equal(*o.sum) {
		return fmt.Errorf("checksum %v, want %v", n.Sum, o.sum)
	}
	if !maps.EqualFunc(n.Xattr, o.xattr, slices.Equal[[]byte]) {
		return fmt.Errorf("xattrs %q, want %q", n.Xattr, o.xattr)
	}
	wantSize := len(o.data) + len(o.target)
	if n.Size != int64(wantSize) {
		return fmt.Errorf("size %d, want %d", n.Size, wantSize)
	}
	if len(n.Names) != len(names) {
		return fmt.Errorf("names %v, want %v", n.Names, names)
	}
	for _, at := range names {
		if !slices.Contains(n.Names, at) {
			return fmt.Errorf("names %v, want %v", n.Names, names)
		}
	}
	return nil
}

func (m *model) compareDir(t testing.TB, x *index, o *object, n *Inode) {
	t.Helper()
	children, err := x.children(n.ID)
	if err != nil {
		t.Fatal(err)
	}
	var sum op.Digest
	var size uint64
	subdirs := []op.ID{}
	for _, c := range children {
		if o.entries[c.Name] != c.ID || m.objects[c.ID].mode&typeMask != c.Type {
			t.Errorf("directory %d: %+v, want id %d", n.ID, c, o.entries[c.Name])
		}
		in, err := x.inode(c.ID)
		if err != nil {
			t.Fatal(err)
		}
		sum.Add(element(Name{n.ID, c.Name}, in))
		if c.Type == typeDir {
			subdirs = append(subdirs, c.ID)
		}
		size += uint64(len(m.objects[c.ID].data))
		if got, err := x.child(n.ID, c.Name); err != nil || got != c {
			t.Errorf("child %q of %d: %+v %v, want %+v", c.Name, n.ID, got, err, c)
		}
	}
	if len(children) != len(o.entries) || n.Count != uint64(len(children)) {
		t.Errorf("directory %d: %v, count %d, want %v", n.ID, children, n.Count, o.entries)
	}
	if n.Entries != sum || n.Nlink != uint32(2+len(subdirs)) || n.Bytes != size {
		t.Errorf("directory %d: entries %v, nlink %d, bytes %d; want %v, %d, %d", n.ID, n.Entries, n.Nlink, n.Bytes, sum, 2+len(subdirs), size)
	}
	slices.Sort(subdirs)
	if got, err := x.subdirs(n.ID); err != nil || !slices.Equal(got, subdirs) {
		t.Errorf("directories in %d: %v %v, want %v", n.ID, got, err, subdirs)
	}
	if _, err := x.child(n.ID, "no such name"); !errors.Is(err, ErrNotExist) {
		t.Errorf("child that is not there: %v", err)
	}
}
