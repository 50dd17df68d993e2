package fs

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The kernel makes the inode of a FUSE mount's root before it knows that the
// file system has ACLs, and never caches that one inode's (seen on 6.18: a
// GETXATTR of system.posix_acl_access for every path that begins at the mount
// point, by whomever does not own it). That was half of all requests under
// Dovecot. So what is mounted for the world is not the kernel's root but a
// directory in it, the door, which is an ordinary inode; both are our root
// directory. Once the door is mounted nobody can reach the other.

const (
	// kernelRoot is what the kernel calls the root of every FUSE mount.
	kernelRoot = 1
	// rootNode is the kernel's name of our root directory behind the door.
	rootNode = 2
	// door is a name that only exists until Mount returns.
	door = ".slotfs-door"
)

// isRoot reports whether nodeid means the root directory.
func isRoot(nodeid uint64) bool { return nodeid == rootNode || nodeid == kernelRoot }

// throughDoor replaces the fresh mount at f.mount by one of the door. Where the
// system does not let us, the mount stays as it is, only slower.
func (f *FS) throughDoor() error {
	defer f.doorShut.Store(true)
	tree, err := unix.OpenTree(unix.AT_FDCWD, filepath.Join(f.mount, door), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		f.log.Debug("mounted by the kernel's root", keyErr, err)
		return nil
	}
	defer unix.Close(tree)
	// Nobody has been told of the mount, so nobody misses it.
	if err := unix.Unmount(f.mount, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("mount %s: replace it: %w", f.mount, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, f.mount, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", f.mount, err)
	}
	return nil
}
