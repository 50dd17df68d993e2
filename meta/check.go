package meta

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// The invariants that Check proves, by number:
//
//	I1  Every name of the index is in the tree, and is the object with that id
//	    and type; all names of an id are one physical file.
//	I2  The tree has no other names.
//	I3  Attributes in the tree are those of the index: mode, owner, size, mtime,
//	    number of names, xattrs, target.
//	I4  The content of every file with a checksum matches it (option Content).
//	I5  The index agrees with itself: entries with inodes, number of names and
//	    of directories, sums of directories, the digest of the slot.
//	I6  The log is whole from its first to its last entry: each follows the one
//	    before, by seq, chain and epoch; the index's position is in it.
//	I7  trash/ and stage/ hold only what has lost its name, or waits for one;
//	    everything in quarantine/ has its record.
//	I8  The mark of every object says of its content what the index says.
const (
	InvName       = 1
	InvStray      = 2
	InvAttributes = 3
	InvContent    = 4
	InvIndex      = 5
	InvLog        = 6
	InvAside      = 7
	InvMark       = 8
)

var invariants = [...]string{
	InvName:       "every name of the index is in the tree",
	InvStray:      "the tree has no other names",
	InvAttributes: "attributes are those of the index",
	InvContent:    "content matches its checksum",
	InvIndex:      "the index agrees with itself",
	InvLog:        "the log is whole",
	InvAside:      "trash, stage and quarantine hold only what belongs there",
	InvMark:       "marks agree with the index",
}

// CheckOptions says what Check does.
type CheckOptions struct {
	// Content reads and verifies the content of all files that have a checksum.
	Content bool
	// Repair makes the tree agree with the index wherever they differ, and gets
	// damaged content from another slot; what was repaired is still reported.
	Repair bool
	// Rebuild makes the index anew from tree and log before anything else. Of
	// a slot that was started, only at its next start.
	Rebuild bool
}

// Finding is one violation of an invariant.
type Finding struct {
	Invariant int    `json:"invariant"`
	ID        op.ID  `json:"id,omitempty"`
	Path      string `json:"path,omitempty"` // in the store; or in the data directory, if it begins with a dot
	Text      string `json:"text"`
}

// Describe says in words what the invariant is.
func (f Finding) Describe() string { return invariants[f.Invariant] }

func (f Finding) String() string {
	s := fmt.Sprintf("I%d (%s): ", f.Invariant, f.Describe())
	if f.Path != "" {
		s += strconv.Quote(f.Path) + " "
	}
	if f.ID != 0 {
		s += fmt.Sprintf("(id %d) ", f.ID)
	}
	return s + f.Text
}

// Report is what Check, or Recover, found.
type Report struct {
	Stats    Stats         `json:"stats"`
	Findings []Finding     `json:"findings"`
	Omitted  int           `json:"omitted,omitempty"` // findings beyond maxFindings
	Verified uint64        `json:"verified"`          // files whose content was verified
	Took     time.Duration `json:"took"`

	Recovery *ReconcileReport `json:"recovery,omitempty"` // what Recover or Repair did
	Pending  string           `json:"pending,omitempty"`  // what waits for the next start
}

// Clean reports whether nothing was found.
func (r *Report) Clean() bool { return len(r.Findings) == 0 }

// maxFindings bounds a report; a tree that was emptied has one per file.
const maxFindings = 10_000

func (r *Report) add(inv int, id op.ID, path, format string, args ...any) {
	if len(r.Findings) >= maxFindings {
		r.Omitted++
		return
	}
	r.Findings = append(r.Findings, Finding{Invariant: inv, ID: id, Path: path, Text: fmt.Sprintf(format, args...)})
}

