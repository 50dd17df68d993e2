package meta

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// leftovers is reconcile's third phase: it clears away what is not where the index wants it.
func (r *reconciler) leftovers() error {
	for _, name := range r.stage.names() {
		k := r.stage.kids[name]
		switch {
		case k.settled:
		case strings.HasPrefix(name, newPrefix), strings.HasPrefix(name, syncPrefix):
			// Half made, or fetched and then removed at the source.
			if err := r.remove(k); err != nil {
				return err
			}
		case strings.HasPrefix(name, limboPrefix):
			if err := r.leftover(k); err != nil {
				return err
			}
		}
	}
	if err := r.leftoversIn(r.tree); err != nil {
		return err
	}
	for _, name := range r.trash.names() {
		k := r.trash.kids[name]
		if stage := r.t.unstage[k.id]; stage != 0 && !k.settled {
			if err := r.restage(k, stage); err != nil {
				return err
			}
		}
	}
	return nil
}

// leftoversIn goes down through everything that was read completely; of the
// rest, what was looked at is where the index wants it.
func (r *reconciler) leftoversIn(dir *node) error {
	for _, name := range dir.names() {
		k := dir.kids[name]
		switch {
		case dir.scanned && !k.settled:
			if err := r.leftover(k); err != nil {
				return err
			}
		case k.isDir():
			if err := r.leftoversIn(k); err != nil {
				return err
			}
		}
	}
	return nil
}

// leftover decides about n, which the index has no place for.
func (r *reconciler) leftover(n *node) error {
	in, err := r.inode(n.id)
	if err != nil {
		return err
	}
	if n.isDir() {
		return r.leftoverDir(n, in != nil)
	}
	if n.adopted {
		return r.remove(n) // torn: nothing in it that the log does not have
	}
	if done := r.done[n.id]; in != nil && done != nil {
		if done.same(n) {
			return r.remove(n) // a name that it lost
		}
		if m, err := readMark(n.path()); r.vanished != nil && err == nil && !m.Sealed {
			return r.discard(n) // a control file that a resync replaced
		}
		if r.madeByRun(n.id) {
			return r.remove(n) // made twice, and done is whole: nothing in it that the log does not have
		}
		if in.Sum != nil && in.IsRegular() && n.isRegular() {
			if bad, err := verifyFile(n.path(), *in.Sum); err == nil && bad == nil {
				return r.remove(n) // the same once more
			}
		}
		return r.quarantine(n, "a second object with this id")
	}
	switch {
	case n.id == 0:
		return r.quarantine(n, "no id: nothing in the log made it")
	case in != nil:
		// Its place is somewhere that was not looked at: impossible, as survey
		// widens to the places of all that it finds. Never lose it, though.
		return r.quarantine(n, "the index has it elsewhere")
	case r.t.unstage[n.id] != 0:
		return r.restage(n, r.t.unstage[n.id])
	case r.t.objects[n.id]:
		return r.discard(n)
	}
	if r.vanished != nil {
		if m, err := readMark(n.path()); err == nil && r.vanished(n.id, m.Sealed) {
			return r.discard(n)
		}
	}
	return r.quarantine(n, "neither index nor log know this id")
}

// leftoverDir empties directory n of what is known, then puts it away.
func (r *reconciler) leftoverDir(n *node, known bool) error {
	if err := r.scan(n); err != nil {
		return err
	}
	explained := !known && (r.t.objects[n.id] || r.vanished != nil && n.id != 0 && r.vanished(n.id, false))
	for _, name := range n.names() {
		k := n.kids[name]
		if !explained && k.id == 0 {
			continue // goes with its directory
		}
		if err := r.leftover(k); err != nil {
			return err
		}
	}
	if explained && len(n.kids) == 0 {
		return r.remove(n)
	}
	if n.adopted && len(n.kids) == 0 {
		return r.remove(n)
	}
	why := "neither index nor log know this directory"
	if known {
		why = "a second directory with this id"
	}
	return r.quarantine(n, why)
}

// remove takes one name away; only for names whose object or content is
// elsewhere, and empty directories.
func (r *reconciler) remove(n *node) error {
	path := n.path()
	if err := r.step("remove", path); err != nil {
		return err
	}
	if n.isDir() {
		if err := os.RemoveAll(path); err != nil { // only what is half made has anything in it
			return err
		}
	} else if err := unix.Unlink(path); err != nil {
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	n.removed = true
	n.detach()
	return nil
}

// discard moves n to trash/, as the applier does with what is unlinked.
func (r *reconciler) discard(n *node) error {
	name := strconv.FormatUint(uint64(n.id), 10)
	if k, err := r.trash.look(name); err != nil {
		return err
	} else if k != nil {
		if k.same(n) {
			return r.remove(n)
		}
		if m, err := readMark(n.path()); r.vanished != nil && err == nil && !m.Sealed {
			return r.remove(n) // one more state of a control file that a resync replaced
		}
		if !r.madeByRun(n.id) {
			return r.quarantine(n, "trash/ has another object with this id")
		}
		// Put away half made once, and made again: one that is whole is kept.
		if intact(k.path()) || !intact(n.path()) {
			return r.remove(n)
		}
		if err := r.remove(k); err != nil {
			return err
		}
	}
	r.report.Trashed++
	return r.move(n, r.trash, name)
}

// madeByRun reports whether an entry of the run makes the object: whatever it
// consists of is in the log.
func (r *reconciler) madeByRun(id op.ID) bool {
	return r.t.objects[id] && uint64(id) > r.t.from
}

// intact reports whether a file has the content that its mark tells of.
func intact(path string) bool {
	m, err := readMark(path)
	if err != nil || !m.Sized {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	sum, err := op.BlockSumReader(f)
	return err == nil && m.tells(&sum)
}

// restage makes a file whose Put is still to come the content of its stage
// again.
func (r *reconciler) restage(n *node, stage uint64) error {
	name := strconv.FormatUint(stage, 10)
	k, err := r.stage.look(name)
	if err != nil {
		return err
	}
	switch {
	case k != nil && k.same(n):
		return r.remove(n) // another of its names
	case k != nil && n.parent == r.trash:
		return nil
	case k != nil:
		return r.discard(n)
	}
	if err := r.step("attributes", n.path()); err != nil {
		return err
	}
	if err := replaceXattrs(n.path(), nil); err != nil {
		return err
	}
	return r.move(n, r.stage, name)
}

// quarantine keeps what nothing explains.
func (r *reconciler) quarantine(n *node, why string) error {
	path := n.path()
	if err := r.step("quarantine", path); err != nil {
		return err
	}
	rel := n.shown()
	kept, err := setAsideAs(r.data, path, rel, QuarantineRecord{ID: n.id, Reason: why})
	if err != nil {
		return err
	}
	n.removed = true
	n.detach()
	r.report.Quarantined++
	r.note("quarantined", n.id, rel, fmt.Sprintf("%s; kept as %s", why, kept))
	return nil
}
