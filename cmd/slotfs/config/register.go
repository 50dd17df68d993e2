package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"reflect"
	"strings"
)

// Values of Register.Mode.
const (
	RegisterNone     = "none"     // changes of primary are commands
	RegisterEmbedded = "embedded" // the members run in slotfs
	RegisterEtcd     = "etcd"     // an etcd of its own
)

// Defaults of an embedded register.
const (
	defaultRegisterListen  = "0.0.0.0:7948"
	defaultRegisterClients = "0.0.0.0:7949"
	defaultRegisterData    = "/var/lib/slotfs/register"
)

// Register says where the store's roles are decided.
type Register struct {
	Mode string

	// Of an embedded one.
	Members         []RegisterMember
	Listen          string // ip:port for other members
	ClientListen    string // ip:port for the other nodes
	ClientAdvertise string // host:port; empty: found out
	Data            string // directory

	// Of an external one.
	Endpoints []string // URLs
	User      string
	Password  string // file that holds it
	CA        string // files; empty: the system's CAs, no client certificate
	Cert, Key string
}

// RegisterMember is one of the members of an embedded register.
type RegisterMember struct {
	Name string // of its node
	Addr string // host:port for other members
}

// RegisterSelf finds this node among the members.
func (c *Config) RegisterSelf() (RegisterMember, bool) {
	for _, m := range c.Register.Members {
		if m.Name == c.Node {
			return m, true
		}
	}
	return RegisterMember{}, false
}

// Witness reports whether the node has no slots, and only votes.
func (c *Config) Witness() bool { return len(c.Slots) == 0 }

type fileRegister struct {
	Mode            string   `toml:"mode"`
	Members         []string `toml:"members"`
	Listen          string   `toml:"listen"`
	ClientListen    string   `toml:"client_listen"`
	ClientAdvertise string   `toml:"client_advertise"`
	Data            string   `toml:"data"`
	Endpoints       []string `toml:"endpoints"`
	User            string   `toml:"user"`
	PasswordFile    string   `toml:"password_file"`
	CA              string   `toml:"ca"`
	Cert            string   `toml:"cert"`
	Key             string   `toml:"key"`
}

// registerKey is one key of the section, and whether it was given a value.
type registerKey struct {
	name string
	set  bool
}

func (b *builder) register(node string, f *fileRegister) Register {
	r := Register{Mode: b.oneOf("register.mode", def(f.Mode, RegisterNone), RegisterEmbedded, RegisterEtcd, RegisterNone)}
	embedded := []registerKey{{"members", len(f.Members) > 0}, {"listen", f.Listen != ""}, {"client_listen", f.ClientListen != ""},
		{"client_advertise", f.ClientAdvertise != ""}, {"data", f.Data != ""}}
	external := []registerKey{{"endpoints", len(f.Endpoints) > 0}, {"user", f.User != ""}, {"password_file", f.PasswordFile != ""},
		{"ca", f.CA != ""}, {"cert", f.Cert != ""}, {"key", f.Key != ""}}
	switch r.Mode {
	case RegisterNone:
		b.without(RegisterNone, RegisterEmbedded, embedded)
		b.without(RegisterNone, RegisterEtcd, external)
	case RegisterEmbedded:
		b.without(RegisterEmbedded, RegisterEtcd, external)
		b.embedded(node, f, &r)
	case RegisterEtcd:
		b.without(RegisterEtcd, RegisterEmbedded, embedded)
		b.external(f, &r)
	}
	return r
}

// without refuses keys that have no meaning in a mode.
func (b *builder) without(mode, other string, keys []registerKey) {
	for _, k := range keys {
		if k.set {
			b.fail("register."+k.name, fmt.Sprintf("Remove it, or set mode = %q.", other), "has no meaning with mode = %q", mode)
		}
	}
}

func (b *builder) embedded(node string, f *fileRegister, r *Register) {
	r.Listen = b.ipAddr("register.listen", def(f.Listen, defaultRegisterListen))
	r.ClientListen = b.ipAddr("register.client_listen", def(f.ClientListen, defaultRegisterClients))
	r.ClientAdvertise = b.addr("register.client_advertise", f.ClientAdvertise, false)
	r.Data = b.path(def(f.Data, defaultRegisterData))
	if r.Listen == r.ClientListen {
		b.fail("register.client_listen", "Choose another port.", "is the same address as register.listen: %s", r.Listen)
	}
	const remedy = "List every member as NAME=HOST:PORT, the same list on all nodes: members = [\"n1=192.0.2.1:7948\", \"n2=192.0.2.2:7948\", \"w=192.0.2.3:7948\"]."
	for i, text := range f.Members {
		key := fmt.Sprintf("register.members[%d]", i)
		name, addr, ok := strings.Cut(text, "=")
		if why := BadName(name); !ok || why != "" {
			b.fail(key, remedy, "%q is not NAME=HOST:PORT", text)
			continue
		}
		m := RegisterMember{name, b.addr(key, addr, false)}
		for _, other := range r.Members {
			if other.Name == m.Name || other.Addr == m.Addr {
				b.fail(key, remedy, "%q and %q name one member twice", other.Name+"="+other.Addr, text)
			}
		}
		r.Members = append(r.Members, m)
	}
	switch n := len(f.Members); {
	case n == 0:
		b.fail("register.members", remedy, "is missing")
	case n == 2:
		b.fail("register.members", "Add a third: a witness, which is a small machine that runs slotfs witness.",
			"there are two members, and a majority of two is both: the loss of either would stop every change of role")
	case n%2 == 0:
		b.fail("register.members", "Use one more or one fewer.", "there are %d members; an even number survives no more losses than one fewer", n)
	}
}

