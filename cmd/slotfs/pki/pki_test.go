package pki_test

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/cmd/slotfs/pki"
)

func cluster(t *testing.T) *pki.Cluster {
	t.Helper()
	c, err := pki.Create(filepath.Join(t.TempDir(), "cluster"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func issue(t *testing.T, c *pki.Cluster, name string) *pki.Node {
	t.Helper()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, pki.NodeFile), filepath.Join(dir, pki.NodeKey)
	if err := c.Issue(name, cert, key); err != nil {
		t.Fatal(err)
	}
	n, err := c.LoadNode(name, cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// handshake connects client to server and returns what each side says; the
// client's error is that of its first read, as TLS 1.3 has it.
func handshake(t *testing.T, server, client *tls.Config) (serverName, clientName string, serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		if serverErr = s.Handshake(); serverErr != nil {
			return
		}
		clientName = peerName(s.ConnectionState())
		_, serverErr = s.Write([]byte("x"))
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		serverName = peerName(conn.ConnectionState())
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	<-done
	return serverName, clientName, serverErr, err
}

// peerName is the proven node name of the other side after a handshake.
func peerName(cs tls.ConnectionState) string {
	if len(cs.PeerCertificates) == 0 {
		return ""
	}
	return cs.PeerCertificates[0].Subject.CommonName
}

func TestMutualAuthentication(t *testing.T) {
	c := cluster(t)
	a, b := issue(t, c, "a"), issue(t, c, "b")
	server, client, serr, cerr := handshake(t, a.ServerTLS(), b.ClientTLS())
	if serr != nil || cerr != nil {
		t.Fatalf("server: %v, client: %v", serr, cerr)
	}
	if server != "a" || client != "b" {
		t.Errorf("server is %q, client is %q", server, client)
	}
}

func TestStrangersAreRefused(t *testing.T) {
	ours, theirs := cluster(t), cluster(t)
	node, stranger := issue(t, ours, "a"), issue(t, theirs, "x")
	var pe *pki.PeerError

	// A stranger that accepts our certificate for once still gets nowhere.
	careless := stranger.ClientTLS()
	careless.VerifyConnection = nil
	_, _, serr, cerr := handshake(t, node.ServerTLS(), careless)
	if !errors.As(serr, &pe) || pe.Name != "x" || pe.Cluster != theirs.ID || !strings.Contains(serr.Error(), "belongs to another cluster ("+theirs.ID) {
		t.Errorf("server says %v", serr)
	}
	if cerr == nil {
		t.Error("the stranger was served")
	}

	_, _, _, cerr = handshake(t, stranger.ServerTLS(), node.ClientTLS())
	if !errors.As(cerr, &pe) || !strings.Contains(cerr.Error(), "belongs to another cluster") {
		t.Errorf("client says %v", cerr)
	}

	bare := &tls.Config{InsecureSkipVerify: true}
	_, _, serr, cerr = handshake(t, node.ServerTLS(), bare)
	if serr == nil || cerr == nil {
		t.Errorf("a client without certificate was served: %v, %v", serr, cerr)
	}
}

func TestCopyHasNoCAKey(t *testing.T) {
	c := cluster(t)
	d, err := c.CopyTo(filepath.Join(t.TempDir(), "copy"))
	if err != nil {
		t.Fatal(err)
	}
	if d.ID != c.ID || string(d.GossipKey) != string(c.GossipKey) {
		t.Error("the copy is another cluster")
	}
	dir := t.TempDir()
	err = d.Issue("n", filepath.Join(dir, "c"), filepath.Join(dir, "k"))
	var pe *pki.Error
	if !errors.As(err, &pe) || !strings.Contains(pe.Error(), "ca.key is missing") {
		t.Errorf("got %v", err)
	}
	fi, err := os.Stat(filepath.Join(d.Dir, pki.GossipFile))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("gossip key: %v %v", fi.Mode(), err)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	c := cluster(t)
	if _, err := pki.Create(c.Dir); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("got %v", err)
	}
}