// Check proves the invariants listed above on a slot, also while it runs: what
// differs because an entry is just being applied is looked at again with the
// applier stopped. It changes nothing, unless told to.
func (s *Slot) Check(ctx context.Context, o CheckOptions) (*Report, error) {
	s.admin.Lock()
	defer s.admin.Unlock()
	if s.Resyncing() {
		return nil, fmt.Errorf("check: %w", ErrResyncing)
	}
	begun := time.Now()
	r := &Report{}
	if o.Rebuild {
		if err := s.askRebuild(r); err != nil {
			return nil, err
		}
	}
	for _, step := range []func(context.Context, *Report) error{s.checkIndex, s.checkTree, s.checkLog, s.checkAside} {
		if err := step(ctx, r); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	if o.Repair && !r.Clean() {
		var err error
		if r.Recovery, err = s.repairTree(); err != nil {
			return nil, fmt.Errorf("repair: %w", err)
		}
	}
	if o.Content {
		if err := s.checkContent(ctx, r, o.Repair); err != nil {
			return nil, fmt.Errorf("check: %w", err)
		}
	}
	r.Stats, r.Took = s.Stats(), time.Since(begun)
	return r, nil
}

// askRebuild rebuilds now, or notes that the next start has to.
func (s *Slot) askRebuild(r *Report) error {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	cause := errors.New("asked for by an operator")
	if !started {
		return s.rebuild(cause)
	}
	r.Pending = "the index will be made anew at the next start of this slot"
	return writeRecord(filepath.Join(s.dir, fileRebuild), map[string]any{"time": time.Now(), "reason": cause.Error()})
}

// repairTree reconciles everything with the index.
func (s *Slot) repairTree() (*ReconcileReport, error) {
	start := s.pauseApplier()
	defer start()
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.dirs.forgetAll()
	s.tree.files.forgetAll()
	seq := s.ix.current().Pos.Seq
	r := newReconciler(s.dir, s.ix, s.Log, newTrail(seq, seq))
	r.full, r.note, r.hold = true, s.noteEvent, s.opt.hold
	report, err := r.run()
	if err != nil {
		return nil, err
	}
	s.tree.dirs.forgetAll()
	s.tree.files.forgetAll()
	return report, syncTree(s.dir)
}

// checkIndex is I5, on the state of a checkpoint.
func (s *Slot) checkIndex(ctx context.Context, r *Report) error {
	start := s.pauseApplier()
	err := s.checkpoint()
	start()
	if err != nil {
		return err
	}
	s.ix.mu.RLock()
	v := view{s.ix.db.NewTransaction(false)}
	s.ix.mu.RUnlock()
	defer v.txn.Discard()
	st, err := v.state()
	if err != nil {
		return err
	}
	sum, reached, err := audit(ctx, v)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.add(InvIndex, 0, "", "%v", err)
		return nil
	}
	if sum.Digest != st.Digest || sum.Objects != st.Objects || sum.Messages != st.Messages || sum.Bytes != st.Bytes {
		r.add(InvIndex, 0, "", "%d objects, %d messages, %d bytes with digest %v, but its totals say %d, %d, %d, %v",
			sum.Objects, sum.Messages, sum.Bytes, sum.Digest, st.Objects, st.Messages, st.Bytes, st.Digest)
	}
	err = v.eachInode(func(n *Inode) error {
		if _, ok := reached[n.ID]; !ok {
			r.add(InvIndex, n.ID, "", "no name leads to it")
		} else if !n.IsDir() && int(n.Nlink) != len(n.Names) {
			r.add(InvIndex, n.ID, "", "nlink %d with %d names", n.Nlink, len(n.Names))
		}
		for _, at := range n.Names {
			if c, err := v.child(at.Dir, at.Name); err != nil || c.ID != n.ID {
				r.add(InvIndex, n.ID, "", "name %q in directory %d is not an entry there", at.Name, at.Dir)
			}
		}
		return ctx.Err()
	})
	if errors.Is(err, errRecord) || errors.Is(err, badger.ErrKeyNotFound) {
		r.add(InvIndex, 0, "", "%v", err)
		return nil
	}
	return err
}

// checkTree is I1, I2, I3 and I8: directory by directory with the applier
// running, then what was suspicious once more with the applier stopped.
func (s *Slot) checkTree(ctx context.Context, r *Report) error {
	var again []op.ID
	for todo := []op.ID{op.Root}; len(todo) > 0; {
		id := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := ctx.Err(); err != nil {
			return err
		}
		var local Report
		subdirs, err := s.checkDirNow(id, &local)
		if errors.Is(err, ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return err
		}
		if !local.Clean() {
			again = append(again, id)
		}
		todo = append(todo, subdirs...)
	}
	if len(again) == 0 {
		return nil
	}
	defer s.pauseApplier()()
	for _, id := range again {
		if _, err := s.checkDirNow(id, r); err != nil && !errors.Is(err, ErrNotExist) {
			return err
		}
	}
	return nil
}

// checkDirNow compares one directory while index and tree agree, mtimes apart.
func (s *Slot) checkDirNow(id op.ID, r *Report) ([]op.ID, error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	if s.ix.current().Pos.Seq == 0 {
		return nil, nil
	}
	path, err := s.ix.path(id)
	if err != nil {
		return nil, err
	}
	dir, err := s.ix.inode(id)
	if err != nil {
		return nil, err
	}
	children, err := s.ix.children(id)
	if err != nil {
		return nil, err
	}
	return s.checkDir(dir, path, children, r)
}

