package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/meta"
	"slotfs/meta/op"
)

// Why a mount point is refused; found inside a *MountError.
var (
	ErrMounted  = errors.New("something is mounted there")
	ErrNotEmpty = errors.New("mount point is not empty")
	ErrNotDir   = errors.New("mount point is not a directory")
)

// MountError says why a mount point was refused, and what to do about it.
type MountError struct {
	Dir    string
	Reason error // one of the errors above, or the system's
	Detail string
	Remedy string
}

func (e *MountError) Error() string {
	s := fmt.Sprintf("mount point %s: %v", e.Dir, e.Reason)
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	if e.Remedy != "" {
		s += ": " + e.Remedy
	}
	return s
}

// Unwrap gives the reason to errors.Is.
func (e *MountError) Unwrap() error { return e.Reason }

// Mount mounts s, which is started and leads, at dir, and returns once it can
// be used. What a killed process left mounted there is removed first.
func Mount(dir string, s *meta.Slot, o Options) (*FS, error) {
	o = o.withDefaults()
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("mount point %s: %w", dir, err)
	}
	if err := clearMountPoint(dir, o.Logger); err != nil {
		return nil, err
	}
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		slot:          s, oplog: s.Log, layout: s.Layout, opt: o,
		log:   o.Logger.With(keyMount, dir),
		mount: dir,
		spill: spill{dir: s.VolatileDir(), perFile: o.MemoryPerFile, all: o.MemoryTotal},
		nodes: make(map[uint64]*node), byID: make(map[op.ID]*node),
		loading: make(map[op.ID]chan struct{}), lastNode: rootNode,
		dirTimes: make(map[op.ID]int64), dirty: make(map[op.ID]quiet),
		complaints: make(map[complaint]time.Time),
		virt:       map[uint64]*virtual{virtualBase: {isDir: true, time: now()}},
	}
	f.ctx, f.cancel = context.WithCancelCause(context.Background())
	if err := f.prepare(); err != nil {
		f.cancel(errUnmounting)
		return nil, err
	}
	if o.ProtectMountPoint {
		protect(dir, f.log)
	}
	if err := f.connect(); err != nil {
		f.cancel(errUnmounting)
		return nil, &MountError{Dir: dir, Reason: err, Remedy: "is the fuse module loaded, and is this root or fusermount3 installed?"}
	}
	s.Keep(f.keeps)
	f.wg.Add(2)
	go f.follow()
	go f.seal()
	f.serve()
	err = aside(func() error { // calls into the mount
		f.declinePoll()
		return f.throughDoor()
	})
	if err != nil {
		f.cancel(errUnmounting)
		f.detachMount()
		return nil, err
	}
	return f, nil
}

// fsName is the type of the mount: fuse.slotfs.
const fsName = "slotfs"

// connect mounts.
func (f *FS) connect() error {
	f.proto = fuse.NewProtocolServer(f, f.mountOptions())
	source := "slotfs-" + strings.NewReplacer(",", "_", " ", "_").Replace(f.slot.StoreName)
	options := []string{"default_permissions", "allow_other", fmt.Sprintf("max_read=%d", maxRead)}
	fd, err := mountFUSE(f.mount, source, options)
	if err != nil {
		return err
	}
	if f.dev, err = newDevice(fd); err != nil {
		f.detachMount()
	}
	return err
}

