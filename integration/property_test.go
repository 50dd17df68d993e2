package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"slotfs/integration/cluster"
	"slotfs/integration/treediff"
)

// TestSameAsPlainDirectory makes random calls on the mount and on a plain
// directory: each must give the same result, and afterwards names, bytes,
// modes, owners, times, link counts and attributes must be the same; and so
// must the replica's tree be.
func TestSameAsPlainDirectory(t *testing.T) {
	f := newCluster(t, 2, cluster.Options{})
	must(t, f.StartPair())
	syscall.Umask(0o022)
	plain := filepath.Join(f.scratch.Path, "plain")
	must(t, os.Mkdir(plain, 0o755))
	run := 0
	rapid.Check(t, func(t *rapid.T) {
		run++
		m := &twins{roots: [2]string{filepath.Join(plain, fmt.Sprint(run)), filepath.Join(f.Nodes[0].Mount, fmt.Sprint(run))}}
		for _, root := range m.roots {
			if err := os.MkdirAll(root, 0o755); err != nil {
				t.Fatal(err)
			}
			for _, dir := range []string{"cur", "new", "tmp"} {
				if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"mkdir":    m.mkdir,
			"create":   m.create,
			"write":    m.write,
			"truncate": m.truncate,
			"rename":   m.rename,
			"link":     m.link,
			"symlink":  m.symlink,
			"remove":   m.remove,
			"chmod":    m.chmod,
			"chown":    m.chown,
			"utimens":  m.utimens,
			"xattr":    m.xattr,
			"allocate": m.allocate,
			"deliver":  m.deliver,
			"flag":     m.flag,
		})
		m.compare(t)
	})
	f.equal()
}

// oldest is when this test's clock begins: an earlier time was set by
// utimensat, and must be the same in both; a later one is of the clock.
var oldest = time.Date(2015, 1, 1, 0, 0, 0, 0, time.UTC)

// twins are a plain directory and one on the mount.
type twins struct {
	roots [2]string
	mail  int
}

var names = []string{"a", "b", "c", "a/a", "a/b", "b/a", "a/a/a", "Grüße", "x:2,S"}

func name(t *rapid.T, label string) string { return rapid.SampledFrom(names).Draw(t, label) }

// both makes a call in both and compares the results.
func (m *twins) both(t *rapid.T, what string, call func(at func(name string) string) error) error {
	var errs [2]error
	for i, root := range m.roots {
		errs[i] = call(func(name string) string { return filepath.Join(root, name) })
	}
	if errno(errs[0]) != errno(errs[1]) {
		t.Fatalf("%s: %v on the plain directory, %v on the mount", what, errs[0], errs[1])
	}
	return errs[0]
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	if err != nil {
		return syscall.Errno(4095)
	}
	return 0
}

func (m *twins) mkdir(t *rapid.T) {
	n, mode := name(t, "name"), rapid.SampledFrom([]uint32{0o755, 0o700, 0o2775, 0o1777}).Draw(t, "mode")
	m.both(t, "mkdir "+n, func(at func(string) string) error { return syscall.Mkdir(at(n), mode) })
}

func (m *twins) create(t *rapid.T) {
	n := name(t, "name")
	flags := rapid.SampledFrom([]int{os.O_EXCL, os.O_TRUNC, 0}).Draw(t, "flags")
	mode := rapid.SampledFrom([]fs.FileMode{0o644, 0o600, 0o000}).Draw(t, "mode")
	m.both(t, "create "+n, func(at func(string) string) error {
		f, err := os.OpenFile(at(n), os.O_RDWR|os.O_CREATE|flags, mode)
		if err != nil {
			return err
		}
		return f.Close()
	})
}

func (m *twins) write(t *rapid.T) {
	n := name(t, "name")
	off := rapid.Int64Range(0, 20_000).Draw(t, "off")
	data := rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "data")
	appending := rapid.Bool().Draw(t, "append")
	sync := rapid.IntRange(0, 5).Draw(t, "sync") == 0
	m.both(t, "write "+n, func(at func(string) string) error {
		flags := os.O_WRONLY
		if appending {
			flags |= os.O_APPEND
		}
		f, err := os.OpenFile(at(n), flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		if appending {
			_, err = f.Write(data)
		} else {
			_, err = f.WriteAt(data, off)
		}
		if err == nil && sync {
			err = f.Sync()
		}
		return err
	})
}

func (m *twins) truncate(t *rapid.T) {
	n, size := name(t, "name"), rapid.Int64Range(0, 30_000).Draw(t, "size")
	m.both(t, "truncate "+n, func(at func(string) string) error { return syscall.Truncate(at(n), size) })
}

func (m *twins) rename(t *rapid.T) {
	from, to := name(t, "from"), name(t, "to")
	flags := rapid.SampledFrom([]uint{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}).Draw(t, "flags")
	m.both(t, fmt.Sprintf("rename %s %s %d", from, to, flags), func(at func(string) string) error {
		return unix.Renameat2(unix.AT_FDCWD, at(from), unix.AT_FDCWD, at(to), flags)
	})
}

