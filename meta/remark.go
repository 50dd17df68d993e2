package meta

import (
	"slices"

	"golang.org/x/sys/unix"
)

// recognise gives n, which has the name of c, the mark that it has lost or that
// was changed, if it is c's object all the same: that object is nowhere else, and
// the content of n is the index's. What cannot be compared (a control file that
// has changed lately) has to agree in size and mtime; a directory has to hold
// something that belongs into it, or to be empty as it should be.
func (r *reconciler) recognise(n *node, c Child) error {
	if n.id == c.ID || n.adopted || n.typ() != c.Type || r.done[c.ID] != nil || r.fresh[c.ID] != "" {
		return nil
	}
	if n.id != 0 && r.t.objects[n.id] {
		return nil // its mark is right: the run says why it was here
	}
	in, err := r.view.inode(c.ID)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(r.places[c.ID], func(o *node) bool { return !o.removed }) {
		return nil
	}
	same, err := r.resembles(n, in)
	if err != nil || !same {
		return err
	}
	if err := r.step("mark", n.path()); err != nil {
		return err
	}
	if err := writeMark(n.path(), markOf(in)); err != nil {
		return err
	}
	r.places[n.id] = slices.DeleteFunc(r.places[n.id], func(o *node) bool { return o == n })
	n.id = c.ID
	r.places[c.ID] = append(r.places[c.ID], n)
	if n.isDir() {
		r.at[c.ID] = n
	}
	r.t.objects[c.ID] = true
	r.report.Attributes++
	path, _ := pathOf(c.ID, r.view.inode)
	r.note(EventRepaired, c.ID, path, "the attribute that ties it to its id was gone or wrong, and was written again")
	return nil
}

// resembles reports whether n is what in describes, as far as that shows.
func (r *reconciler) resembles(n *node, in *Inode) (bool, error) {
	switch {
	case n.isDir():
		if err := r.scan(n); err != nil {
			return false, err
		}
		return r.belongs(n, in)
	case !n.isRegular():
		return true, nil // fits compares what there is of it
	case in.Sum != nil:
		bad, err := r.verify(n, in)
		return bad == nil && err == nil, err
	}
	return n.stat.Size == in.Size && unix.TimespecToNsec(n.stat.Mtim) == in.Mtime, nil
}

// belongs reports whether directory n holds something of in's.
func (r *reconciler) belongs(n *node, in *Inode) (bool, error) {
	if in.Count == 0 {
		return len(n.kids) == 0, nil
	}
	children, err := r.view.children(in.ID)
	if err != nil {
		return false, err
	}
	for _, c := range children {
		if k := n.kids[c.Name]; k != nil && k.typ() == c.Type {
			return true, nil
		}
	}
	return false, nil
}
