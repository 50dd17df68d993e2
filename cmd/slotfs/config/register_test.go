package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
)

const embedded = `mode = "embedded"
members = ["n1=192.0.2.1:7948", "n2=192.0.2.2:7948", "w=192.0.2.3:7948"]
`

const external = `mode = "etcd"
endpoints = ["https://192.0.2.11:2379", "https://192.0.2.12:2379"]
user = "slotfs"
password_file = "etcd.password"
`

// with is minimal with a [register] section.
func with(section string) string {
	return strings.Replace(minimal, "[admin]", "[register]\n"+section+"[admin]", 1)
}

func TestRegisterModes(t *testing.T) {
	c, err := config.ParseText("/etc/x/slotfs.toml", []byte(minimal))
	if err != nil || c.Register.Mode != config.RegisterNone {
		t.Errorf("without the section the mode is %q, %v", c.Register.Mode, err)
	}
	c, err = config.ParseText("/etc/x/slotfs.toml", []byte(with(embedded)))
	if err != nil {
		t.Fatal(err)
	}
	if self, ok := c.RegisterSelf(); !ok || self.Addr != "192.0.2.1:7948" {
		t.Errorf("self is %+v, %v", self, ok)
	}
	if r := c.Register; r.Listen != "0.0.0.0:7948" || r.ClientListen != "0.0.0.0:7949" || r.Data != "/var/lib/slotfs/register" || len(r.Members) != 3 {
		t.Errorf("defaults: %+v", r)
	}
	c, err = config.ParseText("/etc/x/slotfs.toml", []byte(with(external)))
	if err != nil {
		t.Fatal(err)
	}
	if r := c.Register; r.Password != "/etc/x/etcd.password" || len(r.Endpoints) != 2 || r.Data != "" {
		t.Errorf("external: %+v", r)
	}
	witness := strings.ReplaceAll(with(embedded), `node = "n1"`, `node = "w"`)
	witness = witness[:strings.Index(witness, "[[slot]]")]
	c, err = config.ParseText("/etc/x/slotfs.toml", []byte(witness))
	if err != nil || !c.Witness() {
		t.Errorf("witness: %v", err)
	}
	if got := c.RestartNeeded(c); len(got) != 0 {
		t.Errorf("a config differs from itself: %v", got)
	}
}

