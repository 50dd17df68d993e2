// Package pki makes and checks what the nodes of one cluster know each other
// by: a certificate authority, a certificate per node, and the gossip key.
//
// # Files
//
// A cluster directory, made once by "slotfs init" and copied to every node:
//
//	ca.pem      the cluster's CA certificate (Ed25519), CN "slotfs cluster <id>"
//	ca.key      its private key; only where node certificates are made
//	gossip.key  32 random bytes in base64, one line
//
// and beside each node's config:
//
//	node.pem    the node's certificate: CN = node name, for client and server
//	            use, with the URI slotfs://<cluster id>/<node name>
//	node.key    its private key
//
// # Rules
//
//   - The cluster id is 16 random bytes in hexadecimal, made with the CA. It is
//     in the CA's name only so that messages can say which cluster a stranger
//     belongs to; what counts is the signature.
//   - Host names and addresses are in no certificate: nodes find each other by
//     gossip, and may move. The one DNS name, <cluster id>.slotfs, is the same in
//     all; it is for the register's members, whose software wants one. A peer is accepted if its certificate was signed by
//     our CA for our cluster; its name is the certificate's CN.
//   - Certificates are valid for twenty years, from a day before they are made:
//     a mail store must not stop because nobody renewed an internal
//     certificate, and clocks of machines under installation are often wrong.
//     To revoke a node, make a new cluster directory.
//   - Private keys that other users can read are refused, as ssh does.
package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"time"
)

// Names of the files in a cluster directory and beside a config.
const (
	CAFile     = "ca.pem"
	CAKeyFile  = "ca.key"
	GossipFile = "gossip.key"
	NodeFile   = "node.pem"
	NodeKey    = "node.key"
)

// GossipKeySize is the length of the gossip key in bytes: AES-256.
const GossipKeySize = 32

const (
	validity = 20 * 365 * 24 * time.Hour
	backdate = 24 * time.Hour
	scheme   = "slotfs"
	caPrefix = "slotfs cluster "
)

// Error says what is wrong with one file, and what to do.
type Error struct {
	File   string // path
	Reason string // clause: "is missing", "was signed by another cluster's CA"
	Remedy string // sentence; may be empty
	Err    error  // cause; may be nil
}

func (e *Error) Error() string {
	s := e.File + " " + e.Reason
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// PeerError is why a peer's certificate was refused during the TLS handshake.
type PeerError struct {
	Name    string // what the certificate says its node is called; unproven
	Cluster string // what the certificate says its cluster is; unproven
	Reason  string
}

func (e *PeerError) Error() string {
	if e.Name == "" {
		return "peer refused: " + e.Reason
	}
	return fmt.Sprintf("peer %q refused: %s", e.Name, e.Reason)
}

// Cluster is what a cluster directory holds.
type Cluster struct {
	Dir       string
	ID        string // of the cluster, hexadecimal
	CA        *x509.Certificate
	GossipKey []byte
}

// CAPath is the file of the CA's certificate.
func (c *Cluster) CAPath() string { return filepath.Join(c.Dir, CAFile) }

// ServerName is the DNS name that every node certificate of the cluster
// carries, for software that checks one: the register's members.
func (c *Cluster) ServerName() string { return c.ID + ".slotfs" }

// Node is a node's own certificate and what it trusts.
type Node struct {
	Name    string
	Cluster *Cluster
	Cert    tls.Certificate

	// Refused is told of every peer whose certificate was refused, on either
	// side of a connection; may be nil. It must not block.
	Refused func(*PeerError)
}
