package meta

import (
	"errors"
	"fmt"
	"slices"

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
