package meta

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"slotfs/meta/op"
)

// survey is reconcile's first phase: it finds everything that place and leftovers
// may have to deal with.
func (r *reconciler) survey() error {
	r.base = &node{name: r.data}
	roots := []struct {
		n    **node
		name string
	}{{&r.tree, dirTree}, {&r.stage, dirStage}, {&r.trash, dirTrash}}
	for _, root := range roots {
		k, err := r.base.look(root.name)
		if err == nil && k == nil {
			if err = os.Mkdir(r.base.path()+"/"+root.name, 0o700); err == nil || errors.Is(err, os.ErrExist) {
				k, err = r.base.look(root.name)
			}
		}
		if err != nil {
			return err
		}
		*root.n = k
	}
	r.tree.id, r.stage.id, r.trash.id = op.Root, 0, 0
	r.settle(r.tree)
	if r.full {
		if err := r.touchAll(); err != nil {
			return err
		}
	}
	for _, n := range []*node{r.stage, r.trash} {
		if err := r.scan(n); err != nil {
			return err
		}
	}
	for again := true; again; {
		var err error
		if again, err = r.surveyRound(); err != nil {
			return err
		}
	}
	return nil
}

// touchAll puts every directory of the index on the list.
func (r *reconciler) touchAll() error {
	todo := []op.ID{op.Root}
	for len(todo) > 0 {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		r.t.dirs[dir] = true
		children, err := r.view.children(dir)
		if err != nil {
			return err
		}
		for _, c := range children {
			if c.Type == typeDir {
				todo = append(todo, c.ID)
			}
		}
	}
	return nil
}

// surveyRound looks for what has not been found, and reports whether anything
// new came up that may help to find more.
func (r *reconciler) surveyRound() (bool, error) {
	progress := false
	dirs := slices.Sorted(maps.Keys(r.t.dirs)) // in order: runs are repeatable
	for _, id := range dirs {
		n, err := r.locate(id)
		if err != nil {
			return false, err
		}
		if n == nil {
			n = r.at[id] // not where it belongs; what is inside may be wanted
		}
		if n != nil && !n.scanned {
			if err := r.scan(n); err != nil {
				return false, err
			}
			progress = true
		}
	}
	// Where a touched object is not at its place, the directories of its
	// names have to be set right, however untouched they are.
	widen := func(id op.ID) error {
		in, err := r.inode(id)
		if err != nil || in == nil || id == op.Root {
			return err
		}
		n, err := r.locate(id)
		if err != nil {
			return err
		}
		if n != nil && !in.IsDir() && len(in.Names) == 1 && !r.t.dirs[in.Names[0].Dir] {
			r.done[id] = n // an attribute changed, or the content: not its name
			n.settled = true
			return nil
		}
		if n != nil && len(in.Names) == 1 {
			return nil
		}
		for _, at := range in.Names {
			if !r.t.dirs[at.Dir] {
				r.t.dirs[at.Dir], progress = true, true
			}
		}
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(r.t.objects)) {
		if err := widen(id); err != nil {
			return false, err
		}
	}
	for _, id := range dirs {
		if err := widen(id); err != nil {
			return false, err
		}
	}
	return progress, nil
}

// locate finds id where the index has it, on disk; nil if it is not there or
// the way is not known so far.
func (r *reconciler) locate(id op.ID) (*node, error) {
	if id == op.Root {
		return r.tree, nil
	}
	in, err := r.inode(id)
	if err != nil || in == nil {
		return nil, err
	}
	if n := r.at[id]; n != nil && r.wanted(in, n) {
		return n, nil
	}
	for _, at := range in.Names {
		dir, err := r.locate(at.Dir)
		if err != nil || dir == nil {
			if dir = r.at[at.Dir]; err != nil || dir == nil {
				continue
			}
		}
		k, err := dir.look(at.Name)
		if err != nil {
			return nil, err
		}
		if k != nil {
			r.adopt(k)
		}
		if k != nil && k.id == id && k.typ() == in.Type() {
			if k.isDir() {
				r.at[id] = k
			}
			return k, nil
		}
	}
	return nil, nil
}

// adopt concludes a missing id from the log: a loss of power may have kept a
// new name and lost the xattr.
func (r *reconciler) adopt(n *node) {
	if n.id != 0 || n.parent == nil || n.parent.id == 0 {
		return
	}
	if id := r.t.made[Name{Dir: n.parent.id, Name: n.name}]; id != 0 {
		n.id, n.adopted = id, true
	}
}

// scan reads a directory, notes the ids in it, and goes on into directories
// that the index does not have: something that it has may be inside.
func (r *reconciler) scan(dir *node) error {
	if dir.scanned {
		return nil
	}
	if err := dir.scan(); err != nil {
		return fmt.Errorf("read %s: %w", dir.path(), err)
	}
	r.report.Dirs++
	for _, name := range dir.names() {
		k := dir.kids[name]
		if dir == r.stage && strings.HasPrefix(name, newPrefix) {
			k.id = 0 // half made
			continue
		}
		r.adopt(k)
		if k.id == 0 {
			if k.isDir() {
				if err := r.scan(k); err != nil {
					return err
				}
			}
			continue
		}
		if err := r.found(k); err != nil {
			return err
		}
	}
	return nil
}

// found notes that n carries an id.
func (r *reconciler) found(n *node) error {
	r.places[n.id] = append(r.places[n.id], n)
	in, err := r.inode(n.id)
	if err != nil {
		return err
	}
	if n.isDir() {
		if old := r.at[n.id]; old == nil || !old.scanned && r.wanted(in, n) {
			r.at[n.id] = n
		}
		if in == nil || r.full || r.t.dirs[n.id] {
			return r.scan(n)
		}
	}
	if in != nil && !r.wanted(in, n) {
		r.t.objects[n.id] = true // makes surveyRound look at its names
	}
	return nil
}
