package fs_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/fs"
	"slotfs/meta"
	"slotfs/meta/op"
)

func TestPanicInARequest(t *testing.T) {
	var told atomic.Value
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) { o.OnPanic = func(v any) { told.Store(v) } })
	w.write("f", "x")
	w.quiet = true
	w.fs.SetHooks(fs.Hooks{Request: func(op string) {
		if op == "UNLINK" {
			panic("injected")
		}
	}})
	if err := os.Remove(w.path("f")); !errors.Is(err, unix.EIO) {
		t.Errorf("the call that panics: %v, want EIO", err)
	}
	if told.Load() != "injected" {
		t.Errorf("OnPanic was told %v", told.Load())
	}
	if err := w.slot.Faulted(); err == nil {
		t.Error("slot is not faulted")
	}
	w.want("f", "x") // reads go on
	if err := os.WriteFile(w.path("g"), nil, 0o644); !errors.Is(err, unix.EIO) {
		t.Errorf("change of a faulted slot: %v, want EIO", err)
	}
}

// TestPanicUnderLock panics where the lock is held: the file system must go on.
func TestPanicUnderLock(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	w.quiet = true
	w.fs.PanicLocked()
	if err := os.WriteFile(w.path("g"), nil, 0o600); !errors.Is(err, unix.EIO) {
		t.Errorf("the call that panics: %v, want EIO", err)
	}
	w.want("f", "x")
}

func TestCorpseIsRemoved(t *testing.T) {
	w := newWorld(t)
	w.write("f", "kept")
	w.close()
	bin, err := os.Executable()
	w.must(err)
	cmd := exec.Command(bin, w.data, w.mnt)
	cmd.Env = append(os.Environ(), "SLOTFS_TEST_HELPER=mount")
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(cmd.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "mounted\n" {
		t.Fatalf("helper says %q, %v", line, err)
	}
	f, err := os.Open(w.path("f"))
	w.must(err)
	defer f.Close()
	if s, err := meta.Open(w.data, meta.Options{}); err == nil {
		s.Close()
		t.Error("two processes have one slot")
	}
	if err := mountError(w.mnt); !errors.Is(err, fs.ErrMounted) {
		t.Errorf("mount over a living mount: %v, want ErrMounted", err)
	}
	w.must(cmd.Process.Kill())
	cmd.Wait()
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	if _, err := f.ReadAt(make([]byte, 10), 0); err == nil || errors.Is(err, io.EOF) {
		t.Error("a file of the killed daemon can be read")
	}
	w.quiet = true // it says that it removes a dead mount
	w.open(10)
	w.want("f", "kept")
}

// helperMount mounts a slot and waits to be killed.
func helperMount(args []string) error {
	s, err := meta.Open(args[0], meta.Options{Reserve: -1})
	if err != nil {
		return err
	}
	s.Start()
	s.Log.Lead(5, nil)
	if _, err := s.Log.Append(&op.EpochBegin{Epoch: 5, Primary: s.ID, Members: []op.SlotID{s.ID}}); err != nil {
		return err
	}
	if _, err := fs.Mount(args[1], s, fs.Options{}); err != nil {
		return err
	}
	fmt.Println("mounted")
	select {}
}

// mountError tries to mount a slot of its own at dir.
func mountError(dir string) error {
	data, err := os.MkdirTemp("", "slotfs")
	if err != nil {
		return err
	}
	defer os.RemoveAll(data)
	if _, err := meta.Create(filepath.Join(data, "s"), meta.Identity{Store: "x"}); err != nil {
		return err
	}
	s, err := meta.Open(filepath.Join(data, "s"), meta.Options{Reserve: -1})
	if err != nil {
		return err
	}
	defer s.Close()
	s.Start()
	f, err := fs.Mount(dir, s, fs.Options{ApplyWait: time.Second})
	if err == nil {
		f.Unmount(context.Background())
	}
	return err
}

func TestMountPointRefused(t *testing.T) {
	w := newWorld(t)
	base := filepath.Dir(w.mnt)
	full := filepath.Join(base, "full")
	w.must(os.Mkdir(full, 0o755))
	w.must(os.WriteFile(filepath.Join(full, "mail"), nil, 0o644))
	for dir, want := range map[string]error{
		full: fs.ErrNotEmpty, filepath.Join(full, "mail"): fs.ErrNotDir, filepath.Join(base, "none"): os.ErrNotExist, w.mnt: fs.ErrMounted,
	} {
		err := mountError(dir)
		var me *fs.MountError
		if !errors.Is(err, want) || !errors.As(err, &me) || me.Remedy == "" || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v, want %v", dir, err, want)
		}
	}
}

