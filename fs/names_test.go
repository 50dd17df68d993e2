package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRenameTable goes through the table of the package comment: what has the
// old name, what the new name is, and whether it exists.
func TestRenameTable(t *testing.T) {
	w := newWorld(t)
	type source struct {
		name string
		make func(dir string) (path string, content string) // in a new maildir
		mem  bool                                           // the name is volatile
	}
	sources := []source{
		{"L", func(d string) (string, string) {
			w.write(d+"/ctl", "logged")
			return d + "/ctl", "logged"
		}, false},
		{"V", func(d string) (string, string) {
			w.write(d+"/tmp/v", "volatile")
			return d + "/tmp/v", "volatile"
		}, true},
		{"VofL", func(d string) (string, string) {
			w.write(d+"/ctl", "linked")
			w.must(os.Link(w.path(d+"/ctl"), w.path(d+"/tmp/y")))
			return d + "/tmp/y", "linked"
		}, true},
		{"O", func(d string) (string, string) {
			w.write(d+"/ctl", "orphaned")
			w.must(os.Link(w.path(d+"/ctl"), w.path(d+"/tmp/o")))
			w.must(os.Remove(w.path(d + "/ctl")))
			w.applied()
			return d + "/tmp/o", "orphaned"
		}, true},
		{"Ounapplied", func(d string) (string, string) {
			w.write(d+"/tmp/m", "orphaned")
			w.must(os.Rename(w.path(d+"/tmp/m"), w.path(d+"/ctl")))
			w.must(os.Link(w.path(d+"/ctl"), w.path(d+"/tmp/o")))
			w.must(os.Remove(w.path(d + "/ctl")))
			return d + "/tmp/o", "orphaned"
		}, true},
		{"big", func(d string) (string, string) {
			big := strings.Repeat("0123456789abcdef", (9<<20)/16) + "tail"
			w.write(d+"/tmp/b", big)
			return d + "/tmp/b", big
		}, true},
	}
	targets := []struct {
		name   string
		logged bool
	}{{"tmp/new", false}, {"x.lock", false}, {"dst", true}, {"cur/msg", true}, {"new/msg", true}}
	for _, s := range sources {
		for _, to := range targets {
			for _, victim := range []string{"none", "same", "log", "mem"} {
				for _, link := range []bool{false, true} {
					if link && victim != "none" {
						continue // link(2) never replaces
					}
					t.Run(fmt.Sprintf("%s_%s_%s_link=%v", s.name, strings.ReplaceAll(to.name, "/", "."), victim, link), func(t *testing.T) {
						w.t = t
						d := strings.ReplaceAll(t.Name()[len("TestRenameTable/"):], "/", "_")
						w.maildir(d)
						dst := d + "/" + to.name
						logged := to.logged || s.name == "L" && !link
						switch victim {
						case "same":
							w.write(dst, "victim")
						case "log": // a logged name, also where new ones are volatile
							w.write(d+"/lv", "victim")
							w.must(os.Rename(w.path(d+"/lv"), w.path(dst)))
							logged = true
						case "mem":
							if to.logged {
								t.Skip("no such name")
							}
							w.write(d+"/tmp/mv", "victim")
							w.must(os.Rename(w.path(d+"/tmp/mv"), w.path(dst)))
						}
						src, content := s.make(d)
						before := stat(t, w.path(src))
						if link {
							w.must(os.Link(w.path(src), w.path(dst)))
						} else {
							w.must(os.Rename(w.path(src), w.path(dst)))
						}
						after := stat(t, w.path(dst))
						if after.Ino != before.Ino || after.Mtim != before.Mtim {
							t.Errorf("inode %d mtime %v became %d %v", before.Ino, before.Mtim, after.Ino, after.Mtim)
						}
						w.want(dst, content)
						if link {
							w.want(src, content)
							if after.Nlink != before.Nlink+1 {
								t.Errorf("%d links, want %d", after.Nlink, before.Nlink+1)
							}
						} else {
							w.want(src, "-")
						}
						w.applied()
						w.want(dst, content)
						inTree := content
						if !logged {
							inTree = "-"
						}
						wantFile(t, w.tree(dst), inTree)
					})
				}
			}
		}
	}
	w.t = t
}

