package pki

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Create makes a new cluster directory with a CA and a gossip key. dir may
// exist but must not hold a cluster.
func Create(dir string) (*Cluster, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make cluster directory: %w", err)
	}
	for _, name := range []string{CAFile, CAKeyFile, GossipFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return nil, &Error{File: filepath.Join(dir, name), Reason: "exists already",
				Remedy: "Use another directory, or join the existing cluster with --cluster."}
		}
	}
	var id [16]byte
	rand.Read(id[:])
	gossip := make([]byte, GossipKeySize)
	rand.Read(gossip)

	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	tmpl, err := template(caPrefix + hex.EncodeToString(id[:]))
	if err != nil {
		return nil, err
	}
	tmpl.IsCA = true
	tmpl.BasicConstraintsValid = true
	tmpl.MaxPathLenZero = true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	if err := writeKey(filepath.Join(dir, CAKeyFile), key); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(dir, CAFile), pemCert(der), 0o644); err != nil {
		return nil, err
	}
	text := base64.StdEncoding.EncodeToString(gossip) + "\n"
	if err := writeFile(filepath.Join(dir, GossipFile), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return Load(dir)
}

// CopyTo writes what a further node needs of c, all but the CA's private key,
// into a new cluster directory.
func (c *Cluster) CopyTo(dir string) (*Cluster, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make cluster directory: %w", err)
	}
	if err := writeFile(filepath.Join(dir, CAFile), pemCert(c.CA.Raw), 0o644); err != nil {
		return nil, err
	}
	text := base64.StdEncoding.EncodeToString(c.GossipKey) + "\n"
	if err := writeFile(filepath.Join(dir, GossipFile), []byte(text), 0o600); err != nil {
		return nil, err
	}
	return Load(dir)
}

// Issue makes the certificate and key of the node called name, at the two
// paths given. It needs the CA's private key in the cluster directory.
func (c *Cluster) Issue(name, certFile, keyFile string) error {
	caKey, err := c.loadCAKey()
	if err != nil {
		return err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("make node key: %w", err)
	}
	tmpl, err := template(name)
	if err != nil {
		return err
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	tmpl.URIs = []*url.URL{{Scheme: scheme, Host: c.ID, Path: "/" + name}}
	tmpl.DNSNames = []string{c.ServerName()}
	if tmpl.NotAfter.After(c.CA.NotAfter) {
		tmpl.NotAfter = c.CA.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.CA, pub, caKey)
	if err != nil {
		return fmt.Errorf("make node certificate: %w", err)
	}
	if err := writeKey(keyFile, key); err != nil {
		return err
	}
	return writeFile(certFile, pemCert(der), 0o644)
}

func (c *Cluster) loadCAKey() (crypto.Signer, error) {
	path := filepath.Join(c.Dir, CAKeyFile)
	raw, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: path, Reason: "is missing, so no node certificate can be made from here",
			Remedy: "Run init where the cluster was created (its cluster directory has ca.key), then copy the new node's directory over."}
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, &Error{File: path, Reason: "is not a PEM private key"}
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, &Error{File: path, Reason: "is not a private key", Err: err}
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, &Error{File: path, Reason: "cannot sign"}
	}
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(c.CA.PublicKey) {
		return nil, &Error{File: path, Reason: "does not belong to " + CAFile + " beside it"}
	}
	return signer, nil
}

func template(cn string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: cn},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(validity),
	}, nil
}

func pemCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func writeKey(path string, key crypto.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return writeFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

// writeFile never overwrites: keys in use must not be lost to a typing error.
func writeFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, fs.ErrExist) {
		return &Error{File: path, Reason: "exists already", Remedy: "Remove it first if it is really to be replaced."}
	}
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(path)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