func (m *twins) link(t *rapid.T) {
	from, to := name(t, "from"), name(t, "to")
	m.both(t, "link "+from+" "+to, func(at func(string) string) error { return syscall.Link(at(from), at(to)) })
}

func (m *twins) symlink(t *rapid.T) {
	n := name(t, "name")
	m.both(t, "symlink "+n, func(at func(string) string) error { return syscall.Symlink("a/b", at(n)) })
}

func (m *twins) remove(t *rapid.T) {
	n, dir := name(t, "name"), rapid.Bool().Draw(t, "dir")
	m.both(t, "remove "+n, func(at func(string) string) error {
		if dir {
			return syscall.Rmdir(at(n))
		}
		return syscall.Unlink(at(n))
	})
}

func (m *twins) chmod(t *rapid.T) {
	n, mode := name(t, "name"), rapid.SampledFrom([]uint32{0o600, 0o644, 0o755, 0o000, 0o2770}).Draw(t, "mode")
	m.both(t, "chmod "+n, func(at func(string) string) error { return syscall.Chmod(at(n), mode) })
}

func (m *twins) chown(t *rapid.T) {
	n, uid, gid := name(t, "name"), rapid.IntRange(-1, 3).Draw(t, "uid"), rapid.IntRange(-1, 3).Draw(t, "gid")
	if uid == -1 && gid == -1 {
		return // the kernel asks a FUSE file system nothing then: it cannot take privileges away, as ext4 does
	}
	m.both(t, "chown "+n, func(at func(string) string) error { return syscall.Lchown(at(n), uid, gid) })
}

func (m *twins) utimens(t *rapid.T) {
	n, ns := name(t, "name"), rapid.Int64Range(1, oldest.UnixNano()-1).Draw(t, "time")
	m.both(t, "utimens "+n, func(at func(string) string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, at(n), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(ns)}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (m *twins) xattr(t *rapid.T) {
	n, key := name(t, "name"), rapid.SampledFrom([]string{"user.a", "user.b"}).Draw(t, "key")
	value := rapid.SliceOfN(rapid.Byte(), 0, 50).Draw(t, "value")
	flags := rapid.SampledFrom([]int{0, unix.XATTR_CREATE, unix.XATTR_REPLACE}).Draw(t, "flags")
	remove := rapid.Bool().Draw(t, "remove")
	m.both(t, "xattr "+n, func(at func(string) string) error {
		if remove {
			return unix.Lremovexattr(at(n), key)
		}
		return unix.Lsetxattr(at(n), key, value, flags)
	})
}

func (m *twins) allocate(t *rapid.T) {
	n := name(t, "name")
	mode := rapid.SampledFrom([]uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}).Draw(t, "mode")
	off, size := rapid.Int64Range(0, 20_000).Draw(t, "off"), rapid.Int64Range(1, 20_000).Draw(t, "len")
	m.both(t, "fallocate "+n, func(at func(string) string) error {
		f, err := os.OpenFile(at(n), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fallocate(int(f.Fd()), mode, off, size)
	})
}

func (m *twins) deliver(t *rapid.T) {
	m.mail++
	n, data := fmt.Sprint("m", m.mail), rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "data")
	err := m.both(t, "deliver "+n, func(at func(string) string) error {
		if err := os.WriteFile(at("tmp/"+n), data, 0o600); err != nil {
			return err
		}
		return os.Rename(at("tmp/"+n), at("new/"+n))
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (m *twins) flag(t *rapid.T) {
	if m.mail == 0 {
		return
	}
	n := fmt.Sprint("m", rapid.IntRange(1, m.mail).Draw(t, "mail"))
	flags := rapid.SampledFrom([]string{"", "S", "RS"}).Draw(t, "flags")
	m.both(t, "flag "+n, func(at func(string) string) error { return os.Rename(at("new/"+n), at("cur/"+n+":2,"+flags)) })
}

// compare compares the two directories.
func (m *twins) compare(t *rapid.T) {
	var trees [2]map[string]treediff.Entry
	for i, root := range m.roots {
		var err error
		if trees[i], err = treediff.Tree(root, treediff.Options{}); err != nil {
			t.Fatal(err)
		}
		for name, e := range trees[i] {
			if e.Mtime >= oldest.UnixNano() {
				e.Mtime = 0 // the two were not made at the same moment
				trees[i][name] = e
			}
		}
	}
	for name, want := range trees[0] {
		got, ok := trees[1][name]
		if !ok {
			t.Errorf("%s is not on the mount", name)
			continue
		}
		if fmt.Sprint(want) != fmt.Sprint(got) {
			t.Errorf("%s: %+v on the plain directory, %+v on the mount", name, want, got)
		}
		if want.Mode&unix.S_IFMT == unix.S_IFREG {
			a, errA := os.ReadFile(filepath.Join(m.roots[0], name))
			b, errB := os.ReadFile(filepath.Join(m.roots[1], name))
			if errA != nil || errB != nil || string(a) != string(b) {
				t.Errorf("%s: the bytes differ (%d and %d; %v, %v)", name, len(a), len(b), errA, errB)
			}
		}
	}
	for name := range trees[1] {
		if _, ok := trees[0][name]; !ok {
			t.Errorf("%s is only on the mount", name)
		}
	}
}
