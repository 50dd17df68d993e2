package integration_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"slotfs/integration/cluster"
	"slotfs/integration/loopback"
)

// external runs an etcd in this process, and gives the config that uses it.
func external(t *testing.T) (config string) {
	t.Helper()
	return `mode = "etcd"` + "\nendpoints = [\"" + runEtcd(t, nil) + "\"]"
}

// runEtcd runs an etcd in this process and gives its URL. With an authority it
// wants TLS, and clients with a certificate of that.
func runEtcd(t *testing.T, a *authority) string {
	t.Helper()
	host, err := loopback.Take()
	must(t, err)
	t.Cleanup(func() { must(t, host.Close()) })
	peer := []url.URL{{Scheme: "http", Host: host.Addr(12380)}}
	client := []url.URL{{Scheme: "http", Host: host.Addr(12379)}}
	c := embed.NewConfig()
	c.Dir, c.LogLevel = t.TempDir(), "error"
	if a != nil {
		client[0].Scheme = "https"
		cert, key := a.issue("etcd", net.ParseIP(host.IP))
		c.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: a.ca, ClientCertAuth: true}
	}
	c.ListenPeerUrls, c.AdvertisePeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = peer, peer, client, client
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	must(t, err)
	t.Cleanup(e.Close)
	return client[0].String()
}

// authority signs certificates, as the owner of an etcd does.
type authority struct {
	t    *testing.T
	dir  string
	ca   string // file
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	a.key, a.cert = a.sign(tmpl, nil, nil, "ca")
	a.ca = filepath.Join(a.dir, "ca.pem")
	return a
}

// sign makes a key and a certificate, signed by parent or by itself, as files.
func (a *authority) sign(tmpl, parent *x509.Certificate, by *ecdsa.PrivateKey, name string) (*ecdsa.PrivateKey, *x509.Certificate) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	if parent == nil {
		parent, by = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), by)
	must(a.t, err)
	cert, err := x509.ParseCertificate(der)
	must(a.t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	base := filepath.Join(a.dir, name)
	must(a.t, errors.Join(os.WriteFile(base+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644),
		os.WriteFile(base+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600)))
	return key, cert
}

// issue makes a certificate for a server at ip and for clients.
func (a *authority) issue(name string, ip ...net.IP) (cert, key string) {
	a.t.Helper()
	a.n++
	a.sign(&x509.Certificate{SerialNumber: big.NewInt(1 + a.n), Subject: pkix.Name{CommonName: name}, IPAddresses: ip,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}, a.cert, a.key, name)
	return filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
}

// TestRegisterExternal: the register is an etcd that is there anyway.
func TestRegisterExternal(t *testing.T) {
	t.Parallel()
	endpoint := external(t)
	f := newCluster(t, 2, cluster.Options{Timeout: 25 * time.Second})
	f.expect(noise...)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	for _, n := range f.Nodes {
		must(t, n.Edit(`mode = "none"`, endpoint))
	}
	must(t, f.StartPair())
	f.deliver(n1, "ann")
	f.fails(n1, 8, []string{"register", "add", "x", "127.0.0.1:1"}, "etcdctl")
	f.fails(n1, 8, []string{"register", "restore"}, "etcdctl")
	if out := f.run(n2, "status"); !strings.Contains(out, "register: etcd; answered") {
		t.Errorf("status: %s", out)
	}
	must(t, n1.Kill())
	must(t, n2.WaitMounted())
	f.deliver(n2, "bob")
	must(t, n1.Clear())
	must(t, n1.Start())
	must(t, f.WaitInSync())
}

// misses waits until a node says why the register does not answer it.
func (f *fixture) misses(n *cluster.Node, texts ...string) {
	f.t.Helper()
	must(f.t, f.Wait(n.Name+" to say why the register does not answer", func() error {
		s, err := n.Status()
		if err != nil {
			return err
		}
		all := strings.Join(s.Warnings, "\n")
		for _, text := range texts {
			if !strings.Contains(all, text) {
				return fmt.Errorf("warnings lack %q: %s", text, all)
			}
		}
		return nil
	}))
}

// secured is a pair that uses an external etcd with further keys, which has
// been seen to fail over, and runs again.
func secured(t *testing.T, keys string) *fixture {
	t.Helper()
	f := newCluster(t, 2, cluster.Options{Timeout: 25 * time.Second})
	f.expect(noise...)
	f.expect("tls handshake") // a node that stops while another connects
	for _, n := range f.Nodes {
		must(t, n.Edit(`mode = "none"`, keys))
	}
	must(t, f.StartPair())
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.deliver(n1, "ann")
	f.survives(n1, n2)
	f.deliver(n2, "bob")
	return f
}

