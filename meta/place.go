package meta

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// place is reconcile's second phase: it gives every name of every touched
// directory its object.
func (r *reconciler) place() error {
	for id := range r.t.dirs {
		if in, err := r.inode(id); err != nil {
			return err
		} else if in == nil {
			continue
		}
		if err := r.enqueue(id); err != nil {
			return err
		}
	}
	for depth := 0; depth < len(r.queue); depth++ {
		slices.Sort(r.queue[depth])
		for _, id := range slices.Compact(r.queue[depth]) {
			if err := r.placeDir(id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reconciler) placeDir(id op.ID) error {
	dir := r.at[id]
	if dir == nil {
		return fmt.Errorf("directory %d was not found and not made", id)
	}
	if err := r.scan(dir); err != nil {
		return err
	}
	children, err := r.view.children(id)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := r.placeName(dir, c); err != nil {
			return fmt.Errorf("%q in directory %d: %w", c.Name, id, err)
		}
	}
	return nil
}

// placeName makes sure that c is what dir has under c.Name.
func (r *reconciler) placeName(dir *node, c Child) error {
	have := r.done[c.ID]
	k := dir.kids[c.Name]
	if k != nil {
		if err := r.recognise(k, c); err != nil {
			return err
		}
		fits, err := r.fits(k, c)
		if err != nil {
			return err
		}
		switch {
		case fits && have == nil && r.fresh[c.ID] == "":
			r.settle(k)
			return nil
		case fits && have != nil && have.same(k):
			k.settled = true
			return nil
		}
		if err := r.limbo(k); err != nil {
			return err
		}
	}
	if r.tell {
		defer func(name string) {
			path, _ := pathOf(c.ID, r.view.inode)
			r.note(EventRepaired, c.ID, path, fmt.Sprintf("%q was not this object, or nothing: put there, or made again", name))
		}(c.Name)
	}
	if have != nil {
		return r.link(have, dir, c.Name)
	}
	cand, err := r.candidate(c)
	if err != nil {
		return err
	}
	if cand == nil {
		return r.create(dir, c)
	}
	in, err := r.view.inode(c.ID)
	if err != nil {
		return err
	}
	if r.wanted(in, cand) { // another of its names, not settled so far
		r.settle(cand)
		return r.link(cand, dir, c.Name)
	}
	if err := r.move(cand, dir, c.Name); err != nil {
		return err
	}
	r.report.Moved++
	r.settle(cand)
	return nil
}

// depth is how far below the root the index has directory id.
func (r *reconciler) depth(id op.ID) (int, error) {
	if d, ok := r.depths[id]; ok {
		return d, nil
	}
	in, err := r.view.inode(id)
	if err != nil {
		return 0, fmt.Errorf("directory %d: %w", id, err)
	}
	if len(in.Names) == 0 {
		return 0, fmt.Errorf("directory %d has no name in the index", id)
	}
	d, err := r.depth(in.Names[0].Dir)
	if err != nil {
		return 0, err
	}
	r.depths[id] = d + 1
	return d + 1, nil
}

// enqueue puts directory id on the list of those to be placed.
func (r *reconciler) enqueue(id op.ID) error {
	d, err := r.depth(id)
	if err != nil {
		return err
	}
	for len(r.queue) <= d {
		r.queue = append(r.queue, nil)
	}
	r.queue[d] = append(r.queue[d], id)
	return nil
}

// fits reports whether n is the object that c names.
func (r *reconciler) fits(n *node, c Child) (bool, error) {
	if n.id != c.ID || n.typ() != c.Type {
		return false, nil
	}
	switch c.Type {
	case typeDir, typeRegular:
		return true, nil
	}
	in, err := r.view.inode(c.ID)
	if err != nil {
		return false, err
	}
	if c.Type == typeSymlink {
		target, err := os.Readlink(n.path())
		return err == nil && target == in.Target, nil
	}
	return uint32(n.stat.Rdev) == in.Rdev || c.Type != unix.S_IFCHR && c.Type != unix.S_IFBLK, nil
}

// settle notes that n is the object that the index means.
func (r *reconciler) settle(n *node) {
	n.settled = true
	r.done[n.id] = n
	if n.isDir() {
		r.at[n.id] = n
	}
}

// candidate finds the object of c somewhere else: what a resync fetched, else
// a place where the index wants it too, else any.
func (r *reconciler) candidate(c Child) (*node, error) {
	in, err := r.view.inode(c.ID)
	if err != nil {
		return nil, err
	}
	var best *node
	rank := 0
	for _, n := range r.places[c.ID] {
		ok, err := r.fits(n, c)
		if err != nil {
			return nil, err
		}
		if !ok || n.settled || n.removed {
			continue
		}
		now := 1
		switch {
		case r.fresh[c.ID] != "" && n.parent == r.stage && n.name == r.fresh[c.ID]:
			now = 4
		case c.Type == typeDir && r.at[c.ID] == n:
			now = 3
		case r.wanted(in, n):
			now = 2
		}
		if now > rank {
			best, rank = n, now
		}
	}
	return best, nil
}

// limbo moves n out of the way, to be found again by its id. A torn file has
// nothing that the log does not have.
func (r *reconciler) limbo(n *node) error {
	if n.adopted && !n.isDir() {
		return r.remove(n)
	}
	if n.adopted {
		if err := r.step("mark", n.path()); err != nil {
			return err
		}
		if err := writeMark(n.path(), mark{ID: n.id}); err != nil {
			return err
		}
		n.adopted = false
	}
	name, err := r.unused(limboPrefix)
	if err != nil {
		return err
	}
	return r.move(n, r.stage, name)
}

// unused makes a name that stage/ does not have.
func (r *reconciler) unused(prefix string) (string, error) {
	for {
		r.serial++
		name := fmt.Sprintf("%s%d", prefix, r.serial)
		if k, err := r.stage.look(name); err != nil || k == nil {
			return name, err
		}
	}
}

// move renames n; the new name must be free.
func (r *reconciler) move(n, dir *node, name string) error {
	from := n.path()
	to := (&node{parent: dir, name: name}).path()
	if err := r.step("rename", to); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	n.detach()
	n.attach(dir, name)
	n.moved = true
	return nil
}

// link gives n one more name.
func (r *reconciler) link(n, dir *node, name string) error {
	k := &node{parent: dir, name: name, id: n.id, stat: n.stat, settled: true, moved: true}
	if err := r.step("link", k.path()); err != nil {
		return err
	}
	if err := os.Link(n.path(), k.path()); err != nil {
		return err
	}
	r.report.Moved++
	k.attach(dir, name)
	return nil
}

// create makes the object of c anew: it was found nowhere. Content follows.
func (r *reconciler) create(dir *node, c Child) error {
	in, err := r.view.inode(c.ID)
	if err != nil {
		return err
	}
	name, err := r.unused(newPrefix)
	if err != nil {
		return err
	}
	n := &node{parent: r.stage, name: name, id: c.ID}
	if err := r.step("create", n.path()); err != nil {
		return err
	}
	if err := makeObject(n.path(), in); err != nil {
		return err
	}
	if err := writeMark(n.path(), mark{ID: in.ID}); err != nil {
		return err
	}
	if _, err := n.load(); err != nil {
		return err
	}
	n.attach(r.stage, name)
	if err := r.move(n, dir, c.Name); err != nil {
		return err
	}
	r.report.Made++
	switch {
	case n.isDir():
		n.scanned = true
		r.at[c.ID] = n
		r.t.objects[c.ID] = true
		if !r.t.dirs[c.ID] {
			r.t.dirs[c.ID] = true
			if err := r.enqueue(c.ID); err != nil {
				return err
			}
		}
	case n.isRegular():
		r.made = append(r.made, c.ID)
	}
	r.t.objects[c.ID] = true
	r.settle(n)
	return nil
}

// makeObject makes an empty object of in's type. The mode is completed by
// attributes.
func makeObject(path string, in *Inode) error {
	switch in.Type() {
	case typeDir:
		return os.Mkdir(path, 0o700)
	case typeSymlink:
		return os.Symlink(in.Target, path)
	case typeRegular:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err := unix.Mknod(path, in.Type()|0o600, int(in.Rdev)); err != nil {
		return &os.PathError{Op: "mknod", Path: path, Err: err}
	}
	return nil
}
