package workload

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Writer is one user's mail server. Its methods are for one goroutine, but
// for Done.
type Writer struct {
	Pause time.Duration // after each step

	root, name string
	rng        *rand.Rand
	n          int // names given out
	made       bool

	base  state
	steps []step
	mark  [3]int // by Survivors: how many steps must be there
	now   state  // base and all answered steps

	done atomic.Uint64
}

// New returns a writer that will work in the directory name below a root.
func New(name string, seed uint64) *Writer {
	return &Writer{name: name, rng: rand.New(rand.NewPCG(seed, 0x776f726b)), base: state{}, now: state{}}
}

// Done is how many steps were answered so far.
func (w *Writer) Done() uint64 { return w.done.Load() }

// Run works below root until a call fails, and returns its error; or until
// stop is closed, and returns nil.
func (w *Writer) Run(root string, stop <-chan struct{}) error {
	w.root = root
	w.now = maps.Clone(w.base)
	for _, s := range w.steps {
		s.model(w.now)
	}
	if err := w.make(); err != nil {
		return err
	}
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := w.one(); err != nil {
			return err
		}
		time.Sleep(w.Pause)
	}
}

func (w *Writer) path(rel string) string { return filepath.Join(w.root, w.name, rel) }

// do runs a call as a step. The class is what its return promises.
func (w *Writer) do(class Survivors, name string, model func(state), call func() error) error {
	w.steps = append(w.steps, step{name: name, model: model, start: time.Now()})
	if err := call(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.steps[len(w.steps)-1].end = time.Now()
	model(w.now)
	w.answered(class)
	return nil
}

func (w *Writer) answered(class Survivors) {
	for c := class; c <= Answered; c++ {
		w.mark[c] = len(w.steps)
	}
	w.done.Add(1)
	// What is durable need not be replayed at the next check.
	if n := w.mark[Durable]; n > 200 {
		for _, s := range w.steps[:n] {
			s.model(w.base)
		}
		w.steps = slices.Clone(w.steps[n:])
		for c := range w.mark {
			w.mark[c] -= n
		}
	}
}

// make makes the Maildir, or what of it a crash has taken.
func (w *Writer) make() error {
	if err := os.Mkdir(filepath.Join(w.root, w.name), 0o700); err != nil && !os.IsExist(err) {
		return err
	}
	for _, dir := range []string{"tmp", "new", "cur"} {
		if w.now[dir].dir {
			continue
		}
		err := w.do(Answered, "mkdir "+dir, func(s state) { s[dir] = file{dir: true} }, func() error {
			return os.Mkdir(w.path(dir), 0o700)
		})
		if err != nil {
			return err
		}
	}
	w.made = true
	return w.syncDir(".")
}

func (w *Writer) syncDir(dir string) error {
	f, err := os.Open(w.path(dir))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("fsync %s: %w", dir, err)
	}
	w.answered(Durable)
	return nil
}

// one does something.
func (w *Writer) one() error {
	n := w.rng.IntN(100)
	if len(w.now) > 150 && n < 30 { // deliver less than is expunged: each check reads everything
		n = 72 + n/4
	}
	switch {
	case n < 30:
		return w.deliver()
	case n < 45:
		return w.flag()
	case n < 65:
		return w.append()
	case n < 72:
		return w.replace()
	case n < 80:
		return w.expunge()
	case n < 88:
		return w.copy()
	case n < 92:
		return w.syncDir([]string{"cur", "new", "."}[w.rng.IntN(3)])
	case n < 95:
		return w.syncControl()
	default:
		return w.folder()
	}
}

// pick returns a message of the given directories.
func (w *Writer) pick(dirs ...string) (string, bool) {
	var names []string
	for name, f := range w.now {
		if dir, _, ok := strings.Cut(name, "/"); ok && !f.dir && slices.Contains(dirs, dir) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "", false
	}
	slices.Sort(names) // the same seed must pick the same
	return names[w.rng.IntN(len(names))], true
}

func (w *Writer) content() []byte {
	size := 1 + w.rng.IntN(8<<10)
	if w.rng.IntN(30) == 0 {
		size = w.rng.IntN(1 << 20)
	}
	line := fmt.Appendf(nil, "message %d of %s, %x\n", w.n, w.name, w.rng.Uint64())
	return bytes.Repeat(line, 1+size/len(line))
}

// put writes a file in tmp/, synced.
func (w *Writer) put(name string, data []byte, sync bool) error {
	f, err := os.OpenFile(w.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// deliver publishes a message in new/ or cur/ by rename(2), or by link(2) and
// unlink(2), as older servers do.
func (w *Writer) deliver() error {
	w.n++
	name, data := fmt.Sprintf("%d.M%dP1.host", w.n, w.rng.IntN(1e6)), w.content()
	tmp, to := "tmp/"+name, "new/"+name
	if w.rng.IntN(3) == 0 {
		to = "cur/" + name + ":2,"
	}
	if err := w.put(tmp, data, true); err != nil {
		return fmt.Errorf("write %s: %w", tmp, err)
	}
	f := file{sum: sha256.Sum256(data), size: int64(len(data)), mode: 0o600, links: 1}
	if w.rng.IntN(2) == 0 {
		f.mtime = 1e18 + w.rng.Int64N(1e17)
		if err := os.Chtimes(w.path(tmp), time.Time{}, time.Unix(0, f.mtime)); err != nil {
			return err
		}
	}
	publish, linked := os.Rename, w.rng.IntN(4) == 0
	if linked {
		publish = os.Link
	}
	err := w.do(Durable, "deliver "+to, func(s state) { s[to] = f }, func() error {
		return publish(w.path(tmp), w.path(to))
	})
	if err == nil && linked {
		err = os.Remove(w.path(tmp))
	}
	return err
}

// flag renames a message.
func (w *Writer) flag() error {
	from, ok := w.pick("new", "cur")
	if !ok {
		return nil
	}
	base, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(from, "new/"), "cur/"), ":")
	flags := []string{"", "S", "RS", "FS", "FRS", "T", "Sab"}[w.rng.IntN(7)]
	to := "cur/" + base + ":2," + flags
	if _, taken := w.now[to]; taken {
		return nil
	}
	return w.do(Answered, "rename "+from+" "+to, func(s state) { s[to] = s[from]; delete(s, from) }, func() error {
		return os.Rename(w.path(from), w.path(to))
	})
}

