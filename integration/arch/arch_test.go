package arch_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// module is the prefix of every import path of this repository.
const module = "slotfs/"

// maxLines is the longest file we accept.
const maxLines = 800

// pkg is what `go list -json` says that we look at.
type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list names no package")
	}
	return all
}

// layer is who may import what: for each package, those of this repository that
// its code may import. A trailing /... means everything below.
var layer = map[string][]string{
	"meta/op":       {},
	"meta/oplog":    {"meta/op"},
	"meta/ledger":   {},
	"meta/vote":     {},
	"meta":          {"meta/op", "meta/oplog", "meta/ledger", "meta/vote"},
	"fs":            {"meta", "meta/op", "meta/oplog"},
	"repl":          {"meta", "meta/op", "meta/oplog", "meta/ledger"},
	"repl/register": {"repl", "meta", "meta/op"},
	"gossip":        {},
	"evidence":      {},
	"cmd":           {"cmd/slotfs/...", "fs", "repl", "repl/register", "gossip", "meta", "meta/op", "meta/oplog", "meta/ledger", "evidence"},
	"integration":   {"integration/...", "meta/op"},
}

// foreign are packages of others that no code here imports, and why.
var foreign = map[string]string{
	"log":                                 "log/slog is passed in; nothing logs globally",
	"io/ioutil":                           "os and io have it",
	"math/rand":                           "math/rand/v2",
	"github.com/stretchr/testify/assert":  "stdlib testing only",
	"github.com/stretchr/testify/require": "stdlib testing only",
}

func rulesFor(path string) (name string, allowed []string, ok bool) {
	if allowed, ok := layer[path]; ok {
		return path, allowed, true
	}
	for _, top := range []string{"cmd", "integration"} {
		if strings.HasPrefix(path, top+"/") {
			return path, layer[top], true
		}
	}
	return path, nil, false
}

func permitted(allowed []string, path string) bool {
	for _, a := range allowed {
		if below, ok := strings.CutSuffix(a, "/..."); ok {
			if path == below || strings.HasPrefix(path, below+"/") {
				return true
			}
		} else if path == a {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		name, allowed, ok := rulesFor(path)
		if !ok {
			t.Errorf("%s: a new package; add its place to the table in integration/arch", path)
			continue
		}
		for _, imp := range p.Imports {
			if own, ok := strings.CutPrefix(imp, module); ok && !permitted(allowed, own) {
				t.Errorf("%s imports %s; it may import %v", name, own, allowed)
			}
		}
		// A test may look deeper than its package does, but not upwards.
		for _, imp := range append(p.TestImports, p.XTestImports...) {
			own, ok := strings.CutPrefix(imp, module)
			if ok && strings.HasPrefix(own, "cmd/") && !strings.HasPrefix(path, "cmd/") {
				t.Errorf("%s: a test imports %s", name, own)
			}
		}
		for _, imp := range append(append(p.Imports, p.TestImports...), p.XTestImports...) {
			if why, ok := foreign[imp]; ok {
				t.Errorf("%s imports %s: %s", name, imp, why)
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) > 0 && p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

func TestFileLength(t *testing.T) {
	for _, p := range packages(t) {
		for _, files := range [][]string{p.GoFiles, p.TestGoFiles, p.XTestGoFiles} {
			for _, f := range files {
				b, err := os.ReadFile(filepath.Join(p.Dir, f))
				if err != nil {
					t.Fatal(err)
				}
				if n := bytes.Count(b, []byte("\n")); n > maxLines {
					t.Errorf("%s/%s has %d lines, more than %d: which idea wants to move out?", p.ImportPath, f, n, maxLines)
				}
			}
		}
	}
}