// declinePoll has the kernel ask once whether files can be polled, so that it
// never asks again. This process waits for requests by epoll; if it, or a test
// in it, opened a file of the mount and put that to the same epoll, the question
// would hold up the very wait that it is to be read by.
func (f *FS) declinePoll() {
	fd, err := unix.Open(filepath.Join(f.mount, virtualDir, "pos"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.log.Debug("poll not declined", keyErr, err)
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
}

// prepare makes what must be there before the first request.
func (f *FS) prepare() error {
	// Modes are what callers say; the daemon's own umask is not theirs.
	syscall.Umask(0)
	ctx, cancel := context.WithTimeout(f.ctx, f.opt.ApplyWait)
	defer cancel()
	if err := f.oplog.Applied.Wait(ctx, f.oplog.Last().Seq); err != nil {
		return fmt.Errorf("wait until the log is applied: %w", err)
	}
	in, err := f.slot.Inode(op.Root)
	if err != nil {
		return fmt.Errorf("load root directory: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lastNode = rootNode - 1
	f.nodes[kernelRoot] = f.insert(in)
	return nil
}

// mountOptions is what is agreed with the kernel when it greets: see the package
// comment.
func (f *FS) mountOptions() *fuse.MountOptions {
	o := &fuse.MountOptions{
		MaxWrite:                 maxWrite,
		MaxBackground:            64,
		ExplicitDataCacheControl: true,
		EnableSymlinkCaching:     true,
		DisableSplice:            true,
		DisableXAttrs:            f.opt.NoXAttr,
		EnableAcl:                !f.opt.NoXAttr,
		PanicHandler:             f.panicked,
		Logger:                   slog.NewLogLogger(f.log.Handler(), slog.LevelWarn),
		ExtraCapabilities: fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2 |
			fuse.CAP_DONT_MASK | fuse.CAP_SETXATTR_EXT,
	}
	if f.opt.NoXAttr {
		// Without ACLs the kernel applies the umask as well as we do.
		o.ExtraCapabilities &^= fuse.CAP_SETXATTR_EXT
	}
	return o
}

// clearMountPoint checks dir and removes a dead mount from it.
func clearMountPoint(dir string, log *slog.Logger) error {
	for try := 0; ; try++ {
		if mounted, err := mountedAt(dir); err != nil {
			return fmt.Errorf("mount point %s: %w", dir, err)
		} else if mounted != "" {
			if try < 8 && strings.HasPrefix(mounted, "fuse") && dead(dir) {
				log.Warn("removing the mount that a killed process left", keyMount, dir)
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && fusermount(dir, "-uz") != nil {
					return &MountError{dir, err, "a dead mount", "umount -l " + dir}
				}
				continue
			}
			return &MountError{dir, ErrMounted, mounted, "unmount it, or choose another directory"}
		}
		break
	}
	return checkEmpty(dir, "mail delivered there while nothing was mounted? move it away, or choose an empty directory")
}

// checkEmpty says what is wrong with a directory that should be empty, and what
// to do about what is in it.
func checkEmpty(dir, remedy string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return &MountError{dir, errors.Unwrap(err), "", "make the directory"}
	}
	if !st.IsDir() {
		return &MountError{dir, ErrNotDir, "", "choose a directory"}
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return &MountError{dir, errors.Unwrap(err), "", ""}
	}
	if len(list) > 0 {
		return &MountError{dir, ErrNotEmpty, "it has " + strconv.Quote(list[0].Name()), remedy}
	}
	return nil
}

// dead reports whether a FUSE mount has lost its process: statfs asks it, where
// stat may be answered from the kernel's cache long after the process died. A
// mount whose process hangs is not dead: asking it could take for ever.
func dead(dir string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(5 * time.Second):
		return false
	}
}

// mountedAt is the type of the uppermost mount at dir, "" if there is none.
func mountedAt(dir string) (string, error) {
	found := ""
	err := eachMount(dir, func(m mountLine) { found = m.kind })
	return found, err
}

// eachMount calls f for all that is mounted at dir, the uppermost last.
func eachMount(dir string, f func(mountLine)) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if m := parseMount(line); m.dir == dir {
			f(m)
		}
	}
	return nil
}

// mountLine is what proc_pid_mountinfo(5) says of one mount.
type mountLine struct{ dev, dir, kind string }

func parseMount(line string) mountLine {
	left, right, _ := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if len(l) < 5 || len(r) < 1 {
		return mountLine{}
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	return mountLine{l[2], unescape.Replace(l[4]), r[0]}
}

// protect makes the bare mount point unwritable, also for root where the file
// system can.
func protect(dir string, log *slog.Logger) {
	if err := os.Chmod(dir, 0o555); err != nil && !errors.Is(err, os.ErrPermission) {
		log.Warn("mode of mount point not set", keyErr, err)
	}
	if err := immutable(dir, true); err != nil {
		log.Debug("mount point not made immutable", keyErr, err)
	}
}

// immutable sets or clears the attribute of chattr(1) +i.
func immutable(dir string, on bool) error {
	const flag = 0x10 // FS_IMMUTABLE_FL
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open mount point: %w", err)
	}
	defer d.Close()
	flags, err := unix.IoctlGetUint32(int(d.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("get flags of mount point: %w", err)
	}
	want := flags &^ flag
	if on {
		want |= flag
	}
	if want == flags {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(d.Fd()), unix.FS_IOC_SETFLAGS, int(want)); err != nil {
		return fmt.Errorf("set flags of mount point: %w", err)
	}
	return nil
}

// Mountable says why dir could not be mounted on now; nil: it could, as far as
// can be seen without touching anything. It does not wait.
func Mountable(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", dir, err)
	}
	if mounted, err := mountedAt(dir); err != nil {
		return fmt.Errorf("mount point %s: %w", dir, err)
	} else if mounted != "" {
		// A dead mount of ours would be removed; nothing of ours that lives is there.
		if strings.HasPrefix(mounted, "fuse") {
			return nil
		}
		return &MountError{dir, ErrMounted, mounted, "unmount it, or choose another directory"}
	}
	return checkEmpty(dir, "move it away")
}
