package fs_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestModesLikeExt4 lets root and another user make and change things on the
// mount and on the file system below, and compares what mode, owner and ACLs
// they have then.
func TestModesLikeExt4(t *testing.T) {
	w := newWorld(t)
	const user = 5000
	const none = 0xffffffff
	full := posixACL([3]uint32{1, 7, none}, [3]uint32{2, 6, 1234}, [3]uint32{4, 5, none}, [3]uint32{8, 7, 4321}, [3]uint32{16, 7, none}, [3]uint32{32, 4, none})
	plain := posixACL([3]uint32{1, 6, none}, [3]uint32{4, 4, none}, [3]uint32{32, 0, none})
	names := []string{}
	for _, act := range []string{"write", "trunc", "falloc", "chown", "chmod", "otrunc"} {
		names = append(names, "s-"+act, "sx-"+act, "a-"+act)
	}
	prepare := func(root string) bool {
		w.must(os.Mkdir(root, 0o755))
		for dir, mode := range map[string]uint32{"usual": 0o777, "setgid": 0o2777, "acl": 0o777, "aclgid": 0o2777, "minimal": 0o777, "tmp": 0o777} {
			p := filepath.Join(root, dir)
			w.must(os.Mkdir(p, 0o777))
			w.must(os.Chown(p, 0, 77))
			w.must(unix.Chmod(p, mode))
			acl := map[string][]byte{"acl": full, "aclgid": full, "minimal": plain}[dir]
			if acl != nil {
				if err := unix.Setxattr(p, "system.posix_acl_default", acl, 0); err == unix.EOPNOTSUPP {
					return false
				} else if err != nil {
					t.Fatalf("set default ACL: %v", err)
				}
			}
		}
		for _, name := range names {
			p := filepath.Join(root, name)
			w.must(os.WriteFile(p, []byte("content"), 0o666))
			mode := uint32(0o6766)
			if strings.HasPrefix(name, "sx") {
				mode = 0o6777
			}
			w.must(os.Chown(p, user, user+1))
			w.must(unix.Chmod(p, mode))
			if strings.HasPrefix(name, "a-") {
				w.must(unix.Setxattr(p, "system.posix_acl_access", full, 0))
			}
		}
		return true
	}
	for _, uid := range []uint32{0, user} {
		sub := map[uint32]string{0: "root", user: "user"}[uid]
		ext4 := filepath.Join(filepath.Dir(w.mnt), sub)
		if !prepare(ext4) {
			t.Skip("no ACLs below")
		}
		prepare(w.path(sub))
		dirs := "usual,setgid,acl,aclgid,minimal"
		got := w.helper(uid, "permit", w.path(sub), dirs, strings.Join(names, ","))
		want := w.helper(uid, "permit", ext4, dirs, strings.Join(names, ","))
		diffLines(t, sub, got, want)
		w.applied()
		compareModes(t, w.path(sub), w.tree(sub))
	}
	w.reopen()
	compareModes(t, w.path("user"), w.tree("user"))
}

func diffLines(t *testing.T, what, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	if len(g) != len(w) {
		t.Fatalf("%s: %d lines, want %d", what, len(g), len(w))
	}
	for i := range g {
		if g[i] != w[i] {
			t.Errorf("%s:\n got %s\nwant %s", what, g[i], w[i])
		}
	}
}

// compareModes compares the mount with the tree.
func compareModes(t *testing.T, mnt, tree string) {
	t.Helper()
	filepath.Walk(tree, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			t.Fatal(err)
		}
		rel, _ := filepath.Rel(tree, path)
		a, b := stat(t, filepath.Join(mnt, rel)), stat(t, path)
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid {
			t.Errorf("%s is %o %d:%d on the mount and %o %d:%d in the tree", rel, a.Mode, a.Uid, a.Gid, b.Mode, b.Uid, b.Gid)
		}
		for _, name := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
			va, vb := make([]byte, 300), make([]byte, 300)
			na, _ := unix.Lgetxattr(filepath.Join(mnt, rel), name, va)
			nb, _ := unix.Lgetxattr(path, name, vb)
			if string(va[:max(na, 0)]) != string(vb[:max(nb, 0)]) {
				t.Errorf("%s of %s: %x on the mount, %x in the tree", name, rel, va[:max(na, 0)], vb[:max(nb, 0)])
			}
		}
		return nil
	})
}

