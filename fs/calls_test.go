package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Calls that go wrong on a mount whose kernel caches too much or whose daemon
// goes by paths (the cases of a prototype for this one).

func TestAppendFromTwo(t *testing.T) {
	w := newWorld(t)
	a, err := os.OpenFile(w.path("f"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	w.must(err)
	defer a.Close()
	b, err := os.OpenFile(w.path("f"), os.O_APPEND|os.O_WRONLY, 0o644)
	w.must(err)
	defer b.Close()
	want := ""
	for i := range 50 {
		text := fmt.Sprintf("line %d\n", i)
		f := []*os.File{a, b}[i%2]
		_, err := f.WriteString(text)
		w.must(err)
		want += text
	}
	w.want("f", want)
	w.must(os.WriteFile(w.path("f"), []byte("new"), 0)) // O_TRUNC
	_, err = a.WriteString("er")
	w.must(err)
	w.want("f", "newer")
	w.applied()
	wantFile(t, w.tree("f"), "newer")
}

// TestReplacedFile uses files whose name was given to another or taken away
// while they were open, as Cyrus and Dovecot do all the time.
func TestReplacedFile(t *testing.T) {
	w := newWorld(t)
	for _, applied := range []bool{false, true} {
		for _, how := range []string{"unlink", "replace"} {
			w.write("f", "0123456789")
			f, err := os.OpenFile(w.path("f"), os.O_RDWR, 0)
			w.must(err)
			if applied {
				w.applied()
			}
			if how == "unlink" {
				w.must(os.Remove(w.path("f")))
			} else {
				w.write("g", "other")
				w.must(os.Rename(w.path("g"), w.path("f")))
			}
			if applied {
				w.applied()
			}
			// Not from the page cache.
			unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			b := make([]byte, 20)
			n, err := f.ReadAt(b, 0)
			if string(b[:n]) != "0123456789" || err != io.EOF {
				t.Errorf("%s: read %q, %v", how, b[:n], err)
			}
			w.must(f.Truncate(3))
			_, err = f.WriteAt([]byte("xyz"), 5)
			w.must(err)
			w.must(f.Chmod(0o640))
			w.must(f.Sync())
			fi, err := f.Stat()
			w.must(err)
			if fi.Size() != 8 || fi.Mode() != 0o640 {
				t.Errorf("%s: %d bytes, mode %v", how, fi.Size(), fi.Mode())
			}
			n, _ = f.ReadAt(b, 0)
			if string(b[:n]) != "012\x00\x00xyz" {
				t.Errorf("%s: read %q", how, b[:n])
			}
			if how == "replace" {
				w.want("f", "other")
			}
			w.must(f.Close())
			os.Remove(w.path("f"))
		}
	}
}

func TestMaps(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	for _, name := range []string{"u/dovecot.index", "u/tmp/m", "u/dovecot.index.cache"} {
		w.helper(0, "map", w.path(name))
	}
	w.applied()
	a, err := os.ReadFile(w.path("u/dovecot.index"))
	w.must(err)
	wantFile(t, w.tree("u/dovecot.index"), string(a))
	if !bytes.Contains(a, []byte("by the map")) {
		t.Error("what the map wrote is not in the file")
	}
}

func TestExclusiveCreate(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	for i := range 20 {
		for _, name := range []string{"u/tmp/x", "u/x.lock", "u/x", "u/cur/x"} {
			var wg sync.WaitGroup
			won := make(chan int, 4)
			for range 4 {
				wg.Go(func() {
					fd, err := unix.Open(w.path(fmt.Sprintf("%s%d", name, i)), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, 0o644)
					if err == nil {
						won <- fd
					} else if err != unix.EEXIST {
						t.Errorf("open: %v", err)
					}
				})
			}
			wg.Wait()
			if len(won) != 1 {
				t.Errorf("%s: %d have created it", name, len(won))
			}
			close(won)
			for fd := range won {
				unix.Close(fd)
			}
		}
	}
}

func TestListingAfterChange(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	for _, dir := range []string{"u/cur", "u/tmp"} {
		want := map[string]bool{}
		check := func() {
			t.Helper()
			list, err := os.ReadDir(w.path(dir))
			w.must(err)
			if len(list) != len(want) {
				t.Fatalf("%s: %d entries, want %d", dir, len(list), len(want))
			}
			for _, e := range list {
				if !want[e.Name()] {
					t.Fatalf("%s has %s", dir, e.Name())
				}
			}
		}
		for i := range 50 {
			name := fmt.Sprintf("m%d", i)
			if _, err := os.Stat(w.path(dir + "/" + name)); !errors.Is(err, os.ErrNotExist) {
				t.Fatalf("%s is there already: %v", name, err)
			}
			w.write(dir+"/"+name, "x")
			want[name] = true
			check()
			w.must(os.Rename(w.path(dir+"/"+name), w.path(dir+"/"+name+":2,S")))
			delete(want, name)
			want[name+":2,S"] = true
			check()
			if i%3 == 0 {
				w.must(os.Remove(w.path(dir + "/" + name + ":2,S")))
				delete(want, name+":2,S")
				check()
				w.must(os.Mkdir(w.path(dir+"/"+name), 0o755)) // the name is cached as absent
				want[name] = true
				check()
			}
		}
	}
}

// TestTimes: the mtime of a directory moves exactly when its entries change and
// never goes back; that of a file only with its content.
func TestTimes(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/cur/m", "x")
	mtime := func(name string) int64 { st := stat(t, w.path(name)); return ns(st.Mtim) }
	dir, file := mtime("u/cur"), mtime("u/cur/m")
	steps := []struct {
		what      string
		do        func() error
		dir, file bool // whether they move
	}{
		{"read", func() error { _, err := os.ReadFile(w.path("u/cur/m")); return err }, false, false},
		{"list", func() error { _, err := os.ReadDir(w.path("u/cur")); return err }, false, false},
		{"chmod", func() error { return os.Chmod(w.path("u/cur/m"), 0o600) }, false, false},
		{"link", func() error { return os.Link(w.path("u/cur/m"), w.path("u/cur/n")) }, true, false},
		{"unlink", func() error { return os.Remove(w.path("u/cur/n")) }, true, false},
		{"write", func() error {
			f, err := os.OpenFile(w.path("u/cur/m"), os.O_WRONLY, 0)
			if err == nil {
				_, err = f.Write([]byte("y"))
				f.Close()
			}
			return err
		}, false, true},
		{"truncate", func() error { return os.Truncate(w.path("u/cur/m"), 0) }, false, true},
		{"create elsewhere", func() error { return os.WriteFile(w.path("u/new/x"), nil, 0o644) }, false, false},
		{"in from elsewhere", func() error { return os.Rename(w.path("u/new/x"), w.path("u/cur/x")) }, true, false},
		{"rename", func() error { return os.Rename(w.path("u/cur/x"), w.path("u/cur/y")) }, true, false},
		{"mkdir", func() error { return os.Mkdir(w.path("u/cur/d"), 0o755) }, true, false},
		{"in the directory below", func() error { return os.WriteFile(w.path("u/cur/d/f"), nil, 0o644) }, false, false},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.what, err)
		}
		d, f := mtime("u/cur"), mtime("u/cur/m")
		if (d != dir) != s.dir || d < dir {
			t.Errorf("%s: mtime of the directory %d → %d, should move: %v", s.what, dir, d, s.dir)
		}
		if (f != file) != s.file {
			t.Errorf("%s: mtime of the file %d → %d, should move: %v", s.what, file, f, s.file)
		}
		dir, file = d, f
	}
	w.applied()
	for _, name := range []string{"u/cur", "u/cur/m", "u/new"} {
		a, b := stat(t, w.path(name)), stat(t, w.tree(name))
		if a.Mtim != b.Mtim {
			t.Errorf("%s: mtime %v on the mount, %v in the tree", name, a.Mtim, b.Mtim)
		}
	}
	w.reopen()
	if got := mtime("u/cur"); got != dir {
		t.Errorf("mtime of the directory %d after a restart, was %d", got, dir)
	}
	w.write("u/tmp/m", "x")
	ts := []unix.Timespec{{Sec: 1}, {Sec: 1, Nsec: 1}}
	w.must(unix.UtimesNano(w.path("u/tmp/m"), ts))
	w.must(os.Rename(w.path("u/tmp/m"), w.path("u/cur/old"))) // INTERNALDATE
	w.applied()
	if a, b := mtime("u/cur/old"), stat(t, w.tree("u/cur/old")); a != 1e9+1 || ns(b.Mtim) != a {
		t.Errorf("mtime of the message: %d, in the tree %d", a, ns(b.Mtim))
	}
}