// TestWriteAfterUnlink changes files that have no logged name any more.
func TestWriteAfterUnlink(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	for _, applied := range []bool{false, true} {
		for _, name := range []string{"u/ctl", "u/cur/m", "u/tmp/v"} {
			w.write("u/tmp/src", "0123456789")
			w.must(os.Rename(w.path("u/tmp/src"), w.path(name)))
			f, err := os.OpenFile(w.path(name), os.O_RDWR, 0)
			w.must(err)
			if applied {
				w.applied()
			}
			w.must(os.Remove(w.path(name)))
			if applied {
				w.applied()
			}
			_, err = f.WriteAt([]byte("xx"), 4)
			w.must(err)
			w.must(f.Truncate(8))
			w.must(f.Chmod(0o600))
			b := make([]byte, 20)
			n, _ := f.ReadAt(b, 0)
			if string(b[:n]) != "0123xx67" {
				t.Errorf("%s: read %q", name, b[:n])
			}
			w.must(f.Sync())
			fi, err := f.Stat()
			w.must(err)
			if fi.Size() != 8 || fi.Mode() != 0o600 || fi.Sys().(*syscall.Stat_t).Nlink != 0 {
				t.Errorf("%s: %v %v nlink %d", name, fi.Size(), fi.Mode(), fi.Sys().(*syscall.Stat_t).Nlink)
			}
			w.must(f.Close())
		}
	}
}

