package meta

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Adopt makes a store of a tree that a mail server wrote without slotfs: in
// place, nothing is copied. Every object gets an id and its mark, every content is
// read once for its checksum, and the index is filled. The log then begins at the
// position that these objects would have been made up to, with the store's first
// epoch, whose reason says what was adopted; so the slot is like one that was
// resynced, and replicas are filled from it by a resync.
//
// It works on a slot that has no store yet, while no node uses it. What was done
// is in the index and in the marks: after an interruption it goes on where it was.
// What cannot be taken over is moved to adopt-left/, with its path, and reported.
//
// The root carries AdoptedXattr: up to which id objects were adopted, and when.

// AdoptedXattr is the extended attribute of an adopted store's root; its value is
// the last adopted id and the time, ns since 1970, in decimal. The mount does not
// show it.
const AdoptedXattr = markName + ".adopted"

const (
	fileAdopt = "adopt.json"
	dirLeft   = "adopt-left"
)

// useless is why volatile files are left out.
const useless = "temporary, a lock, or a cache that is made again"

// ErrNotAdopted: the tree has files that no log explains.
var ErrNotAdopted = errors.New("has files that slotfs does not know")

// AdoptOptions says how to adopt.
type AdoptOptions struct {
	Store  string // refuse a data directory of another store; "": any
	Logger *slog.Logger
	// Progress is told now and then; may be nil.
	Progress func(AdoptReport)
}

// AdoptReport says what was adopted.
type AdoptReport struct {
	Dirs     uint64 `json:"dirs"`
	Messages uint64 `json:"messages"`
	Other    uint64 `json:"other"` // control files, links and the like
	Bytes    uint64 `json:"bytes"`
	Resumed  uint64 `json:"resumed"` // files that an earlier run had finished

	TotalFiles uint64 `json:"total_files"` // as counted before
	TotalBytes uint64 `json:"total_bytes"`

	Left []Leftover `json:"left,omitempty"` // what was not taken over
}

// Leftover is something that was moved to adopt-left/.
type Leftover struct {
	Path    string `json:"path"`
	Reason  string `json:"reason"`
	Useless bool   `json:"useless,omitempty"` // a temporary file, a lock, a cache
}

// Lost counts what was left out and may be missed.
func (r *AdoptReport) Lost() (n int) {
	for _, l := range r.Left {
		if !l.Useless {
			n++
		}
	}
	return n
}

// adoption is one run of Adopt.
type adoption struct {
	data   string
	opt    AdoptOptions
	layout *Layout
	ix     *index
	dev    uint64
	links  map[uint64]op.ID // inode numbers of files with several names
	next   op.ID
	begun  time.Time
	rep    AdoptReport
	said   time.Time

	flushed time.Time // when the index was written last
}

// adoptMarker is adopt.json.
type adoptMarker struct {
	Store StoreID   `json:"store_id"`
	Begun time.Time `json:"begun"`
}

// Adopt adopts the tree in the data directory dir.
func Adopt(ctx context.Context, dir string, o AdoptOptions) (rep *AdoptReport, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	id, err := ReadIdentity(dir)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, fileIdentity)
	if err := id.check(file, Options{Store: o.Store}); err != nil {
		return nil, err
	}
	lock, err := lockData(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	m, err := beginAdoption(dir, id)
	if err != nil {
		return nil, err
	}
	a := &adoption{data: dir, opt: o, links: map[uint64]op.ID{}, begun: m.Begun}
	if a.layout, err = LayoutByName(id.Layout); err != nil {
		return nil, err
	}
	if a.ix, err = openIndex(filepath.Join(dir, dirIndex), o.Logger); err != nil {
		return nil, fmt.Errorf("%w: remove %s and begin again", err, filepath.Join(dir, dirIndex))
	}
	if err = a.run(ctx); err == nil {
		err = a.seal(id, m)
	} else {
		err = errors.Join(err, a.ix.flushRaw(a.ix.current())) // to go on from
	}
	return &a.rep, errors.Join(err, a.ix.close())
}

