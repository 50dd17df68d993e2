package ledger_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"slotfs/meta/ledger"
)

func open(t testing.TB, dir string, size int64) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(dir, ledger.Options{Store: "mail", Slot: "s1", FileSize: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func read(t testing.TB, dir string) (all []ledger.Entry) {
	t.Helper()
	if err := ledger.Read(dir, func(e ledger.Entry) error { all = append(all, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

func verify(t testing.TB, dir string) ledger.Result {
	t.Helper()
	r, err := ledger.Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func appendTo(t testing.TB, l *ledger.Ledger, n int) {
	t.Helper()
	for i := range n {
		if err := l.Append(ledger.Entry{Kind: ledger.Damaged, Path: fmt.Sprintf("u/cur/%d", i), ID: uint64(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

func lastFile(t testing.TB, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%v, %v", names, err)
	}
	return names[len(names)-1]
}

func TestAppend(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	l := open(t, dir, 0)
	e := ledger.Entry{Kind: ledger.Damaged, Path: "a/\xffb", MessageID: "<1@x>", ID: 7, Outcome: ledger.Repaired, Source: "n2",
		Expected: map[string]string{"index": "xxh64:01", "n2": "xxh64:01"}, Found: map[string]string{"disk": "xxh64:02"}}
	if err := l.Append(e, ledger.Entry{Kind: "x<>&\u2028"}); err != nil {
		t.Fatal(err)
	}
	all := read(t, dir)
	if len(all) != 2 || all[0].Seq != 1 || all[1].Seq != 2 {
		t.Fatalf("got %+v", all)
	}
	got := all[0]
	if got.Store != "mail" || got.Slot != "s1" || got.Path != `a/\xffb` || got.Expected["n2"] != "xxh64:01" || got.Time.IsZero() {
		t.Errorf("got %+v", got)
	}
	if r := verify(t, dir); !r.Whole() || r.Entries != 2 || r.Head != l.Head() || r.Head.Seq != 2 {
		t.Errorf("got %+v, head %+v", r, l.Head())
	}
}

// TestReopen: the chain goes on over files and restarts.
func TestReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	for range 5 {
		l := open(t, dir, 1000)
		appendTo(t, l, 7)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := l.Append(ledger.Entry{}); !errors.Is(err, ledger.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	if r := verify(t, dir); !r.Whole() || r.Entries != 35 || r.First != 1 {
		t.Errorf("got %+v", r)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(names) < 5 {
		t.Errorf("%d files: not rotated", len(names))
	}
	for _, n := range names {
		if st, err := os.Stat(n); err != nil || st.Size() > 2000 {
			t.Errorf("%s: %v, %v", n, st.Size(), err)
		}
	}
	// The oldest files may be archived.
	if err := os.Remove(names[0]); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir); !r.Whole() || r.First < 2 || r.Head.Seq != 35 {
		t.Errorf("without the first file: %+v", r)
	}
}

// TestTorn: a crash at any byte of an append loses that entry alone, and is
// recorded.
func TestTorn(t *testing.T) {
	proto := filepath.Join(t.TempDir(), "ledger")
	l := open(t, proto, 0)
	appendTo(t, l, 2)
	l.Close()
	whole, err := os.ReadFile(lastFile(t, proto))
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(whole, '\n') + 1
	for n := first; n <= len(whole); n++ {
		for _, zeros := range []int{0, len(whole) - n} {
			dir := filepath.Join(t.TempDir(), "ledger")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			b := append(bytes.Clone(whole[:n]), make([]byte, zeros)...)
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(lastFile(t, proto))), b, 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, dir, 0)
			appendTo(t, l, 1)
			all := read(t, dir)
			want := 3 // the one before, the note, the new one
			switch n {
			case first:
				if zeros == 0 {
					want = 2
				}
			case len(whole):
				want = 3
			}
			if len(all) != want || !verify(t, dir).Whole() {
				t.Fatalf("cut at %d with %d zeros: %d entries, %+v", n, zeros, len(all), verify(t, dir))
			}
			if noted := all[1].Kind == ledger.Torn; noted != (want == 3 && n < len(whole)) {
				t.Fatalf("cut at %d: %+v", n, all[1])
			}
			l.Close()
		}
	}
}

// TestDamage: any change of any byte is found, and the line is named.
func TestDamage(t *testing.T) {
	proto := filepath.Join(t.TempDir(), "ledger")
	l := open(t, proto, 700)
	appendTo(t, l, 6)
	head := l.Head()
	l.Close()
	names, _ := filepath.Glob(filepath.Join(proto, "*"))
	rapid.Check(t, func(rt *rapid.T) {
		dir := filepath.Join(t.TempDir(), "ledger")
		if err := os.CopyFS(dir, os.DirFS(proto)); err != nil {
			rt.Fatal(err)
		}
		name := filepath.Join(dir, filepath.Base(rapid.SampledFrom(names).Draw(rt, "file")))
		b, err := os.ReadFile(name)
		if err != nil {
			rt.Fatal(err)
		}
		i := rapid.IntRange(0, len(b)-2).Draw(rt, "byte")
		b[i] ^= byte(rapid.IntRange(1, 255).Draw(rt, "flip"))
		line := bytes.Count(b[:i], []byte("\n")) + 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			rt.Fatal(err)
		}
		last := name == filepath.Join(dir, filepath.Base(lastFile(t, proto)))
		r := verify(rt0(rt, t), dir)
		if b[i] != 0 || !last { // a zero in the last line looks like a crash
			if r.Whole() || r.File != filepath.Base(name) || r.Line != line {
				rt.Fatalf("flipped byte %d in line %d of %s: %+v", i, line, name, r)
			}
		}
		again := open(t, dir, 700)
		if err := again.Append(ledger.Entry{Kind: ledger.Scrub}); err != nil {
			rt.Fatal(err)
		}
		again.Close()
		all := read(t, dir)
		if n := all[len(all)-1]; n.Seq < head.Seq || n.Kind != ledger.Scrub {
			rt.Fatalf("after the damage: %+v", n)
		}
		if last && b[i] != 0 {
			if n := all[len(all)-2]; n.Kind != ledger.Broken || !strings.Contains(n.Text, fmt.Sprintf("line %d ", line)) {
				rt.Fatalf("the damage is not recorded: %+v", n)
			}
			if r := verify(t, dir); r.Whole() || r.Line != line {
				rt.Fatalf("forgotten: %+v", r)
			}
		}
	})
}

// rt0 is t, for helpers; rapid reports through rt.
func rt0(_ *rapid.T, t *testing.T) testing.TB { return t }

// TestRemoved: a line that is taken out, exchanged or doubled is noticed.
func TestRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	l := open(t, dir, 0)
	appendTo(t, l, 4)
	l.Close()
	name := lastFile(t, dir)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	ln := strings.SplitAfter(strings.TrimSpace(string(whole))+"\n", "\n")
	for what, c := range map[string]struct {
		lines []string
		line  int
	}{
		"removed":   {[]string{ln[0], ln[2], ln[3]}, 2},
		"exchanged": {[]string{ln[0], ln[2], ln[1], ln[3]}, 2},
		"doubled":   {[]string{ln[0], ln[1], ln[1], ln[2]}, 3},
		"beginning": {[]string{ln[1], ln[2]}, 1},
		"space":     {[]string{ln[0], " " + ln[1]}, 2},
		"empty":     {[]string{ln[0], "\n", ln[1]}, 2},
	} {
		if err := os.WriteFile(name, []byte(strings.Join(c.lines, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := verify(t, dir); r.Whole() || r.Line != c.line {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

// TestFileGone: a file in the middle is missed.
func TestFileGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	l := open(t, dir, 400)
	appendTo(t, l, 6)
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	if err := os.Remove(names[1]); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir); r.Whole() || r.File != filepath.Base(names[2]) || r.Line != 1 {
		t.Errorf("got %+v", r)
	}
}

// TestHead: what was noted elsewhere shows that the end is missing, or that all
// was written anew.
func TestHead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	l := open(t, dir, 0)
	appendTo(t, l, 4)
	head, err := ledger.ParseHead(l.Head().String())
	if err != nil || head != l.Head() {
		t.Fatalf("%v, %v", head, err)
	}
	l.Close()
	check := func(whole bool) {
		t.Helper()
		r, err := ledger.Verify(dir, head)
		if err != nil || r.Whole() != whole {
			t.Errorf("%+v, %v", r, err)
		}
	}
	check(true)
	name := lastFile(t, dir)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	cut := b[:bytes.LastIndexByte(b[:len(b)-1], '\n')+1]
	if err := os.WriteFile(name, cut, 0o600); err != nil {
		t.Fatal(err)
	}
	check(false)
	if !verify(t, dir).Whole() {
		t.Error("the rest is a chain")
	}
	os.Remove(name)
	appendTo(t, open(t, dir, 0), 6)
	check(false)
	for _, bad := range []string{"", "1", "x:" + head.Hash.String(), "1:ab"} {
		if h, err := ledger.ParseHead(bad); err == nil {
			t.Errorf("%q is %v", bad, h)
		}
	}
}

func TestTime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ledger")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	l, err := ledger.Open(dir, ledger.Options{Now: func() time.Time { return at }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Append(ledger.Entry{}); err != nil {
		t.Fatal(err)
	}
	if e := read(t, dir)[0]; !e.Time.Equal(at) || e.Time.Location() != time.UTC {
		t.Errorf("got %v", e.Time)
	}
}

func FuzzVerify(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "ledger")
	l := open(f, dir, 0)
	appendTo(f, l, 3)
	b, err := os.ReadFile(lastFile(f, dir))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}\n"))
	f.Add([]byte("\x00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "000000000001.jsonl"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		before := verify(t, dir)
		l := open(t, dir, 0)
		appendTo(t, l, 1)
		after := verify(t, dir)
		if before.Whole() != after.Whole() {
			t.Errorf("opening changed the verdict: %+v, %+v", before, after)
		}
	})
}
