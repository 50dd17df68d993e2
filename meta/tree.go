package meta

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// tree is the plain directory that the mount shows, and trash and stage beside
// it: the applier's hands. All calls are relative to directory descriptors that
// are found by id.
type tree struct {
	data  string // the data directory
	x     *index
	found func(Event, ledger.Entry)
	umask uint32
	uid   uint32 // of this process: what new files belong to
	gid   uint32

	root, trash, stage, quarantine *handle

	// mu is held for writing while an entry goes into the index and then into
	// the tree: who holds it for reading sees both agree. Lock order: tree.mu,
	// index.mu, fdCache.mu.
	mu sync.RWMutex

	dirs  *fdCache
	files *fdCache // regular files whose content changes: control files

	// late holds the directories and control files whose mtime is to be set at
	// the end of the batch. Only the writer uses it.
	late map[op.ID]struct{}

	// epoch is that of the last entry; nil if not known. Only the writer uses it.
	epoch *op.EpochBegin

	// wait is called before a step that found the disk full is tried again, and
	// over when it did not any more.
	wait func(ctx context.Context, err error) error
	over func()
	ctx  context.Context // ends such waiting
}

const (
	dirsOpen  = 512
	filesOpen = 256

	openDir  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	openFile = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

func openTree(data string, x *index, found func(Event, ledger.Entry)) (*tree, error) {
	t := &tree{
		data: data, x: x, found: found,
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()),
		dirs: newFDCache(dirsOpen), files: newFDCache(filesOpen),
		late: make(map[op.ID]struct{}),
		ctx:  context.Background(),
	}
	t.wait = func(_ context.Context, err error) error { return err }
	t.over = func() {}
	var err error
	if t.umask, err = readUmask(); err != nil {
		return nil, err
	}
	for name, h := range map[string]**handle{dirTree: &t.root, dirTrash: &t.trash, dirStage: &t.stage, dirQuarantine: &t.quarantine} {
		fd, err := unix.Open(filepath.Join(data, name), openDir, 0)
		if err != nil {
			t.close()
			return nil, &os.PathError{Op: "open", Path: filepath.Join(data, name), Err: err}
		}
		*h = &handle{fd: fd}
	}
	t.root.id = op.Root
	return t, nil
}

// forget closes what is open of directories and files: they may not be where
// they were.
func (t *tree) forget() {
	t.dirs.forgetAll()
	t.files.forgetAll()
}

func (t *tree) close() {
	t.forget()
	for _, h := range []*handle{t.root, t.trash, t.stage, t.quarantine} {
		if h != nil {
			unix.Close(h.fd)
		}
	}
}

// readUmask learns the process's umask without changing it.
func readUmask() (uint32, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read umask: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			m, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32)
			return uint32(m), err
		}
	}
	return 0, errors.New("read umask: not in /proc/self/status")
}

// dir opens a directory by id. The caller holds mu, or is the only one.
// With make, a directory that is missing in the tree is made again.
func (t *tree) dir(id op.ID, make bool) (*handle, error) {
	if id == op.Root {
		return t.root, nil
	}
	if h := t.dirs.get(id); h != nil {
		return h, nil
	}
	n, err := t.x.inode(id)
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", id, err)
	}
	if len(n.Names) != 1 || !n.IsDir() {
		return nil, fmt.Errorf("id %d is no directory: %w", id, unix.ENOTDIR)
	}
	above, err := t.dir(n.Names[0].Dir, make)
	if err != nil {
		return nil, err
	}
	defer above.release()
	name := n.Names[0].Name
	fd, err := openat(above.fd, name, openDir, 0)
	if errors.Is(err, unix.ENOENT) && make {
		t.missing(id, "made again")
		return t.makeDir(above, name, n)
	}
	if err != nil {
		return nil, fmt.Errorf("open directory %q (id %d): %w", name, id, err)
	}
	return t.dirs.add(id, fd), nil
}

// makeDir makes the directory n as name in above.
func (t *tree) makeDir(above *handle, name string, n *Inode) (*handle, error) {
	err := t.again(func() error { return unix.Mkdirat(above.fd, name, n.Mode&0o777) })
	if errors.Is(err, unix.EEXIST) {
		if err = t.displace(above, name); err == nil {
			err = unix.Mkdirat(above.fd, name, n.Mode&0o777)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make directory %q: %w", name, err)
	}
	fd, err := openat(above.fd, name, openDir, 0)
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", name, err)
	}
	h := t.dirs.add(n.ID, fd)
	if err := t.dress(fd, n, true); err != nil {
		h.release()
		return nil, err
	}
	t.late[n.ID] = struct{}{}
	return h, nil
}

