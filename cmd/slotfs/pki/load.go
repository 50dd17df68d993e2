package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Load reads a cluster directory. The CA's private key need not be there.
func Load(dir string) (*Cluster, error) {
	c := &Cluster{Dir: dir}
	var err error
	if c.CA, err = readCert(filepath.Join(dir, CAFile)); err != nil {
		return nil, err
	}
	caPath := filepath.Join(dir, CAFile)
	id, ok := strings.CutPrefix(c.CA.Subject.CommonName, caPrefix)
	if !ok || !c.CA.IsCA || id == "" {
		return nil, &Error{File: caPath, Reason: "is not the CA certificate of a slotfs cluster",
			Remedy: "Copy ca.pem from the cluster directory that slotfs init made."}
	}
	c.ID = id
	if c.GossipKey, err = readGossipKey(filepath.Join(dir, GossipFile)); err != nil {
		return nil, err
	}
	return c, nil
}

// Authority reads the CA's certificate alone: enough to judge what nodes have
// signed.
func Authority(caFile string) (*Cluster, error) {
	c := &Cluster{Dir: filepath.Dir(caFile)}
	var err error
	if c.CA, err = readCert(caFile); err != nil {
		return nil, err
	}
	id, ok := strings.CutPrefix(c.CA.Subject.CommonName, caPrefix)
	if !ok || !c.CA.IsCA || id == "" {
		return nil, &Error{File: caFile, Reason: "is not the CA certificate of a slotfs cluster"}
	}
	c.ID = id
	return c, nil
}

// Trusted reports why leaf is not the certificate of a node of c. That it has
// expired since does not matter: what it signed was signed before.
func (c *Cluster) Trusted(leaf *x509.Certificate) error {
	at := time.Now()
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if p := c.check(leaf, at); p != nil {
		return p
	}
	return nil
}

// LoadNode reads a node's certificate and checks that it is one of c's for
// the node called name, valid now, and that the key belongs to it.
func (c *Cluster) LoadNode(name, certFile, keyFile string) (*Node, error) {
	leaf, err := readCert(certFile)
	if err != nil {
		return nil, err
	}
	remake := fmt.Sprintf("Make a new one with slotfs init --node %s --cluster DIR, DIR being where the cluster was created.", name)
	if perr := c.check(leaf, time.Now()); perr != nil {
		return nil, &Error{File: certFile, Reason: perr.Reason, Remedy: remake}
	}
	if leaf.Subject.CommonName != name {
		return nil, &Error{File: certFile, Remedy: remake,
			Reason: fmt.Sprintf("was made for node %q, but the config says node = %q", leaf.Subject.CommonName, name)}
	}
	keyPEM, err := readSecret(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: keyFile, Reason: "is missing", Remedy: remake}
	}
	if err != nil {
		return nil, err
	}
	certPEM, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, &Error{File: keyFile, Reason: "is not the private key of " + certFile, Remedy: remake, Err: err}
	}
	pair.Leaf = leaf
	return &Node{Name: name, Cluster: c, Cert: pair}, nil
}

func readCert(path string) (*x509.Certificate, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Reason: "is missing", Remedy: "slotfs init makes it."}
	}
	if err != nil {
		return nil, &Error{File: path, Reason: "cannot be read", Err: err}
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, &Error{File: path, Reason: "is not a PEM certificate", Remedy: "slotfs init makes one."}
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, &Error{File: path, Reason: "is not a certificate", Err: err}
	}
	return cert, nil
}

func readGossipKey(path string) ([]byte, error) {
	raw, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Reason: "is missing", Remedy: "Copy gossip.key from the cluster directory of another node."}
	}
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(key) != GossipKeySize {
		return nil, &Error{File: path, Reason: fmt.Sprintf("is not a gossip key (want %d bytes in base64)", GossipKeySize),
			Remedy: "Copy gossip.key from the cluster directory of another node."}
	}
	return key, nil
}

// readSecret refuses a private file that other users can read. The error of a
// file that is missing wraps fs.ErrNotExist.
func readSecret(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, &Error{File: path, Reason: "cannot be read", Err: err}
	}
	if fi.Mode().Perm()&0o027 != 0 {
		return nil, &Error{File: path, Reason: fmt.Sprintf("is a secret but has mode %04o", fi.Mode().Perm()),
			Remedy: "chmod 600 " + path}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, &Error{File: path, Reason: "cannot be read", Err: err}
	}
	return raw, nil
}
