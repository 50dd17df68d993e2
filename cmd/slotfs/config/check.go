package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"slotfs/cmd/slotfs/exit"
	"slotfs/cmd/slotfs/pki"
)

// Check compares the config with the machine: certificates, directories, the
// socket. It changes nothing, and returns the node's certificate. The error is
// Errors.
func (c *Config) Check() (*pki.Node, error) {
	k := &checker{c: c}
	node := k.certificates()
	k.socket()
	k.register()
	k.slots()
	k.sameDirs()
	if len(k.errs) > 0 {
		return nil, k.errs
	}
	return node, nil
}

type checker struct {
	c    *Config
	errs Errors
}

func (k *checker) fail(code exit.Code, key, remedy string, err error, format string, args ...any) {
	k.errs = append(k.errs, &Error{File: k.c.Path, Key: key, Remedy: remedy, Code: code, Err: err, Reason: fmt.Sprintf(format, args...)})
}

func (k *checker) certificates() *pki.Node {
	cluster, err := pki.Load(k.c.ClusterDir)
	if err != nil {
		k.pki("cluster_dir", err)
		return nil
	}
	node, err := cluster.LoadNode(k.c.Node, k.c.Cert, k.c.Key)
	if err != nil {
		key := "replication.cert"
		var pe *pki.Error
		if errors.As(err, &pe) && pe.File == k.c.Key {
			key = "replication.key"
		}
		k.pki(key, err)
	}
	return node
}

func (k *checker) pki(key string, err error) {
	remedy := ""
	var pe *pki.Error
	if errors.As(err, &pe) {
		remedy = pe.Remedy
	}
	k.fail(exit.Config, key, remedy, err, "%v", err)
}

func (k *checker) socket() {
	dir := filepath.Dir(k.c.Socket)
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.fail(exit.Config, "admin.socket", "mkdir -p "+dir+", or RuntimeDirectory=slotfs in the systemd unit.", err, "directory %s does not exist", dir)
		return
	case err != nil:
		k.fail(exit.Config, "admin.socket", "", err, "%v", err)
		return
	case !fi.IsDir():
		k.fail(exit.Config, "admin.socket", "", nil, "%s is not a directory", dir)
		return
	}
	fi, err = os.Lstat(k.c.Socket)
	if err != nil {
		return
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		k.fail(exit.Config, "admin.socket", "Remove it or choose another path.", nil, "%s exists and is not a socket", k.c.Socket)
		return
	}
	// A socket that answers belongs to a process that runs; one that refuses
	// was left by a crash and will be replaced.
	if conn, err := net.Dial("unix", k.c.Socket); err == nil {
		conn.Close()
		k.fail(exit.Config, "admin.socket", "Stop it first, or give this node a socket of its own.", nil, "another slotfs is serving at %s", k.c.Socket)
	}
}

func (k *checker) slots() {
	for i := range k.c.Slots {
		s := &k.c.Slots[i]
		key := SlotKey(s.Store, i)
		k.data(key+".data", s)
		k.mount(key+".mount", s)
		k.hook(key+".on_promote", s.OnPromote)
		k.hook(key+".on_demote", s.OnDemote)
		k.hook(key+".on_degraded", s.OnDegraded)
	}
}

func (k *checker) data(key string, s *Slot) {
	fi, err := os.Stat(s.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// Never made here: a disk that is not mounted must not become an
		// empty slot.
		k.fail(exit.Data, key, "If its disk is not mounted, mount it; for a new slot run: slotfs create "+s.Store+" --config "+k.c.Path,
			err, "directory %s does not exist", s.Data)
	case err != nil:
		k.fail(exit.Data, key, "", err, "%v", err)
	case !fi.IsDir():
		k.fail(exit.Data, key, "", nil, "%s is not a directory", s.Data)
	}
}

func (k *checker) mount(key string, s *Slot) {
	fi, err := os.Stat(s.Mount)
	switch {
	case errors.Is(err, unix.ENOTCONN):
		return // the corpse of a crashed daemon's mount; mounting cleans it up
	case errors.Is(err, fs.ErrNotExist):
		k.fail(exit.Mount, key, "mkdir -p "+s.Mount, err, "directory %s does not exist", s.Mount)
		return
	case err != nil:
		k.fail(exit.Mount, key, "", err, "%v", err)
		return
	case !fi.IsDir():
		k.fail(exit.Mount, key, "", nil, "%s is not a directory", s.Mount)
		return
	}
	// A stat may be answered from the kernel's cache long after the daemon has
	// died; statfs asks it.
	var st unix.Statfs_t
	if err := unix.Statfs(s.Mount, &st); errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED) {
		return
	}
	if mounted(s.Mount) {
		k.fail(exit.Mount, key, "Unmount it (umount "+s.Mount+") or choose another mount point.", nil, "something is mounted on %s already", s.Mount)
		return
	}
	d, err := os.Open(s.Mount)
	if err != nil {
		k.fail(exit.Mount, key, "", err, "%v", err)
		return
	}
	defer d.Close()
	names, err := d.Readdirnames(1)
	if len(names) > 0 {
		k.fail(exit.Mount, key, "Move its files away: a mount would hide them. To take an existing mail spool over, it has to be imported.",
			nil, "mount point %s is not empty: it holds %q", s.Mount, names[0])
	} else if err != nil && err != io.EOF {
		k.fail(exit.Mount, key, "", err, "%v", err)
	}
}

// mounted reports whether dir is the root of a mount.
func mounted(dir string) bool {
	var here, up unix.Statx_t
	const mask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID
	if unix.Statx(unix.AT_FDCWD, dir, 0, mask, &here) != nil || unix.Statx(unix.AT_FDCWD, filepath.Dir(dir), 0, mask, &up) != nil {
		return false
	}
	if here.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return here.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	return here.Dev_major != up.Dev_major || here.Dev_minor != up.Dev_minor
}

func (k *checker) hook(key string, argv []string) {
	if len(argv) == 0 {
		return
	}
	fi, err := os.Stat(argv[0])
	switch {
	case err != nil:
		k.fail(exit.Config, key, "Install it or correct the path.", err, "program %s cannot be used: %v", argv[0], err)
	case fi.IsDir() || fi.Mode()&0o111 == 0:
		k.fail(exit.Config, key, "chmod +x "+argv[0], nil, "%s is not executable", argv[0])
	}
}

// sameDirs finds directories that are the same behind different names
// (symbolic links, bind mounts).
func (k *checker) sameDirs() {
	type use struct {
		key, dir string
		fi       os.FileInfo
	}
	var uses []use
	for i, s := range k.c.Slots {
		for _, u := range []use{{key: SlotKey(s.Store, i) + ".data", dir: s.Data}, {key: SlotKey(s.Store, i) + ".mount", dir: s.Mount}} {
			fi, err := os.Stat(u.dir)
			if err != nil {
				continue
			}
			u.fi = fi
			for _, v := range uses {
				if os.SameFile(u.fi, v.fi) {
					k.fail(exit.Config, u.key, "Give every slot its own data directory and mount point.", nil,
						"directory %s is the same as %s, which is %s", u.dir, v.dir, v.key)
				}
			}
			uses = append(uses, u)
		}
	}
}
