package meta

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Reconcile makes the tree what the index says, where a run of entries touched
// it. It is how a slot recovers, how a resync ends and how check repairs.
//
// It compares states and never repeats operations: the tree is found
// somewhere between the last checkpoint C and the last entry of the log, after
// a loss of power with every touched object old, new, absent, zero-filled or
// torn by itself. Redoing "rename a to b" by path on such a tree destroys what
// another operation put there (DESIGN.md section 9). Objects carry their id in
// an xattr, so:
//
//  1. survey: find the touched directories, by the index's path where nothing
//     on the way moved, else by their id while scanning the others, until
//     nothing new turns up; note where every id is found, in trash/ and stage/
//     too.
//  2. place: from the root down, give every name of a touched directory the
//     object that the index names there: keep it, or move the wrong occupant
//     to stage/limbo-N and rename or link the right one in, from wherever it
//     was found, or make it anew. Top-down order means that the ancestors of
//     a destination are final, so nothing is ever moved into itself.
//  3. leftovers: what is now where the index has no name for it. An id whose
//     removal the log explains goes to trash/; a further name of an object in
//     its place is unlinked; anything else goes to quarantine/ with a record.
//  4. content: sealed files are verified and rewritten from the log; the
//     changes of control files since C are repeated in order, which gives the
//     same bytes from whatever state between C and K they are in.
//  5. attributes, and the mtimes of directories last.
//
// Nothing is destroyed before what the index wants is in place, and every
// object keeps its id wherever it is moved; so it can be killed at any moment,
// by loss of power too, and run again.
type reconciler struct {
	data string // the data directory
	view indexView
	log  logReader // may be nil: no content to be had from there
	t    *trail
	full bool // every directory of index and tree is touched

	// fresh is set by a resync: content fetched into stage/, to be used instead
	// of what is in the tree under the same id.
	fresh map[op.ID]string
	// vanished says what becomes of a leftover that the log does not explain:
	// nil or false for quarantine, true for trash.
	vanished func(id op.ID, sealed bool) bool
	// ahead: control files may be, as a resync fetched them.
	ahead bool
	// hold asks before a step that changes anything; tests stop there.
	hold func(step, path string) error
	// note is told of what has to be known by people.
	note func(kind string, id op.ID, path, text string)
	// tell: that an object was moved or made is to be known, too; at a start it
	// is what a crash leaves.
	tell bool

	base, tree, stage, trash *node

	at      map[op.ID]*node   // directories found
	places  map[op.ID][]*node // where each id was found
	done    map[op.ID]*node   // objects in place
	made    []op.ID           // regular files made empty: content is due
	missing map[op.ID]bool    // files whose content is nowhere
	good    map[op.ID]bool    // files whose content was verified or written
	depths  map[op.ID]int
	queue   [][]op.ID // directories to place, by depth
	serial  int       // of limbo and new names

	report ReconcileReport
}

// ReconcileReport counts what reconcile did.
type ReconcileReport struct {
	Dirs        int `json:"dirs"`        // directories looked through
	Moved       int `json:"moved"`       // names given to objects found elsewhere
	Made        int `json:"made"`        // objects made anew
	Rewritten   int `json:"rewritten"`   // contents written from the log
	Trashed     int `json:"trashed"`     // leftovers whose removal is explained
	Quarantined int `json:"quarantined"` // leftovers that nothing explains
	Missing     int `json:"missing"`     // objects whose content is nowhere on this slot
	Attributes  int `json:"attributes"`  // objects with attributes corrected
	LogEntries  int `json:"log_entries"` // entries replayed
}

// indexView is an index at one point.
type indexView interface {
	inode(id op.ID) (*Inode, error)
	children(dir op.ID) ([]Child, error)
}

// logReader is what reconcile needs of the log.
type logReader interface {
	First() uint64
	Read(from uint64, maxBytes int) ([]*op.Entry, error)
}

// Names in stage/ that belong to reconcile and resync.
const (
	limboPrefix = "limbo-" // moved out of the way
	newPrefix   = "new-"   // being made; worthless until renamed
	syncPrefix  = "sync-"  // fetched by a resync
)

func newReconciler(data string, v indexView, log logReader, t *trail) *reconciler {
	r := &reconciler{
		data: data, view: v, log: log, t: t,
		note:    func(string, op.ID, string, string) {},
		at:      map[op.ID]*node{},
		places:  map[op.ID][]*node{},
		done:    map[op.ID]*node{},
		missing: map[op.ID]bool{},
		good:    map[op.ID]bool{},
		depths:  map[op.ID]int{op.Root: 0},
	}
	return r
}

// run does it all, apart from making it durable.
func (r *reconciler) run() (*ReconcileReport, error) {
	defer func() {
		if r.base != nil {
			r.base.close()
		}
	}()
	for _, phase := range []struct {
		name string
		do   func() error
	}{
		{"survey", r.survey},
		{"place", r.place},
		{"leftovers", r.leftovers},
		{"content", r.contents},
		{"attributes", r.attributes},
	} {
		if err := phase.do(); err != nil {
			return nil, fmt.Errorf("reconcile tree: %s: %w", phase.name, err)
		}
	}
	return &r.report, nil
}

// step is called before anything is changed on disk.
func (r *reconciler) step(what, path string) error {
	if r.hold == nil {
		return nil
	}
	return r.hold(what, path)
}

// inode is the index's word on id; nil if it does not have it.
func (r *reconciler) inode(id op.ID) (*Inode, error) {
	if id == 0 {
		return nil, nil
	}
	in, err := r.view.inode(id)
	if errors.Is(err, ErrNotExist) {
		return nil, nil
	}
	return in, err
}

// wanted reports whether the index has id under n's name.
func wanted(in *Inode, n *node) bool {
	if in == nil || in.Type() != n.typ() {
		return false
	}
	return n.parent != nil && slices.Contains(in.Names, Name{Dir: n.parent.id, Name: n.name})
}

// wanted is the same for a node in the directory that counts: of two with one
// id, one does.
func (r *reconciler) wanted(in *Inode, n *node) bool {
	return wanted(in, n) && r.at[n.parent.id] == n.parent
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

// place gives every name of every touched directory its object.
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
			return r.settle(k)
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
		if err := r.settle(cand); err != nil {
			return err
		}
		return r.link(cand, dir, c.Name)
	}
	if err := r.move(cand, dir, c.Name); err != nil {
		return err
	}
	r.report.Moved++
	return r.settle(cand)
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
func (r *reconciler) settle(n *node) error {
	n.settled = true
	r.done[n.id] = n
	if n.isDir() {
		r.at[n.id] = n
	}
	return nil
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