func TestXattr(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/tmp/m", "x")
	p := w.path("u/tmp/m")
	w.must(unix.Setxattr(p, "user.volatile", []byte("kept"), 0))
	w.must(os.Rename(p, w.path("u/cur/m")))
	p = w.path("u/cur/m")
	w.must(unix.Setxattr(p, "user.a", []byte("1"), unix.XATTR_CREATE))
	if err := unix.Setxattr(p, "user.a", []byte("2"), unix.XATTR_CREATE); err != unix.EEXIST {
		t.Errorf("CREATE of an existing one: %v", err)
	}
	if err := unix.Setxattr(p, "user.b", []byte("2"), unix.XATTR_REPLACE); err != unix.ENODATA {
		t.Errorf("REPLACE of none: %v", err)
	}
	w.must(unix.Setxattr(p, "user.a", []byte(""), unix.XATTR_REPLACE))
	w.must(unix.Setxattr(p, "trusted.x", []byte("t"), 0))
	for name, want := range map[string]error{"trusted.slotfs": unix.EPERM, "foo.bar": unix.EOPNOTSUPP, "user.": unix.EINVAL} {
		if err := unix.Setxattr(p, name, []byte("x"), 0); err != want {
			t.Errorf("set %q: %v, want %v", name, err, want)
		}
	}
	if err := unix.Setxattr(p, "user.big", make([]byte, 4000), 0); err != unix.ENOSPC {
		t.Errorf("4000 bytes: %v, want ENOSPC", err)
	}
	w.must(unix.Setxattr(p, "user.big", make([]byte, 3500), 0))
	if err := unix.Removexattr(p, "user.none"); err != unix.ENODATA {
		t.Errorf("remove none: %v", err)
	}
	check := func(p string) {
		t.Helper()
		b := make([]byte, 5000)
		n, err := unix.Listxattr(p, b)
		w.must(err)
		if got, want := string(b[:n]), "trusted.x\x00user.a\x00user.big\x00user.volatile\x00"; got != want {
			t.Errorf("list is %q, want %q", got, want)
		}
		if n, err := unix.Getxattr(p, "user.volatile", b); err != nil || string(b[:n]) != "kept" {
			t.Errorf("user.volatile: %q, %v", b[:max(n, 0)], err)
		}
		if _, err := unix.Getxattr(p, "trusted.slotfs", b); err != unix.ENODATA {
			t.Errorf("our own attribute: %v", err)
		}
		if _, err := unix.Getxattr(p, "user.big", b[:10]); err != unix.ERANGE {
			t.Errorf("short buffer: %v", err)
		}
	}
	check(p)
	w.applied()
	b := make([]byte, 5000)
	if n, err := unix.Getxattr(w.tree("u/cur/m"), "user.big", b); err != nil || n != 3500 {
		t.Errorf("in the tree: %d, %v", n, err)
	}
	w.reopen()
	check(p)
}

// TestNoXAttr: where they are turned off the kernel asks for none, and the umask
// still counts.
func TestNoXAttr(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) { o.NoXAttr = true })
	w.write("f", "x")
	if err := unix.Setxattr(w.path("f"), "user.a", nil, 0); err != unix.EOPNOTSUPP {
		t.Errorf("setxattr: %v, want EOPNOTSUPP", err)
	}
	for range 20 {
		f, err := os.OpenFile(w.path("f"), os.O_WRONLY|os.O_TRUNC, 0)
		w.must(err)
		_, err = f.Write([]byte("y"))
		w.must(err)
		w.must(f.Close())
	}
	if n := w.fs.Stats()["GETXATTR"]; n > 1 {
		t.Errorf("%d requests for attributes", n)
	}
	dirs := "usual,setgid"
	ext4 := filepath.Join(filepath.Dir(w.mnt), "plain")
	for _, root := range []string{ext4, w.path("plain")} {
		w.must(os.Mkdir(root, 0o755))
		for dir, mode := range map[string]uint32{"usual": 0o777, "setgid": 0o2777} {
			w.must(os.Mkdir(filepath.Join(root, dir), 0o777))
			w.must(unix.Chmod(filepath.Join(root, dir), mode))
		}
		w.must(os.WriteFile(filepath.Join(root, "s-write"), []byte("x"), 0o666))
		w.must(unix.Chmod(filepath.Join(root, "s-write"), 0o6777))
	}
	diffLines(t, "without attributes", w.helper(5000, "permit", w.path("plain"), dirs, "s-write"), w.helper(5000, "permit", ext4, dirs, "s-write"))
}
