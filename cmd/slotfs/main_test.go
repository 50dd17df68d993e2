package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/exit"
)

var update = flag.Bool("update", false, "write testdata/help.txt anew")

// binary is the built command.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "slotfs-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "slotfs")
		if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// result is one finished run of the binary.
type result struct {
	code   exit.Code
	stdout string
	stderr string
}

func run(t *testing.T, args ...string) result {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "SLOTFS_CONFIG=")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ended := err.(*exec.ExitError); err != nil && !ended {
		t.Fatal(err)
	}
	return result{exit.Code(cmd.ProcessState.ExitCode()), out.String(), errs.String()}
}

// want fails unless r ended with code and said all of texts on stderr.
func (r result) want(t *testing.T, code exit.Code, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.stdout, r.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(r.stderr, text) {
			t.Errorf("stderr lacks %q:\n%s", text, r.stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code exit.Code
		want string // on stderr
	}{
		{"nothing", nil, exit.OK, ""},
		{"version", []string{"--version"}, exit.OK, ""},
		{"unknown verb", []string{"fly"}, exit.Usage, "unknown command \"fly\""},
		{"unknown flag", []string{"status", "--fast"}, exit.Usage, "unknown flag: --fast"},
		{"bad flag value", []string{"log", "mail1", "--since", "yesterday"}, exit.Usage, "invalid argument \"yesterday\""},
		{"missing argument", []string{"promote"}, exit.Usage, "accepts 1 arg(s), received 0"},
		{"too many arguments", []string{"metrics", "now"}, exit.Usage, "unknown command \"now\""},
		{"no config", []string{"status", "-c", "/no/such.toml"}, exit.Config, "/no/such.toml: there is no such file"},
		{"serve without config", []string{"serve", "-c", "/no/such.toml"}, exit.Config, "there is no such file"},
		{"not running", []string{"status", "--socket", "/no/such.sock"}, exit.NotRunning, "slotfs is not running, or /no/such.sock is not its admin socket"},
		{"init without directory", []string{"init"}, exit.Usage, "accepts 1 arg(s), received 0"},
		{"init with bad name", []string{"init", t.TempDir() + "/x", "--node", "n/1"}, exit.Config, "\"n/1\" cannot name a node"},
		{"init with a cluster that is none", []string{"init", t.TempDir() + "/x", "--cluster", t.TempDir()}, exit.Config, "ca.pem is missing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { run(t, tt.args...).want(t, tt.code, tt.want) })
	}
}

func testApp() (*app, *bytes.Buffer) {
	var out bytes.Buffer
	return &app{in: strings.NewReader(""), out: &out, err: &out, getenv: func(string) string { return "" }}, &out
}

// TestHelp compares the help of every verb with testdata/help.txt, so that the
// command line changes on purpose only, and wants an example for each.
func TestHelp(t *testing.T) {
	a, _ := testApp()
	var all strings.Builder
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Hidden {
			return
		}
		if c.Runnable() && c.Example == "" && c.Parent() != nil && c.Parent().Name() != "completion" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		if c.Name() == "completion" {
			return // cobra's own texts
		}
		host, _ := os.Hostname()
		text := c.UsageString()
		if c.Long != "" {
			text = c.Long + "\n\n" + text
		}
		fmt.Fprintf(&all, "==== %s\n%s\n", c.CommandPath(), strings.ReplaceAll(text, fmt.Sprintf("%q", host), "\"HOSTNAME\""))
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := a.root()
	walk(root)
	const golden = "testdata/help.txt"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(all.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if all.String() != string(want) {
		t.Errorf("the help has changed; if that is meant: go test ./cmd/slotfs -run TestHelp -update\n%s", all.String())
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if r := run(t, "completion", shell); r.code != exit.OK || !strings.Contains(r.stdout, "slotfs") {
			t.Errorf("%s: exit code %d, %d bytes", shell, r.code, len(r.stdout))
		}
	}
}
