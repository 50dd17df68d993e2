package fs_test

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Some things are done by a process of their own: maps (a page fault of this
// process on its own mount would hold up the runtime that has to serve it), and
// what another user does.
var helpers = map[string]func(args []string) error{
	"map":    helperMap,
	"permit": helperPermit,
	"mount":  helperMount,
	"deadly": helperDeadly,
}

func TestMain(m *testing.M) {
	if name := os.Getenv("SLOTFS_TEST_HELPER"); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper runs a helper as the user uid and returns its output.
func (w *world) helper(uid uint32, name string, args ...string) string {
	w.t.Helper()
	bin := filepath.Join(filepath.Dir(w.mnt), "helper")
	if _, err := os.Stat(bin); err != nil { // others may not go where the test binary is
		self, err := os.Executable()
		w.must(err)
		in, err := os.Open(self)
		w.must(err)
		out, err := os.OpenFile(bin, os.O_CREATE|os.O_WRONLY, 0o755)
		w.must(err)
		_, err = io.Copy(out, in)
		w.must(err)
		w.must(in.Close())
		w.must(out.Close())
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), "SLOTFS_TEST_HELPER="+name)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uid + 1}}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

// helperMap checks that maps and write(2) show the same bytes at once.
func helperMap(args []string) error {
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	g, err := os.OpenFile(args[0], os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(make([]byte, 3*4096)); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap to read: %w", err)
	}
	for i, file := range []*os.File{f, g} {
		text := fmt.Sprintf("written %d", i)
		for _, off := range []int64{0, 4090, 8000} {
			if _, err := file.WriteAt([]byte(text), off); err != nil {
				return err
			}
			if got := string(m[off : off+int64(len(text))]); got != text {
				return fmt.Errorf("map has %q after a write of %q at %d", got, text, off)
			}
		}
	}
	rw, err := unix.Mmap(int(g.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap to write: %w", err)
	}
	copy(rw[5000:], "by the map")
	b := make([]byte, 10)
	if _, err := f.ReadAt(b, 5000); err != nil || string(b) != "by the map" {
		return fmt.Errorf("read %q after a change in the map, %v", b, err)
	}
	if string(m[5000:5010]) != "by the map" {
		return fmt.Errorf("other map has %q", m[5000:5010])
	}
	if err := unix.Msync(rw, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	return unix.Munmap(rw)
}

// helperPermit makes things in directories that a test prepared, and prints
// what they became.
func helperPermit(args []string) error {
	root := args[0]
	for _, dir := range strings.Split(args[1], ",") {
		for _, mask := range []int{0, 0o022, 0o027, 0o077} {
			unix.Umask(mask)
			at := func(kind string) string { return filepath.Join(root, dir, fmt.Sprintf("%s%03o", kind, mask)) }
			fd, err := unix.Open(at("file"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o666)
			show(at("file"), err)
			unix.Close(fd)
			fd, err = unix.Open(at("exec"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o2751)
			show(at("exec"), err)
			unix.Close(fd)
			show(at("dir"), unix.Mkdir(at("dir"), 0o777))
			show(at("fifo"), unix.Mknod(at("fifo"), unix.S_IFIFO|0o666, 0))
			show(at("link"), unix.Symlink("x", at("link")))
			in := filepath.Join(at("dir"), "file")
			fd, err = unix.Open(in, unix.O_CREAT|unix.O_RDWR, 0o666)
			show(in, err)
			unix.Close(fd)
		}
	}
	for _, name := range strings.Split(args[2], ",") {
		at := filepath.Join(root, name)
		fd, err := unix.Open(at, unix.O_RDWR, 0)
		show(at, err)
		switch {
		case strings.HasSuffix(name, "write"):
			_, err = unix.Write(fd, []byte("x"))
		case strings.HasSuffix(name, "trunc"):
			err = unix.Ftruncate(fd, 1)
		case strings.HasSuffix(name, "falloc"):
			err = unix.Fallocate(fd, 0, 0, 100)
		case strings.HasSuffix(name, "chown"):
			err = unix.Fchown(fd, -1, os.Getgid())
		case strings.HasSuffix(name, "chmod"):
			err = unix.Fchmod(fd, 0o6755)
		case strings.HasSuffix(name, "otrunc"):
			err = os.WriteFile(at, []byte("yy"), 0)
		}
		show(at, err)
		unix.Close(fd)
	}
	return nil
}

// show prints mode, owner and ACLs of path below the directory of its test.
func show(path string, err error) {
	if err != nil {
		fmt.Printf("%s/%s: %v\n", filepath.Base(filepath.Dir(path)), filepath.Base(path), err)
		return
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return
	}
	fmt.Printf("%s/%s: %o %d:%d", filepath.Base(filepath.Dir(path)), filepath.Base(path), st.Mode, st.Uid, st.Gid)
	for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		b := make([]byte, 200)
		if n, err := unix.Lgetxattr(path, name, b); err == nil {
			fmt.Printf(" %s=%s", name[len("system.posix_acl_"):], hex.EncodeToString(b[:n]))
		}
	}
	fmt.Println()
}

// posixACL makes an ACL from tag, permissions, id.
func posixACL(entries ...[3]uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}