// with restarts a node that is a replica with other keys, and says what the
// register's absence is put down to; then back.
func (f *fixture) with(n *cluster.Node, old, new string, texts ...string) {
	f.t.Helper()
	must(f.t, n.Stop())
	must(f.t, n.Edit(old, new))
	must(f.t, n.Start())
	f.misses(n, texts...)
	must(f.t, n.Stop())
	must(f.t, n.Edit(new, old))
	must(f.t, n.Start())
	must(f.t, f.WaitInSync())
}

// TestRegisterExternalCertificates: an etcd with TLS that wants certificates of
// its clients. One of a stranger, none, and a wrong CA are told apart.
func TestRegisterExternalCertificates(t *testing.T) {
	t.Parallel()
	a, foreign := newAuthority(t), newAuthority(t)
	cert, key := a.issue("slotfs")
	endpoints := "mode = \"etcd\"\nendpoints = [\"" + runEtcd(t, a) + "\"]\n"
	ca := fmt.Sprintf("ca = %q\n", a.ca)
	own := fmt.Sprintf("cert = %q\nkey = %q\n", cert, key)
	f := secured(t, endpoints+ca+own)
	n1 := f.Nodes[0]
	cert, key = foreign.issue("slotfs")
	f.with(n1, own, fmt.Sprintf("cert = %q\nkey = %q\n", cert, key), "does not accept our certificate; see register.cert and register.key")
	f.with(n1, own, "# none\n", "does not accept our certificate; see register.cert and register.key")
	f.with(n1, ca, fmt.Sprintf("ca = %q\n", foreign.ca), "is not accepted here; see register.ca")
}

// TestRegisterExternalPassword: an etcd that wants a user and a password, who may
// use the keys of slotfs only.
func TestRegisterExternalPassword(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	cert, key := a.issue("root")
	etcd := runEtcd(t, a)
	pair, err := tls.LoadX509KeyPair(cert, key)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS13}})
	must(t, err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, do := range []func() (any, error){
		func() (any, error) { return c.UserAdd(ctx, "root", "r00t") },
		func() (any, error) { return c.UserGrantRole(ctx, "root", "root") },
		func() (any, error) { return c.RoleAdd(ctx, "mail") },
		func() (any, error) {
			return c.RoleGrantPermission(ctx, "mail", "/slotfs/", clientv3.GetPrefixRangeEnd("/slotfs/"), clientv3.PermissionType(clientv3.PermReadWrite))
		},
		func() (any, error) { return c.UserAdd(ctx, "slotfs", "secret") },
		func() (any, error) { return c.UserGrantRole(ctx, "slotfs", "mail") },
		func() (any, error) { return c.UserAdd(ctx, "other", "secret") },
		func() (any, error) { return c.AuthEnable(ctx) },
	} {
		_, err := do()
		must(t, err)
	}
	secret := func(text string) string {
		file := filepath.Join(t.TempDir(), "password")
		must(t, os.WriteFile(file, []byte(text+"\n"), 0o600))
		return fmt.Sprintf("password_file = %q\n", file)
	}
	cert, key = a.issue("nobody")
	keys := fmt.Sprintf("mode = \"etcd\"\nendpoints = [%q]\nca = %q\ncert = %q\nkey = %q\n", etcd, a.ca, cert, key)
	user, right := "user = \"slotfs\"\n", secret("secret")
	f := secured(t, keys+user+right)
	n1 := f.Nodes[0]
	f.with(n1, right, secret("wrong"), "does not accept the user or the password")
	f.with(n1, user, "user = \"other\"\n", "denies the user what slotfs needs")
}

// TestRegisterIntroduced: a pair that had no register gets one. Nobody becomes
// primary before the store's record was made from a slot that is in sync.
func TestRegisterIntroduced(t *testing.T) {
	t.Parallel()
	endpoint := external(t)
	f := newCluster(t, 2, cluster.Options{Timeout: 25 * time.Second})
	f.expect(noise...)
	f.expect(provoked...)
	f.expect("slotfs register restore")
	n1, n2 := f.Nodes[0], f.Nodes[1]
	must(t, f.StartPair())
	f.deliver(n1, "ann")
	// The primary first: it must not have gone on alone.
	must(t, n1.Kill())
	must(t, n2.Stop())
	for _, n := range f.Nodes {
		must(t, n.Edit(`mode = "none"`, endpoint))
	}
	must(t, n1.Start())
	must(t, f.Wait("n1 to say what is missing", func() error {
		s, err := n1.Slot()
		if err == nil && !strings.Contains(s.Repl.Doing, "slotfs register restore") {
			err = fmt.Errorf("it says %q", s.Repl.Doing)
		}
		return err
	}))
	f.fails(n1, 8, []string{"register", "restore", f.Store, "--yes"}, "does not answer, and may know a later epoch", "--force")
	must(t, n2.Start())
	must(t, f.Wait("n1 to see n2", func() error {
		_, err := n1.Run("register", "restore", f.Store, "--yes")
		return err
	}))
	must(t, f.WaitInSync())
	f.equal()
}
