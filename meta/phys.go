package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// node is a file or directory as it was found on disk. Nodes know their parent
// instead of a path, so moving a directory moves all that was found in it.
type node struct {
	parent *node // nil for the data directory
	name   string
	id     op.ID // from its xattr; 0: none
	stat   unix.Stat_t

	kids    map[string]*node // of a directory: those looked at so far
	scanned bool             // kids holds all of them
	settled bool             // it is where the index wants it
	moved   bool             // reconcile made or moved it
	removed bool             // it is no longer there
	adopted bool             // id was concluded from the log: the xattr is missing

	fd int // of a directory very far down, to name it by; 0: not open
}

// pathMax is how long paths may get. The kernel takes 4095 bytes, and a tree
// can be deeper.
const pathMax = 2000

// path is what to call n in system calls.
func (n *node) path() string {
	if n.parent == nil {
		return n.name
	}
	return filepath.Join(n.parent.prefix(), n.name)
}

// prefix is the beginning of the paths of what is in n.
func (n *node) prefix() string {
	if n.fd == 0 {
		path := n.path()
		if len(path) <= pathMax {
			return path
		}
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return path
		}
		n.fd = fd
	}
	return fmt.Sprintf("/proc/self/fd/%d", n.fd)
}

// shown is what to call n to people: the path in the data directory.
func (n *node) shown() string {
	if n.parent == nil || n.parent.parent == nil {
		return n.name
	}
	return filepath.Join(n.parent.shown(), n.name)
}

// close gives up descriptors below n.
func (n *node) close() {
	if n.fd != 0 {
		unix.Close(n.fd)
		n.fd = 0
	}
	for _, k := range n.kids {
		k.close()
	}
}

func (n *node) typ() uint32     { return n.stat.Mode & typeMask }
func (n *node) isDir() bool     { return n.typ() == typeDir }
func (n *node) isRegular() bool { return n.typ() == typeRegular }

// same reports whether n and m are names of one physical file.
func (n *node) same(m *node) bool {
	return n.stat.Dev == m.stat.Dev && n.stat.Ino == m.stat.Ino
}

// detach takes n out of its directory, attach puts it into one.
func (n *node) detach() {
	if n.parent != nil && n.parent.kids[n.name] == n {
		delete(n.parent.kids, n.name)
	}
}

func (n *node) attach(dir *node, name string) {
	if dir.kids == nil {
		dir.kids = map[string]*node{}
	}
	n.parent, n.name = dir, name
	dir.kids[name] = n
}

// names lists the kids in order, so that runs are repeatable.
func (n *node) names() []string {
	names := make([]string, 0, len(n.kids))
	for name := range n.kids {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// look finds what dir holds under name; nil if nothing.
func (n *node) look(name string) (*node, error) {
	if k := n.kids[name]; k != nil || n.scanned {
		return k, nil
	}
	k := &node{parent: n, name: name}
	ok, err := k.load()
	if err != nil || !ok {
		return nil, err
	}
	k.attach(n, name)
	return k, nil
}

// load reads n's attributes and id; false if there is nothing of that name.
func (n *node) load() (bool, error) {
	path := n.path()
	if err := unix.Lstat(path, &n.stat); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	m, err := readMark(path)
	switch {
	case err == nil:
		n.id = m.ID
	case errors.Is(err, errNoMark):
		n.id = 0
	default:
		return false, fmt.Errorf("read xattr of %s: %w", path, err)
	}
	return true, nil
}

// scan reads directory n completely.
func (n *node) scan() error {
	if n.scanned {
		return nil
	}
	d, err := os.Open(n.path())
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, name := range names {
		if _, err := n.look(name); err != nil {
			return err
		}
	}
	n.scanned = true
	return nil
}