func TestProtectedMountPoint(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) { o.ProtectMountPoint = true })
	defer func() { w.close(); w.must(fs.Unprotect(w.mnt)) }()
	w.write("f", "x")
	w.close()
	if st := stat(t, w.mnt); st.Mode&0o777 != 0o555 {
		t.Errorf("bare mount point has mode %o", st.Mode&0o777)
	}
	if err := os.WriteFile(w.path("f"), nil, 0o644); err == nil {
		t.Log("root can write to the bare mount point: no immutable attribute here")
		os.Remove(w.path("f"))
	}
	w.open(2)
	w.want("f", "x")
}

func TestUnmountWhileHeld(t *testing.T) {
	w := newWorld(t)
	w.write("f", "x")
	cmd := exec.Command("sh", "-c", "exec 3<"+w.path("f")+"; echo; read line")
	in, err := cmd.StdinPipe()
	w.must(err)
	out, err := cmd.StdoutPipe()
	w.must(err)
	w.must(cmd.Start())
	defer func() { in.Close(); cmd.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if list := w.fs.Holders(); len(list) != 1 || list[0].PID != cmd.Process.Pid || !strings.HasPrefix(list[0].What, "fd ") {
		t.Errorf("holders: %+v, want process %d", list, cmd.Process.Pid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err = w.fs.Unmount(ctx)
	var held *fs.HeldError
	if !errors.As(err, &held) || len(held.Holders) != 1 || held.Holders[0].PID != cmd.Process.Pid {
		t.Errorf("unmount: %v, want the holder", err)
	}
	w.fs = nil
	if list, err := os.ReadDir(w.mnt); err != nil || len(list) > 0 {
		t.Errorf("mount point after that: %v, %v", list, err)
	}
	w.close()
	w.open(2) // and can be mounted again
	w.want("f", "x")
}

func TestVirtualDirectory(t *testing.T) {
	n := 0
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) {
		o.Status = func() []byte { n++; return []byte(strings.Repeat("s", n) + "\n") }
	})
	w.write("f", "x")
	list, err := os.ReadDir(w.mnt)
	w.must(err)
	if len(list) != 1 {
		t.Errorf("root lists %v", list)
	}
	for before := 0; before < 10; { // made anew by every lookup
		b, err := os.ReadFile(w.path(".slotfs/status"))
		w.must(err)
		if len(b) <= before || string(b) != strings.Repeat("s", len(b)-1)+"\n" {
			t.Fatalf("status has %q after %d bytes", b, before)
		}
		before = len(b)
	}
	pos, err := os.ReadFile(w.path(".slotfs/pos"))
	w.must(err)
	if got, want := string(pos), w.slot.Log.Last().String()+"\n"; got != want {
		t.Errorf("pos %q, want %q", got, want)
	}
	w.applied()
	digest, err := os.ReadFile(w.path(".slotfs/digest"))
	w.must(err)
	if f := strings.Fields(string(digest)); len(f) != 2 || f[0] != strconv.FormatUint(w.slot.Log.Applied.Get(), 10) {
		t.Errorf("digest file has %q", digest)
	}
	names, err := os.ReadDir(w.path(".slotfs"))
	w.must(err)
	if len(names) != 3 {
		t.Errorf("lists %v", names)
	}
	for what, err := range map[string]error{
		"create":  os.WriteFile(w.path(".slotfs/x"), nil, 0o644),
		"write":   os.WriteFile(w.path(".slotfs/pos"), []byte("x"), 0o644),
		"remove":  os.Remove(w.path(".slotfs/pos")),
		"rmdir":   os.Remove(w.path(".slotfs")),
		"mkdir":   os.Mkdir(w.path(".slotfs"), 0o755),
		"replace": os.Rename(w.path("f"), w.path(".slotfs")),
		"into":    os.Rename(w.path("f"), w.path(".slotfs/f")),
		"link":    os.Link(w.path("f"), w.path(".slotfs/f")),
		"chmod":   os.Chmod(w.path(".slotfs/pos"), 0o777),
	} {
		if err == nil {
			t.Errorf("%s works", what)
		}
	}
	if _, err := os.Stat(w.path(".slotfs/none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
	w.want("f", "x")
}

func TestRefuse(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/f", "x")
	w.write("u/tmp/m", "x")
	f, err := os.OpenFile(w.path("u/f"), os.O_RDWR, 0)
	w.must(err)
	defer f.Close()
	w.fs.Refuse(syscall.EROFS)
	before := w.slot.Log.Last()
	for what, do := range map[string]func() error{
		"create":   func() error { return os.WriteFile(w.path("u/g"), nil, 0o644) },
		"volatile": func() error { return os.WriteFile(w.path("u/tmp/n"), nil, 0o644) },
		"write":    func() error { _, err := f.Write([]byte("y")); return err },
		"truncate": func() error { return f.Truncate(0) },
		"rename":   func() error { return os.Rename(w.path("u/tmp/m"), w.path("u/new/m")) },
		"unlink":   func() error { return os.Remove(w.path("u/f")) },
		"mkdir":    func() error { return os.Mkdir(w.path("d"), 0o755) },
		"chmod":    func() error { return os.Chmod(w.path("u/f"), 0o600) },
		"xattr":    func() error { return unix.Setxattr(w.path("u/f"), "user.x", nil, 0) },
		"link":     func() error { return os.Link(w.path("u/f"), w.path("u/g")) },
		"symlink":  func() error { return os.Symlink("x", w.path("s")) },
	} {
		if err := do(); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v, want EROFS", what, err)
		}
	}
	if w.slot.Log.Last() != before {
		t.Error("something was appended")
	}
	w.want("u/f", "x")
	w.fs.Refuse(0)
	w.write("u/f", "y")

	// A demoted log says so by itself.
	w.slot.Log.Follow()
	if err := os.WriteFile(w.path("u/g"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("create after Follow: %v, want EROFS", err)
	}
}

func TestSealOfQuietFiles(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) { o.SealAfter = 50 * time.Millisecond })
	w.maildir("u")
	w.write("u/dovecot-uidlist", "3 V1 N1\n")
	w.write("u/cur/direct", "a message written in place")
	sealed := func(name string) bool {
		id, err := w.slot.Lookup(name)
		if err != nil {
			return false
		}
		in, err := w.slot.Inode(id)
		return err == nil && in.Sum != nil
	}
	retry(t, "files are sealed", func() bool { return sealed("u/dovecot-uidlist") && sealed("u/cur/direct") })
	f, err := os.OpenFile(w.path("u/dovecot-uidlist"), os.O_APPEND|os.O_WRONLY, 0)
	w.must(err)
	defer f.Close()
	_, err = f.WriteString("1 :m\n")
	w.must(err)
	w.applied()
	retry(t, "a changed file is sealed again", func() bool { return sealed("u/dovecot-uidlist") })
	w.want("u/dovecot-uidlist", "3 V1 N1\n1 :m\n")
	last := w.slot.Log.Last()
	time.Sleep(150 * time.Millisecond) // three times SealAfter
	if now := w.slot.Log.Last(); now != last {
		t.Errorf("quiet files are sealed again and again: %v, was %v", now, last)
	}
}

// TestMemory: what the kernel has forgotten leaves memory, but for what only
// memory has.
func TestMemory(t *testing.T) {
	w := newWorld(t)
	w.maildir("u", "v")
	for i := range 200 {
		w.write(fmt.Sprintf("u/tmp/%d", i), "x")
		w.must(os.Rename(w.path(fmt.Sprintf("u/tmp/%d", i)), w.path(fmt.Sprintf("u/cur/%d", i))))
	}
	w.write("v/tmp/only", "in memory")
	w.applied()
	if n, _ := w.fs.Table(); n < 200 {
		t.Errorf("%d nodes before", n)
	}
	drop := func() {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0); err != nil {
			t.Skip("caches cannot be dropped here")
		}
	}
	drop()
	retry(t, "nodes are freed", func() bool { n, _ := w.fs.Table(); return n < 20 })
	w.want("v/tmp/only", "in memory")
	list, err := os.ReadDir(w.path("u/cur"))
	w.must(err)
	if len(list) != 200 {
		t.Errorf("%d messages", len(list))
	}
	w.want("u/cur/7", "x")
	st := stat(t, w.path("v/tmp"))
	drop()
	if again := stat(t, w.path("v/tmp")); again.Mtim != st.Mtim || again.Nlink != st.Nlink {
		t.Errorf("tmp changed by being forgotten: %v, was %v", again.Mtim, st.Mtim)
	}
}