func TestSealedIsWriteOnce(t *testing.T) {
	w := newWorld(t)
	w.maildir("u", "v")
	w.write("u/tmp/1", "message")
	w.must(os.Rename(w.path("u/tmp/1"), w.path("u/cur/1")))
	p := w.path("u/cur/1")
	if err := os.WriteFile(p, []byte("x"), 0o644); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate: %v, want EPERM", err)
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	w.must(err)
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v, want EPERM", err)
	}
	w.must(f.Close())
	w.must(os.Chmod(p, 0o600))
	w.must(os.Chown(p, 1, 2))
	w.must(os.Link(p, w.path("v/cur/1")))
	w.must(os.Remove(p))
	w.want("v/cur/1", "message")
	w.applied()
	st := stat(t, w.tree("v/cur/1"))
	if st.Mode&0o777 != 0o600 || st.Uid != 1 || st.Gid != 2 {
		t.Errorf("tree has mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
}

// TestWaits checks which calls wait for what.
func TestWaits(t *testing.T) {
	w := newWorld(t)
	w.maildir("u", "v")
	f, err := os.OpenFile(w.path("u/log"), os.O_CREATE|os.O_RDWR, 0o644)
	w.must(err)
	defer f.Close()
	tmp, err := os.Create(w.path("u/tmp/t"))
	w.must(err)
	defer tmp.Close()
	sync, err := os.OpenFile(w.path("u/sync"), os.O_CREATE|os.O_RDWR|os.O_SYNC, 0o644)
	w.must(err)
	defer sync.Close()
	dir, err := os.Open(w.path("u/cur"))
	w.must(err)
	defer dir.Close()
	steps := []struct {
		what string
		do   func() error
		want string
	}{
		{"write of a control file", func() error { _, err := f.Write([]byte("x")); return err }, "received"},
		{"truncate of a control file", func() error { return f.Truncate(0) }, "received"},
		{"fsync", func() error { return f.Sync() }, "barrier"},
		// The kernel sends an FSYNC behind it, which finds nothing to wait for.
		{"write with O_SYNC", func() error { _, err := sync.Write([]byte("x")); return err }, "barrier barrier"},
		{"write of a volatile file", func() error { _, err := tmp.Write([]byte("x")); return err }, ""},
		{"delivery", func() error { return os.Rename(w.path("u/tmp/t"), w.path("u/new/t")) }, "barrier"},
		{"new to cur", func() error { return os.Rename(w.path("u/new/t"), w.path("u/cur/t")) }, ""},
		{"flags", func() error { return os.Rename(w.path("u/cur/t"), w.path("u/cur/t:2,S")) }, ""},
		{"to another mailbox", func() error { return os.Rename(w.path("u/cur/t:2,S"), w.path("v/cur/t")) }, "barrier"},
		{"copy", func() error { return os.Link(w.path("v/cur/t"), w.path("u/cur/t")) }, "barrier"},
		{"copy through tmp", func() error { return os.Link(w.path("v/cur/t"), w.path("u/tmp/l")) }, ""},
		{"and out of it", func() error { return os.Rename(w.path("u/tmp/l"), w.path("u/cur/l")) }, "barrier"},
		{"fsync of a directory", func() error { return dir.Sync() }, "barrier"},
		{"volatile file", func() error { return os.WriteFile(w.path("u/c.lock"), []byte("x"), 0o644) }, ""},
		{"rename onto a control file", func() error { return os.Rename(w.path("u/c.lock"), w.path("u/c")) }, "received"},
		{"unlink", func() error { return os.Remove(w.path("u/cur/l")) }, ""},
		{"mkdir", func() error { return os.Mkdir(w.path("u/d"), 0o755) }, ""},
		{"chmod", func() error { return os.Chmod(w.path("u/c"), 0o600) }, ""},
	}
	for _, s := range steps {
		w.waited()
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.what, err)
		}
		if got := w.waited(); got != s.want {
			t.Errorf("%s waited for %q, want %q", s.what, got, s.want)
		}
	}

	// What was fsynced while it was volatile must be durable when it is not.
	g, err := os.Create(w.path("u/uidlist.lock"))
	w.must(err)
	_, err = g.Write([]byte("1"))
	w.must(err)
	w.must(g.Sync())
	w.must(g.Close())
	w.waited()
	w.must(os.Rename(w.path("u/uidlist.lock"), w.path("u/uidlist")))
	if got := w.waited(); got != "barrier" {
		t.Errorf("publishing an fsynced file waited for %q, want a barrier", got)
	}
}

func TestExchange(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/a", "A")
	w.write("u/b", "B")
	w.write("u/tmp/x", "X")
	w.write("u/tmp/y", "Y")
	swap := func(a, b string) error {
		return unix.Renameat2(unix.AT_FDCWD, w.path(a), unix.AT_FDCWD, w.path(b), unix.RENAME_EXCHANGE)
	}
	w.must(swap("u/a", "u/b"))
	w.must(swap("u/tmp/x", "u/tmp/y"))
	if err := swap("u/a", "u/tmp/x"); err != unix.EXDEV {
		t.Errorf("logged with volatile: %v, want EXDEV", err)
	}
	w.must(os.MkdirAll(w.path("d1/sub"), 0o755))
	w.must(os.MkdirAll(w.path("d2"), 0o755))
	w.write("d2/f", "F")
	w.must(swap("d1/sub", "d2/f"))
	for _, c := range [][2]string{{"u/a", "B"}, {"u/b", "A"}, {"u/tmp/x", "Y"}, {"u/tmp/y", "X"}, {"d1/sub", "F"}} {
		w.want(c[0], c[1])
	}
	if n1, n2 := stat(t, w.path("d1")).Nlink, stat(t, w.path("d2")).Nlink; n1 != 2 || n2 != 3 {
		t.Errorf("links of the directories: %d and %d, want 2 and 3", n1, n2)
	}
	w.applied()
	wantFile(t, w.tree("u/a"), "B")
	wantFile(t, w.tree("d1/sub"), "F")
	if err := unix.Renameat2(unix.AT_FDCWD, w.path("u/a"), unix.AT_FDCWD, w.path("u/b"), unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Errorf("NOREPLACE: %v, want EEXIST", err)
	}
}

