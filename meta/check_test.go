package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// checkClean fails the test on any finding.
func checkClean(t testing.TB, s *Slot) {
	t.Helper()
	r, err := s.Check(t.Context(), CheckOptions{Content: true})
	if err != nil {
		t.Errorf("check: %v", err)
		return
	}
	for _, f := range r.Findings {
		t.Errorf("check: %v", f)
	}
}

// damageCase harms a slot in one way.
type damageCase struct {
	name string
	inv  int
	harm func(t *testing.T, s *Slot, path string, n *Inode) error
	want func(n *Inode) bool
	// irreparable: repair alone does not make the slot clean again.
	irreparable bool
}

func isMessage(n *Inode) bool { return n.Sealed && n.Size > 0 && len(n.Names) == 1 }

var damageCases = []damageCase{
	{name: "removed message", inv: InvName, want: isMessage, irreparable: true,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return os.Remove(path) }},
	{name: "removed directory", inv: InvName, want: func(n *Inode) bool { return n.IsDir() && n.ID != op.Root }, irreparable: true,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return os.RemoveAll(path) }},
	{name: "renamed", inv: InvName, want: isMessage,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return os.Rename(path, path+"x") }},
	{name: "renamed, the other end", inv: InvStray, want: isMessage,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return os.Rename(path, path+"x") }},
	{name: "lost mark", inv: InvName, want: isMessage, irreparable: true,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return unix.Lremovexattr(path, markName) }},
	{name: "stray file", inv: InvStray, want: func(n *Inode) bool { return n.IsDir() },
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error {
			return os.WriteFile(filepath.Join(path, "stray"), []byte("?"), 0o600)
		}},
	{name: "mode", inv: InvAttributes, want: isMessage,
		harm: func(_ *testing.T, _ *Slot, path string, n *Inode) error {
			return unix.Chmod(path, (n.Mode^0o111)&permMask)
		}},
	{name: "owner", inv: InvAttributes, want: isFile,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return os.Lchown(path, 77, 77) }},
	{name: "mtime of a directory", inv: InvAttributes, want: func(n *Inode) bool { return n.IsDir() },
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error { return utimensat(unix.AT_FDCWD, path, 1) }},
	{name: "xattr", inv: InvAttributes, want: isMessage,
		harm: func(_ *testing.T, _ *Slot, path string, _ *Inode) error {
			return unix.Lsetxattr(path, "user.foreign", []byte("?"), 0)
		}},
	{name: "size of a control file", inv: InvAttributes, want: func(n *Inode) bool { return isControl(n) && n.Sum == nil },
		harm: func(_ *testing.T, _ *Slot, path string, n *Inode) error { return os.Truncate(path, n.Size+1) }},
	{name: "one more link", inv: InvAttributes, want: isMessage,
		harm: func(_ *testing.T, s *Slot, path string, _ *Inode) error {
			return os.Link(path, filepath.Join(s.dir, dirTree, "linked"))
		}},
	{name: "one bit", inv: InvContent, want: isMessage, irreparable: true,
		harm: func(t *testing.T, _ *Slot, path string, n *Inode) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			b := make([]byte, 1)
			_, err = f.ReadAt(b, n.Size/2)
			b[0] ^= 1
			_, err2 := f.WriteAt(b, n.Size/2)
			return errors.Join(err, err2, f.Close(), utimensat(unix.AT_FDCWD, path, n.Mtime))
		}},
	{name: "checksum in the mark", inv: InvMark, want: isMessage,
		harm: func(_ *testing.T, _ *Slot, path string, n *Inode) error {
			m := markOf(n)
			m.XXH++
			return writeMark(path, m)
		}},
	{name: "garbage in trash", inv: InvAside, irreparable: true,
		harm: func(_ *testing.T, s *Slot, _ string, _ *Inode) error {
			return os.WriteFile(filepath.Join(s.dir, dirTrash, "garbage"), nil, 0o600)
		}},
	{name: "left over in stage", inv: InvAside,
		harm: func(_ *testing.T, s *Slot, _ string, _ *Inode) error {
			return os.WriteFile(filepath.Join(s.dir, dirStage, "new-99"), nil, 0o600)
		}},
	{name: "quarantine without a record", inv: InvAside, irreparable: true,
		harm: func(_ *testing.T, s *Slot, _ string, _ *Inode) error {
			return os.WriteFile(filepath.Join(s.dir, dirQuarantine, "x"), nil, 0o600)
		}},
	{name: "totals of the index", inv: InvIndex, irreparable: true,
		harm: func(_ *testing.T, s *Slot, _ string, _ *Inode) error {
			st := s.ix.current()
			st.Digest[0]++
			return s.ix.flushRaw(st)
		}},
	{name: "entries of a directory", inv: InvIndex, irreparable: true, want: func(n *Inode) bool { return n.IsDir() && n.Count > 0 },
		harm: func(_ *testing.T, s *Slot, _ string, n *Inode) error {
			c := *n
			c.Entries[1]++
			s.ix.storeRaw(&c)
			return s.ix.flushRaw(s.ix.current())
		}},
	{name: "index of another history", inv: InvLog, irreparable: true,
		harm: func(_ *testing.T, s *Slot, _ string, _ *Inode) error {
			st := s.ix.current()
			st.Pos.Chain++
			return s.ix.flushRaw(st)
		}},
}

