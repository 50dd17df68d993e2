package register_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"slotfs/integration/loopback"
	"slotfs/repl"
	"slotfs/repl/register"
)

const clusterID = "c0ffee"

// authority makes certificates as a slotfs cluster does.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{dir: t.TempDir(), cert: cert, key: key}
	write(t, filepath.Join(a.dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes name.pem and name.key.
func (a *authority) issue(t *testing.T, name string) (cert, key string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{clusterID + ".slotfs"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(a.dir, name+".pem"), filepath.Join(a.dir, name+".key")
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return cert, key
}

// tls is the configuration of one side.
func (a *authority) tls(t *testing.T, name string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(a.issue(t, name))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	// Certificates name nodes, not hosts.
	return &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
		VerifyConnection: func(s tls.ConnectionState) error {
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		}}
}

// cluster is a register whose members run in this process.
type cluster struct {
	t       *testing.T
	auth    *authority
	members map[string]*member
	peers   []register.Peer
}

// member is one of them, running or not.
type member struct {
	*register.Member
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	told register.Progress
	err  error
	news chan struct{}
}

// freeAddr is an address that nobody else uses until the test ends.
func freeAddr(t *testing.T) string {
	t.Helper()
	h, err := loopback.Take()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h.Addr(17948)
}

// newCluster prepares members called names; start starts them.
func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, auth: newAuthority(t), members: map[string]*member{}}
	for _, n := range names {
		c.peers = append(c.peers, register.Peer{Name: n, Addr: freeAddr(t)})
	}
	for _, p := range c.peers {
		c.prepare(p, c.peers)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			m.halt()
		}
	})
	return c
}

func (c *cluster) prepare(p register.Peer, peers []register.Peer) *member {
	cert, key := c.auth.issue(c.t, p.Name)
	client := freeAddr(c.t)
	m := &member{Member: &register.Member{
		Config: register.MemberConfig{Name: p.Name, Cluster: clusterID, Dir: filepath.Join(c.t.TempDir(), "register"), Listen: p.Addr, ClientListen: client, ClientAdvertise: client,
			Peers: peers, Cert: cert, Key: key, CA: filepath.Join(c.auth.dir, "ca.pem"), ServerName: clusterID + ".slotfs"},
		Server: c.auth.tls(c.t, p.Name), Client: c.auth.tls(c.t, p.Name),
		Log: slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})).With("node", p.Name),
	}}
	m.Tell = m.hear
	c.members[p.Name] = m
	return m
}

func (m *member) hear(g register.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told = g
	if m.news != nil {
		close(m.news)
		m.news = nil
	}
}

// start runs members that do not run.
func (c *cluster) start(names ...string) {
	c.t.Helper()
	for _, n := range names {
		m := c.members[n]
		var ctx context.Context
		ctx, m.stop = context.WithCancel(context.Background())
		m.done = make(chan struct{})
		go func() {
			defer close(m.done)
			err := m.Run(ctx)
			m.mu.Lock()
			m.err = err
			m.mu.Unlock()
			if err != nil {
				m.hear(register.Progress{Phase: register.Stopped, Text: err.Error()})
			}
		}()
	}
}

// halt stops a member.
func (m *member) halt() {
	if m.stop != nil {
		m.stop()
		<-m.done
		m.stop = nil
	}
}

// await waits until the member is in a phase, and gives its text.
func (m *member) await(t *testing.T, want register.Phase) string {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		told := m.told
		if m.news == nil {
			m.news = make(chan struct{})
		}
		news := m.news
		m.mu.Unlock()
		if told.Phase == want {
			return told.Text
		}
		select {
		case <-news:
		case <-limit:
			t.Fatalf("member %s is %q (%s), want %q", m.Config.Name, told.Phase, told.Text, want)
		}
	}
}

// client is a register that asks the members in the order of names.
func (c *cluster) client(names ...string) *register.Etcd {
	c.t.Helper()
	var urls []string
	for _, n := range names {
		urls = append(urls, c.members[n].Config.ClientAdvertise)
	}
	return c.clientAt(urls...)
}

func (c *cluster) clientAt(urls ...string) *register.Etcd {
	c.t.Helper()
	e := register.New(register.Options{Cluster: clusterID, TLS: c.auth.tls(c.t, "client"), Logger: slog.New(slog.NewTextHandler(c.t.Output(), nil))})
	e.SetEndpoints(urls)
	c.t.Cleanup(func() { e.Close() })
	return e
}

// eventually repeats f until it gives nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	limit := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
}

// ready waits until the register answers.
func ready(t *testing.T, e *register.Etcd) {
	t.Helper()
	eventually(t, "register answers", func() error {
		_, _, err := e.Get(t.Context(), "none")
		return err
	})
}

// put makes a record by Swap.
func put(t *testing.T, e *register.Etcd, store string, expect uint64, r repl.Record) repl.Record {
	t.Helper()
	now, won, err := e.Swap(t.Context(), store, expect, r)
	if err != nil || !won {
		t.Fatalf("swap %s from %d to %d: won=%v now=%+v err=%v", store, expect, r.Epoch, won, now, err)
	}
	return now
}

func mustGet(t *testing.T, e *register.Etcd, store string) repl.Record {
	t.Helper()
	r, found, err := e.Get(t.Context(), store)
	if err != nil || !found {
		t.Fatalf("get %s: found=%v err=%v", store, found, err)
	}
	return r
}