// TestDirectoryKinds: a directory with something in it does not become one of
// another class.
func TestDirectoryKinds(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/tmp/v", "V")
	if err := os.Rename(w.path("u/tmp"), w.path("u/other")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("tmp to an ordinary directory: %v, want EXDEV", err)
	}
	w.must(os.Rename(w.path("u"), w.path("u2"))) // a whole mailbox keeps its kinds
	w.want("u2/tmp/v", "V")
	w.must(os.Rename(w.path("u2/tmp/v"), w.path("u2/cur/v")))
	w.applied()
	wantFile(t, w.tree("u2/cur/v"), "V")
	w.must(os.Rename(w.path("u2/new"), w.path("u2/empty"))) // nothing in it
	w.must(os.Rename(w.path("u2/empty"), w.path("u2/new")))
	w.write("u2/tmp/again", "V")
	w.applied()
	wantFile(t, w.tree("u2/tmp/again"), "-")
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("n", 255)
	for _, name := range []string{long, "1:2,S=3,W=4;a\\b\"'*?\n\x01\xff", " ", "...", "-rf"} {
		w.write(name, name)
		w.want(name, name)
		w.must(os.Rename(w.path(name), w.path("x")))
		w.must(os.Rename(w.path("x"), w.path(name)))
	}
	if err := os.WriteFile(w.path(long+"n"), nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("256 bytes: %v", err)
	}
	if _, err := os.Stat(w.path(long + "n")); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("lookup of 256 bytes: %v", err)
	}
	if err := os.Symlink(strings.Repeat("t", 4095), w.path("link")); err != nil {
		t.Errorf("symlink of 4095 bytes: %v", err)
	}
	w.applied()
	list, err := os.ReadDir(w.tree(""))
	w.must(err)
	if len(list) != 6 {
		t.Errorf("%d names in the tree, want 6", len(list))
	}
	w.reopen()
	w.want(long, long)
}

func TestDirectories(t *testing.T) {
	w := newWorld(t)
	w.must(os.MkdirAll(w.path("a/b/c"), 0o755))
	if n := stat(t, w.path("a")).Nlink; n != 3 {
		t.Errorf("links of a: %d, want 3", n)
	}
	if err := unix.Rmdir(w.path("a/b")); err != unix.ENOTEMPTY {
		t.Errorf("rmdir: %v, want ENOTEMPTY", err)
	}
	if err := unix.Rename(w.path("a"), w.path("a/b/c/d")); err != unix.EINVAL {
		t.Errorf("rename into itself: %v, want EINVAL", err)
	}
	w.must(os.Mkdir(w.path("e"), 0o755))
	w.write("e/f", "F")
	if err := unix.Rename(w.path("a"), w.path("e")); err != unix.ENOTEMPTY {
		t.Errorf("rename onto a full directory: %v, want ENOTEMPTY", err)
	}
	w.must(os.Remove(w.path("e/f")))
	w.must(unix.Rename(w.path("a/b"), w.path("e")))
	if na, ne := stat(t, w.path("a")).Nlink, stat(t, w.path("e")).Nlink; na != 2 || ne != 3 {
		t.Errorf("links: a %d, e %d, want 2 and 3", na, ne)
	}
	dir, err := os.Open(w.path("e/c"))
	w.must(err)
	defer dir.Close()
	w.must(unix.Rmdir(w.path("e/c")))
	var st unix.Stat_t
	w.must(unix.Fstat(int(dir.Fd()), &st))
	if st.Nlink != 0 {
		t.Errorf("removed directory has %d links", st.Nlink)
	}
	if fd, err := unix.Openat(int(dir.Fd()), "f", unix.O_CREAT|unix.O_RDWR, 0o644); err != unix.ENOENT {
		t.Errorf("create in a removed directory: %d, %v, want ENOENT", fd, err)
	}
}