// beginAdoption writes the marker, or reads that of an interrupted run.
func beginAdoption(dir string, id Identity) (m adoptMarker, err error) {
	marker := filepath.Join(dir, fileAdopt)
	b, err := os.ReadFile(marker)
	if err == nil {
		return m, json.Unmarshal(b, &m)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	refuse := func(why, remedy string) error {
		return &DataError{File: dir, Reason: errors.New(why), Remedy: remedy}
	}
	if !id.ID.IsZero() {
		return m, refuse("it belongs to a store already", "adopt into a slot that was just made (slotfs create)")
	}
	names, err := readNames(dir, dirTree)
	if err != nil {
		return m, err
	}
	if len(names) == 0 {
		return m, refuse("its tree is empty", "move the mail into "+filepath.Join(dir, dirTree)+" first, or name it with --from")
	}
	m.Begun = time.Now().UTC()
	if _, err := rand.Read(m.Store[:]); err != nil {
		return m, err
	}
	return m, writeRecord(marker, m)
}

// run goes through the tree.
func (a *adoption) run(ctx context.Context) error {
	tree := filepath.Join(a.data, dirTree)
	var st unix.Stat_t
	if err := unix.Lstat(tree, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: tree, Err: err}
	}
	a.dev = st.Dev
	if err := a.leftBefore(); err != nil {
		return err
	}
	if err := a.count(ctx, tree); err != nil {
		return err
	}
	a.next = op.Root + 1
	if err := a.ix.eachInode(func(n *Inode) error {
		a.next = max(a.next, n.ID+1)
		return ctx.Err()
	}); err != nil {
		return err
	}
	if st.Mode&0o777 == 0o700 && st.Uid == 0 {
		// As slotfs made it; the mail server has to get in.
		if err := os.Chmod(tree, rootMode&0o777); err != nil {
			return err
		}
		if err := unix.Lstat(tree, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: tree, Err: err}
		}
	}
	root, err := a.describe(tree, &st, op.Root)
	if err != nil {
		return err
	}
	delete(root.Xattr, AdoptedXattr)
	if err := a.ix.put(root, 0); err != nil {
		return err
	}
	if err := errors.Join(writeMark(tree, markOf(root)), claimTree(a.data, a.slotID())); err != nil {
		return err
	}
	return a.dir(ctx, tree, op.Root, Plain)
}

func (a *adoption) slotID() op.SlotID {
	id, _ := ReadIdentity(a.data) // was read before
	return id.Slot
}

// count finds out how much there is, for the progress.
func (a *adoption) count(ctx context.Context, tree string) error {
	return filepath.WalkDir(tree, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return errors.Join(err, ctx.Err())
		}
		a.rep.TotalFiles++
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			a.rep.TotalBytes += uint64(info.Size())
		}
		return ctx.Err()
	})
}

// dir adopts what is in a directory, which is in the index.
func (a *adoption) dir(ctx context.Context, path string, id op.ID, kind DirKind) error {
	names, err := readNames(path, "")
	if err != nil {
		return err
	}
	has := make(map[string]bool, len(names))
	for _, name := range names {
		has[name] = true
	}
	if err := a.forgetGone(id, has); err != nil {
		return err
	}
	var before unix.Stat_t
	if err := unix.Lstat(path, &before); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	left := len(a.rep.Left)
	var below []Child
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := a.name(path, Name{Dir: id, Name: name}, kind)
		if err != nil {
			return err
		}
		if c.Type == typeDir {
			below = append(below, c)
		}
	}
	if len(a.rep.Left) > left { // which changed the directory
		if err := setMtime(path, unix.TimespecToNsec(before.Mtim)); err != nil {
			return err
		}
	}
	for _, c := range below {
		k := a.layout.DirKind(c.Name, func(s string) bool { return has[s] })
		if err := a.dir(ctx, filepath.Join(path, c.Name), c.ID, k); err != nil {
			return err
		}
	}
	return nil
}

// forgetGone takes out of the index what an earlier run had found in a directory
// and is not there any more.
func (a *adoption) forgetGone(id op.ID, has map[string]bool) error {
	children, err := a.ix.children(id)
	if err != nil {
		return err
	}
	for _, c := range children {
		if !has[c.Name] {
			return fmt.Errorf("%q in directory %d has gone since the adoption was interrupted: nobody may change the tree meanwhile; remove %s and begin again",
				c.Name, id, filepath.Join(a.data, dirIndex))
		}
	}
	return nil
}