// control are the control files that are appended to, by name.
var control = []string{"dovecot.index.log", "subscriptions"}

// append adds a record to a control file. The model keeps the content by its
// sum only, so it carries the bytes in the closure.
func (w *Writer) append() error {
	name := control[w.rng.IntN(len(control))]
	record := fmt.Appendf(nil, "%d %x\n", w.n, w.rng.Uint64())
	record = bytes.Repeat(record, 1+w.rng.IntN(20))
	old, err := os.ReadFile(w.path(name))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if os.IsNotExist(err) || len(old) > 64<<10 {
		return w.empty(name)
	}
	after := append(old, record...)
	return w.do(Received, "append "+name, func(s state) { s[name] = content(after, 0o600) }, func() error {
		f, err := os.OpenFile(w.path(name), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.Write(record)
		return err
	})
}

func content(data []byte, mode fs.FileMode) file {
	return file{sum: sha256.Sum256(data), size: int64(len(data)), mode: mode, links: 1}
}

// empty makes a control file, or truncates it.
func (w *Writer) empty(name string) error {
	if _, ok := w.now[name]; ok {
		return w.do(Received, "truncate "+name, func(s state) { s[name] = content(nil, 0o600) }, func() error {
			return os.Truncate(w.path(name), 0)
		})
	}
	return w.do(Answered, "create "+name, func(s state) { s[name] = content(nil, 0o600) }, func() error {
		return w.put(name, nil, false)
	})
}

// replace publishes a control file by its lock file, as Dovecot does with
// dovecot-uidlist. With an fsync before it, the rename is a barrier.
func (w *Writer) replace() error {
	w.n++
	const name = "dovecot-uidlist"
	data := fmt.Appendf(nil, "3 V%d\n%s", w.n, bytes.Repeat([]byte("uid\n"), w.rng.IntN(3000)))
	class, sync := Received, w.rng.IntN(2) == 0
	if sync {
		class = Durable
	}
	os.Remove(w.path(name + ".lock")) // left by a crash, on a store that keeps it
	if err := w.put(name+".lock", data, sync); err != nil {
		return fmt.Errorf("write %s.lock: %w", name, err)
	}
	return w.do(class, "replace "+name, func(s state) { s[name] = content(data, 0o600) }, func() error {
		return os.Rename(w.path(name+".lock"), w.path(name))
	})
}

func (w *Writer) syncControl() error {
	name := control[w.rng.IntN(len(control))]
	f, err := os.OpenFile(w.path(name), os.O_RDWR, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("fsync %s: %w", name, err)
	}
	w.answered(Durable)
	return nil
}

// expunge removes a message.
func (w *Writer) expunge() error {
	name, ok := w.pick("cur")
	if !ok {
		return nil
	}
	return w.do(Answered, "unlink "+name, func(s state) { unlink(s, name) }, func() error {
		return os.Remove(w.path(name))
	})
}

// unlink takes one name of a file away; the others count one link less.
func unlink(s state, name string) {
	f := s[name]
	delete(s, name)
	relink(s, f, f.links-1)
}

func relink(s state, f file, links uint64) {
	for other, g := range s {
		if !g.dir && g.sum == f.sum {
			g.links = links
			s[other] = g
		}
	}
}

// copy links a message to tmp/ and renames that into cur/, as Dovecot copies.
func (w *Writer) copy() error {
	from, ok := w.pick("cur")
	if !ok {
		return nil
	}
	w.n++
	name := fmt.Sprintf("%d.copy.host", w.n)
	tmp, to := "tmp/"+name, "cur/"+name+":2,"
	if err := os.Link(w.path(from), w.path(tmp)); err != nil {
		return fmt.Errorf("link %s %s: %w", from, tmp, err)
	}
	return w.do(Durable, "copy "+from+" "+to, func(s state) {
		f := s[from]
		s[to] = f
		relink(s, f, f.links+1)
	}, func() error {
		return os.Rename(w.path(tmp), w.path(to))
	})
}

// folder makes, renames and removes directories.
func (w *Writer) folder() error {
	var folders []string
	for name, f := range w.now {
		if f.dir && strings.HasPrefix(name, ".") {
			folders = append(folders, name)
		}
	}
	slices.Sort(folders)
	if len(folders) == 0 || w.rng.IntN(3) == 0 {
		w.n++
		name := fmt.Sprintf(".folder%d", w.n)
		return w.do(Answered, "mkdir "+name, func(s state) { s[name] = file{dir: true} }, func() error {
			return os.Mkdir(w.path(name), 0o700)
		})
	}
	name := folders[w.rng.IntN(len(folders))]
	if len(folders) > 5 {
		return w.do(Answered, "rmdir "+name, func(s state) { delete(s, name) }, func() error {
			return os.Remove(w.path(name))
		})
	}
	w.n++
	to := fmt.Sprintf(".renamed%d", w.n)
	return w.do(Answered, "rename "+name+" "+to, func(s state) { s[to] = s[name]; delete(s, name) }, func() error {
		return os.Rename(w.path(name), w.path(to))
	})
}