// ipAddr is an address to listen on for etcd, which wants no host name.
func (b *builder) ipAddr(key, v string) string {
	b.addr(key, v, true)
	if host, _, err := net.SplitHostPort(v); err == nil && net.ParseIP(host) == nil {
		b.fail(key, "Use an IP address of this machine, or 0.0.0.0 for all.", "%q has no IP address", v)
	}
	return v
}

func (b *builder) external(f *fileRegister, r *Register) {
	r.User = f.User
	for _, p := range []struct {
		to   *string
		path string
	}{{&r.Password, f.PasswordFile}, {&r.CA, f.CA}, {&r.Cert, f.Cert}, {&r.Key, f.Key}} {
		if p.path != "" {
			*p.to = b.path(p.path)
		}
	}
	if len(f.Endpoints) == 0 {
		b.fail("register.endpoints", "Name the members of your etcd: endpoints = [\"https://192.0.2.1:2379\", …].", "is missing")
	}
	schemes := map[string]bool{}
	for i, e := range f.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			b.fail(fmt.Sprintf("register.endpoints[%d]", i), "Write it as \"https://192.0.2.1:2379\".", "%q is not the URL of an etcd member", e)
			continue
		}
		schemes[u.Scheme] = true
		r.Endpoints = append(r.Endpoints, u.Scheme+"://"+u.Host)
	}
	if len(schemes) > 1 {
		b.fail("register.endpoints", "Use https:// for all of them.", "some are with TLS and some without")
	}
	if schemes["http"] {
		for _, k := range []registerKey{{"ca", f.CA != ""}, {"cert", f.Cert != ""}, {"key", f.Key != ""}, {"user", f.User != ""}} {
			if k.set {
				b.fail("register."+k.name, "Use https:// in register.endpoints.", "needs TLS, but the endpoints are without")
			}
		}
	}
	b.together("user", f.User, "password_file", f.PasswordFile)
	b.together("cert", f.Cert, "key", f.Key)
}

// together refuses one of two keys without the other.
func (b *builder) together(a, va, z, vz string) {
	if (va == "") != (vz == "") {
		missing, given := a, z
		if vz == "" {
			missing, given = z, a
		}
		b.fail("register."+missing, "Give both or neither.", "is missing, but register.%s is given", given)
	}
}

// register compares the section with the machine.
func (k *checker) register() {
	r := &k.c.Register
	if r.Mode != RegisterEtcd {
		return
	}
	if _, err := r.TLS(); err != nil {
		k.errs = append(k.errs, k.named(err))
	}
	if _, err := r.ReadPassword(); err != nil {
		k.errs = append(k.errs, k.named(err))
	}
}

// named adds the file to an error of this section.
func (k *checker) named(err *Error) *Error {
	err.File = k.c.Path
	return err
}

// TLS is the configuration for connecting to an external etcd; nil without
// TLS.
func (r *Register) TLS() (*tls.Config, *Error) {
	if len(r.Endpoints) == 0 || strings.HasPrefix(r.Endpoints[0], "http://") {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if r.CA != "" {
		pem, err := os.ReadFile(r.CA)
		if err != nil {
			return nil, &Error{Key: "register.ca", Reason: err.Error(), Err: err}
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &Error{Key: "register.ca", Reason: r.CA + " holds no PEM certificate", Remedy: "Name the file with the certificate of the CA that signed those of the etcd members."}
		}
	}
	if r.Cert != "" {
		pair, err := tls.LoadX509KeyPair(r.Cert, r.Key)
		if err != nil {
			return nil, &Error{Key: "register.cert", Reason: fmt.Sprintf("certificate %s and key %s cannot be used: %v", r.Cert, r.Key, err), Err: err}
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// ReadPassword reads the password file; empty without one.
func (r *Register) ReadPassword() (string, *Error) {
	if r.Password == "" {
		return "", nil
	}
	const key = "register.password_file"
	fi, err := os.Stat(r.Password)
	if err != nil {
		return "", &Error{Key: key, Reason: err.Error(), Err: err}
	}
	if fi.Mode().Perm()&0o027 != 0 {
		return "", &Error{Key: key, Reason: fmt.Sprintf("%s is a secret but has mode %04o", r.Password, fi.Mode().Perm()), Remedy: "chmod 600 " + r.Password}
	}
	text, err := os.ReadFile(r.Password)
	if err != nil {
		return "", &Error{Key: key, Reason: err.Error(), Err: err}
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" {
		return "", &Error{Key: key, Reason: r.Password + " is empty", Remedy: "Write the password of register.user into it."}
	}
	return password, nil
}

// equal is for RestartNeeded.
func (r Register) equal(s Register) bool {
	return reflect.DeepEqual(r, s)
}