// name adopts one name; its Child is zero if it was left out.
func (a *adoption) name(dir string, at Name, kind DirKind) (c Child, err error) {
	path := filepath.Join(dir, at.Name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return c, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	class := a.layout.Class(kind, at.Name)
	why := ""
	switch typ := st.Mode & typeMask; {
	case st.Dev != a.dev:
		return c, fmt.Errorf("%s is another file system, mounted there: unmount it, or move its files into the tree", path)
	case typ == typeDir, typ == typeSymlink, typ == unix.S_IFIFO:
	case typ != typeRegular:
		why = "a socket or device"
	case class == Volatile:
		why = useless
	}
	if why == "" {
		c, err = a.take(path, &st, at, class)
		if errors.Is(err, unix.EIO) {
			why, err = "cannot be read: "+err.Error(), nil
		}
	}
	if why != "" {
		return Child{}, a.leave(path, why)
	}
	return c, err
}

// take puts one object into the index, unless it is there.
func (a *adoption) take(path string, st *unix.Stat_t, at Name, class Class) (Child, error) {
	c := Child{Name: at.Name, Type: st.Mode & typeMask}
	old, err := a.ix.child(at.Dir, at.Name)
	if err != nil && !errors.Is(err, ErrNotExist) {
		return c, err
	}
	if err == nil && old.Type == c.Type {
		c.ID = old.ID
		if done, err := a.finished(path, st, c.ID, class); err != nil || done {
			return c, err
		}
	} else if linked := a.links[st.Ino]; st.Nlink > 1 && c.Type != typeDir && linked != 0 {
		return a.link(path, at, linked, class, c.Type)
	} else {
		c.ID = a.next
		a.next++
	}
	n, err := a.describe(path, st, c.ID)
	if err != nil {
		return c, err
	}
	n.Names = []Name{at}
	if n.IsRegular() {
		n.Sealed = class == Message
		if err := sumInto(n, path); err != nil {
			return c, err
		}
	}
	if err := writeMark(path, markOf(n)); err != nil {
		return c, &os.PathError{Op: "setxattr", Path: path, Err: err}
	}
	if err := a.ix.put(n, 0); err != nil {
		return c, err
	}
	a.tell(n, st)
	if a.ix.waiting() < resyncBatch && time.Since(a.flushed) < adoptFlush {
		return c, nil
	}
	a.flushed = time.Now()
	return c, a.ix.flushRaw(a.ix.current())
}

// adoptFlush is how much work a kill may cost.
const adoptFlush = 5 * time.Second

// finished reports whether an earlier run, or another name, has done all there is
// to do.
func (a *adoption) finished(path string, st *unix.Stat_t, id op.ID, class Class) (bool, error) {
	n, err := a.ix.inode(id)
	if err != nil {
		return false, err
	}
	m, err := readMark(path)
	if err != nil && !errors.Is(err, errNoMark) {
		return false, err
	}
	if m != markOf(n) || unix.TimespecToNsec(st.Mtim) != n.Mtime || n.IsRegular() && (st.Size != n.Size || n.Sealed != (class == Message)) {
		return false, nil
	}
	a.rep.Resumed++
	a.tell(n, st)
	return true, nil
}

// link gives an object that was taken one more name.
func (a *adoption) link(path string, at Name, id op.ID, class Class, typ uint32) (Child, error) {
	old, err := a.ix.inode(id)
	if err != nil {
		return Child{}, err
	}
	if old.IsRegular() && old.Sealed != (class == Message) {
		return Child{}, a.leave(path, "a further name of a file that is kept in another way")
	}
	n := old.Clone()
	n.Names = append(n.Names, at)
	return Child{Name: at.Name, ID: id, Type: typ}, a.ix.put(n, 0)
}

// describe is an object as its file says; names and checksum follow.
func (a *adoption) describe(path string, st *unix.Stat_t, id op.ID) (*Inode, error) {
	n := &Inode{ID: id, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: unix.TimespecToNsec(st.Mtim), Ctime: a.begun.UnixNano()}
	var err error
	if n.Xattr, err = readXattrs(path); err != nil {
		return nil, err
	}
	switch n.Type() {
	case typeRegular:
		n.Size, n.Changed = st.Size, uint64(id)
	case typeSymlink:
		n.Changed = uint64(id)
		n.Target, err = os.Readlink(path)
		n.Size = int64(len(n.Target))
	case unix.S_IFIFO:
		n.Changed = uint64(id)
	}
	return n, err
}

// sumInto reads a file's content for its checksum.
func sumInto(n *Inode, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var sum op.Sum
	if n.Sealed {
		sum, err = op.SumReader(f)
	} else {
		sum, err = op.BlockSumReader(f)
	}
	n.Sum, n.Size = &sum, sum.Size
	return err
}

// tell counts an object.
func (a *adoption) tell(n *Inode, st *unix.Stat_t) {
	if st.Nlink > 1 && !n.IsDir() {
		a.links[st.Ino] = n.ID
	}
	switch {
	case n.IsDir():
		a.rep.Dirs++
	case n.Sealed:
		a.rep.Messages++
	default:
		a.rep.Other++
	}
	if n.IsRegular() {
		a.rep.Bytes += uint64(n.Size)
	}
	if a.opt.Progress != nil && time.Since(a.said) > 100*time.Millisecond {
		a.said = time.Now()
		a.opt.Progress(a.rep)
	}
}

// leave moves something out of the tree.
func (a *adoption) leave(path, why string) error {
	rel, err := filepath.Rel(filepath.Join(a.data, dirTree), path)
	if err != nil {
		return err
	}
	to := filepath.Join(a.data, dirLeft, rel)
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: path, New: to, Err: err}
	}
	a.rep.Left = append(a.rep.Left, Leftover{rel, why, why == useless})
	return nil
}

