package config_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
	"slotfs/cmd/slotfs/pki"
)

// minimal is a valid config, one key per line so that tests can edit it.
const minimal = `node = "n1"
[gossip]
bind = "127.0.0.1:7946"
join = ["127.0.0.1:7956"]
[replication]
listen = "127.0.0.1:7947"
replica_timeout = "2s"
[admin]
socket = "admin.sock"
[[slot]]
store = "mail1"
data = "data1"
mount = "mnt1"
`

func TestParse(t *testing.T) {
	c, err := config.ParseText("/etc/x/slotfs.toml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.Socket, "/etc/x/admin.sock"; got != want {
		t.Errorf("socket %q, want %q", got, want)
	}
	if got, want := c.ReplicaTimeout, 2*time.Second; got != want {
		t.Errorf("replica_timeout %s, want %s", got, want)
	}
	s, ok := c.Slot("mail1")
	if !ok {
		t.Fatal("no slot mail1")
	}
	want := config.Slot{Store: "mail1", Data: "/etc/x/data1", Mount: "/etc/x/mnt1", Layout: "maildir",
		Durability: config.Replicated, OnReplicaLoss: config.Continue, LogMax: 1 << 30,
		Reserve: config.DefaultReserve, ProtectMountPoint: true, Xattrs: true, HookTimeout: 30 * time.Second,
		BrakeShare: 0.2, BrakeWindow: 10 * time.Minute, BrakeKeep: 7 * 24 * time.Hour, BrakeMin: 200}
	if !reflect.DeepEqual(*s, want) {
		t.Errorf("got  %+v\nwant %+v", *s, want)
	}
}