// TestLocks: fcntl locks exclude processes, and a blocking one is interrupted
// by a signal, as Dovecot's alarm does.
func TestLocks(t *testing.T) {
	w := newWorld(t)
	perl, err := exec.LookPath("perl")
	if err != nil {
		t.Skip("no perl")
	}
	w.write("l", "x")
	f, err := os.OpenFile(w.path("l"), os.O_RDWR, 0)
	w.must(err)
	defer f.Close()
	try := func(code string) string {
		t.Helper()
		out, err := exec.Command(perl, "-e", `use Errno; open(F, "+<", $ARGV[0]) or die; `+code, w.path("l")).CombinedOutput()
		if err != nil {
			t.Fatalf("perl: %v: %s", err, out)
		}
		return string(out)
	}
	const set = `$SIG{ALRM} = sub {}; alarm 1; $l = pack("s s x4 q q i x4", 1, 0, 0, 0, 0); print fcntl(F, %d, $l) ? "locked" : $!{EINTR} ? "interrupted" : $!{EAGAIN} ? "busy" : $!`
	w.must(unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	if got := try(fmt.Sprintf(set, unix.F_SETLK)); got != "busy" {
		t.Errorf("lock of a locked file: %s", got)
	}
	start := time.Now()
	if got := try(fmt.Sprintf(set, unix.F_SETLKW)); got != "interrupted" || time.Since(start) < 900*time.Millisecond {
		t.Errorf("blocking lock with an alarm: %s after %v", got, time.Since(start))
	}
	w.must(unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	if got := try(fmt.Sprintf(set, unix.F_SETLKW)); got != "locked" {
		t.Errorf("lock of a free file: %s", got)
	}
	w.must(unix.Flock(int(f.Fd()), unix.LOCK_EX))
	if got := try(`print flock(F, 2|4) ? "locked" : "busy"`); got != "busy" {
		t.Errorf("flock of a locked file: %s", got)
	}
	g, err := os.Open(w.path("l"))
	w.must(err)
	defer g.Close()
	w.must(unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
	if err := unix.FcntlFlock(g.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK}); err != unix.EAGAIN {
		t.Errorf("second lock of an open file description: %v", err)
	}
}

// TestInotify: IMAP IDLE waits for changes of new/ and cur/.
func TestInotify(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	w.must(err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, w.path("u/new"), unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_CREATE|unix.IN_DELETE)
	w.must(err)
	w.write("u/tmp/m", "x")
	steps := []struct {
		do   func() error
		mask byte
	}{
		{func() error { return os.Rename(w.path("u/tmp/m"), w.path("u/new/m")) }, unix.IN_MOVED_TO},
		{func() error { return os.Link(w.path("u/new/m"), w.path("u/new/n")) }, 0},
		{func() error { return os.Remove(w.path("u/new/n")) }, 0},
		{func() error { return os.Rename(w.path("u/new/m"), w.path("u/cur/m")) }, unix.IN_MOVED_FROM},
	}
	for i, s := range steps {
		w.must(s.do())
		buf := make([]byte, 4096)
		n, err := unix.Read(fd, buf)
		if err != nil || n < unix.SizeofInotifyEvent {
			t.Fatalf("step %d: no event: %v", i, err)
		}
		if s.mask != 0 && buf[4] != s.mask {
			t.Errorf("step %d: event %#x, want %#x", i, buf[4], s.mask)
		}
	}
}

func TestSpecialFiles(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	for _, dir := range []string{"u", "u/tmp"} {
		w.must(unix.Mkfifo(w.path(dir+"/fifo"), 0o600))
		w.must(unix.Mknod(w.path(dir+"/sock"), unix.S_IFSOCK|0o600, 0))
		w.must(unix.Mknod(w.path(dir+"/reg"), unix.S_IFREG|0o600, 0))
		w.must(os.Symlink("to/nowhere", w.path(dir+"/link")))
		w.write(dir+"/zero", "secret")
		w.must(os.Chmod(w.path(dir+"/zero"), 0))
	}
	w.applied()
	check := func() {
		t.Helper()
		for _, name := range []string{"u/fifo", "u/sock", "u/reg", "u/link", "u/zero", "u/tmp/fifo", "u/tmp/sock", "u/tmp/link"} {
			a, b := stat(t, w.path(name)), stat(t, w.tree(name))
			if a.Mode != b.Mode || a.Size != b.Size || a.Ino == 0 {
				t.Errorf("%s: mode %o size %d, in the tree %o %d", name, a.Mode, a.Size, b.Mode, b.Size)
			}
		}
		if to, err := os.Readlink(w.path("u/link")); err != nil || to != "to/nowhere" {
			t.Errorf("link leads to %q, %v", to, err)
		}
	}
	check()
	if a := stat(t, w.path("u/zero")); a.Mode&0o7777 != 0 {
		t.Errorf("mode 0000 is %o", a.Mode)
	}
	w.reopen()
	check()
}

// TestOtherCalls are calls that a program may try and that have to say clearly
// what they can't do.
func TestOtherCalls(t *testing.T) {
	w := newWorld(t)
	w.write("f", "0123456789")
	f, err := os.OpenFile(w.path("f"), os.O_RDWR, 0)
	w.must(err)
	defer f.Close()
	fd := int(f.Fd())
	if _, err := unix.IoctlGetInt(fd, 0x5401); err != unix.ENOTTY {
		t.Errorf("ioctl: %v, want ENOTTY", err)
	}
	for _, mode := range []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE} {
		if err := unix.Fallocate(fd, mode, 0, 4096); err != unix.EOPNOTSUPP {
			t.Errorf("fallocate %#x: %v", mode, err)
		}
	}
	if off, err := unix.Seek(fd, 2, unix.SEEK_DATA); err != nil || off != 2 {
		t.Errorf("SEEK_DATA: %d, %v", off, err)
	}
	if off, err := unix.Seek(fd, 2, unix.SEEK_HOLE); err != nil || off != 10 {
		t.Errorf("SEEK_HOLE: %d, %v", off, err)
	}
	g, err := os.Create(w.path("g"))
	w.must(err)
	defer g.Close()
	in, out := int64(2), int64(3)
	for left := 6; left > 0; {
		n, err := unix.CopyFileRange(fd, &in, int(g.Fd()), &out, left, 0)
		if err != nil || n == 0 {
			t.Fatalf("copy_file_range: %d, %v", n, err)
		}
		left -= n
	}
	w.want("g", "\x00\x00\x00234567")
	var s unix.Statfs_t
	w.must(unix.Statfs(w.mnt, &s))
	if s.Blocks == 0 || s.Namelen != 255 {
		t.Errorf("statfs: %+v", s)
	}
	if err := unix.Fallocate(fd, 0, 1<<45, 1); err != unix.EFBIG {
		t.Errorf("fallocate beyond the largest file: %v, want EFBIG", err)
	}
	tmp, err := unix.Open(w.mnt, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	w.must(err)
	defer unix.Close(tmp)
	_, err = unix.Write(tmp, []byte("named later"))
	w.must(err)
	w.must(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", tmp), unix.AT_FDCWD, w.path("named"), unix.AT_SYMLINK_FOLLOW))
	w.want("named", "named later")
	w.applied()
	wantFile(t, w.tree("named"), "named later")
}

// TestManyAtOnce has writers, renamers and readers on one mailbox at once.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for k := range 40 {
				name := fmt.Sprintf("%d.%d", i, k)
				body := bytes.Repeat([]byte(name+"\n"), 100*k)
				err := errors.Join(os.WriteFile(w.path("u/tmp/"+name), body, 0o600),
					os.Rename(w.path("u/tmp/"+name), w.path("u/new/"+name)),
					os.Rename(w.path("u/new/"+name), w.path("u/cur/"+name+":2,")))
				if err == nil {
					var got []byte
					if got, err = os.ReadFile(w.path("u/cur/" + name + ":2,")); err == nil && !bytes.Equal(got, body) {
						err = fmt.Errorf("%s: %d bytes, want %d", name, len(got), len(body))
					}
				}
				if err == nil && k%4 == 0 {
					err = os.Remove(w.path("u/cur/" + name + ":2,"))
				}
				if err == nil {
					f, e := os.OpenFile(w.path("u/log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
					if err = e; err == nil {
						_, err = f.WriteString(name + "\n")
						f.Close()
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	list, err := os.ReadDir(w.path("u/cur"))
	w.must(err)
	if len(list) != 8*30 {
		t.Errorf("%d messages, want %d", len(list), 8*30)
	}
	w.applied()
	for _, e := range list {
		a, err := os.ReadFile(w.path("u/cur/" + e.Name()))
		w.must(err)
		wantFile(t, w.tree("u/cur/"+e.Name()), string(a))
	}
	a, err := os.ReadFile(w.path("u/log"))
	w.must(err)
	if n := bytes.Count(a, []byte("\n")); n != 8*40 {
		t.Errorf("%d lines in the log file, want %d", n, 8*40)
	}
	wantFile(t, w.tree("u/log"), string(a))
	in, err := filepath.Glob(w.tree("u/tmp/*"))
	if err != nil || len(in) > 0 {
		t.Errorf("tree has %v in tmp, %v", in, err)
	}
}
