package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
)

// says is want for a success, which speaks on stdout.
func (r result) says(t *testing.T, texts ...string) {
	t.Helper()
	r.want(t, exit.OK)
	for _, text := range texts {
		if !strings.Contains(r.stdout, text) {
			t.Errorf("it does not say %q:\n%s", text, r.stdout)
		}
	}
}

const members = "n1=192.0.2.1:7948,n2=192.0.2.2:7948,w=192.0.2.3:7948"

// TestInitRegister: what init says for two mail nodes and a witness is what
// has to be typed, and gives three configs that belong together.
func TestInitRegister(t *testing.T) {
	dir := t.TempDir()
	n1, n2, w := filepath.Join(dir, "n1"), filepath.Join(dir, "n2"), filepath.Join(dir, "w")
	out := run(t, "init", n1, "--node", "n1", "--store", "mail1", "--socket", "admin.sock", "--data", "data/mail1", "--mount", "mnt", "--members", members)
	out.says(t, "TCP 7948 and 7949 (register)",
		"slotfs init /tmp/n2 --node n2 --store mail1 --cluster "+n1+" --no-data",
		"slotfs init /tmp/w --node w --witness --cluster "+n1,
		"slotfs create mail1", "slotfs witness", "slotfs promote mail1 --config "+n1+"/slotfs.toml")
	run(t, "init", n2, "--node", "n2", "--store", "mail1", "--cluster", n1, "--no-data").says(t, "next: slotfs serve --config "+n2)
	run(t, "init", w, "--node", "w", "--witness", "--cluster", n1, "--socket", "admin.sock").says(t, "next: slotfs witness --config "+w)
	var first *config.Config
	for i, d := range []string{n1, n2, w} {
		c, err := config.Parse(filepath.Join(d, "slotfs.toml"))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = c
		}
		self, ok := c.RegisterSelf()
		if !ok || self.Name != c.Node || len(c.Register.Members) != 3 || c.Register.Listen != "0.0.0.0:7948" || c.Register.ClientListen != "0.0.0.0:7949" {
			t.Errorf("%s: register %+v", c.Node, c.Register)
		}
		if c.Witness() != (i == 2) {
			t.Errorf("%s: witness is %v", c.Node, c.Witness())
		}
		if len(c.Join) != 2 {
			t.Errorf("%s joins %v", c.Node, c.Join)
		}
	}
	if got, want := first.Register.Data, filepath.Join(n1, "data/register"); got != want {
		t.Errorf("register data in %s, want %s", got, want)
	}
	// Each command runs the kind of node that it is for.
	run(t, "serve", "--config", filepath.Join(w, "slotfs.toml")).want(t, exit.Config, "slot: there is no slot", "slotfs witness")
	run(t, "witness", "--config", filepath.Join(n1, "slotfs.toml")).want(t, exit.Config, "slot: a witness has no slots", "slotfs serve")
}

// TestInitAlone: without members there is no register, and init says how to
// get one.
func TestInitAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "n1")
	run(t, "init", dir, "--node", "n1", "--store", "mail1", "--socket", "admin.sock", "--data", "data", "--mount", "mnt").says(t,
		"next: slotfs serve --config", "slotfs promote mail1", "a change of primary is always a command of yours", "slotfs init --help")
	c, err := config.Parse(filepath.Join(dir, "slotfs.toml"))
	if err != nil || c.Register.Mode != config.RegisterNone {
		t.Errorf("register %+v, %v", c.Register, err)
	}
}

func TestInitRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	tests := []struct {
		args []string
		code exit.Code
		want string
	}{
		{[]string{"--node", "w", "--witness"}, exit.Usage, "name its members with --members"},
		{[]string{"--node", "x", "--witness", "--members", members}, exit.Usage, "x is not in n1=192.0.2.1:7948"},
		{[]string{"--node", "w", "--witness", "--store", "mail1", "--members", members}, exit.Usage, "--store makes no sense with --witness"},
		{[]string{"--node", "n1", "--members", "n1=192.0.2.1:7948,n2=192.0.2.2:7948"}, exit.Config, "Add a third: a witness"},
		{[]string{"--node", "n1", "--members", "n1,n2,w"}, exit.Config, "is not NAME=HOST:PORT"},
	}
	for i, tt := range tests {
		d := at(string(rune('a' + i)))
		r := run(t, append([]string{"init", d}, tt.args...)...)
		r.want(t, tt.code, tt.want)
		if _, err := os.Stat(d); err == nil {
			t.Errorf("%s: a refused init left %s", strings.Join(tt.args, " "), d)
		}
	}
}