// leftBefore lists what an earlier run has left out.
func (a *adoption) leftBefore() error {
	left := filepath.Join(a.data, dirLeft)
	err := filepath.WalkDir(left, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(left, path)
		kind := Plain
		if filepath.Base(filepath.Dir(rel)) == "tmp" {
			kind = MaildirTmp
		}
		a.rep.Left = append(a.rep.Left, Leftover{rel, "by an earlier run", d.Type().IsRegular() && a.layout.Class(kind, d.Name()) == Volatile})
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// seal makes all of it durable, begins the log, and makes the slot one of a store.
func (a *adoption) seal(id Identity, m adoptMarker) error {
	now := time.Now()
	root, err := a.ix.inode(op.Root)
	if err != nil {
		return err
	}
	root = root.Clone()
	if root.Xattr == nil {
		root.Xattr = map[string][]byte{}
	}
	root.Xattr[AdoptedXattr] = []byte(fmt.Sprintf("%d %d", a.next-1, m.Begun.UnixNano()))
	tree := filepath.Join(a.data, dirTree)
	if err := unix.Lsetxattr(tree, AdoptedXattr, root.Xattr[AdoptedXattr], 0); err != nil {
		return &os.PathError{Op: "setxattr", Path: tree, Err: err}
	}
	if err := errors.Join(a.ix.put(root, 0), syncTree(a.data)); err != nil {
		return err
	}
	st := a.ix.current()
	// The position that these objects were made up to. Its chain is bound to what
	// was adopted: two adoptions are two histories.
	st.Pos = op.Pos{Seq: uint64(a.next - 1), Chain: st.Digest[0] ^ st.Digest[1]}
	st.Time = now.UnixNano()
	if err := a.ix.flushRaw(st); err != nil {
		return err
	}
	if err := a.beginLog(id, m, st); err != nil {
		return fmt.Errorf("begin the log: %w", err)
	}
	id.ID = m.Store
	if err := writeRecord(filepath.Join(a.data, fileIdentity), id); err != nil {
		return err
	}
	return errors.Join(os.Remove(filepath.Join(a.data, fileAdopt)), syncDir(a.data))
}

// beginLog makes the log continue st with the store's first epoch.
func (a *adoption) beginLog(id Identity, m adoptMarker, st state) error {
	l, err := oplog.Open(filepath.Join(a.data, dirLog), oplog.Options{Logger: a.opt.Logger})
	if err != nil {
		return err
	}
	err = l.Reset(st.Pos)
	if err == nil {
		l.NotBefore(st.Time)
		l.Lead(1, nil)
		b := &op.EpochBegin{Epoch: 1, Primary: id.Slot, Members: []op.SlotID{id.Slot}, Store: m.Store,
			Reason: fmt.Sprintf("store made by adopting %d messages, %d bytes", st.Messages, st.Bytes)}
		if _, err = rand.Read(b.Nonce[:]); err == nil {
			var e *op.Entry
			if e, err = l.Append(b); err == nil {
				l.Flush(e.Seq)
				err = l.Durable.Wait(context.Background(), e.Seq)
			}
		}
	}
	return errors.Join(err, l.Close())
}

// Adopted says up to which id the store's objects were adopted, and when; 0 if it
// was not.
func (s *Slot) Adopted() (upTo op.ID, at time.Time) {
	n, err := s.ix.inode(op.Root)
	if err != nil {
		return 0, time.Time{}
	}
	id, ns, _ := strings.Cut(string(n.Xattr[AdoptedXattr]), " ")
	i, e1 := strconv.ParseUint(id, 10, 64)
	t, e2 := strconv.ParseInt(ns, 10, 64)
	if errors.Join(e1, e2) != nil {
		return 0, time.Time{}
	}
	return op.ID(i), time.Unix(0, t).UTC()
}

// refuseStrange refuses a slot whose tree was put there and not adopted.
func refuseStrange(dir string, id Identity) error {
	if _, err := os.Lstat(filepath.Join(dir, fileAdopt)); err == nil {
		return &DataError{File: filepath.Join(dir, dirTree), Reason: ErrNotAdopted, Detail: "its adoption was interrupted",
			Remedy: "run 'slotfs adopt " + id.Store + "' again: it goes on where it was"}
	}
	if !id.ID.IsZero() {
		return nil
	}
	names, err := readNames(dir, dirTree)
	if err != nil || len(names) == 0 {
		return nil // a tree that is missing is judged later
	}
	if logs, err := filepath.Glob(filepath.Join(dir, dirLog, "*.log")); err != nil || len(logs) > 0 {
		return err // it has a history; the store's name is noted when that is applied
	}
	return &DataError{File: filepath.Join(dir, dirTree), Reason: ErrNotAdopted, Detail: "such as " + names[0],
		Remedy: "run 'slotfs adopt " + id.Store + "' to make a store of them, or empty the directory"}
}