func (s *Slot) checkDir(dir *Inode, path string, children []Child, r *Report) (subdirs []op.ID, err error) {
	h, err := s.tree.dir(dir.ID, false)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil // reported with the directory above
	}
	if err != nil {
		return nil, err
	}
	defer h.release()
	real := fmt.Sprintf("/proc/self/fd/%d", h.fd) // a path may be too long
	names, err := readNames(real, "")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed while open
	}
	if err != nil {
		return nil, err
	}
	if dir.ID == op.Root {
		if err := s.compareObject(dir, filepath.Join(s.dir, dirTree), path, r); err != nil {
			return nil, err
		}
	}
	known := make(map[string]bool, len(children))
	for _, c := range children {
		known[c.Name] = true
		if c.Type == typeDir {
			subdirs = append(subdirs, c.ID)
		}
		n, err := s.ix.inode(c.ID)
		if err != nil {
			return nil, fmt.Errorf("entry %q of directory %d: %w", c.Name, dir.ID, err)
		}
		if err := s.compareObject(n, filepath.Join(real, c.Name), filepath.Join(path, c.Name), r); err != nil {
			return nil, err
		}
	}
	for _, name := range names {
		if !known[name] {
			r.add(InvStray, 0, filepath.Join(path, name), "the index does not have it")
		}
	}
	return subdirs, nil
}

// compareObject compares one name.
func (s *Slot) compareObject(n *Inode, real, path string, r *Report) error {
	m, err := readMark(real)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.add(InvName, n.ID, path, "is not in the tree")
		return nil
	case errors.Is(err, errNoMark):
		r.add(InvName, n.ID, path, "the object there has no id")
		return nil
	case err != nil:
		return err
	case m.ID != n.ID:
		r.add(InvName, n.ID, path, "the object there has id %d", m.ID)
		return nil
	}
	diffs, err := attributeDiffs(real, n)
	if errors.Is(err, fs.ErrNotExist) {
		r.add(InvName, n.ID, path, "is not in the tree")
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range diffs {
		r.add(d.inv(), n.ID, path, "%s", d.text)
	}
	if text := compareMark(m, n); text != "" {
		r.add(InvMark, n.ID, path, "%s", text)
	}
	if len(n.Names) > 1 {
		return s.compareLinks(n, real, path, r)
	}
	return nil
}

// compareLinks proves that all names of n are one file: the first one and this.
func (s *Slot) compareLinks(n *Inode, real, path string, r *Report) error {
	dir, err := s.ix.path(n.Names[0].Dir)
	if err != nil {
		return err
	}
	h, err := s.tree.dir(n.Names[0].Dir, false)
	if err != nil {
		return nil // reported there
	}
	defer h.release()
	var here, first unix.Stat_t
	if err := unix.Lstat(real, &here); err != nil {
		return err
	}
	other := filepath.Join(dir, n.Names[0].Name)
	if err := unix.Fstatat(h.fd, n.Names[0].Name, &first, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil // reported there
	}
	if here.Ino != first.Ino {
		r.add(InvName, n.ID, path, "is another file than %q, and should be the same", other)
	}
	return nil
}

// compareMark says what m has otherwise than n, whose id it has. Marks of
// control files are brought up to date at checkpoints.
func compareMark(m mark, n *Inode) string {
	want := markOf(n)
	switch {
	case m.Lost:
		return "the content is not on this slot"
	case m.Sealed != want.Sealed:
		return fmt.Sprintf("sealed is %v, should be %v", m.Sealed, want.Sealed)
	case n.Sealed && m != want:
		return fmt.Sprintf("size %d, checksum %016x, entry %d; should be %d, %016x, %d", m.Size, m.XXH, m.Changed, want.Size, want.XXH, want.Changed)
	case m.Changed > want.Changed:
		return fmt.Sprintf("last changed by entry %d, should be %d", m.Changed, want.Changed)
	case m.Changed == want.Changed && m.Sized && want.Sized && (m.Size != want.Size || m.XXH != want.XXH):
		return fmt.Sprintf("size %d, checksum %016x; should be %d, %016x", m.Size, m.XXH, want.Size, want.XXH)
	}
	return ""
}

