package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/integration/loopback"
)

// server is a node as a process.
type server struct {
	dir    string // what init made
	config string
	gossip string
	cmd    *exec.Cmd
	done   chan struct{} // closed when it has ended
	mu     sync.Mutex
	stderr bytes.Buffer
}

// Write collects stderr.
func (s *server) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stderr.Write(p)
}

func (s *server) log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stderr.String()
}

// freeAddr is an address that nobody else uses until the test ends.
func freeAddr(t *testing.T) string {
	t.Helper()
	h, err := loopback.Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h.Addr(17946)
}

// initNode runs init for a node called name; more are further flags.
func initNode(t *testing.T, name string, more ...string) *server {
	t.Helper()
	s := &server{dir: filepath.Join(t.TempDir(), name), gossip: freeAddr(t)}
	s.config = filepath.Join(s.dir, "slotfs.toml")
	args := append([]string{"init", s.dir, "--node", name, "--gossip", s.gossip, "--listen", freeAddr(t),
		"--socket", "admin.sock", "--data", "data", "--mount", "mnt"}, more...)
	run(t, args...).want(t, exit.OK)
	t.Cleanup(func() {
		syscall.Unmount(filepath.Join(s.dir, "mnt"), syscall.MNT_DETACH)
		exec.Command("chattr", "-i", filepath.Join(s.dir, "mnt")).Run()
	})
	return s
}

func (s *server) edit(t *testing.T, pairs ...string) {
	t.Helper()
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	next := strings.NewReplacer(pairs...).Replace(string(text))
	if next == string(text) {
		t.Fatalf("nothing to replace: %q", pairs)
	}
	if err := os.WriteFile(s.config, []byte(next), 0o644); err != nil {
		t.Fatal(err)
	}
}

// start runs serve and waits until it says that it is ready.
func (s *server) start(t *testing.T) {
	t.Helper()
	notify := filepath.Join(s.dir, "notify")
	os.Remove(notify)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s.cmd = exec.Command(binary, "serve", "--config", s.config)
	s.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	s.cmd.Stderr = s
	s.done = make(chan struct{})
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		s.cmd.Wait()
		close(s.done)
		l.SetReadDeadline(time.Now())
	}()
	t.Cleanup(func() {
		s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
		case <-time.After(20 * time.Second):
			s.cmd.Process.Kill()
			<-s.done
			t.Errorf("serve did not stop:\n%s", s.log())
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", s.dir, s.log())
		}
	})
	l.SetReadDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 64)
	n, err := l.Read(buf)
	if err != nil || string(buf[:n]) != "READY=1" {
		t.Fatalf("serve is not ready: %q %v\n%s", buf[:n], err, s.log())
	}
}

func (s *server) run(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, append(args, "--config", s.config)...)
}

