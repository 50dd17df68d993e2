package fs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestLikePlainDirectory does random things to the mount and to a plain
// directory, and compares what comes of them: results, names, types, modes,
// owners, sizes, bytes, link counts, extended attributes, explicit times, and
// whether times move. At the end the tree has to look like both, but for
// volatile names.
func TestLikePlainDirectory(t *testing.T) {
	w := newWorld(t)
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		base := fmt.Sprintf("r%d", round)
		plain := filepath.Join(t.TempDir(), base)
		c := &twins{t: rt, a: w.path(base), b: plain}
		for _, root := range []string{c.a, c.b} {
			for _, sub := range []string{"", "cur", "new", "tmp", "d"} {
				if err := os.Mkdir(filepath.Join(root, sub), 0o755); err != nil {
					rt.Fatal(err)
				}
			}
		}
		defer c.closeAll()
		steps := rapid.IntRange(1, 60).Draw(rt, "steps")
		for range steps {
			c.step()
		}
		c.compare()
		c.closeAll()
		w.applied()
		c.compareTree(w.tree(base))
		w.compare()
		if t.Failed() {
			rt.Fatalf("after:\n%s", strings.Join(c.log, "\n"))
		}
	})
}

// twins are two directories to which the same is done.
type twins struct {
	t    *rapid.T
	a, b string
	open []pair
	log  []string
}

type pair struct {
	a, b *os.File
	name string
}

var propertyNames = []string{
	"f", "g", "x.lock", "cur/m1", "cur/m2:2,S", "new/m1", "tmp/t1", "tmp/t2", "tmp/t3", "d", "d/f", "d/e", "d/e/h", "tmp/sub", "tmp/sub/f",
}

func (c *twins) name(label string) string { return rapid.SampledFrom(propertyNames).Draw(c.t, label) }

// both does f on both sides and compares the outcome.
func (c *twins) both(what string, f func(root string, i int) error) {
	c.log = append(c.log, what)
	ea, eb := f(c.a, 0), f(c.b, 1)
	if errnoOf(ea) != errnoOf(eb) {
		c.t.Fatalf("%s: mount says %v, plain directory %v; before:\n%s", what, ea, eb, strings.Join(c.log, "\n"))
	}
}

func errnoOf(err error) string {
	if err == nil {
		return ""
	}
	var e unix.Errno
	switch x := err.(type) {
	case *os.PathError:
		e, _ = x.Err.(unix.Errno)
	case *os.LinkError:
		e, _ = x.Err.(unix.Errno)
	case *os.SyscallError:
		e, _ = x.Err.(unix.Errno)
	case unix.Errno:
		e = x
	}
	if e == 0 {
		return err.Error()
	}
	return e.Error()
}