// checkLog is I6.
func (s *Slot) checkLog(ctx context.Context, r *Report) error {
	first, last := s.Log.First(), s.Log.Last()
	prev, err := s.Log.PosAt(first - 1)
	if err != nil {
		r.add(InvLog, 0, "", "position of entry %d: %v", first-1, err)
		return nil
	}
	pos := s.ix.checkpointed().Pos
	for from := first; from <= last.Seq; {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := s.Log.Read(from, readAhead)
		var trimmed *oplog.TrimmedError
		if errors.As(err, &trimmed) { // by a checkpoint, just now
			if from = s.Log.First(); from > last.Seq {
				return nil
			}
			if prev, err = s.Log.PosAt(from - 1); err != nil {
				return err
			}
			continue
		}
		if err != nil || len(entries) == 0 {
			r.add(InvLog, 0, "", "entry %d cannot be read: %v", from, err)
			return nil
		}
		for _, e := range entries {
			if e.Seq != prev.Seq+1 || e.Before != prev.Chain || e.Epoch < prev.Epoch {
				r.add(InvLog, 0, "", "entry %v does not follow %v", e.Pos(), prev)
				return nil
			}
			if prev = e.Pos(); prev.Seq == pos.Seq && prev != pos {
				r.add(InvLog, 0, "", "the index is at %v, the log has %v there", pos, prev)
			}
		}
		from = prev.Seq + 1
	}
	if pos.Seq > last.Seq {
		r.add(InvLog, 0, "", "the index is at entry %d, the log ends at %d", pos.Seq, last.Seq)
	}
	return nil
}

// checkAside is I7.
func (s *Slot) checkAside(ctx context.Context, r *Report) error {
	defer s.pauseApplier()()
	trashed, err := readNames(s.dir, dirTrash)
	if err != nil {
		return err
	}
	for _, name := range trashed {
		path := "./" + dirTrash + "/" + name
		id, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			r.add(InvAside, 0, path, "is not named by an id")
			continue
		}
		if m, err := readMark(filepath.Join(s.dir, dirTrash, name)); err != nil || m.ID != op.ID(id) {
			r.add(InvAside, op.ID(id), path, "has id %d (%v)", m.ID, err)
		}
	}
	staged, err := readNames(s.dir, dirStage)
	if err != nil {
		return err
	}
	for _, name := range staged {
		path := "./" + dirStage + "/" + name
		seq, err := strconv.ParseUint(name, 10, 64)
		switch {
		case err != nil:
			r.add(InvAside, 0, path, "is left over")
		case seq > s.ix.current().Pos.Seq:
			r.add(InvAside, 0, path, "is a stage of entry %d, which was not applied", seq)
		}
	}
	kept, err := readNames(s.dir, dirQuarantine)
	if err != nil {
		return err
	}
	for _, name := range kept {
		if !strings.HasSuffix(name, ".json") && !slices.Contains(kept, name+".json") {
			r.add(InvAside, 0, "./"+dirQuarantine+"/"+name, "has no record")
		}
	}
	return ctx.Err()
}

// checkContent is I4, with the applier running.
func (s *Slot) checkContent(ctx context.Context, r *Report, repair bool) error {
	var files []op.ID
	ahead := s.ahead()
	err := s.ix.eachInode(func(n *Inode) error {
		if n.Sum != nil && (n.Sealed || !ahead) {
			files = append(files, n.ID)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	for _, id := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		for try := 0; try < 10; try++ {
			n, err := s.ix.inode(id)
			if errors.Is(err, ErrNotExist) || err == nil && n.Sum == nil {
				break // removed or changed meanwhile
			}
			if err != nil {
				return err
			}
			bad, err := s.verifyNow(n)
			if errors.Is(err, errChanged) {
				continue
			}
			r.Verified++
			if bad == nil {
				bad = err
			}
			if bad != nil {
				path, _ := s.ix.path(id)
				text := bad.Error()
				if repair {
					text += s.tryRepair(ctx, n, bad)
				}
				r.add(InvContent, id, path, "%s", text)
			}
			break
		}
	}
	return nil
}

func (s *Slot) tryRepair(ctx context.Context, n *Inode, bad error) string {
	if err := s.repair(ctx, n.ID, n.Changed, bad); err != nil {
		return "; not repaired: " + err.Error()
	}
	return "; repaired"
}

// verifyNow verifies the content of n; errChanged if it is another by now.
func (s *Slot) verifyNow(n *Inode) (bad, err error) {
	fd, err := s.openSame(n)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	if bad, err = verifyOpen(f, *n.Sum); bad == nil || n.Sealed {
		return bad, err
	}
	if now, e := s.ix.inode(n.ID); e != nil || now.Changed != n.Changed || now.Sum == nil {
		return nil, errChanged
	}
	return bad, err
}
