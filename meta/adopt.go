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
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Adopt makes a store of a tree that a mail server wrote without slotfs: in
// place, nothing is copied and nothing is read. Every object gets an id and its
// mark, and the index is filled with what stat says. The log then begins at the
// position that these objects would have been made up to, with the store's first
// epoch, whose reason says what was adopted; so the slot is like one that was
// resynced, and replicas are filled from it by a resync. Checksums are taken while
// the store is served: see adopted.go.
//
//	adopt.go      what becomes of a data directory: marker, index, log, identity
//	adopttree.go  going through the tree
//	adopted.go    a store that was adopted: its messages are read
//
// It works on a slot that has no store yet, while no node uses it. What was done
// is in the index and in the marks: after an interruption it goes on where it was.
// What cannot be taken over is moved to adopt-left/, with its path, and reported.
//
// The root carries AdoptedXattr: what was adopted, and when.

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

// ErrHasStore: the slot is a store's already.
var ErrHasStore = errors.New("it belongs to a store already")

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

	TotalFiles uint64 `json:"total_files"` // names that are no directories, as counted before

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
	if err := a.openIndex(); err != nil {
		return nil, err
	}
	if err = a.run(ctx); err == nil {
		err = a.seal(id, m)
	} else {
		err = errors.Join(err, a.ix.flushRaw(a.ix.current())) // to go on from
	}
	return &a.rep, errors.Join(err, a.ix.close())
}

// openIndex opens the index. If that was damaged, as by a kill in the middle of
// writing a table, it is made anew: all that is in it is in the tree, too.
func (a *adoption) openIndex() (err error) {
	dir := filepath.Join(a.data, dirIndex)
	if a.ix, err = openIndex(dir, a.opt.Logger); err == nil {
		return nil
	}
	a.opt.Logger.Warn("the index cannot be used: the adoption begins anew", keyErr, err)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	a.ix, err = openIndex(dir, a.opt.Logger)
	return err
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
	refuse := func(why error, remedy string) error { return &DataError{File: dir, Reason: why, Remedy: remedy} }
	if !id.ID.IsZero() {
		return m, refuse(ErrHasStore, "adopt into a slot that was just made (slotfs create)")
	}
	names, err := readNames(dir, dirTree)
	if err != nil {
		return m, err
	}
	if len(names) == 0 {
		return m, refuse(errors.New("its tree is empty"), "move the mail into "+filepath.Join(dir, dirTree)+" first, or name it with --from")
	}
	m.Begun = time.Now().UTC()
	if _, err := rand.Read(m.Store[:]); err != nil {
		return m, err
	}
	return m, writeRecord(marker, m)
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
	root.Xattr[AdoptedXattr] = (&AdoptedStore{UpTo: a.next - 1, Begun: m.Begun}).encode()
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