// TestRegisterRefused: every wrong combination, with key, reason and remedy.
func TestRegisterRefused(t *testing.T) {
	tests := []struct {
		name, section string
		want          []string
	}{
		{"unknown mode", `mode = "raft"` + "\n", []string{`register.mode: "raft" is not a possible value`, `"embedded" or "etcd" or "none"`}},
		{"none with members", strings.Replace(embedded, "embedded", "none", 1), []string{`register.members: has no meaning with mode = "none"`, `set mode = "embedded"`}},
		{"no mode but endpoints", `endpoints = ["https://192.0.2.1:2379"]` + "\n", []string{`register.endpoints: has no meaning with mode = "none"`, `set mode = "etcd"`}},
		{"embedded with endpoints", embedded + `endpoints = ["https://192.0.2.1:2379"]` + "\n", []string{`register.endpoints: has no meaning with mode = "embedded"`}},
		{"embedded with user", embedded + `user = "x"` + "\n", []string{`register.user: has no meaning with mode = "embedded"`}},
		{"etcd with members", external + `members = ["n1=192.0.2.1:7948"]` + "\n", []string{`register.members: has no meaning with mode = "etcd"`}},
		{"etcd with data", external + `data = "/x"` + "\n", []string{`register.data: has no meaning with mode = "etcd"`}},
		{"no members", `mode = "embedded"` + "\n", []string{"register.members: is missing", "NAME=HOST:PORT"}},
		{"two members", strings.Replace(embedded, `, "w=192.0.2.3:7948"`, "", 1), []string{"register.members: there are two members", "Add a third: a witness"}},
		{"four members", strings.Replace(embedded, `, "w=`, `, "n3=192.0.2.4:7948", "w=`, 1), []string{"there are 4 members", "one more or one fewer"}},
		{"member without name", strings.Replace(embedded, "w=192", "192", 1), []string{`register.members[2]: "192.0.2.3:7948" is not NAME=HOST:PORT`}},
		{"member without port", strings.Replace(embedded, "w=192.0.2.3:7948", "w=192.0.2.3", 1), []string{`register.members[2]: "192.0.2.3" is not an address with a port`}},
		{"member twice", strings.Replace(embedded, "w=", "n1=", 1), []string{"register.members[2]:", "name one member twice"}},
		{"address twice", strings.Replace(embedded, "192.0.2.3", "192.0.2.1", 1), []string{"register.members[2]:", "name one member twice"}},
		{"listen on a name", embedded + `listen = "mail.example:7948"` + "\n", []string{`register.listen: "mail.example:7948" has no IP address`, "0.0.0.0"}},
		{"one port for both", embedded + `client_listen = "0.0.0.0:7948"` + "\n", []string{"register.client_listen: is the same address as register.listen", "another port"}},
		{"bad client address", embedded + `client_advertise = "192.0.2.1"` + "\n", []string{`register.client_advertise: "192.0.2.1" is not an address`}},
		{"data inside a slot's", embedded + `data = "data1/register"` + "\n", []string{"register.data: directory /etc/x/data1/register is inside /etc/x/data1, which is slot[mail1].data"}},
		{"no endpoints", `mode = "etcd"` + "\n", []string{"register.endpoints: is missing"}},
		{"endpoint without scheme", `mode = "etcd"` + "\nendpoints = [\"192.0.2.1:2379\"]\n", []string{`register.endpoints[0]: "192.0.2.1:2379" is not the URL`, "https://192.0.2.1:2379"}},
		{"endpoint without port", `mode = "etcd"` + "\nendpoints = [\"https://192.0.2.1\"]\n", []string{"register.endpoints[0]:", "is not the URL"}},
		{"with and without TLS", `mode = "etcd"` + "\nendpoints = [\"https://192.0.2.1:2379\", \"http://192.0.2.2:2379\"]\n", []string{"some are with TLS and some without"}},
		{"CA without TLS", `mode = "etcd"` + "\nendpoints = [\"http://192.0.2.1:2379\"]\nca = \"ca.pem\"\n", []string{"register.ca: needs TLS"}},
		{"password without TLS", `mode = "etcd"` + "\nendpoints = [\"http://192.0.2.1:2379\"]\nuser = \"u\"\npassword_file = \"p\"\n", []string{"register.user: needs TLS"}},
		{"user without password", `mode = "etcd"` + "\nendpoints = [\"https://192.0.2.1:2379\"]\nuser = \"u\"\n", []string{"register.password_file: is missing, but register.user is given"}},
		{"key without certificate", `mode = "etcd"` + "\nendpoints = [\"https://192.0.2.1:2379\"]\nkey = \"k\"\n", []string{"register.cert: is missing, but register.key is given"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.ParseText("/etc/x/slotfs.toml", []byte(with(tt.section)))
			refused(t, err, exit.Config, append(tt.want, "/etc/x/slotfs.toml: ")...)
		})
	}
	t.Run("witness that is no member", func(t *testing.T) {
		text := strings.ReplaceAll(with(embedded), `node = "n1"`, `node = "x"`)
		_, err := config.ParseText("/etc/x/slotfs.toml", []byte(text[:strings.Index(text, "[[slot]]")]))
		refused(t, err, exit.Config, "slot: there is no slot, and this node is not a member of the register", "list it in register.members")
	})
}

// TestRegisterFiles: what an external etcd needs has to be there.
func TestRegisterFiles(t *testing.T) {
	tests := []struct {
		name, section string
		files         map[string]string // name, content
		want          []string
	}{
		{"no password file", external, nil, []string{"register.password_file: ", "etcd.password: no such file"}},
		{"open password file", external, map[string]string{"etcd.password": "0644 secret\n"}, []string{"register.password_file: ", "is a secret but has mode 0644", "chmod 600"}},
		{"empty password file", external, map[string]string{"etcd.password": "0600 \n"}, []string{"register.password_file: ", "is empty"}},
		{"no CA", external + "ca = \"ca.pem\"\n", map[string]string{"etcd.password": "0600 x"}, []string{"register.ca: ", "ca.pem: no such file"}},
		{"CA that is none", external + "ca = \"ca.pem\"\n", map[string]string{"etcd.password": "0600 x", "ca.pem": "0644 hello"}, []string{"register.ca: ", "holds no PEM certificate"}},
		{"certificate that is none", external + "cert = \"c.pem\"\nkey = \"c.key\"\n", map[string]string{"etcd.password": "0600 x", "c.pem": "0644 hello", "c.key": "0600 hello"}, []string{"register.cert: ", "cannot be used"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := node(t)
			for name, content := range tt.files {
				mode, text, _ := strings.Cut(content, " ")
				path := filepath.Join(dir, name)
				write(t, path, text)
				if mode == "0644" {
					if err := os.Chmod(path, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			path := filepath.Join(dir, "slotfs.toml")
			c, err := config.ParseText(path, []byte(with(tt.section)))
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Check()
			refused(t, err, exit.Config, append(tt.want, path+": ")...)
		})
	}
}
