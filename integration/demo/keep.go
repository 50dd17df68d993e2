package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"slotfs/integration/cluster"
	"slotfs/integration/scratch"
)

// description is .demo/demo.json. Later additions go at the end of each part.
type description struct {
	Bin      string     `json:"bin"`
	Store    string     `json:"store"`
	User     string     `json:"user"` // one of several, all with the one password
	Password string     `json:"password"`
	Nodes    []node     `json:"nodes"`
	Dovecot  []imapProc `json:"dovecot"`
	Dir      string     `json:"dir"`     // the scratch directory that holds all of it
	Witness  witness    `json:"witness"` // votes in the register, has no mail
}

type witness struct {
	Name   string `json:"name"`
	PID    int    `json:"pid"`
	Config string `json:"config"`
}

type node struct {
	Name   string `json:"name"`
	Role   string `json:"role"`
	PID    int    `json:"pid"`
	Config string `json:"config"`
	Mount  string `json:"mount"`
	Tree   string `json:"tree"`
	Data   string `json:"data"`
}

type imapProc struct {
	Node string `json:"node"`
	PID  int    `json:"pid"`  // 0: it starts when its node becomes primary
	LMTP string `json:"lmtp"` // host:port
	IMAP string `json:"imap"` // host:port
}

// leave describes what runs and lets go of it.
func (d *demo) leave() error {
	bin, err := cluster.Binary()
	if err != nil {
		return err
	}
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	about := description{Bin: bin, Store: store, User: quiet[0], Password: password, Dir: d.scratch.Path}
	for _, n := range d.cluster.Nodes {
		s, err := n.Slot()
		if err != nil {
			return err
		}
		about.Nodes = append(about.Nodes, node{n.Name, s.Repl.Role, n.Pid(), n.Config, n.Mount, n.Tree(), n.Data})
	}
	for i, s := range d.servers {
		pid, err := s.Pid()
		if err != nil {
			return err
		}
		about.Dovecot = append(about.Dovecot, imapProc{d.cluster.Nodes[i].Name, pid, s.LMTP, s.IMAP})
	}
	w := d.cluster.Witness
	about.Witness = witness{w.Name, w.Pid(), w.Config}
	file, err := describedIn()
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		return err
	}
	d.step("Everything is left running.")
	for _, n := range about.Nodes {
		say("%s  %-8s pid %d", n.Name, n.Role, n.PID)
		say("    mount %s", n.Mount)
		say("    tree  %s", n.Tree)
		say("    look  %s status --config %s", about.Bin, n.Config)
	}
	say("w   witness  pid %d", w.Pid())
	for _, s := range about.Dovecot {
		when := "runs"
		if s.PID == 0 {
			when = "runs when its node is primary"
		}
		say("Dovecot on %s: LMTP %s, IMAP %s; %s", s.Node, s.LMTP, s.IMAP, when)
	}
	say("Users %v, password %s", users(), password)
	say("The same for programs: %s", file)
	say("Kill the primary (kill -9 %d) and n2 takes over by itself; or hand it over: %s switch %s --config %s", about.Nodes[0].PID, about.Bin, store, about.Nodes[0].Config)
	say("The end of it all: make demo-stop")
	return d.scratch.Release()
}

// describedIn is where demo.json is: .demo beside go.mod.
func describedIn() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".demo", "demo.json"), nil
		}
	}
	return "", errors.New("run this inside the source directory")
}

// end ends what an earlier run has left. When nothing runs, it says so only
// if asked.
func end(asked bool) error {
	file, err := describedIn()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if asked {
			fmt.Println("No demonstration is running.")
		}
		return nil
	}
	if err != nil {
		return err
	}
	var about description
	if err := json.Unmarshal(text, &about); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if about.Dir == "" || !filepath.IsAbs(about.Dir) {
		return fmt.Errorf("%s names no directory", file)
	}
	if err := scratch.Sweep(about.Dir); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Dir(file)); err != nil {
		return err
	}
	fmt.Println("Ended the demonstration that was left running; no mount, process or file of it remains.")
	return nil
}