// Every damage is found under its number, and only there where it can be told
// apart; and repair makes good what can be.
func TestCheckFindsDamage(t *testing.T) {
	entries := history(t, 900, 300)
	for _, c := range damageCases {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			if _, err := Create(dir, Identity{Store: "m"}); err != nil {
				t.Fatal(err)
			}
			s, err := Open(dir, Options{Reserve: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			follow(t, s, entries)
			s.stopApplier()
			checkClean(t, s)
			if t.Failed() {
				return
			}
			n, path := pick(t, s, c.want)
			if err := c.harm(t, s, path, n); err != nil {
				t.Fatal(err)
			}
			r, err := s.Check(t.Context(), CheckOptions{Content: true})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Invariant == c.inv }) {
				t.Errorf("not found; findings: %v", r.Findings)
			}
			if _, err = s.Check(t.Context(), CheckOptions{Content: true, Repair: true}); err != nil {
				t.Fatal(err)
			}
			if !c.irreparable {
				checkClean(t, s)
			}
		})
	}
}

// pick finds an object that want accepts, and where the tree has it.
func pick(t *testing.T, s *Slot, want func(*Inode) bool) (*Inode, string) {
	t.Helper()
	if want == nil {
		return nil, ""
	}
	var found *Inode
	err := s.ix.eachInode(func(n *Inode) error {
		if want(n) && (found == nil || n.ID == op.Root) {
			found = n
		}
		return nil
	})
	if err != nil || found == nil {
		t.Fatalf("no such object in this history (%v)", err)
	}
	path, err := s.Path(found.ID)
	if err != nil {
		t.Fatal(err)
	}
	return found, filepath.Join(s.dir, dirTree, path)
}

// A slot that is being changed checks clean at any moment.
func TestCheckLive(t *testing.T) {
	entries := history(t, 901, 2500)
	s := newSlot(t, filepath.Join(t.TempDir(), "data"), entries[:500])
	done := make(chan struct{})
	go func() {
		defer close(done)
		for part := range slices.Chunk(entries[500:], 20) {
			if s.Log.AppendEntries(part) != nil {
				return
			}
			last := part[len(part)-1].Seq
			s.Log.Flush(last)
			s.Log.Commit(last)
			if s.Log.Applied.Wait(t.Context(), last-min(last, 60)) != nil {
				return
			}
		}
	}()
	for i := 0; ; i++ {
		checkClean(t, s)
		select {
		case <-done:
			if t.Logf("%d checks", i); s.Faulted() != nil {
				t.Fatal(s.Faulted())
			}
			return
		default:
		}
		if t.Failed() {
			<-done
			return
		}
	}
}

func TestCheckNumbersAreNamed(t *testing.T) {
	for i := InvName; i <= InvMark; i++ {
		if f := (Finding{Invariant: i}); f.Describe() == "" {
			t.Error(fmt.Sprint("I", i, " has no name"))
		}
	}
}

// What a check finds in the trash may be freed before it looks at it.
func TestCheckWhileTrashIsFreed(t *testing.T) {
	w := newTwins(t, true, fillMail)
	id, err := w.a.Lookup("cur/m1")
	noErr(t, err)
	name := strconv.FormatUint(uint64(id), 10)
	for _, c := range []struct {
		name string
		want int
	}{{name, 0}, {"garbage", 1}} {
		var r Report
		w.a.checkTrash(&r, []string{c.name})
		if len(r.Findings) != c.want {
			t.Errorf("%s is not there: %v", c.name, r.Findings)
		}
	}
}