func TestDamageIsNeverServed(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/tmp/m", "good content of a message")
	w.must(os.Rename(w.path("u/tmp/m"), w.path("u/cur/m")))
	w.applied()
	w.quiet = true
	w.reopen() // nothing cached
	w.quiet = true
	st := stat(t, w.tree("u/cur/m"))
	f, err := os.OpenFile(w.tree("u/cur/m"), os.O_WRONLY, 0)
	w.must(err)
	_, err = f.WriteAt([]byte("G"), 0)
	w.must(err)
	w.must(f.Close())
	w.must(unix.UtimesNano(w.tree("u/cur/m"), []unix.Timespec{st.Atim, st.Mtim}))
	if b, err := os.ReadFile(w.path("u/cur/m")); !errors.Is(err, unix.EIO) {
		t.Errorf("damaged message: %q, %v, want EIO", b, err)
	}
}

func TestDiskFull(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/f", "x")
	w.close()
	var s unix.Statfs_t
	w.must(unix.Statfs(filepath.Dir(w.mnt), &s))
	w.quiet = true
	w.open(2, func(_ *world, o *metaOptions, _ *fsOptions) { o.Reserve = int64(s.Blocks) * s.Bsize })
	for what, err := range map[string]error{
		"create": os.WriteFile(w.path("u/g"), nil, 0o644),
		"write":  os.WriteFile(w.path("u/f"), []byte("more"), 0o644),
		"mkdir":  os.Mkdir(w.path("u/d"), 0o755),
	} {
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", what, err)
		}
	}
	w.write("u/tmp/m", "x")
	if err := os.Rename(w.path("u/tmp/m"), w.path("u/cur/m")); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("delivery: %v, want ENOSPC", err)
	}
	w.want("u/tmp/m", "x")
	// What makes room, or takes none, works.
	w.must(os.Chmod(w.path("u/f"), 0o600))
	w.must(os.Rename(w.path("u/f"), w.path("u/g")))
	w.must(os.Truncate(w.path("u/g"), 0))
	w.must(os.Remove(w.path("u/g")))
	w.must(os.Remove(w.path("u/tmp/m")))
	w.must(os.RemoveAll(w.path("u")))
	w.applied()
}

