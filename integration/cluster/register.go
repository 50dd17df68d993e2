package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Register is what "slotfs register status --json" prints, as far as tests
// look.
type Register struct {
	Mode    string
	Answers bool
	Leader  string
	Members []RegisterMember
	Member  *struct{ Phase, Text string }
	Records map[string]struct {
		Epoch   uint64
		Primary string `json:"primary_node"`
		Nodes   []string
		Error   string
	}
}

// RegisterMember is one member of the register.
type RegisterMember struct {
	Name, Peer, State string
	Leads, Learner    bool
}

// Register asks the node about the register.
func (n *Node) Register() (Register, error) {
	var r Register
	return r, n.getJSON(&r, "/v1/register")
}

// RegisterDir is where the node's register member has its files.
func (n *Node) RegisterDir() string { return filepath.Join(n.Dir, "register") }

// RegisterAddr is the node's address for other members.
func (n *Node) RegisterAddr() string { return n.register }

// WaitRegister waits until the node says that the register answers and cond
// holds.
func (n *Node) WaitRegister(what string, cond func(*Register) bool) error {
	return n.cluster.Wait(n.Name+" to see the register "+what, func() error {
		r, err := n.Register()
		if err != nil {
			return err
		}
		if !r.Answers || !cond(&r) {
			return fmt.Errorf("it says %+v, member %+v", r, r.Member)
		}
		return nil
	})
}

// Etcd connects to the node's register member, as a client with the node's
// certificate. It is not on a host of its own.
func (n *Node) Etcd() (*clientv3.Client, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(n.Dir, "node.pem"), filepath.Join(n.Dir, "node.key"))
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{
		Endpoints: []string{n.clients}, DialTimeout: 5 * time.Second, Logger: zap.NewNop(), Context: context.Background(),
		// What is tested is not this side of the connection.
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13},
	})
}

// WaitUnreachable waits until the node says that the register is out of reach.
func (n *Node) WaitUnreachable() error {
	return n.cluster.Wait(n.Name+" to miss the register", func() error {
		s, err := n.Status()
		if err != nil {
			return err
		}
		for _, w := range s.Warnings {
			if strings.Contains(w, "register unreachable since") && strings.Contains(w, "roles cannot change") {
				return nil
			}
		}
		return fmt.Errorf("warnings are %q", s.Warnings)
	})
}