// TestRefusedText: every config that can be refused from its text alone.
func TestRefusedText(t *testing.T) {
	long := strings.Repeat("s", 120)
	tests := []struct {
		name     string
		old, new string // replacement in minimal
		want     []string
	}{
		{"unknown key", `socket = `, `soket = "x"` + "\nsocket = ", []string{"admin.soket", "unknown key in line 9", "Correct or remove it"}},
		{"unknown slot key", `mount = `, `fsync = true` + "\nmount = ", []string{"slot.fsync", "unknown key in line 13"}},
		{"unknown section", `[admin]`, "[reigster]\nmode = \"none\"\n[admin]", []string{"reigster", "unknown key in line 8"}},
		{"not TOML", `node = "n1"`, `node = n1`, []string{"line 1, column 8"}},
		{"wrong type", `node = "n1"`, `node = 7`, []string{"node", "line 1"}},
		{"no node", `node = "n1"`, ``, []string{"node: is missing"}},
		{"bad node name", `"n1"`, `"n 1"`, []string{"node: \"n 1\" cannot name a node", "letters, digits"}},
		{"bad store name", `"mail1"`, `"../mail"`, []string{"\"../mail\" cannot name a store"}},
		{"no slot", "[[slot]]\nstore = \"mail1\"\ndata = \"data1\"\nmount = \"mnt1\"\n", "", []string{"slot: there is no slot", "Add a [[slot]] section"}},
		{"no data", `data = "data1"`, ``, []string{"slot[mail1].data: is missing"}},
		{"no mount", `mount = "mnt1"`, ``, []string{"slot[mail1].mount: is missing"}},
		{"bad address", `"127.0.0.1:7946"`, `"127.0.0.1"`, []string{"gossip.bind: \"127.0.0.1\" is not an address with a port"}},
		{"bad port", `"127.0.0.1:7947"`, `"127.0.0.1:70000"`, []string{"replication.listen: \"127.0.0.1:70000\" has no valid port"}},
		{"bad join", `"127.0.0.1:7956"`, `":7956"`, []string{"gossip.join[0]", "names no host"}},
		{"bad duration", `"2s"`, `"2"`, []string{"replication.replica_timeout: \"2\" is not a duration", "Write it as"}},
		{"duration out of range", `"2s"`, `"1ms"`, []string{"replica_timeout: 1ms is out of range", "from 100ms to 5m0s"}},
		{"bad level", `[admin]`, "[log]\nlevel = \"loud\"\n[admin]", []string{"log.level: \"loud\" is not a log level"}},
		{"bad format", `[admin]`, "[log]\nformat = \"xml\"\n[admin]", []string{"log.format: \"xml\" is not a possible value", "\"text\" or \"json\""}},
		{"bad layout", `mount = `, "layout = \"mbx\"\nmount = ", []string{"slot[mail1].layout: \"mbx\" is not a possible value"}},
		{"bad durability", `mount = `, "durability = \"maybe\"\nmount = ", []string{"slot[mail1].durability", "\"replicated\" or \"local\""}},
		{"bad on_replica_loss", `mount = `, "on_replica_loss = \"panic\"\nmount = ", []string{"slot[mail1].on_replica_loss", "\"continue\" or \"stop\""}},
		{"bad share", `mount = `, "brake_share = \"much\"\nmount = ", []string{"slot[mail1].brake_share: \"much\" is no share"}},
		{"no window", `mount = `, "brake_window = \"0\"\nmount = ", []string{"slot[mail1].brake_window: is 0"}},
		{"short keep", `mount = `, "brake_keep = \"1m\"\nmount = ", []string{"slot[mail1].brake_keep: 1m0s is less than brake_window"}},
		{"no minimum", `mount = `, "brake_min = 0\nmount = ", []string{"slot[mail1].brake_min: 0 is too small"}},
		{"bad size", `mount = `, "log_max = \"lots\"\nmount = ", []string{"slot[mail1].log_max: \"lots\" is not a size"}},
		{"small log", `mount = `, "log_max = \"1MiB\"\nmount = ", []string{"slot[mail1].log_max: 1MiB is too small", "at least 256 MiB"}},
		{"bad reserve", `mount = `, "reserve = \"99%\"\nmount = ", []string{"slot[mail1].reserve: \"99%\""}},
		{"small reserve", `mount = `, "reserve = \"16MiB\"\nmount = ", []string{"slot[mail1].reserve: 16MiB is too small", "at least 192 MiB"}},
		{"bad mode", `socket = `, "mode = \"rw\"\nsocket = ", []string{"admin.mode: \"rw\" is not a usable file mode"}},
		{"open mode", `socket = `, "mode = \"0666\"\nsocket = ", []string{"admin.mode: \"0666\" would let every user"}},
		{"no such group", `socket = `, "group = \"no-such-group\"\nsocket = ", []string{"admin.group: there is no group \"no-such-group\""}},
		{"long socket path", `"admin.sock"`, `"/run/` + long + `"`, []string{"admin.socket: path of 125 bytes is longer than the 107"}},
		{"relative hook", `mount = `, "on_promote = [\"systemctl\"]\nmount = ", []string{"slot[mail1].on_promote: \"systemctl\" is not an absolute path"}},
		{"same directory twice", `"mnt1"`, `"data1"`, []string{"slot[mail1].mount: directory /etc/x/data1 is used twice: also by slot[mail1].data"}},
		{"directory inside another", `"mnt1"`, `"data1/tree"`, []string{"directory /etc/x/data1/tree is inside /etc/x/data1, which is slot[mail1].data"}},
		{"store twice", `mount = "mnt1"`, "mount = \"mnt1\"\n[[slot]]\nstore = \"mail1\"\ndata = \"d2\"\nmount = \"m2\"", []string{"store \"mail1\" has two [[slot]] sections"}},
		{"data directory of another slot", `mount = "mnt1"`, "mount = \"mnt1\"\n[[slot]]\nstore = \"mail2\"\ndata = \"data1\"\nmount = \"m2\"",
			[]string{"slot[mail2].data: directory /etc/x/data1 is used twice: also by slot[mail1].data"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := strings.Replace(minimal, tt.old, tt.new, 1)
			if text == minimal {
				t.Fatal("the replacement changed nothing")
			}
			_, err := config.ParseText("/etc/x/slotfs.toml", []byte(text))
			refused(t, err, exit.Config, append(tt.want, "/etc/x/slotfs.toml: ")...)
		})
	}
}

func refused(t *testing.T, err error, code exit.Code, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("accepted")
	}
	var ce *config.Error
	if !errors.As(err, &ce) {
		t.Errorf("%T is not a *config.Error", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("message lacks %q:\n%v", w, err)
		}
	}
	if got := exit.Of(err); got != code {
		t.Errorf("exit code %d, want %d (%v)", got, code, err)
	}
}

