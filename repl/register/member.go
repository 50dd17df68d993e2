package register

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Times of the embedded etcd: an election needs no more than about a second,
// and a member that was only slow for a moment is not deposed.
const (
	heartbeat = 50 * time.Millisecond
	election  = 500 * time.Millisecond
)

const (
	quota        = 64 << 20 // bytes of etcd's file; a record has less than one KiB
	maxRequest   = 128 << 10
	snapshots    = 1000   // changes between two snapshots: few, so that little log is in memory
	keptRevision = "1000" // older ones are forgotten
	closeTimeout = 5 * time.Second
)

// Peer is a member of the register as the config lists it.
type Peer struct {
	Name string `json:"name"` // of its node
	Addr string `json:"addr"` // host:port, for the other members
}

// MemberConfig describes the member that runs on this node.
type MemberConfig struct {
	Name            string `json:"name"`             // of the node
	Cluster         string `json:"cluster"`          // id of the slotfs cluster
	Dir             string `json:"dir"`              // made if absent; mode 0700
	Listen          string `json:"listen"`           // ip:port for the other members
	ClientListen    string `json:"client_listen"`    // ip:port for clients
	ClientAdvertise string `json:"client_advertise"` // host:port
	Peers           []Peer `json:"peers"`            // all members, this one included

	// Files of the certificate that speaks for the node, and of the CA that signs
	// those of all members; each carries ServerName as a DNS name.
	Cert       string `json:"cert"`
	Key        string `json:"key"`
	CA         string `json:"ca"`
	ServerName string `json:"server_name"`

	// Force makes a new register of one member from what Dir holds.
	Force bool `json:"force,omitempty"`
}

// Self is the member's own entry in Peers; zero if it has none.
func (c *MemberConfig) Self() Peer {
	for _, p := range c.Peers {
		if p.Name == c.Name {
			return p
		}
	}
	return Peer{}
}

// Phase is what a member does.
type Phase string

// The phases of a member.
const (
	Starting Phase = "starting"
	Forming  Phase = "forming" // waits for the others, to make a new register with them
	Running  Phase = "running"
	Refused  Phase = "refused" // cannot take part before somebody has acted
	Stopped  Phase = "stopped" // ended; tried again in a moment
)

// Progress is what a member tells about itself.
type Progress struct {
	Phase Phase  `json:"phase"`
	Text  string `json:"text,omitempty"` // what it waits for, or why it stopped
}

// Member is an embedded etcd member.
type Member struct {
	Config MemberConfig
	Server *tls.Config // for other members while the register is not formed
	Client *tls.Config
	Log    *slog.Logger
	// Tell is told each progress; it must not block.
	Tell func(Progress)

	closing atomic.Bool
}

// RefusedError is why a member cannot take part before somebody has acted.
type RefusedError struct{ Reason, Remedy string }

func (e *RefusedError) Error() string { return e.Reason + ". " + e.Remedy }

// Run is the member until ctx ends, which gives nil, or until it fails.
func (m *Member) Run(ctx context.Context) error {
	m.closing.Store(false)
	if err := m.prepareDir(); err != nil {
		return err
	}
	how, err := m.form(ctx)
	if err != nil || ctx.Err() != nil {
		return endedBy(ctx, err)
	}
	var last atomic.Value
	cfg, err := m.etcdConfig(how, func(text string) {
		last.Store(text)
		m.tell(Running, text)
	})
	if err != nil {
		return err
	}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start the register's member in %s: %w", m.Config.Dir, err)
	}
	m.tell(Running, "")
	select {
	case <-ctx.Done():
		m.close(e)
		return nil
	case err := <-e.Err():
		last.CompareAndSwap(nil, err.Error())
	case <-e.Server.StopNotify():
	}
	// etcd stops itself when the others have removed it.
	id := uint64(e.Server.MemberID())
	m.close(e)
	if aside, ok := m.putAside(ctx, id); ok {
		return fmt.Errorf("this member was removed from the register; its data was put aside in %s", aside)
	}
	text, _ := last.Load().(string)
	return fmt.Errorf("the register's member has stopped: %s", cmp.Or(text, "no reason given"))
}

func endedBy(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (m *Member) tell(p Phase, text string) {
	if m.Tell != nil {
		m.Tell(Progress{p, text})
	}
}

// close stops etcd in good order, or lets go of it if it hangs: its files are
// written so that nothing is lost.
func (m *Member) close(e *embed.Etcd) {
	m.closing.Store(true)
	done := make(chan struct{})
	go func() { defer close(done); e.Close() }()
	select {
	case <-done:
	case <-time.After(closeTimeout):
		m.Log.Warn("etcd did not stop in time")
	}
}

func (m *Member) prepareDir() error {
	if err := os.MkdirAll(m.Config.Dir, 0o700); err != nil {
		return fmt.Errorf("make the register's data directory: %w", err)
	}
	if err := os.Chmod(m.Config.Dir, 0o700); err != nil {
		return fmt.Errorf("protect the register's data directory: %w", err)
	}
	return nil
}

// initialized reports whether the directory holds a member's log.
func (m *Member) initialized() bool {
	logs, err := filepath.Glob(filepath.Join(m.walDir(), "*.wal"))
	return err == nil && len(logs) > 0
}

func (m *Member) walDir() string { return filepath.Join(m.Config.Dir, "member", "wal") }

func (m *Member) etcdConfig(how formation, onError func(string)) (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name, c.Dir = m.Config.Name, m.Config.Dir
	c.ListenPeerUrls = []url.URL{https(m.Config.Listen)}
	c.AdvertisePeerUrls = []url.URL{https(m.Config.Self().Addr)}
	c.ListenClientUrls = []url.URL{https(m.Config.ClientListen)}
	c.AdvertiseClientUrls = []url.URL{https(m.Config.ClientAdvertise)}
	c.ClusterState = embed.ClusterStateFlagNew
	peers := m.Config.Peers
	if how.join {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	if how.join || how.alone {
		peers = how.peers
	}
	var list []string
	for _, p := range peers {
		list = append(list, p.Name+"=https://"+p.Addr)
	}
	c.InitialCluster, c.InitialClusterToken = strings.Join(list, ","), m.Config.Cluster
	c.ForceNewCluster = m.Config.Force && !how.alone
	c.TickMs, c.ElectionMs = uint(heartbeat.Milliseconds()), uint(election.Milliseconds())
	c.PreVote = true
	c.QuotaBackendBytes, c.MaxRequestBytes = quota, maxRequest
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshots, snapshots
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, keptRevision
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(m.Log, &m.closing, onError))
	c.LogLevel = "info"
	c.WarningUnaryRequestDuration = time.Second
	c.Metrics = "basic"
	c.EnableGRPCGateway = false
	// The server checks names only as far as we tell it: certificates name nodes,
	// not hosts, and all carry ServerName.
	c.PeerTLSInfo.CertFile, c.PeerTLSInfo.KeyFile, c.PeerTLSInfo.TrustedCAFile = m.Config.Cert, m.Config.Key, m.Config.CA
	c.PeerTLSInfo.ClientCertAuth, c.PeerTLSInfo.SkipClientSANVerify = true, true
	c.PeerTLSInfo.ServerName = m.Config.ServerName
	c.ClientTLSInfo = c.PeerTLSInfo
	c.TlsMinVersion, c.TlsMaxVersion = "TLS1.3", "TLS1.3"
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configure the register's member: %w", err)
	}
	return c, nil
}

func https(addr string) url.URL { return url.URL{Scheme: "https", Host: addr} }