// dress gives an object that was just made its mark, xattrs, owner and mode.
// inherits: it may have got mode bits or ACLs from its directory.
func (t *tree) dress(fd int, n *Inode, inherits bool) error {
	err := t.again(func() error { return unix.Fsetxattr(fd, markName, markOf(n).encode(), 0) })
	if err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	if inherits {
		for _, name := range []string{aclAccess, aclDefault} {
			if _, ours := n.Xattr[name]; !ours {
				if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
					return fmt.Errorf("remove inherited %s: %w", name, err)
				}
			}
		}
	}
	if n.UID != t.uid || n.GID != t.gid || inherits {
		if err := unix.Fchown(fd, int(n.UID), int(n.GID)); err != nil {
			return fmt.Errorf("chown: %w", err)
		}
	}
	for name, value := range n.Xattr {
		if err := t.again(func() error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
			return fmt.Errorf("set xattr %s: %w", name, err)
		}
	}
	// After chown, which clears set-id bits.
	if mode := n.Mode & permMask; inherits || len(n.Xattr) > 0 || mode != mode&0o777&^t.umask {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("chmod: %w", err)
		}
	}
	return nil
}

// The ACLs, which the kernel itself copies from a directory's default ACL.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

// inherits reports whether what is made in dir gets more than it was made with.
func inherits(dir *Inode) bool {
	_, acl := dir.Xattr[aclDefault]
	return acl || dir.Mode&unix.S_ISGID != 0
}

// file opens a regular file that has a name, by id. The caller holds mu, or is
// the only one.
func (t *tree) file(n *Inode) (*handle, error) {
	if h := t.files.get(n.ID); h != nil {
		return h, nil
	}
	if len(n.Names) == 0 {
		return t.trashed(n.ID)
	}
	fd, err := t.openNamed(n, openFile)
	if err != nil {
		return nil, err
	}
	m, err := readMarkFd(fd)
	h := t.files.add(n.ID, fd)
	if err == nil && m.Lost {
		h.lost.Store(true)
	}
	return h, nil
}

// openNamed opens n by its first name; the descriptor is the caller's.
func (t *tree) openNamed(n *Inode, flags int) (int, error) {
	at := n.Names[0]
	d, err := t.dir(at.Dir, false)
	if err != nil {
		return -1, err
	}
	defer d.release()
	fd, err := openat(d.fd, at.Name, flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q (id %d): %w", at.Name, n.ID, err)
	}
	return fd, nil
}

// trashed opens what is left of an unlinked file.
func (t *tree) trashed(id op.ID) (*handle, error) {
	if h := t.files.get(id); h != nil {
		return h, nil
	}
	fd, err := openat(t.trash.fd, trashName(id), openFile, 0)
	if err != nil {
		return nil, fmt.Errorf("open id %d in trash: %w", id, err)
	}
	return t.files.add(id, fd), nil
}

func trashName(id op.ID) string { return strconv.FormatUint(uint64(id), 10) }

// again does step, and does it again when the disk was full and is no longer:
// an entry that is committed cannot be refused any more.
func (t *tree) again(step func() error) error {
	for waited := false; ; waited = true {
		err := step()
		if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
			if waited {
				t.over()
			}
			return err
		}
		if err := t.wait(t.ctx, err); err != nil {
			return err
		}
	}
}

// displace moves what no entry explains out of the way, into quarantine.
func (t *tree) displace(d *handle, name string) error {
	to := fmt.Sprintf("%d-%s", time.Now().UnixNano(), "unexpected")
	if err := unix.Renameat(d.fd, name, t.quarantine.fd, to); err != nil {
		return fmt.Errorf("move unexpected %q to quarantine: %w", name, err)
	}
	t.late[d.id] = struct{}{}
	dir, _ := t.x.path(d.id)
	path := filepath.Join(dir, name)
	t.found(Event{Kind: EventUnexpected, Path: path, Text: "a file in the tree that no entry explains was moved to quarantine/" + to},
		ledger.Entry{Outcome: ledger.Kept})
	return writeRecord(filepath.Join(t.data, dirQuarantine, to+".json"), map[string]any{
		"time": time.Now(), "path": path, "reason": "in the way of an entry, and no entry explains it",
	})
}

// missing reports that something was not where the index has it.
func (t *tree) missing(id op.ID, what string) {
	path, _ := t.x.path(id)
	t.found(Event{Kind: EventMissing, ID: id, Path: path, Text: "missing in the tree: " + what}, ledger.Entry{Outcome: ledger.Unrepaired})
}

// setTimes sets the mtimes that were put off; they come from the index, whose
// state the tree now has.
func (t *tree) setTimes() error {
	for id := range t.late {
		n, err := t.x.inode(id)
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		var h *handle
		if n.IsDir() {
			h, err = t.dir(id, true)
		} else {
			h, err = t.file(n)
		}
		if errors.Is(err, unix.ENOENT) {
			continue // reported when it was missed
		}
		if err != nil {
			return err
		}
		err = futimens(h.fd, n.Mtime)
		h.release()
		if err != nil {
			return fmt.Errorf("set mtime of id %d: %w", id, err)
		}
	}
	clear(t.late)
	return nil
}

// sync makes tree, trash and stage durable.
func (t *tree) sync() error {
	if err := unix.Syncfs(t.root.fd); err != nil {
		return fmt.Errorf("syncfs tree: %w", err)
	}
	return nil
}