func TestAllErrorsAtOnce(t *testing.T) {
	text := strings.NewReplacer(`"n1"`, `"n/1"`, `"2s"`, `"soon"`, `mount = "mnt1"`, ``).Replace(minimal)
	_, err := config.ParseText("/c.toml", []byte(text))
	var errs config.Errors
	if !errors.As(err, &errs) || len(errs) != 3 {
		t.Errorf("want three errors, got %v", err)
	}
}

// node makes a directory with everything that minimal needs.
func node(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	cluster, err := pki.Create(filepath.Join(dir, "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Issue("n1", filepath.Join(dir, "node.pem"), filepath.Join(dir, "node.key")); err != nil {
		t.Fatal(err)
	}
	mkdir(t, filepath.Join(dir, "data1"))
	mkdir(t, filepath.Join(dir, "mnt1"))
	return dir
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCheckAccepts(t *testing.T) {
	dir := node(t)
	c, err := config.ParseText(filepath.Join(dir, "slotfs.toml"), []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Check()
	if err != nil {
		t.Fatal(err)
	}
	if got == nil || got.Name != "n1" {
		t.Errorf("node certificate not loaded: %+v", got)
	}
}

// TestRefusedMachine: every config that is refused because of what it finds.
func TestRefusedMachine(t *testing.T) {
	rm := func(name string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put := func(name, text string) func(*testing.T, string) {
		return func(t *testing.T, dir string) { write(t, filepath.Join(dir, name), text) }
	}
	tests := []struct {
		name  string
		spoil func(t *testing.T, dir string)
		edit  []string // pairs for a replacer on minimal
		code  exit.Code
		want  []string
	}{
		{"data directory missing", rm("data1"), nil, exit.Data, []string{"slot[mail1].data: directory ", "data1 does not exist", "slotfs create mail1"}},
		{"data not a directory", func(t *testing.T, dir string) { rm("data1")(t, dir); put("data1", "x")(t, dir) }, nil, exit.Data, []string{"data1 is not a directory"}},
		{"mount point missing", rm("mnt1"), nil, exit.Mount, []string{"slot[mail1].mount: directory ", "mkdir -p "}},
		{"mount point not empty", put("mnt1/inbox", "x"), nil, exit.Mount, []string{"slot[mail1].mount: mount point ", "is not empty: it holds \"inbox\"", "a mount would hide them"}},
		{"mount point in use", nil, []string{`"mnt1"`, `"/proc"`}, exit.Mount, []string{"something is mounted on /proc already"}},
		{"same directory by symlink", func(t *testing.T, dir string) {
			if err := os.Symlink("data1", filepath.Join(dir, "alias")); err != nil {
				t.Fatal(err)
			}
		}, []string{`"mnt1"`, `"alias"`}, exit.Config, []string{"slot[mail1].mount: directory ", "alias is the same as ", "which is slot[mail1].data"}},
		{"no cluster", rm("cluster"), nil, exit.Config, []string{"cluster_dir: ", "ca.pem is missing", "slotfs init"}},
		{"no gossip key", rm("cluster/gossip.key"), nil, exit.Config, []string{"gossip.key is missing", "Copy gossip.key"}},
		{"bad gossip key", put("cluster/gossip.key", "secret\n"), nil, exit.Config, []string{"gossip.key is not a gossip key (want 32 bytes"}},
		{"open gossip key", func(t *testing.T, dir string) {
			if err := os.Chmod(filepath.Join(dir, "cluster/gossip.key"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, nil, exit.Config, []string{"gossip.key is a secret but has mode 0644", "chmod 600"}},
		{"no certificate", rm("node.pem"), nil, exit.Config, []string{"replication.cert: ", "node.pem is missing"}},
		{"bad certificate", put("node.pem", "hello"), nil, exit.Config, []string{"replication.cert: ", "node.pem is not a PEM certificate"}},
		{"no key", rm("node.key"), nil, exit.Config, []string{"replication.key: ", "node.key is missing"}},
		{"certificate of another node", nil, []string{`"n1"`, `"n2"`}, exit.Config, []string{"replication.cert: ", "was made for node \"n1\", but the config says node = \"n2\""}},
		{"certificate of another cluster", func(t *testing.T, dir string) {
			other, err := pki.Create(filepath.Join(dir, "other"))
			if err != nil {
				t.Fatal(err)
			}
			rm("node.pem")(t, dir)
			rm("node.key")(t, dir)
			if err := other.Issue("n1", filepath.Join(dir, "node.pem"), filepath.Join(dir, "node.key")); err != nil {
				t.Fatal(err)
			}
		}, nil, exit.Config, []string{"replication.cert: ", "certificate belongs to another cluster"}},
		{"key of another certificate", func(t *testing.T, dir string) {
			c, err := pki.Load(filepath.Join(dir, "cluster"))
			if err != nil {
				t.Fatal(err)
			}
			rm("node.key")(t, dir)
			if err := c.Issue("n1", filepath.Join(dir, "second.pem"), filepath.Join(dir, "node.key")); err != nil {
				t.Fatal(err)
			}
		}, nil, exit.Config, []string{"replication.key: ", "is not the private key of"}},
		{"no socket directory", nil, []string{`"admin.sock"`, `"run/admin.sock"`}, exit.Config, []string{"admin.socket: directory ", "run does not exist", "mkdir -p"}},
		{"socket is a file", put("admin.sock", "x"), nil, exit.Config, []string{"admin.sock exists and is not a socket"}},
		{"another slotfs", func(t *testing.T, dir string) {
			l, err := net.Listen("unix", filepath.Join(dir, "admin.sock"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, nil, exit.Config, []string{"admin.socket: another slotfs is serving at "}},
		{"no hook", nil, []string{`mount = `, "on_demote = [\"/no/such/program\"]\nmount = "}, exit.Config, []string{"slot[mail1].on_demote: program /no/such/program cannot be used"}},
		{"hook not executable", nil, []string{`mount = `, "on_promote = [\"/etc/passwd\"]\nmount = "}, exit.Config, []string{"slot[mail1].on_promote: /etc/passwd is not executable"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := node(t)
			if tt.spoil != nil {
				tt.spoil(t, dir)
			}
			path := filepath.Join(dir, "slotfs.toml")
			c, err := config.ParseText(path, []byte(strings.NewReplacer(tt.edit...).Replace(minimal)))
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Check()
			refused(t, err, tt.code, append(tt.want, path+": ")...)
		})
	}
}

func TestNoFile(t *testing.T) {
	_, err := config.Parse("/no/such/slotfs.toml")
	refused(t, err, exit.Config, "/no/such/slotfs.toml: there is no such file", "--config or $SLOTFS_CONFIG", "slotfs init DIR")
}

// TestExample: the written config parses, and shows every key.
func TestExample(t *testing.T) {
	text, err := config.Example(config.ExampleValues())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := config.ParseText("/etc/slotfs/slotfs.toml", []byte(text)); err != nil {
		t.Fatal(err)
	}
	// The commented-out keys are real ones, too.
	full := regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(text, "$1")
	if full == text {
		t.Fatal("no commented key found")
	}
	from, to := strings.Index(full, "[register]"), strings.Index(full, "[[slot]]")
	// Each mode of the register has keys of its own.
	for mode, others := range map[string]string{"embedded": "endpoints|user|password_file|ca|cert|key", "etcd": "members|listen|client_listen|client_advertise|data"} {
		section := regexp.MustCompile(`(?m)^(`+others+`) = .*`).ReplaceAllString(full[from:to], "")
		section = strings.Replace(section, `mode = "none"`, `mode = "`+mode+`"`, 1)
		if _, err := config.ParseText("/etc/slotfs/slotfs.toml", []byte(full[:from]+section+full[to:])); err != nil {
			t.Errorf("with all keys uncommented, register %s: %v", mode, err)
		}
	}
	for _, key := range config.Keys() {
		name := key[strings.LastIndex(key, ".")+1:]
		if !regexp.MustCompile(`(?m)^#?` + name + ` = `).MatchString(text) {
			t.Errorf("the example lacks %s", key)
		}
	}
}

func TestRestartNeeded(t *testing.T) {
	parse := func(edit ...string) *config.Config {
		c, err := config.ParseText("/c.toml", []byte(strings.NewReplacer(edit...).Replace(minimal)))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if got := parse().RestartNeeded(parse(`7956`, `7999`, "[admin]", "[log]\nlevel = \"debug\"\n[admin]")); len(got) != 0 {
		t.Errorf("reloadable keys need a restart: %v", got)
	}
	got := parse().RestartNeeded(parse(`"mnt1"`, `"mnt2"`, `"127.0.0.1:7947"`, `"127.0.0.1:7948"`))
	if want := []string{"replication.listen", "slot"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
