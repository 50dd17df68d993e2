package treediff_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/integration/treediff"
)

func build(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	for _, err := range []error{
		os.MkdirAll(at("d/e"), 0o755),
		os.WriteFile(at("d/f"), []byte("12345"), 0o640),
		os.WriteFile(at("d/e/empty"), nil, 0o600),
		os.Symlink("f", at("d/l")),
		os.Link(at("d/f"), at("d/g")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"d/f", "d/e/empty", "d/e", "d", "."} {
		if err := os.Chtimes(at(name), time.Time{}, time.Unix(1, 2)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCompare(t *testing.T) {
	noLinks := treediff.Options{Ignore: func(path string, dir bool) bool { return path == "d/l" }}
	r, err := treediff.Compare(build(t), build(t), noLinks)
	if err != nil || len(r.Diff) > 0 || r.Files != 3 || r.Dirs != 3 || r.Bytes != 10 {
		t.Errorf("equal trees: %+v, %v", r, err)
	}
	for want, change := range map[string]func(root string) error{
		"d/f: bytes differ":  func(root string) error { return rewrite(root+"/d/f", "12346") },
		"d/f: mode":          func(root string) error { return os.Chmod(root+"/d/f", 0o600) },
		"d/f: uid":           func(root string) error { return os.Chown(root+"/d/f", 7, 8) },
		"d/f: links 2 and 1": func(root string) error { return os.Remove(root + "/d/g") },
		"d/e: mtime":         func(root string) error { return os.Chtimes(root+"/d/e", time.Time{}, time.Unix(2, 0)) },
		"d/e/new: only in":   func(root string) error { return os.WriteFile(root+"/d/e/new", nil, 0o600) },
		"d/e/empty: only in": func(root string) error { return os.Remove(root + "/d/e/empty") },
		"d/f: size 5 and 6":  func(root string) error { return rewrite(root+"/d/f", "123456") },
	} {
		if strings.Contains(want, "uid") && os.Getuid() != 0 {
			continue
		}
		a, b := build(t), build(t)
		if err := change(b); err != nil {
			t.Fatal(err)
		}
		r, err := treediff.Compare(a, b, noLinks)
		if err != nil || !strings.Contains(strings.Join(r.Diff, "\n"), want) {
			t.Errorf("%s: got %q, %v", want, r.Diff, err)
		}
	}
}

// rewrite changes the bytes and nothing else.
func rewrite(name, text string) error {
	if err := os.WriteFile(name, []byte(text), 0); err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, time.Unix(1, 2))
}