// TestListing: what is there throughout is listed once, whatever is made,
// renamed and removed meanwhile.
func TestListing(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	const n = 500
	at := map[int]string{}
	for i := range n {
		at[i] = fmt.Sprintf("u/cur/m%03d", i)
		w.write(at[i], "x")
	}
	for round := range 20 {
		fd, err := unix.Open(w.path("u/cur"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
		w.must(err)
		seen := map[string]int{}
		buf := make([]byte, 1024)
		for step := 0; ; step++ {
			if step > n {
				t.Fatalf("round %d: the listing does not end", round)
			}
			k, err := unix.ReadDirent(fd, buf)
			w.must(err)
			if k == 0 {
				break
			}
			_, _, names := unix.ParseDirent(buf[:k], -1, nil)
			for _, name := range names {
				seen[strings.SplitN(name, ":", 2)[0]]++
			}
			// Another file changes its flags, others come and go.
			i := (round*37 + step*11) % n
			to := fmt.Sprintf("u/cur/m%03d:2,%d.%d", i, round, step)
			w.must(os.Rename(w.path(at[i]), w.path(to)))
			at[i] = to
			if step%2 == 0 { // fewer than are read, or no listing could end
				w.write(fmt.Sprintf("u/cur/extra%d.%d", round, step), "")
			}
			if step > 2 && step%2 == 0 {
				w.must(os.Remove(w.path(fmt.Sprintf("u/cur/extra%d.%d", round, step-2))))
			}
		}
		w.must(unix.Close(fd))
		for i := range n {
			if name := fmt.Sprintf("m%03d", i); seen[name] != 1 {
				t.Errorf("round %d: %s is listed %d times", round, name, seen[name])
			}
		}
	}
}

func TestBigAndSparse(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) { o.MemoryTotal = 1 << 20 })
	w.maildir("u")
	big := bytes.Repeat([]byte("slotfs."), 3<<20/7)
	for i := range 4 { // more than memory is for
		w.must(os.WriteFile(w.path(fmt.Sprintf("u/tmp/%d", i)), big[:200<<10+i], 0o644))
	}
	w.must(os.WriteFile(w.path("u/tmp/big"), big, 0o644))
	if used := w.fs.SpillUsed(); used > 1<<20 {
		t.Errorf("%d bytes of volatile files in memory", used)
	}
	for i := range 4 {
		w.want(fmt.Sprintf("u/tmp/%d", i), string(big[:200<<10+i]))
	}
	for _, name := range []string{"u/tmp/sparse", "u/sparse"} {
		f, err := os.Create(w.path(name))
		w.must(err)
		_, err = f.WriteAt([]byte("end"), 5<<20)
		w.must(err)
		w.must(f.Truncate(6 << 20))
		w.must(f.Truncate(1 << 20))
		w.must(f.Truncate(2 << 20))
		_, err = f.WriteAt([]byte("x"), 1<<20-1)
		w.must(err)
		want := make([]byte, 2<<20)
		want[1<<20-1] = 'x'
		w.want(name, string(want))
		w.must(f.Close())
		if name == "u/sparse" {
			w.applied()
			wantFile(t, w.tree(name), string(want))
		}
		if err := os.Truncate(w.path(name), 1<<50); !errors.Is(err, unix.EFBIG) {
			t.Errorf("truncate to 1 PiB: %v, want EFBIG", err)
		}
	}
	w.must(os.Rename(w.path("u/tmp/big"), w.path("u/cur/big")))
	w.want("u/cur/big", string(big))
	w.applied()
	w.want("u/cur/big", string(big))
	for i := range 4 {
		w.must(os.Remove(w.path(fmt.Sprintf("u/tmp/%d", i))))
	}
	w.must(os.Remove(w.path("u/tmp/sparse")))
	retry(t, "volatile files are freed", func() bool { _, v := w.fs.Table(); return v == 0 && w.fs.SpillUsed() == 0 })
}