// TestChurn has several processes' worth of changes on the same names while the
// kernel forgets everything again and again: nodes and directories are freed and
// loaded under the changes. What memory and index make of it must agree.
func TestChurn(t *testing.T) {
	w := newWorld(t, func(_ *world, _ *metaOptions, o *fsOptions) {
		o.SealAfter = 20 * time.Millisecond
		o.MemoryTotal, o.MemoryPerFile = 64<<10, 16<<10
	})
	w.maildir("a", "b")
	names := []string{"cur/1", "cur/2", "new/1", "new/2", "tmp/1", "tmp/2", "x", "y", "x.lock", "d/1", "d/2"}
	end := time.Now().Add(3 * time.Second)
	var wg sync.WaitGroup
	for g := range 6 {
		rnd := rand.New(rand.NewPCG(uint64(g), 7))
		name := func() string { return w.path([]string{"a/", "b/"}[rnd.IntN(2)] + names[rnd.IntN(len(names))]) }
		wg.Go(func() {
			for time.Now().Before(end) {
				a, b := name(), name()
				switch rnd.IntN(12) {
				case 0, 1, 2:
					os.WriteFile(a, make([]byte, rnd.IntN(40000)), 0o644)
				case 3, 4, 5:
					os.Rename(a, b)
				case 6:
					os.Link(a, b)
				case 7:
					os.Remove(a)
				case 8:
					os.ReadFile(a)
				case 9:
					os.ReadDir(filepath.Dir(a))
				case 10:
					os.Mkdir(filepath.Dir(a), 0o755)
					os.Rename(w.path("a/d"), w.path("b/d"))
					os.Chmod(b, 0o600)
				case 11:
					if f, err := os.OpenFile(a, os.O_RDWR, 0); err == nil {
						os.Remove(a)
						f.WriteAt([]byte("late"), int64(rnd.IntN(5000)))
						f.Sync()
						f.Close()
					}
				}
			}
		})
	}
	wg.Go(func() {
		for time.Now().Before(end) {
			if os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0) != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	wg.Wait()
	w.check()
	w.reopen()
}
