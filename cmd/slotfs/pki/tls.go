package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ServerTLS is the configuration for accepting connections of other nodes.
// The error of a refused handshake is a *PeerError.
func (n *Node) ServerTLS() *tls.Config {
	c := n.config()
	// The chain is checked by VerifyConnection, which can say what is wrong.
	c.ClientAuth = tls.RequireAnyClientCert
	return c
}

// ClientTLS is the configuration for connecting to other nodes. The error of
// a refused handshake is a *PeerError.
func (n *Node) ClientTLS() *tls.Config {
	c := n.config()
	// Certificates name nodes, not hosts; VerifyConnection checks them.
	c.InsecureSkipVerify = true
	return c
}

func (n *Node) config() *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{n.Cert},
		MinVersion:   tls.VersionTLS13,
		VerifyConnection: func(cs tls.ConnectionState) error {
			perr := &PeerError{Reason: "it presented no certificate"}
			if len(cs.PeerCertificates) > 0 {
				perr = n.Cluster.check(cs.PeerCertificates[0], time.Now())
			}
			if perr == nil {
				return nil
			}
			if n.Refused != nil {
				n.Refused(perr)
			}
			return perr
		},
		// Each handshake checks the certificate anew.
		SessionTicketsDisabled: true,
	}
}

// check says why leaf is not a valid node certificate of c.
func (c *Cluster) check(leaf *x509.Certificate, now time.Time) *PeerError {
	name, cluster := leaf.Subject.CommonName, clusterOf(leaf)
	refuse := func(format string, args ...any) *PeerError {
		return &PeerError{Name: name, Cluster: cluster, Reason: fmt.Sprintf(format, args...)}
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.CA)
	// Both usages are wanted, whichever side we are.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err == nil {
			continue
		}
		var unknown x509.UnknownAuthorityError
		var invalid x509.CertificateInvalidError
		switch {
		case errors.As(err, &unknown) && cluster != "" && cluster != c.ID:
			return refuse("certificate belongs to another cluster (%s; this one is %s)", cluster, c.ID)
		case errors.As(err, &unknown):
			return refuse("certificate was not made by this cluster's CA (cluster %s)", c.ID)
		case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(leaf.NotBefore):
			return refuse("certificate is not valid before %s: is the clock right?", leaf.NotBefore.Format(time.DateTime))
		case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
			return refuse("certificate expired at %s", leaf.NotAfter.Format(time.DateTime))
		default:
			return refuse("certificate is not a node certificate: %v", err)
		}
	}
	if cluster != c.ID {
		return refuse("certificate is not a node certificate of this cluster (%s)", c.ID)
	}
	return nil
}

// clusterOf reads the cluster id from a node certificate's URI.
func clusterOf(leaf *x509.Certificate) string {
	for _, u := range leaf.URIs {
		if u.Scheme == scheme && strings.TrimPrefix(u.Path, "/") == leaf.Subject.CommonName {
			return u.Host
		}
	}
	return ""
}
