package meta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/vote"
)

// Testimony is all that one slot knows of an object; package vote judges
// several.
type Testimony struct {
	Node string `json:"node,omitempty"` // filled in by who asks

	Index     *Inode `json:"index,omitempty"`     // the index record
	Confirmed bool   `json:"confirmed,omitempty"` // it agrees with the digest of its directory
	Tree      *Inode `json:"tree,omitempty"`      // attributes as stat has them; names are not
	Mark      string `json:"mark,omitempty"`      // checksum that the file carries
	MarkID    op.ID  `json:"mark_id,omitempty"`   // id that the file carries
	Log       string `json:"log,omitempty"`       // checksum in the entry that delivered it

	Disk      *op.Sum `json:"disk,omitempty"`       // of the bytes
	DiskError string  `json:"disk_error,omitempty"` // why they could not be read
}

// said is how votes write a checksum: in the form that all witnesses have.
func said(sum *op.Sum) string {
	if sum == nil {
		return ""
	}
	return saidXXH(sum.XXH(), sum.Size)
}

func saidXXH(xxh uint64, size int64) string { return fmt.Sprintf("xxh64:%016x size:%d", xxh, size) }

// saidAttributes is how votes write attributes.
func saidAttributes(n *Inode) string {
	if n == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "mode:%o owner:%d:%d mtime:%d", n.Mode, n.UID, n.GID, n.Mtime)
	if n.Target != "" {
		fmt.Fprintf(&b, " target:%q", n.Target)
	}
	for _, name := range slices.Sorted(maps.Keys(n.Xattr)) {
		fmt.Fprintf(&b, " %s:%q", name, n.Xattr[name])
	}
	return b.String()
}

// contentVotes are t's votes about content. A mark that is not of the change
// that the index has says nothing.
func (t *Testimony) contentVotes() []vote.Vote {
	votes := []vote.Vote{
		{Slot: t.Node, Witness: vote.Log, Says: t.Log},
		{Slot: t.Node, Witness: vote.Xattr, Says: t.Mark},
		{Slot: t.Node, Witness: vote.Disk, Says: said(t.Disk)},
	}
	if t.Index != nil {
		votes = append(votes, vote.Vote{Slot: t.Node, Witness: vote.Index, Says: said(t.Index.Sum)})
	}
	return votes
}

// attributeVotes are t's votes about attributes.
func (t *Testimony) attributeVotes() []vote.Vote {
	votes := []vote.Vote{
		{Slot: t.Node, Witness: vote.Index, Says: saidAttributes(t.Index)},
		{Slot: t.Node, Witness: vote.Tree, Says: saidAttributes(t.Tree)},
	}
	if t.Confirmed {
		votes = append(votes, vote.Vote{Slot: t.Node, Witness: vote.Digest, Says: saidAttributes(t.Index)})
	}
	return votes
}

// agrees reports whether what this slot noted at delivery is of one mind.
func (t *Testimony) agrees() bool {
	if t.Index == nil || t.Index.Sum == nil {
		return false
	}
	want := said(t.Index.Sum)
	return (t.Mark == "" || t.Mark == want) && (t.Log == "" || t.Log == want)
}

// sums is what t says, for the ledger: claims, and bytes.
func (t *Testimony) sums(claims, found map[string]string) {
	put := func(m map[string]string, who, what string) {
		if what != "" {
			if t.Node != "" {
				who = t.Node + " " + who
			}
			m[who] = what
		}
	}
	if t.Index != nil && t.Index.Sum != nil {
		put(claims, "index", checksum(t.Index.Sum))
	}
	put(claims, "log", t.Log)
	put(claims, "xattr", t.Mark)
	if t.Disk != nil {
		put(found, "disk", checksum(t.Disk))
	} else {
		put(found, "disk", t.DiskError)
	}
}

// Testify says all that this slot knows of an object. It repairs nothing.
func (s *Slot) Testify(ctx context.Context, id op.ID) (*Testimony, error) {
	t := new(Testimony)
	n, err := s.Find(id)
	if errors.Is(err, ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, err
	}
	t.Index = n
	if t.Confirmed, err = s.confirmed(n); err != nil {
		return nil, err
	}
	if n.Sealed {
		t.Log = s.logged(id)
	}
	fd, err := s.inspectTree(n, t)
	if err != nil {
		t.DiskError = err.Error()
		return t, nil
	}
	if fd < 0 {
		return t, ctx.Err()
	}
	defer unix.Close(fd)
	if t.Disk, err = newMediumReader().sum(fd); err != nil {
		t.DiskError = err.Error()
	}
	return t, ctx.Err()
}