// sealed reports whether the mount takes a file for a message: those are
// write-once, which the plain directory's are not, so writes are left out.
func (c *twins) sealed(name string) bool {
	fa, ea := unix.Open(filepath.Join(c.a, name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	fb, eb := unix.Open(filepath.Join(c.b, name), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if ea == nil {
		defer unix.Close(fa)
	}
	if eb == nil {
		defer unix.Close(fb)
	}
	return ea == nil && eb == nil && punch(fa, fb)
}

// punch makes holes where both files have nothing: that a message does not
// allow.
func punch(a, b int) bool {
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if unix.Fallocate(a, mode, 1<<30, 4096) == unix.EPERM {
		return true
	}
	unix.Fallocate(b, mode, 1<<30, 4096)
	return false
}

func (c *twins) step() {
	t := c.t
	switch rapid.SampledFrom([]string{
		"write", "write", "write", "rename", "rename", "rename", "link", "unlink", "mkdir", "rmdir", "symlink", "open", "pwrite",
		"ftruncate", "chmod", "fchmod", "chown", "utimes", "xattr", "rmxattr", "fallocate", "exchange", "noreplace", "truncate", "sync",
	}).Draw(t, "op") {
	case "write":
		n, data := c.name("file"), c.data()
		if c.sealed(n) {
			return
		}
		c.both(fmt.Sprintf("write %s %d", n, len(data)), func(r string, _ int) error {
			return os.WriteFile(filepath.Join(r, n), data, 0o640)
		})
	case "truncate":
		n, size := c.name("file"), rapid.Int64Range(0, 20000).Draw(t, "size")
		if c.sealed(n) {
			return
		}
		c.both(fmt.Sprintf("truncate %s %d", n, size), func(r string, _ int) error { return os.Truncate(filepath.Join(r, n), size) })
	case "rename", "exchange", "noreplace":
		c.rename()
	case "link":
		n, m := c.name("from"), c.name("to")
		c.both("link "+n+" "+m, func(r string, _ int) error { return os.Link(filepath.Join(r, n), filepath.Join(r, m)) })
	case "unlink":
		n := c.name("file")
		c.both("unlink "+n, func(r string, _ int) error { return unix.Unlink(filepath.Join(r, n)) })
	case "rmdir":
		n := c.name("dir")
		c.both("rmdir "+n, func(r string, _ int) error { return unix.Rmdir(filepath.Join(r, n)) })
	case "mkdir":
		n := c.name("dir")
		c.both("mkdir "+n, func(r string, _ int) error { return unix.Mkdir(filepath.Join(r, n), 0o750) })
	case "symlink":
		n := c.name("link")
		c.both("symlink "+n, func(r string, _ int) error { return os.Symlink("target/of "+n, filepath.Join(r, n)) })
	case "open":
		c.openOne()
	case "sync":
		c.both("sync", func(r string, _ int) error {
			d, err := os.Open(r)
			if err == nil {
				err = d.Sync()
				d.Close()
			}
			return err
		})
	case "pwrite", "ftruncate", "fchmod", "fallocate":
		c.onOpen()
	case "chmod":
		n, mode := c.name("file"), rapid.SampledFrom([]os.FileMode{0, 0o600, 0o644, 0o755, 0o4755, 0o2755, 0o1777}).Draw(t, "mode")
		c.both(fmt.Sprintf("chmod %s %o", n, mode), func(r string, _ int) error { return unix.Chmod(filepath.Join(r, n), uint32(mode)) })
	case "chown":
		n, id := c.name("file"), rapid.IntRange(0, 3).Draw(t, "id")
		c.both(fmt.Sprintf("chown %s %d", n, id), func(r string, _ int) error { return os.Lchown(filepath.Join(r, n), id, id+1) })
	case "utimes":
		n, s := c.name("file"), rapid.Int64Range(-1000, 4e9).Draw(t, "seconds")
		c.both(fmt.Sprintf("utimes %s %d", n, s), func(r string, _ int) error {
			ts := []unix.Timespec{{Sec: s, Nsec: 987654321}, {Sec: s, Nsec: 123456789}}
			return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(r, n), ts, unix.AT_SYMLINK_NOFOLLOW)
		})
	case "xattr":
		n, v := c.name("file"), c.data()
		c.both("xattr "+n, func(r string, _ int) error {
			return unix.Setxattr(filepath.Join(r, n), "user.test", v[:min(len(v), 500)], 0)
		})
	case "rmxattr":
		n := c.name("file")
		c.both("rmxattr "+n, func(r string, _ int) error { return unix.Removexattr(filepath.Join(r, n), "user.test") })
	}
}

func (c *twins) data() []byte {
	n := rapid.SampledFrom([]int{0, 1, 100, 4095, 4096, 4097, 9000, 70000, 300000}).Draw(c.t, "length")
	b := make([]byte, n)
	x := rapid.Byte().Draw(c.t, "byte")
	for i := range b {
		b[i] = x + byte(i*7/5)
	}
	return b
}

func (c *twins) rename() {
	n, m := c.name("from"), c.name("to")
	flags := rapid.SampledFrom([]uint{0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE}).Draw(c.t, "flags")
	what := fmt.Sprintf("rename %s %s %d", n, m, flags)
	c.log = append(c.log, what)
	do := func(r string) error {
		return unix.Renameat2(unix.AT_FDCWD, filepath.Join(r, n), unix.AT_FDCWD, filepath.Join(r, m), flags)
	}
	ea := do(c.a)
	if ea == unix.EXDEV { // refused for the classes of the names: documented
		return
	}
	if eb := do(c.b); errnoOf(ea) != errnoOf(eb) {
		c.t.Fatalf("%s: mount says %v, plain directory %v; before:\n%s", what, ea, eb, strings.Join(c.log, "\n"))
	}
}

func (c *twins) openOne() {
	n := c.name("file")
	fa, ea := os.OpenFile(filepath.Join(c.a, n), os.O_RDWR, 0)
	fb, eb := os.OpenFile(filepath.Join(c.b, n), os.O_RDWR, 0)
	c.log = append(c.log, fmt.Sprintf("open %s as %d", n, len(c.open)))
	if errnoOf(ea) != errnoOf(eb) {
		c.t.Fatalf("open %s: mount says %v, plain directory %v", n, ea, eb)
	}
	if ea == nil {
		c.open = append(c.open, pair{fa, fb, n})
	}
}

// onOpen does something to an open file, unlinked or not.
func (c *twins) onOpen() {
	if len(c.open) == 0 {
		return
	}
	i := rapid.IntRange(0, len(c.open)-1).Draw(c.t, "open")
	p := c.open[i]
	if punch(int(p.a.Fd()), int(p.b.Fd())) {
		return
	}
	off := rapid.Int64Range(0, 400000).Draw(c.t, "offset")
	data := c.data()
	mode := rapid.SampledFrom([]uint32{0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE,
		unix.FALLOC_FL_ZERO_RANGE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE}).Draw(c.t, "mode")
	op := rapid.SampledFrom([]string{"pwrite", "pwrite", "ftruncate", "fchmod", "fallocate"}).Draw(c.t, "fop")
	c.both(fmt.Sprintf("%s on %d (%s) off %d len %d mode %d", op, i, p.name, off, len(data), mode), func(_ string, side int) error {
		f := p.a
		if side == 1 {
			f = p.b
		}
		switch op {
		case "pwrite":
			_, err := f.WriteAt(data, off)
			return err
		case "ftruncate":
			return f.Truncate(off)
		case "fchmod":
			return f.Chmod(os.FileMode(off) & 0o777)
		}
		return unix.Fallocate(int(f.Fd()), mode, off, int64(len(data)))
	})
}

func (c *twins) closeAll() {
	for _, p := range c.open {
		p.a.Close()
		p.b.Close()
	}
	c.open = nil
}

// compare compares both directories and the open files.
func (c *twins) compare() {
	a, b := describe(c.t, c.a, nil), describe(c.t, c.b, nil)
	if a != b {
		c.t.Fatalf("mount:\n%s\nplain directory:\n%s\nafter:\n%s", a, b, strings.Join(c.log, "\n"))
	}
	for i, p := range c.open {
		if a, b := describeOpen(c.t, p.a), describeOpen(c.t, p.b); a != b {
			c.t.Fatalf("open file %d: mount has %s, plain directory %s, after:\n%s", i, a, b, strings.Join(c.log, "\n"))
		}
	}
}

// compareTree compares the mount with the tree, as far as it is logged.
func (c *twins) compareTree(tree string) {
	names := map[string]bool{}
	filepath.WalkDir(tree, func(path string, _ fs.DirEntry, _ error) error {
		rel, _ := filepath.Rel(tree, path)
		names[rel] = true
		return nil
	})
	a, b := describe(c.t, c.a, names), describe(c.t, tree, names)
	if a != b {
		c.t.Fatalf("mount:\n%s\ntree:\n%s\nafter:\n%s", a, b, strings.Join(c.log, "\n"))
	}
}

// describe renders a directory. Only names in only are shown, if that is not
// nil: then times that are exact are, too, and link counts are not.
func describe(t *rapid.T, root string, only map[string]bool) string {
	var lines []string
	filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			t.Fatalf("walk %s: %v", path, err)
		}
		rel, _ := filepath.Rel(root, path)
		if only != nil && !only[rel] {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatalf("stat %s: %v", path, err)
		}
		line := fmt.Sprintf("%-12s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if only == nil {
			line += fmt.Sprintf(" links %d", st.Nlink)
		}
		old := st.Mtim.Sec < 1.7e9 || st.Mtim.Sec > 2.5e9 || st.Mtim.Nsec == 123456789 // set by utimes
		if old || only != nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			line += fmt.Sprintf(" mtime %d", st.Mtim.Nano())
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil || int64(len(b)) != st.Size {
				t.Fatalf("read %s: %d of %d bytes, %v", path, len(b), st.Size, err)
			}
			line += fmt.Sprintf(" %d bytes %x", st.Size, fnv(b))
		case unix.S_IFLNK:
			to, _ := os.Readlink(path)
			line += fmt.Sprintf(" -> %s (%d)", to, st.Size)
		}
		var v [600]byte
		if n, err := unix.Lgetxattr(path, "user.test", v[:]); err == nil {
			line += fmt.Sprintf(" xattr %d %x", n, fnv(v[:n]))
		}
		lines = append(lines, line)
		return nil
	})
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func describeOpen(t *rapid.T, f *os.File) string {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatalf("fstat: %v", err)
	}
	b := make([]byte, st.Size)
	if n, err := f.ReadAt(b, 0); n != len(b) {
		t.Fatalf("read open file: %d of %d, %v", n, len(b), err)
	}
	return fmt.Sprintf("%o %d:%d links %d %d bytes %x", st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, fnv(b))
}

func fnv(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, x := range b {
		h = (h ^ uint64(x)) * 1099511628211
	}
	return h
}
