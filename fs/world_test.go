package fs_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/fs"
	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// world is a slot that leads alone, mounted in this process.
type world struct {
	t    *testing.T
	data string
	mnt  string
	slot *meta.Slot
	fs   *fs.FS

	mu    sync.Mutex
	waits []string // kinds of waits so far
	quiet bool     // warnings of the daemon are expected
}

type option func(*world, *meta.Options, *fs.Options)

// newWorld makes a slot and mounts it. Where that is not possible the test is
// skipped.
func newWorld(t *testing.T, options ...option) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE here")
	}
	base := t.TempDir()
	os.Chmod(base, 0o755) // other users go through it
	os.Chmod(filepath.Dir(base), 0o755)
	w := &world{t: t, data: filepath.Join(base, "data"), mnt: filepath.Join(base, "mnt")}
	if err := os.Mkdir(w.mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := meta.Create(w.data, meta.Identity{Store: "test"}); err != nil {
		t.Fatalf("create slot: %v", err)
	}
	w.open(1, options...)
	t.Cleanup(w.close)
	return w
}

// open opens the slot, makes it lead epoch, and mounts it.
func (w *world) open(epoch uint64, options ...option) {
	w.t.Helper()
	log := slog.New(&failOnWarning{w})
	mo := meta.Options{Logger: log, Reserve: -1, Log: oplog.Options{SegmentSize: 16 << 20}}
	fo := fs.Options{Logger: log}
	for _, o := range options {
		o(w, &mo, &fo)
	}
	s, err := meta.Open(w.data, mo)
	if err != nil {
		w.t.Fatalf("open slot: %v", err)
	}
	w.slot = s
	s.Start()
	s.Log.Lead(epoch, nil)
	e, err := s.Log.Append(&op.EpochBegin{Epoch: epoch, Primary: s.ID, Members: []op.SlotID{s.ID}})
	if err != nil {
		w.t.Fatalf("begin epoch: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Log.Barrier(ctx, e.Seq); err != nil {
		w.t.Fatalf("begin epoch: %v", err)
	}
	if w.fs, err = fs.Mount(w.mnt, s, fo); err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	w.fs.SetHooks(fs.Hooks{Wait: func(kind string, _ uint64) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.waits = append(w.waits, kind)
	}})
}

// close unmounts and closes. A second call does nothing.
func (w *world) close() {
	w.t.Helper()
	w.check()
	if w.fs != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := w.fs.Unmount(ctx); err != nil {
			w.t.Errorf("unmount: %v", err)
		}
		w.fs = nil
	}
	if w.slot != nil {
		if err := w.slot.Close(); err != nil && !w.quiet {
			w.t.Errorf("close slot: %v", err)
		}
		w.slot = nil
	}
}

// check compares memory with the index, and the index with tree and log.
func (w *world) check() {
	w.t.Helper()
	if w.fs == nil || w.slot == nil || w.quiet || w.slot.Faulted() != nil || !w.slot.Log.Leading() {
		return
	}
	w.applied()
	w.compare()
	r, err := w.slot.Check(context.Background(), meta.CheckOptions{Content: true})
	if err != nil {
		w.t.Errorf("check: %v", err)
		return
	}
	for _, f := range r.Findings {
		w.t.Errorf("check: invariant %d: %s (id %d): %s", f.Invariant, f.Path, f.ID, f.Text)
	}
}

// compare gives trimming a second, then reports differences.
func (w *world) compare() {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if len(w.fs.Compare()) == 0 {
			return
		}
	}
	for _, d := range w.fs.Compare() {
		w.t.Errorf("memory and index: %s", d)
	}
}

// reopen closes everything and opens it again: what comes back is what the log
// knows.
func (w *world) reopen() {
	w.t.Helper()
	epoch := w.slot.Log.Last().Epoch
	w.close()
	w.open(epoch + 1)
}

// applied waits until the tree has everything.
func (w *world) applied() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	l := w.slot.Log
	if err := errors.Join(l.Barrier(ctx, l.Appended.Get()), l.Applied.Wait(ctx, l.Appended.Get())); err != nil {
		w.t.Fatalf("wait for apply: %v", err)
	}
}

// waited returns the kinds of waits since the last call.
func (w *world) waited() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := strings.Join(w.waits, " ")
	w.waits = nil
	return list
}

func (w *world) path(name string) string { return filepath.Join(w.mnt, name) }
func (w *world) tree(name string) string { return filepath.Join(w.data, "tree", name) }

// maildir makes mailboxes.
func (w *world) maildir(names ...string) {
	w.t.Helper()
	for _, name := range names {
		for _, sub := range []string{"cur", "new", "tmp"} {
			if err := os.MkdirAll(w.path(name+"/"+sub), 0o755); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func (w *world) write(name, content string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(content), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// want checks the content of a file on the mount; "-" is none.
func (w *world) want(name, content string) {
	w.t.Helper()
	wantFile(w.t, w.path(name), content)
}

func wantFile(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	got := string(b)
	if errors.Is(err, os.ErrNotExist) {
		got = "-"
	} else if err != nil {
		t.Errorf("read %s: %v", path, err)
		return
	}
	if got != content {
		t.Errorf("%s has %.80q (%d bytes), want %.80q (%d bytes)", path, got, len(got), content, len(content))
	}
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

func ns(t unix.Timespec) int64 { return t.Nano() }

// failOnWarning makes warnings of the daemon errors of the test.
type failOnWarning struct{ w *world }

func (h *failOnWarning) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h *failOnWarning) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool { b.WriteString(" " + a.String()); return true })
	h.w.mu.Lock()
	quiet := h.w.quiet
	h.w.mu.Unlock()
	if quiet {
		h.w.t.Logf("%s%s", r.Message, b.String())
	} else {
		h.w.t.Errorf("daemon says: %s%s", r.Message, b.String())
	}
	return nil
}

func (h *failOnWarning) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h *failOnWarning) WithGroup(string) slog.Handler      { return h }

type (
	metaOptions = meta.Options
	fsOptions   = fs.Options
)

// retry waits until f is true.
func retry(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