// inspectTree fills in what the tree has for n, and opens a regular file with a
// checksum; the descriptor is the caller's, -1 for none.
func (s *Slot) inspectTree(n *Inode, t *Testimony) (int, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	at, release, err := s.tree.firstName(n)
	if err != nil {
		return -1, err
	}
	defer release()
	path := procPath(at.d.fd, at.name)
	if t.Tree, err = statInode(path); err != nil {
		return -1, err
	}
	if n.Type() == typeSymlink {
		t.Tree.Mode = n.Mode // it has none of its own
	}
	if _, late := s.tree.late[n.ID]; late {
		t.Tree.Mtime = n.Mtime // will be set
	}
	if m, err := readMark(path); err == nil {
		t.MarkID = m.ID
		if m.Sized && m.ID == n.ID && m.Changed == n.Changed {
			t.Mark = saidXXH(m.XXH, m.Size)
		}
	}
	if !n.IsRegular() || n.Sum == nil {
		return -1, nil
	}
	fd, err := openat(at.d.fd, at.name, openRead, 0)
	if err != nil {
		return -1, fmt.Errorf("open: %w", err)
	}
	return fd, nil
}

// firstName is where n is by its first name, or in trash. The caller holds mu.
func (t *tree) firstName(n *Inode) (at physical, release func(), err error) {
	if n.ID == op.Root {
		return physical{t.root, "."}, func() {}, nil
	}
	if _, err := t.x.inode(n.ID); errors.Is(err, ErrNotExist) || len(n.Names) == 0 {
		return physical{t.trash, trashName(n.ID)}, func() {}, nil
	}
	d, err := t.dir(n.Names[0].Dir, false)
	if err != nil {
		return at, nil, err
	}
	return physical{d, n.Names[0].Name}, d.release, nil
}

// statInode is the attributes of path, symlinks not followed.
func statInode(path string) (*Inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	n := &Inode{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), Mtime: unix.TimespecToNsec(st.Mtim)}
	switch n.Type() {
	case typeRegular:
		n.Size = st.Size
	case typeSymlink:
		b := make([]byte, unix.PathMax)
		k, err := unix.Readlink(path, b)
		if err != nil {
			return nil, fmt.Errorf("readlink: %w", err)
		}
		n.Target, n.Size = string(b[:k]), int64(k)
	}
	var err error
	n.Xattr, err = readXattrs(path)
	return n, err
}

// logged is the checksum in the entry that delivered a message, if the log
// still has it.
func (s *Slot) logged(id op.ID) string {
	if uint64(id) < s.Log.First() {
		return ""
	}
	entries, err := s.Log.Read(uint64(id), 1)
	if err != nil || len(entries) == 0 {
		return ""
	}
	if o, ok := entries[0].Op.(*op.Put); ok && entries[0].Seq == uint64(id) && o.Sealed {
		return said(&o.Sum)
	}
	return ""
}

// confirmed reports whether n's record agrees with the digest of the directory
// that it is in: the sum of the elements of all that is there.
func (s *Slot) confirmed(n *Inode) (bool, error) {
	if len(n.Names) == 0 {
		return false, nil
	}
	for range 10 {
		dir, err := s.ix.inode(n.Names[0].Dir)
		if err != nil {
			return false, nil // moved meanwhile
		}
		s.mu.Lock()
		known, ok := s.sums[dir.ID]
		s.mu.Unlock()
		if ok && known.entries == dir.Entries {
			return known.right, nil
		}
		sum, err := s.elements(dir.ID)
		if err != nil {
			return false, err
		}
		again, err := s.ix.inode(dir.ID)
		if err != nil || again.Entries != dir.Entries {
			continue // something was applied there
		}
		s.mu.Lock()
		if s.sums == nil || len(s.sums) > 1000 {
			s.sums = make(map[op.ID]dirSum)
		}
		s.sums[dir.ID] = dirSum{dir.Entries, sum == dir.Entries}
		s.mu.Unlock()
		return sum == dir.Entries, nil
	}
	return false, nil
}

// dirSum remembers whether the records of a directory's entries add up to its
// digest.
type dirSum struct {
	entries op.Digest
	right   bool
}

// elements is the sum of the digest elements of a directory's entries, from
// their records.
func (s *Slot) elements(dir op.ID) (d op.Digest, err error) {
	children, err := s.ix.children(dir)
	if err != nil {
		return d, err
	}
	for _, c := range children {
		n, err := s.ix.inode(c.ID)
		if errors.Is(err, ErrNotExist) {
			continue // removed meanwhile; or the sum will differ
		}
		if err != nil {
			return d, err
		}
		d.Add(element(Name{Dir: dir, Name: c.Name}, n))
	}
	return d, nil
}
