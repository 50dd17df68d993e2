package meta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// twins are two slots of one store: damage to a is judged and repaired with b.
type twins struct {
	a *mailSlot
	b *testSlot
}

// newTwins makes two slots that hold what fill makes. With lone, nobody else can
// be asked.
func newTwins(t testing.TB, lone bool, fill func(*mailSlot)) *twins {
	t.Helper()
	w := &twins{}
	var opt Options
	if !lone {
		opt.Fetch = func(ctx context.Context, id op.ID, want op.Sum) (Copy, error) {
			n, err := w.b.Inode(id)
			if err != nil {
				return Copy{}, err
			}
			data := make([]byte, n.Size)
			if _, err := w.b.ReadAt(ctx, id, data, 0); err != nil {
				return Copy{}, err
			}
			if !want.Verify(data) {
				return Copy{}, errors.New("the other copy has another checksum")
			}
			return Copy{Data: data, From: "n2"}, nil
		}
		opt.Ask = func(ctx context.Context, id op.ID) []*Testimony {
			e, err := w.b.Testify(ctx, id)
			if err != nil {
				return nil
			}
			e.Node = "n2"
			return []*Testimony{e}
		}
	}
	w.a = newMailSlot(t, opt)
	fill(w.a)
	w.b = newTestSlot(t, Options{})
	entries, err := w.a.Log.Read(1, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	w.b.feed(entries)
	w.b.settle()
	return w
}

// scrubbed runs a scrub and returns its findings, "kind path outcome" each.
func scrubbed(t testing.TB, s *Slot, o ScrubOptions) (ScrubProgress, []string) {
	t.Helper()
	var found []string
	p, err := s.Scrub(t.Context(), o, ScrubReport{Finding: func(f ScrubFinding) {
		t.Logf("%+v", f)
		found = append(found, f.Kind+" "+f.Path+" "+f.Outcome)
	}})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(found)
	return p, found
}

// asWanted compares findings with those expected. That the time of a directory
// changed goes with somebody's having changed its names.
func asWanted(found, want []string) bool {
	for _, f := range found {
		if f != "attributes cur repaired" && !slices.Contains(want, f) && !slices.Contains(want, f+"*") {
			return false
		}
	}
	return len(found) > 0 && !slices.ContainsFunc(want, func(w string) bool {
		return !strings.HasSuffix(w, "*") && !slices.Contains(found, w)
	})
}

// ledgerOf reads the ledger when all that is pending is written.
func ledgerOf(t testing.TB, s *Slot) (all []ledger.Entry) {
	t.Helper()
	s.recording.Wait()
	if err := ledger.Read(s.Ledger.Dir(), func(e ledger.Entry) error { all = append(all, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// rotten is one kind of damage below a slot.
type rotten struct {
	name string
	do   func(t testing.TB, s *mailSlot)
	want []string // findings; one that ends with * need not show, if another one's repair was quicker
	lone []string // the same when there is no other slot; nil: as want
}

func chtimes(t testing.TB, path string) {
	t.Helper()
	if err := os.Chtimes(path, time.Time{}, time.Unix(5, 0)); err != nil {
		t.Fatal(err)
	}
}

// rewrite changes the bytes of a file and keeps its time.
func rewrite(t testing.TB, path string, f func([]byte) []byte) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var rottens = []rotten{
	{"bit flip", func(t testing.TB, s *mailSlot) { flip(t, s.file("m1"), 77) },
		[]string{"content cur/m1 repaired"}, []string{"content cur/m1 unrepaired"}},
	{"zeroed block", func(t testing.TB, s *mailSlot) {
		rewrite(t, s.file("m1"), func(b []byte) []byte { clear(b[4096:8192]); return b })
	}, []string{"content cur/m1 repaired"}, []string{"content cur/m1 unrepaired"}},
	{"truncation", func(t testing.TB, s *mailSlot) {
		rewrite(t, s.file("m1"), func(b []byte) []byte { return b[:len(b)-9] })
	}, []string{"content cur/m1 repaired"}, []string{"content cur/m1 unrepaired"}},
	{"extension", func(t testing.TB, s *mailSlot) {
		rewrite(t, s.file("big"), func(b []byte) []byte { return append(b, "tail"...) })
	}, []string{"content cur/big repaired"}, []string{"content cur/big unrepaired"}},
	{"contents of two exchanged", func(t testing.TB, s *mailSlot) {
		var one []byte
		rewrite(t, s.file("m1"), func(b []byte) []byte { one = b; o, err := os.ReadFile(s.file("m2")); noErr(t, err); return o })
		rewrite(t, s.file("m2"), func([]byte) []byte { return one })
	}, []string{"content cur/m1 repaired", "content cur/m2 repaired"}, []string{"content cur/m1 unrepaired", "content cur/m2 unrepaired"}},
	{"names of two exchanged", func(t testing.TB, s *mailSlot) {
		noErr(t, unix.Renameat2(unix.AT_FDCWD, s.file("m1"), unix.AT_FDCWD, s.file("m2"), unix.RENAME_EXCHANGE))
	}, []string{"misplaced cur/m1 repaired*", "misplaced cur/m2 repaired*"}, nil},
	{"missing", func(t testing.TB, s *mailSlot) { noErr(t, os.Remove(s.file("m2"))) },
		[]string{"missing cur/m2 repaired"}, []string{"missing cur/m2 unrepaired"}},
	{"one of two names missing", func(t testing.TB, s *mailSlot) { noErr(t, os.Remove(s.file("second"))) },
		[]string{"missing cur/two repaired*", "misplaced cur/two repaired*"}, nil},
	{"two names, two files", func(t testing.TB, s *mailSlot) {
		b, err := os.ReadFile(s.file("second"))
		noErr(t, err)
		noErr(t, os.Remove(s.file("second")))
		noErr(t, os.WriteFile(s.file("second"), b, 0o600))
	}, []string{"missing cur/two repaired*", "misplaced cur/two repaired*"}, nil},
	{"directory missing", func(t testing.TB, s *mailSlot) { noErr(t, os.RemoveAll(filepath.Join(s.dir, dirTree, "cur", "sub"))) },
		[]string{"missing cur/sub repaired*", "missing cur/sub/in repaired*", "misplaced cur/sub repaired*", "misplaced cur/sub/in repaired*"}, nil},
	{"stray", func(t testing.TB, s *mailSlot) { noErr(t, os.WriteFile(s.file("stray"), []byte("x"), 0o600)) },
		[]string{"stray cur/stray kept"}, nil},
	{"stray directory", func(t testing.TB, s *mailSlot) {
		noErr(t, os.Mkdir(s.file("straydir"), 0o700))
		noErr(t, os.WriteFile(s.file("straydir/x"), []byte("x"), 0o600))
	}, []string{"stray cur/straydir kept"}, nil},
	{"mode", func(t testing.TB, s *mailSlot) { noErr(t, os.Chmod(s.file("m1"), 0o644)) },
		[]string{"attributes cur/m1 repaired"}, nil},
	{"owner", func(t testing.TB, s *mailSlot) { noErr(t, os.Chown(s.file("m1"), 77, 78)) },
		[]string{"attributes cur/m1 repaired"}, nil},
	{"mtime", func(t testing.TB, s *mailSlot) { chtimes(t, s.file("m1")) },
		[]string{"attributes cur/m1 repaired"}, nil},
	{"mtime of a directory", func(t testing.TB, s *mailSlot) { chtimes(t, s.file("")) },
		[]string{"attributes cur repaired"}, nil},
	{"mode of a directory", func(t testing.TB, s *mailSlot) { noErr(t, os.Chmod(s.file("sub"), 0o777)) },
		[]string{"attributes cur/sub repaired"}, nil},
	{"attributes of a control file", func(t testing.TB, s *mailSlot) { noErr(t, os.Chmod(s.file("control"), 0o666)) },
		[]string{"attributes cur/control repaired"}, nil},
	{"xattr gone", func(t testing.TB, s *mailSlot) { noErr(t, unix.Lremovexattr(s.file("m1"), markName)) },
		[]string{"mark cur/m1 repaired"}, nil},
	{"xattr of a directory gone", func(t testing.TB, s *mailSlot) { noErr(t, unix.Lremovexattr(s.file("sub"), markName)) },
		[]string{"mark cur/sub repaired"}, nil},
	{"xattr with another id", func(t testing.TB, s *mailSlot) {
		m, err := readMark(s.file("m1"))
		noErr(t, err)
		m.ID = 999_999
		noErr(t, writeMark(s.file("m1"), m))
	}, []string{"misplaced cur/m1 repaired"}, nil},
	{"xattr with another checksum", func(t testing.TB, s *mailSlot) {
		m, err := readMark(s.file("m1"))
		noErr(t, err)
		m.XXH++
		noErr(t, writeMark(s.file("m1"), m))
	}, []string{"mark cur/m1 repaired"}, nil},
	{"user xattr", func(t testing.TB, s *mailSlot) { noErr(t, unix.Lsetxattr(s.file("m1"), "user.x", []byte("y"), 0)) },
		[]string{"attributes cur/m1 repaired"}, nil},
	{"xattr gone and bit flip", func(t testing.TB, s *mailSlot) {
		noErr(t, unix.Lremovexattr(s.file("m1"), markName))
		flip(t, s.file("m1"), 5)
	}, []string{"content cur/m1 repaired"}, []string{"content cur/m1 unrepaired"}},
	{"seal of a control file", func(t testing.TB, s *mailSlot) { flip(t, s.file("control"), 3) },
		[]string{"content cur/control repaired"}, []string{"content cur/control unrepaired"}},
}

func fillMail(s *mailSlot) {
	for i := range 3 {
		s.put(fmt.Sprint("m", i), fmt.Appendf(pattern(20_000), "Message-ID: <%d@x>", i))
	}
	s.put("big", pattern(3<<20+100))
	two := s.put("two", pattern(300))
	s.add(&op.Link{ID: two, Parent: s.cur, Name: "second"})
	sub := s.add(&op.Mkdir{Parent: s.cur, Name: "sub", Attr: op.Attr{Mode: typeDir | 0o700}})
	s.add(&op.Put{Parent: sub, Name: "in", Attr: op.Attr{Mode: typeRegular | 0o600}, Sum: op.SumOf([]byte("inside")), Sealed: true, Data: []byte("inside")})
	s.add(&op.Create{Parent: s.cur, Name: "link", Attr: op.Attr{Mode: typeSymlink | 0o777}, Target: "m1"})
	c := s.add(&op.Create{Parent: s.cur, Name: "control", Attr: op.Attr{Mode: typeRegular | 0o600}})
	w := s.add(&op.Write{ID: c, Data: []byte("some lines")})
	s.add(&op.Seal{ID: c, Of: uint64(w), Sum: op.BlockSumOf([]byte("some lines"))})
	empty := s.add(&op.Create{Parent: s.cur, Name: "unsealed", Attr: op.Attr{Mode: typeRegular | 0o600}})
	s.add(&op.Write{ID: empty, Data: []byte("changing")})
}

// TestScrubRepairs: each damage is found as what it is, repaired where a good
// copy is to be had, and what cannot be repaired is kept as it is.
func TestScrubRepairs(t *testing.T) {
	for _, lone := range []bool{false, true} {
		t.Run(fmt.Sprintf("lone=%v", lone), func(t *testing.T) {
			w := newTwins(t, lone, fillMail)
			s := w.a
			whole := s.treeState()
			if p, found := scrubbed(t, s.Slot, ScrubOptions{}); len(found) != 0 || p.Bytes == 0 || !p.Clean() {
				t.Fatalf("of a whole slot: %v, %+v", found, p)
			}
			for _, d := range rottens {
				if lone && d.lone != nil {
					continue // see TestScrubUnrepairable
				}
				t.Run(d.name, func(t *testing.T) {
					before := len(ledgerOf(t, s.Slot))
					d.do(t, s)
					_, found := scrubbed(t, s.Slot, ScrubOptions{NoRepair: true})
					if len(found) == 0 {
						t.Error("not found")
					}
					_, found = scrubbed(t, s.Slot, ScrubOptions{})
					if !asWanted(found, d.want) {
						t.Errorf("found %q, want %q", found, d.want)
					}
					sameState(t, "after repair", s.treeState(), whole)
					if _, again := scrubbed(t, s.Slot, ScrubOptions{}); len(again) > 0 {
						t.Errorf("found again: %q", again)
					}
					if r, err := s.Check(t.Context(), CheckOptions{Content: true}); err != nil || !r.Clean() {
						t.Errorf("check: %v, %v", r, err)
					}
					told := 0
					for _, e := range ledgerOf(t, s.Slot)[before:] {
						if e.Kind != ledger.Scrub && (e.Outcome == ledger.Repaired || e.Outcome == ledger.Kept) {
							told++
						}
					}
					if told == 0 {
						t.Error("nothing in the ledger")
					}
				})
			}
		})
	}
}

// TestScrubUnrepairable: without a good copy nothing is overwritten, the read
// fails, and the ledger says so.
func TestScrubUnrepairable(t *testing.T) {
	for _, d := range rottens {
		if d.lone == nil {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			w := newTwins(t, true, fillMail)
			d.do(t, w.a)
			damaged := w.a.treeState()
			_, found := scrubbed(t, w.a.Slot, ScrubOptions{})
			if !asWanted(found, d.lone) {
				t.Errorf("found %q, want %q", found, d.lone)
			}
			now := w.a.treeState()
			delete(now, "cur")
			delete(damaged, "cur")
			sameState(t, "untouched", now, damaged)
			if st := w.a.ScrubStatus(); st.Damaged == 0 {
				t.Errorf("status: %+v", st)
			}
			kept := 0
			for _, e := range ledgerOf(t, w.a.Slot) {
				if e.Outcome == ledger.Unrepaired && e.Kind != ledger.Scrub {
					kept++
				}
			}
			if kept == 0 {
				t.Error("nothing in the ledger")
			}
		})
	}
}

// TestIndexOutvoted: a wrong record of the index loses against all others, with
// and without another slot; good bytes are never replaced because of it.
func TestIndexOutvoted(t *testing.T) {
	for _, lone := range []bool{true, false} {
		w := newTwins(t, lone, fillMail)
		s := w.a
		whole, _ := s.Digest()
		_, digest := s.Digest()
		state := s.treeState()
		id, err := s.Lookup("cur/m1")
		noErr(t, err)
		n, err := s.Inode(id)
		noErr(t, err)
		bad := n.Clone()
		sum := op.SumOf([]byte("something else"))
		bad.Sum = &sum
		s.ix.storeCorrected(bad) // as if the record had changed by itself
		got, err := s.read(id, 4096)
		want, _ := os.ReadFile(s.file("m1"))
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("lone=%v: read: %d bytes, %v", lone, len(got), err)
		}
		now, err := s.Inode(id)
		if err != nil || !now.Sum.Equal(*n.Sum) || now.Size != n.Size {
			t.Errorf("lone=%v: the record is %+v, %v", lone, now, err)
		}
		if seq, d := s.Digest(); seq != whole || d != digest {
			t.Errorf("lone=%v: digest %v, was %v", lone, d, digest)
		}
		sameState(t, "tree", s.treeState(), state)
		if r, err := s.Check(t.Context(), CheckOptions{Content: true}); err != nil || !r.Clean() {
			t.Errorf("lone=%v: check: %+v, %v", lone, r, err)
		}
	}
}

// TestIndexAttributesOutvoted: the same for attributes; it takes another slot,
// or the digest of the directory, to tell.
func TestIndexAttributesOutvoted(t *testing.T) {
	w := newTwins(t, false, fillMail)
	s := w.a
	_, digest := s.Digest()
	state := s.treeState()
	id, err := s.Lookup("cur/m1")
	noErr(t, err)
	n, err := s.Inode(id)
	noErr(t, err)
	bad := n.Clone()
	bad.Mtime += 5
	s.ix.storeCorrected(bad)
	_, found := scrubbed(t, s.Slot, ScrubOptions{})
	if !slices.Equal(found, []string{"attributes cur/m1 repaired"}) {
		t.Errorf("found %q", found)
	}
	if now, err := s.Inode(id); err != nil || now.Mtime != n.Mtime {
		t.Errorf("the record is %+v, %v", now, err)
	}
	if _, d := s.Digest(); d != digest {
		t.Errorf("digest %v, was %v", d, digest)
	}
	sameState(t, "tree", s.treeState(), state)
}

// TestScrubUser: only what is asked for is looked at.
func TestScrubUser(t *testing.T) {
	w := newTwins(t, false, fillMail)
	flip(t, w.a.file("m1"), 0)
	p, found := scrubbed(t, w.a.Slot, ScrubOptions{User: "sub"})
	if len(found) != 0 || p.Messages != 1 || p.Objects != 2 {
		t.Errorf("%q, %+v", found, p)
	}
	if _, err := w.a.Scrub(t.Context(), ScrubOptions{User: "nobody"}, ScrubReport{}); !errors.Is(err, ErrNoUser) {
		t.Errorf("got %v", err)
	}
	if p, _ := scrubbed(t, w.a.Slot, ScrubOptions{Since: time.Now().Add(time.Hour)}); p.Objects != 0 || p.TotalObjects != 0 || p.TotalBytes != 0 {
		t.Errorf("since tomorrow: %+v", p)
	}
	if st := w.a.ScrubStatus(); !st.LastPass.IsZero() {
		t.Errorf("a part is no pass: %+v", st)
	}
	if _, found := scrubbed(t, w.a.Slot, ScrubOptions{User: "cur"}); len(found) != 1 {
		t.Errorf("%q", found)
	}
}

// TestScrubRemembers: what was verified when is remembered over a restart, and
// pausing, too.
func TestScrubRemembers(t *testing.T) {
	w := newTwins(t, false, fillMail)
	s := w.a
	if st := s.ScrubStatus(); !st.Never || st.Oldest.IsZero() {
		t.Errorf("never scrubbed: %+v", st)
	}
	scrubbed(t, s.Slot, ScrubOptions{})
	noErr(t, s.PauseScrub(true))
	before := s.ScrubStatus()
	if before.Never || before.LastPass.IsZero() || time.Since(before.Oldest) > time.Minute {
		t.Errorf("%+v", before)
	}
	s.reopen()
	after := s.ScrubStatus()
	if !after.Paused || !after.LastPass.Equal(before.LastPass) || !after.Oldest.Equal(before.Oldest) {
		t.Errorf("%+v, was %+v", after, before)
	}
	noErr(t, os.WriteFile(filepath.Join(s.dir, fileScrub), []byte("{garbage"), 0o600))
	s.reopen()
	if st := s.ScrubStatus(); st.Paused || !st.Never {
		t.Errorf("after garbage: %+v", st)
	}
}

// TestScrubLoop: the continuous scrub takes what was never verified, and what
// is due again; it rests when paused.
func TestScrubLoop(t *testing.T) {
	w := newTwins(t, false, fillMail)
	s := w.a
	last := op.ID(s.Stats().Pos.Seq)
	if _, _, ok := s.dueForScrub(time.Now(), time.Hour); ok {
		t.Error("what has just been delivered is due")
	}
	later := time.Now().Add(3 * time.Minute)
	s.dueForScrub(later.Add(-settle), time.Hour)
	if from, to, ok := s.dueForScrub(later, time.Hour); !ok || from != op.Root || to != last {
		t.Errorf("due: %d…%d, %v; want all to %d", from, to, ok, last)
	}
	noErr(t, s.scrub.covered(op.Root, last, later))
	if _, _, ok := s.dueForScrub(later, time.Hour); ok {
		t.Error("due twice")
	}
	if from, _, ok := s.dueForScrub(later.Add(time.Hour), time.Hour); !ok || from != op.Root {
		t.Error("not due after a cycle")
	}
	// Two gaps: the later mail first.
	s.scrub.mem.Verified = verifiedRanges{{4, 5, later.Unix()}}
	if from, to, ok := s.dueForScrub(later.Add(2*time.Hour), time.Hour); !ok || from != 6 || to != last {
		t.Errorf("due: %d…%d, %v", from, to, ok)
	}

	s.scrub.mem.Verified = nil
	flip(t, s.file("m1"), 9)
	ctx, cancel := context.WithCancel(t.Context())
	s.ConfigureScrub(ScrubConfig{Cycle: time.Hour})
	noErr(t, s.scrubSome(ctx, s.scrub.wake, ScrubConfig{Cycle: time.Hour}, op.Root, last))
	if n := s.ScrubStatus().Found[FoundContent]; n != 1 {
		t.Errorf("found %d", n)
	}
	if st := s.ScrubStatus(); st.LastPass.IsZero() {
		t.Errorf("no pass: %+v", st)
	}
	done := make(chan struct{})
	go func() { defer close(done); s.ScrubLoop(ctx) }()
	noErr(t, s.PauseScrub(true))
	cancel()
	<-done
}

// TestScrubBusy: one at a time.
func TestScrubBusy(t *testing.T) {
	w := newTwins(t, false, fillMail)
	flip(t, w.a.file("m1"), 9)
	var second error
	_, err := w.a.Scrub(t.Context(), ScrubOptions{}, ScrubReport{Finding: func(ScrubFinding) {
		_, second = w.a.Scrub(t.Context(), ScrubOptions{}, ScrubReport{})
	}})
	if err != nil || !errors.Is(second, ErrScrubRuns) {
		t.Errorf("%v, %v", err, second)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.a.Scrub(ctx, ScrubOptions{}, ScrubReport{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestMessageID(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"From: a\r\n\r\nbody":         "",
		"Message-ID: <1@x>\r\n\r\nb":  "<1@x>",
		"A: b\nmessage-id:\n <2@x>\n": "<2@x>",
		"A: b\n\nMessage-ID: <3@x>\n": "",
		"\x00\xff:\nMessage-Id: q\n":  "q",
		"Message-ID: " + strings.Repeat("x", 5000) + "\n": strings.Repeat("x", 998),
	} {
		if got := MessageID([]byte(in)); got != want {
			t.Errorf("%q: %q", in[:min(len(in), 40)], got)
		}
	}
}