func (s *server) status(t *testing.T) admin.Status {
	t.Helper()
	r := s.run(t, "status", "--json")
	r.want(t, exit.OK)
	var st admin.Status
	if err := json.Unmarshal([]byte(r.stdout), &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func needFUSE(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
}

// TestOneNode: what init makes can be served; the verbs work on it.
func TestOneNode(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1")
	n.start(t)
	mnt := filepath.Join(n.dir, "mnt")
	if err := os.WriteFile(filepath.Join(mnt, "stray"), nil, 0o600); err == nil {
		t.Error("the bare mount point is writable")
		os.Remove(filepath.Join(mnt, "stray"))
	}
	if fi, err := os.Stat(filepath.Join(n.dir, "admin.sock")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("admin socket: %v %v", fi.Mode(), err)
	}
	n.run(t, "promote", "nomail").want(t, exit.Usage, "node n1 has no slot of store \"nomail\"")
	n.run(t, "demote", "mail1").want(t, exit.Refused, "not primary")
	n.run(t, "promote", "mail1").want(t, exit.OK)
	deliver(t, mnt, "alice", "one")
	if r := n.run(t, "log", "mail1", "--user", "alice"); !strings.Contains(r.stdout, "deliver") || !strings.Contains(r.stdout, "alice/Maildir/new/one") {
		t.Errorf("log: %s", r.stdout)
	}
	if r := n.run(t, "log", "mail1", "--user", "bob"); r.stdout != "" {
		t.Errorf("log of bob: %s", r.stdout)
	}
	eventually(t, "one message", func() bool { return n.status(t).Slots[0].Messages == 1 })
	if r := n.run(t, "digest", "mail1", "alice"); r.code != exit.OK || !strings.Contains(r.stdout, "1 files, 3 B") {
		t.Errorf("digest: %+v", r)
	}
	n.run(t, "digest", "mail1", "bob").want(t, exit.Usage, "no such object")
	if r := n.run(t, "metrics"); !strings.Contains(r.stdout, `slotfs_slot_messages{store="mail1"} 1`) {
		t.Errorf("metrics: %s", r.stdout)
	}
	if b, err := os.ReadFile(filepath.Join(mnt, ".slotfs", "status")); err != nil || !bytes.Contains(b, []byte(`"role": "primary"`)) {
		t.Errorf(".slotfs/status: %v\n%s", err, b)
	}
	run(t, "serve", "--config", n.config).want(t, exit.Config, "another slotfs is serving at")
}

func deliver(t *testing.T, mnt, user, name string) {
	t.Helper()
	dir := filepath.Join(mnt, user, "Maildir")
	for _, d := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	tmp := filepath.Join(dir, "tmp", name)
	if err := os.WriteFile(tmp, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, "new", name)); err != nil {
		t.Fatal(err)
	}
}

// TestCheckAndRecover: on a running node, on a stopped one, and without config.
func TestCheckAndRecover(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1")
	n.start(t)
	n.run(t, "promote", "mail1").want(t, exit.OK)
	deliver(t, filepath.Join(n.dir, "mnt"), "alice", "one")
	if r := n.run(t, "check", "mail1", "--content"); r.code != exit.OK || !strings.Contains(r.stdout, "mail1: clean") || !strings.Contains(r.stdout, "1 contents verified") {
		t.Errorf("check: %+v", r)
	}
	n.run(t, "check", "mail2").want(t, exit.Usage, "no slot of store \"mail2\"")
	data := filepath.Join(n.dir, "data")
	run(t, "recover", data).want(t, exit.Data, "in use by another process")
	n.cmd.Process.Signal(syscall.SIGTERM)
	<-n.done
	stray := filepath.Join(data, "tree/alice/Maildir/new/stray")
	if err := os.WriteFile(stray, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := n.run(t, "check", "mail1")
	r.want(t, exit.Differences, "slotfs is not running; checking")
	if !strings.Contains(r.stdout, "I2 (the tree has no other names): \"alice/Maildir/new/stray\"") || !strings.Contains(r.stdout, "findings") {
		t.Errorf("check: %s", r.stdout)
	}
	n.run(t, "check", "mail1", "--repair").want(t, exit.Differences)
	n.run(t, "check", "mail1", "--content").want(t, exit.OK)
	if r := run(t, "recover", data, "--unlock"); r.code != exit.OK || !strings.Contains(r.stdout, "unlocked: ") {
		t.Errorf("recover: %+v", r)
	}
	run(t, "serve", "--config", n.config).want(t, exit.Data, "unlocked for use without slotfs")
}

// TestReload: SIGHUP applies what it can and says what it cannot.
func TestReload(t *testing.T) {
	n := initNode(t, "n1")
	n.start(t)
	n.edit(t, `#level = "info"`, `level = "debug"`, `#format = "text"`, `format = "json"`)
	n.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "reload", func() bool {
		return strings.Contains(n.log(), "config reloaded") && strings.Contains(n.log(), "these changes need a restart") && strings.Contains(n.log(), "keys=log.format")
	})
	n.edit(t, `level = "debug"`, `level = "shout"`)
	n.cmd.Process.Signal(syscall.SIGHUP)
	eventually(t, "refusal", func() bool { return strings.Contains(n.log(), "config not reloaded") })
}

// TestPrimaryComesBack: a killed primary cleans up its dead mount and resumes;
// SIGTERM unmounts.
func TestPrimaryComesBack(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1")
	n.start(t)
	n.run(t, "promote", "mail1").want(t, exit.OK)
	mnt := filepath.Join(n.dir, "mnt")
	deliver(t, mnt, "alice", "one")
	n.cmd.Process.Kill()
	<-n.done
	if _, err := os.ReadDir(mnt); err == nil {
		t.Fatal("the mount is not dead")
	}
	n.start(t)
	eventually(t, "resumed", func() bool { return n.status(t).Slots[0].Mounted })
	if b, err := os.ReadFile(filepath.Join(mnt, "alice/Maildir/new/one")); err != nil || string(b) != "one" {
		t.Errorf("the message: %q %v", b, err)
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	<-n.done
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	if list, err := os.ReadDir(mnt); err != nil || len(list) != 0 {
		t.Errorf("after SIGTERM the mount point has %v %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "admin.sock")); err == nil {
		t.Error("the admin socket is left")
	}
}

// TestMountTakenAway: an umount behind our back is put right.
func TestMountTakenAway(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1")
	n.start(t)
	n.run(t, "promote", "mail1").want(t, exit.OK)
	mnt := filepath.Join(n.dir, "mnt")
	deliver(t, mnt, "alice", "one")
	if err := syscall.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "mounted again", func() bool {
		// The mount is there a moment before it is in its final place.
		if strings.Count(n.log(), "msg=mounted ") < 2 {
			return false
		}
		b, err := os.ReadFile(filepath.Join(mnt, "alice/Maildir/new/one"))
		return err == nil && string(b) == "one"
	})
	deliver(t, mnt, "alice", "two")
	n.run(t, "demote", "mail1").want(t, exit.OK)
}

// TestHooks: on_promote and on_demote run, in order, and know the epoch.
func TestHooks(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1")
	ran := filepath.Join(n.dir, "ran")
	hook := filepath.Join(n.dir, "hook")
	script := "#!/bin/sh\necho \"$1 $SLOTFS_STORE $SLOTFS_EPOCH $SLOTFS_ROLE $(ls " + filepath.Join(n.dir, "mnt") + ")\" >> " + ran + "\necho hook talks\n"
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n.edit(t, `#on_promote = ["/usr/bin/systemctl", "start", "dovecot"]`, `on_promote = ["`+hook+`", "up"]`,
		`#on_demote = ["/usr/bin/systemctl", "stop", "dovecot"]`, `on_demote = ["`+hook+`", "down"]`)
	n.start(t)
	n.run(t, "promote", "mail1").want(t, exit.OK)
	eventually(t, "on_promote", func() bool { h := n.status(t).Slots[0].Hook; return h != nil && !h.Ended.IsZero() })
	if err := os.Mkdir(filepath.Join(n.dir, "mnt", "alice"), 0o700); err != nil {
		t.Fatal(err)
	}
	n.run(t, "demote", "mail1").want(t, exit.OK)
	got, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	if want := "up mail1 1 primary \ndown mail1 1 replica alice\n"; string(got) != want {
		t.Errorf("hooks did %q, want %q", got, want)
	}
	if !strings.Contains(n.log(), `line="hook talks"`) {
		t.Error("the hook's output is not in the log")
	}
}

// TestNewStoreWhileAlone: a store is not made anew while those do not answer
// who may have it.
func TestNewStoreWhileAlone(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1", "--join", freeAddr(t))
	n.start(t)
	n.run(t, "promote", "mail1").want(t, exit.Refused, "this would make a new store \"mail1\"", "--force")
	n.run(t, "promote", "mail1", "--force").want(t, exit.Unconfirmed, "--yes")
	n.run(t, "promote", "mail1", "--force", "--yes").want(t, exit.OK)
}

// TestMetricsListen: metrics, and nothing else, on TCP.
func TestMetricsListen(t *testing.T) {
	n := initNode(t, "n1")
	addr := freeAddr(t)
	n.edit(t, `#listen = ""`, `listen = "`+addr+`"`)
	n.start(t)
	for path, want := range map[string]int{"/metrics": 200, "/v1/status": 404} {
		r, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%s: %s", path, r.Status)
		}
	}
}

// TestTwoNodes: write on one, see it on the other, change roles.
func TestTwoNodes(t *testing.T) {
	needFUSE(t)
	a := initNode(t, "a")
	b := initNode(t, "b", "--cluster", a.dir, "--join", a.gossip)
	a.start(t)
	b.start(t)
	a.run(t, "promote", "mail1").want(t, exit.OK)
	deliver(t, filepath.Join(a.dir, "mnt"), "alice", "one")
	inSync := func() bool { st := b.status(t).Slots[0]; return st.Repl.InSync && st.Messages == 1 }
	eventually(t, "b is in sync", inSync)
	if got, err := os.ReadFile(filepath.Join(b.dir, "data/tree/alice/Maildir/new/one")); err != nil || string(got) != "one" {
		t.Errorf("on the replica: %q %v", got, err)
	}
	eventually(t, "equal digests", func() bool {
		r := a.run(t, "digest", "mail1")
		return strings.Contains(r.stdout, ": equal")
	})
	for _, n := range []*server{a, b} {
		if r := n.run(t, "status"); strings.Count(r.stdout, "mail1 ") < 2 || !strings.Contains(r.stdout, "primary") || !strings.Contains(r.stdout, "replica") {
			t.Errorf("status:\n%s", r.stdout)
		}
	}
	a.run(t, "demote", "mail1").want(t, exit.OK)
	b.run(t, "promote", "mail1").want(t, exit.OK)
	if got, err := os.ReadFile(filepath.Join(b.dir, "mnt/alice/Maildir/new/one")); err != nil || string(got) != "one" {
		t.Errorf("after the change of roles: %q %v", got, err)
	}
}

// TestRefusedStart: what serve refuses beyond what package config tests.
func TestRefusedStart(t *testing.T) {
	slotJSON := func(n *server) string { return filepath.Join(n.dir, "data", "slot.json") }
	replace := func(t *testing.T, file, old, new string) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		next := strings.Replace(string(b), old, new, 1)
		if next == string(b) {
			t.Fatalf("%s has no %q: %s", file, old, b)
		}
		if err := os.WriteFile(file, []byte(next), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name  string
		spoil func(t *testing.T, n *server)
		code  exit.Code
		want  []string
	}{
		{"unknown key", func(t *testing.T, n *server) { n.edit(t, "[log]", "[log]\nlevle = \"info\"") }, exit.Config, []string{"log.levle: unknown key in line"}},
		{"another store", func(t *testing.T, n *server) { n.edit(t, `store = "mail1"`, `store = "mail2"`) }, exit.Data,
			[]string{"slot[mail2].data: ", "belongs to another store", "it is of \"mail1\", the configuration says \"mail2\"", "correct store or data"}},
		{"newer format", func(t *testing.T, n *server) { replace(t, slotJSON(n), `"format": 1`, `"format": 99`) }, exit.Data,
			[]string{"slot[mail1].data: ", "slot.json", "written by a newer version (format 99", "use the program version that wrote it"}},
		{"no slot", func(t *testing.T, n *server) {
			if err := os.Remove(slotJSON(n)); err != nil {
				t.Fatal(err)
			}
		}, exit.Data, []string{"slot[mail1].data: ", "not a slot's data directory", "slotfs create mail1"}},
		{"mount point not empty", func(t *testing.T, n *server) {
			if err := os.WriteFile(filepath.Join(n.dir, "mnt", "mail"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, exit.Mount, []string{"slot[mail1].mount: mount point ", "is not empty"}},
		{"gossip address in use", func(t *testing.T, n *server) {
			l, err := net.Listen("tcp", n.gossip)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, exit.Network, []string{"gossip.bind: listen for gossip: ", "address already in use", "Is another slotfs running"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := initNode(t, "n1")
			tt.spoil(t, n)
			run(t, "serve", "--config", n.config).want(t, tt.code, append(tt.want, n.config+": ")...)
		})
	}
}

// TestStrangers: a node with another cluster's key, and one whose name is
// taken, are refused, and both sides say so.
func TestStrangers(t *testing.T) {
	a := initNode(t, "a")
	a.start(t)
	stranger := initNode(t, "s", "--join", a.gossip)
	run(t, "serve", "--config", stranger.config).want(t, exit.Network, "node \"a\" at "+a.gossip+" uses another cluster key", "Copy gossip.key")
	twin := initNode(t, "a", "--cluster", a.dir, "--join", a.gossip)
	run(t, "serve", "--config", twin.config).want(t, exit.Network, "another node is called \"a\", too: it is at "+a.gossip, "Give this node another name")
	r := a.run(t, "status")
	// A stranger is taken to listen where it connects from: on loopback, 127.0.0.1.
	for _, want := range []string{"node \"s\" at 127.0.0.1:17946 uses another cluster key", "another node is called \"a\", too: it is at " + twin.gossip} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("status lacks %q:\n%s", want, r.stdout)
		}
	}
	if n := a.status(t).Nodes; len(n) != 1 {
		t.Errorf("strangers became members: %+v", n)
	}
}

// TestWrongCertificate: a node that has our gossip key but another cluster's
// certificate is heard, and refused by replication; both sides say so.
func TestWrongCertificate(t *testing.T) {
	needFUSE(t)
	a := initNode(t, "a")
	s := initNode(t, "s", "--join", a.gossip)
	key, err := os.ReadFile(filepath.Join(a.dir, "cluster", "gossip.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "cluster", "gossip.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	a.start(t)
	s.start(t)
	a.run(t, "promote", "mail1").want(t, exit.OK)
	for _, n := range []*server{a, s} {
		eventually(t, "report of "+n.config, func() bool {
			return strings.Contains(n.run(t, "status").stdout, "belongs to another cluster")
		})
	}
	if m := a.status(t).Slots[0].Repl.Members; len(m) != 1 {
		t.Errorf("the stranger is in the in-sync set: %v", m)
	}
}

// TestStoreTwice: two nodes made a store of one name each before they met.
func TestStoreTwice(t *testing.T) {
	needFUSE(t)
	a := initNode(t, "a")
	c := initNode(t, "c", "--cluster", a.dir)
	a.start(t)
	c.start(t)
	a.run(t, "promote", "mail1").want(t, exit.OK)
	c.run(t, "promote", "mail1").want(t, exit.OK)
	c.run(t, "demote", "mail1").want(t, exit.OK)
	c.edit(t, "join = []", `join = ["`+a.gossip+`"]`)
	c.cmd.Process.Signal(syscall.SIGHUP)
	for _, n := range []*server{a, c} {
		eventually(t, "report of "+n.config, func() bool {
			return strings.Contains(n.run(t, "status").stdout, "two different stores are called \"mail1\": node a has the one with id")
		})
	}
	c.run(t, "promote", "mail1").want(t, exit.Refused, "two different stores are called \"mail1\"", "Rename one of them")
}
