// Package config reads and checks the configuration file of a node.
//
// The file is TOML and strict: an unknown key is an error, not a warning,
// because a misspelt "on_replica_loss" that is silently ignored loses mail.
// All that is wrong is reported at once, each time with file, key, reason and
// remedy, and before anything is opened or mounted:
//
//   - [Parse] reads the file and checks what can be told from it alone;
//   - [Config.Check] looks at the machine: directories, certificates, sockets.
//
// Paths may be relative; they then start at the directory of the file.
//
// What SIGHUP can change is in [Reloadable]; [Config.RestartNeeded] names what
// else differs between two files.
//
// [Example] is the commented file that "slotfs init" writes. A test parses it
// and demands that it names every key there is.
package config

import (
	"log/slog"
	"os"
	"time"

	"slotfs/cmd/slotfs/exit"
)

// DefaultPath is where the config is looked for if neither --config nor
// $SLOTFS_CONFIG says otherwise.
const DefaultPath = "/etc/slotfs/slotfs.toml"

// EnvPath is the environment variable that names the config.
const EnvPath = "SLOTFS_CONFIG"

// Values of Slot.Durability.
const (
	Replicated = "replicated" // barriers wait for the in-sync replicas
	Local      = "local"      // barriers wait for this node only
)

// Values of Slot.OnReplicaLoss.
const (
	Continue = "continue" // drop the lost replica from the in-sync set, loudly
	Stop     = "stop"     // block changes until it is back
)

// Config is a parsed and validated file; paths are absolute.
type Config struct {
	Path       string // of the file
	Node       string
	ClusterDir string

	GossipBind      string // host:port
	GossipAdvertise string // host:port; empty: found out
	Listen          string // host:port for replication
	Advertise       string // host:port for replication; empty: found out
	Cert, Key       string // files
	ReplicaTimeout  time.Duration
	FailoverTimeout time.Duration // with a register only
	FailoverPause   time.Duration // with a register only

	Socket     string
	SocketMode os.FileMode
	SocketGID  int // -1: leave it

	MetricsListen string // empty: only on the admin socket
	LogFormat     string // "text" or "json"

	Register Register
	Slots    []Slot // none: a witness
	Reloadable
}

// Reloadable is the part of a config that SIGHUP applies.
type Reloadable struct {
	LogLevel slog.Level
	Join     []string // gossip addresses, host:port

	ScrubCycle time.Duration // everything is verified once in it; 0: no continuous scrub
	ScrubRate  int64         // bytes a second at most; 0: no limit
}

// Slot configures one slot.
type Slot struct {
	Store             string
	Data              string // directory
	Mount             string // directory
	Layout            string
	Durability        string
	OnReplicaLoss     string
	LogMax            int64 // bytes
	Reserve           Reserve
	ProtectMountPoint bool
	Xattrs            bool     // extended attributes and ACLs on the mount
	OnPromote         []string // argv; empty: none
	OnDemote          []string
	OnDegraded        []string
	HookTimeout       time.Duration

	BrakeShare  float64 // of a store's messages; 0: the brake never engages
	BrakeWindow time.Duration
	BrakeKeep   time.Duration
	BrakeMin    int // messages
}

// Reserve is how much of a file system is kept free.
type Reserve struct {
	Bytes   int64
	Percent float64
}

// DefaultReserve is max(1 GiB, 2 %).
var DefaultReserve = Reserve{Bytes: 1 << 30, Percent: 2}

// Of is the reserve in bytes on a file system of the given size: the larger
// of the two.
func (r Reserve) Of(total int64) int64 {
	return max(r.Bytes, int64(float64(total)*r.Percent/100))
}

// Slot finds the slot of a store.
func (c *Config) Slot(store string) (*Slot, bool) {
	for i := range c.Slots {
		if c.Slots[i].Store == store {
			return &c.Slots[i], true
		}
	}
	return nil, false
}

// Error is one thing that is wrong with a config.
type Error struct {
	File   string    // the config
	Key    string    // "slot[mail1].data"; empty for the file as a whole
	Reason string    // a clause: "directory /x does not exist"
	Remedy string    // a sentence saying what to do; may be empty
	Code   exit.Code // exit.Config unless it is rather another's fault
	Err    error     // cause; may be nil
}

func (e *Error) Error() string {
	s := e.File + ": "
	if e.Key != "" {
		s += e.Key + ": "
	}
	s += e.Reason
	if e.Remedy != "" {
		s += ". " + e.Remedy
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// ExitCode implements exit.Coder.
func (e *Error) ExitCode() exit.Code {
	if e.Code == exit.OK {
		return exit.Config
	}
	return e.Code
}

// Errors is everything that is wrong with a config, never empty.
type Errors []*Error

func (e Errors) Error() string {
	s := ""
	for i, x := range e {
		if i > 0 {
			s += "\n"
		}
		s += x.Error()
	}
	return s
}

// Unwrap gives errors.As each of them.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i, x := range e {
		out[i] = x
	}
	return out
}

// ExitCode implements exit.Coder: that of the first.
func (e Errors) ExitCode() exit.Code { return e[0].ExitCode() }
