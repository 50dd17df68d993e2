package config

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// MaxName is the longest node or store name in bytes: names appear in
// certificates, metrics and file names.
const MaxName = 63

// maxSocket is the longest path of a Unix socket: sun_path has 108 bytes and
// ends with a zero, unix(7).
const maxSocket = 107

// Layouts are the names that a slot's layout may have.
var Layouts = []string{"maildir"}

// builder collects errors while a Config is built from a file.
type builder struct {
	file string
	errs Errors
}

func (b *builder) fail(key, remedy, format string, args ...any) {
	b.errs = append(b.errs, &Error{File: b.file, Key: key, Remedy: remedy, Reason: fmt.Sprintf(format, args...)})
}

func (b *builder) build(f *file) *Config {
	c := &Config{
		Path:            b.file,
		Node:            b.name("node", f.Node, "a node"),
		ClusterDir:      b.path(def(f.ClusterDir, "cluster")),
		GossipBind:      b.addr("gossip.bind", def(f.Gossip.Bind, "0.0.0.0:7946"), true),
		GossipAdvertise: b.addr("gossip.advertise", f.Gossip.Advertise, false),
		Listen:          b.addr("replication.listen", def(f.Replication.Listen, "0.0.0.0:7947"), true),
		Advertise:       b.addr("replication.advertise", f.Replication.Advertise, false),
		Cert:            b.path(def(f.Replication.Cert, "node.pem")),
		Key:             b.path(def(f.Replication.Key, "node.key")),
		Socket:          b.path(def(f.Admin.Socket, "/run/slotfs/slotfs.sock")),
		MetricsListen:   b.addr("metrics.listen", f.Metrics.Listen, true),
		LogFormat:       b.oneOf("log.format", def(f.Log.Format, "text"), "text", "json"),
	}
	c.ReplicaTimeout = b.duration("replication.replica_timeout", def(f.Replication.ReplicaTimeout, "1.5s"), 100*time.Millisecond, 5*time.Minute)
	c.FailoverTimeout = b.duration("replication.failover_timeout", def(f.Replication.FailoverTimeout, "3s"), 200*time.Millisecond, time.Hour)
	c.FailoverPause = b.duration("replication.failover_pause", def(f.Replication.FailoverPause, "30s"), time.Millisecond, 24*time.Hour)
	c.ScrubCycle = b.long("scrub.cycle", def(f.Scrub.Cycle, "7d"), time.Minute)
	c.ScrubRate = b.rate("scrub.rate", def(f.Scrub.Rate, "50MB/s"))
	c.LogLevel = b.level(def(f.Log.Level, "info"))
	for i, j := range f.Gossip.Join {
		c.Join = append(c.Join, b.addr(fmt.Sprintf("gossip.join[%d]", i), j, false))
	}
	if len(c.Socket) > maxSocket {
		b.fail("admin.socket", "Choose a shorter one, such as /run/slotfs/"+c.Node+".sock.",
			"path of %d bytes is longer than the %d that the kernel allows for a socket: %s", len(c.Socket), maxSocket, c.Socket)
	}
	c.SocketMode = b.mode(def(f.Admin.Mode, "0600"))
	c.SocketGID = b.group(f.Admin.Group)
	c.Register = b.register(f.Node, &f.Register)
	if _, member := c.RegisterSelf(); len(f.Slots) == 0 && !member {
		b.fail("slot", "Add a [[slot]] section with store, data and mount; or, if this is a witness, list it in register.members.",
			"there is no slot, and this node is not a member of the register either")
	}
	for i := range f.Slots {
		c.Slots = append(c.Slots, b.slot(i, &f.Slots[i]))
	}
	b.unique(c)
	return c
}

func (b *builder) slot(i int, f *fileSlot) Slot {
	key := SlotKey(f.Store, i)
	s := Slot{
		Store:             b.name(key+".store", f.Store, "a store"),
		Data:              b.dir(key+".data", f.Data),
		Mount:             b.dir(key+".mount", f.Mount),
		Layout:            b.oneOf(key+".layout", def(f.Layout, "maildir"), Layouts...),
		Durability:        b.oneOf(key+".durability", def(f.Durability, Replicated), Replicated, Local),
		OnReplicaLoss:     b.oneOf(key+".on_replica_loss", def(f.OnReplicaLoss, Continue), Continue, Stop),
		LogMax:            b.size(key+".log_max", def(f.LogMax, "1GiB"), 256<<20),
		Reserve:           b.reserve(key+".reserve", f.Reserve),
		ProtectMountPoint: f.ProtectMountPoint == nil || *f.ProtectMountPoint,
		Xattrs:            f.Xattrs == nil || *f.Xattrs,
		OnPromote:         b.command(key+".on_promote", f.OnPromote),
		OnDemote:          b.command(key+".on_demote", f.OnDemote),
		OnDegraded:        b.command(key+".on_degraded", f.OnDegraded),
		HookTimeout:       b.duration(key+".hook_timeout", def(f.HookTimeout, "30s"), time.Second, time.Hour),
		BrakeShare:        b.share(key+".brake_share", def(f.BrakeShare, "20%")),
		BrakeWindow:       b.long(key+".brake_window", def(f.BrakeWindow, "10m"), time.Second),
		BrakeKeep:         b.long(key+".brake_keep", def(f.BrakeKeep, "7d"), time.Second),
		BrakeMin:          200,
	}
	if f.BrakeMin != nil {
		if s.BrakeMin = *f.BrakeMin; s.BrakeMin < 1 {
			b.fail(key+".brake_min", "Use 1 or more; brake_share = \"off\" turns the brake off.", "%d is too small", s.BrakeMin)
		}
	}
	if s.BrakeWindow == 0 {
		b.fail(key+".brake_window", "Use a second or more; brake_share = \"off\" turns the brake off.", "is 0")
	}
	if s.BrakeKeep < s.BrakeWindow {
		b.fail(key+".brake_keep", "Keep removed messages at least as long as the window is.", "%s is less than brake_window, %s", DurationText(s.BrakeKeep), DurationText(s.BrakeWindow))
	}
	return s
}

// share reads "20%" or "off".
func (b *builder) share(key, v string) float64 {
	if v == "off" {
		return 0
	}
	num, ok := strings.CutSuffix(v, "%")
	p, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if !ok || err != nil || !(p > 0 && p <= 100) {
		b.fail(key, "Write it as \"20%\", or \"off\".", "%q is no share", v)
		return 0
	}
	return p / 100
}

// SlotKey is how messages call the i-th slot section (from 0).
func SlotKey(store string, i int) string {
	if store == "" {
		return fmt.Sprintf("slot[#%d]", i+1)
	}
	return "slot[" + store + "]"
}

// unique checks that no store and no directory is used twice, nor a
// directory inside another.
func (b *builder) unique(c *Config) {
	type use struct{ key, dir string }
	var uses []use
	stores := map[string]bool{}
	for i, s := range c.Slots {
		key := SlotKey(s.Store, i)
		if s.Store != "" && stores[s.Store] {
			b.fail(key+".store", "Each store may have one slot on a node; remove one section.", "store %q has two [[slot]] sections", s.Store)
		}
		stores[s.Store] = true
		uses = append(uses, use{key + ".data", s.Data}, use{key + ".mount", s.Mount})
	}
	if c.Register.Data != "" {
		uses = append(uses, use{"register.data", c.Register.Data})
	}
	for i, u := range uses {
		for _, v := range uses[:i] {
			switch {
			case u.dir == "" || v.dir == "":
			case u.dir == v.dir:
				b.fail(u.key, "Give every slot its own data directory and mount point.", "directory %s is used twice: also by %s", u.dir, v.key)
			case inside(u.dir, v.dir):
				b.fail(u.key, "Choose directories that are not inside each other.", "directory %s is inside %s, which is %s", u.dir, v.dir, v.key)
			case inside(v.dir, u.dir):
				b.fail(v.key, "Choose directories that are not inside each other.", "directory %s is inside %s, which is %s", v.dir, u.dir, u.key)
			}
		}
	}
}

func inside(dir, parent string) bool {
	return strings.HasPrefix(dir, strings.TrimSuffix(parent, "/")+"/")
}

func def(v, d string) string {
	if v == "" {
		return d
	}
	return v
}

func (b *builder) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(filepath.Dir(b.file), p)
}

func (b *builder) dir(key, p string) string {
	if p == "" {
		b.fail(key, "Name a directory.", "is missing")
		return ""
	}
	return b.path(p)
}

func (b *builder) name(key, v, what string) string {
	switch why := BadName(v); {
	case v == "":
		b.fail(key, "Give "+what+" a short name such as \"mail1\".", "is missing")
	case why != "":
		b.fail(key, "", "%q cannot name %s: %s", v, what, why)
	}
	return v
}

// BadName says why v cannot name a node or a store, or returns "".
func BadName(v string) string {
	if v == "" || len(v) > MaxName {
		return fmt.Sprintf("a name has 1 to %d characters", MaxName)
	}
	for i, r := range v {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || i > 0 && (r == '-' || r == '_' || r == '.')
		if !ok {
			return "a name consists of letters, digits and - _ . and starts with a letter or digit"
		}
	}
	return ""
}

func (b *builder) addr(key, v string, listen bool) string {
	if v == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		b.fail(key, "Write it as \"192.0.2.1:7946\" or \"[2001:db8::1]:7946\".", "%q is not an address with a port", v)
		return v
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 && !listen {
		b.fail(key, "Use a number from 1 to 65535.", "%q has no valid port", v)
	}
	if host == "" && !listen {
		b.fail(key, "Other nodes need an address that they can reach.", "%q names no host", v)
	}
	return v
}

func (b *builder) oneOf(key, v string, allowed ...string) string {
	for _, a := range allowed {
		if v == a {
			return v
		}
	}
	b.fail(key, "Use "+quoteList(allowed)+".", "%q is not a possible value", v)
	return v
}

func quoteList(list []string) string {
	q := make([]string, len(list))
	for i, s := range list {
		q[i] = strconv.Quote(s)
	}
	return strings.Join(q, " or ")
}

func (b *builder) duration(key, v string, lo, hi time.Duration) time.Duration {
	d, err := time.ParseDuration(v)
	switch {
	case err != nil:
		b.fail(key, "Write it as \"1.5s\", \"200ms\" or \"2m\".", "%q is not a duration", v)
	case d < lo || d > hi:
		b.fail(key, fmt.Sprintf("Use a value from %s to %s.", lo, hi), "%s is out of range", v)
	}
	return d
}

func (b *builder) level(v string) slog.Level {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	l, ok := levels[v]
	if !ok {
		b.fail("log.level", "Use \"debug\", \"info\", \"warn\" or \"error\".", "%q is not a log level", v)
	}
	return l
}

func (b *builder) mode(v string) os.FileMode {
	n, err := strconv.ParseUint(v, 8, 32)
	if err != nil || n > 0o777 || n&0o600 != 0o600 {
		b.fail("admin.mode", "Use a string such as \"0600\" or, with admin.group, \"0660\".", "%q is not a usable file mode", v)
		return 0o600
	}
	if n&0o007 != 0 {
		b.fail("admin.mode", "Use \"0660\" and admin.group to admit a group.", "%q would let every user of this machine administer slotfs", v)
	}
	return os.FileMode(n)
}

func (b *builder) group(v string) int {
	if v == "" {
		return -1
	}
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return n
	}
	g, err := user.LookupGroup(v)
	if err != nil {
		b.fail("admin.group", "Create it with groupadd, or leave the key empty.", "there is no group %q on this machine", v)
		return -1
	}
	n, err := strconv.Atoi(g.Gid)
	if err != nil {
		b.fail("admin.group", "", "group %q has no numeric id", v)
	}
	return n
}

var units = []struct {
	suffix string
	factor float64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}

// ParseSize reads a size such as "1GiB".
func ParseSize(v string) (int64, bool) {
	factor := 1.0
	num := v
	for _, u := range units {
		if rest, ok := strings.CutSuffix(v, u.suffix); ok {
			num, factor = strings.TrimSpace(rest), u.factor
			break
		}
	}
	n, err := strconv.ParseFloat(num, 64)
	if err != nil || n < 0 || n*factor >= 1<<62 || n != n {
		return 0, false
	}
	return int64(n * factor), true
}

func (b *builder) size(key, v string, lo int64) int64 {
	n, ok := ParseSize(v)
	switch {
	case !ok:
		b.fail(key, "Write it as \"1GiB\" or \"512MiB\".", "%q is not a size", v)
	case n < lo:
		b.fail(key, fmt.Sprintf("Use at least %d MiB.", lo>>20), "%s is too small", v)
	}
	return n
}

// minReserve is the room for a checkpoint of the index (128 MiB) and for the
// entries that may be accepted and not yet applied (64 MiB), in bytes. With less
// a full disk could not be emptied by deleting mail.
const minReserve = 192 << 20

// reserve reads "512MiB", "2%", or "" for the default.
func (b *builder) reserve(key, v string) Reserve {
	if v == "" {
		return DefaultReserve
	}
	if num, ok := strings.CutSuffix(v, "%"); ok {
		p, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
		if err != nil || p < 0 || p > 90 {
			b.fail(key, "Use a percentage from 0 to 90.", "%q is not a usable share of the file system", v)
		}
		return Reserve{Percent: p}
	}
	n, ok := ParseSize(v)
	switch {
	case !ok:
		b.fail(key, "Write it as \"512MiB\" or \"2%\".", "%q is neither a size nor a percentage", v)
	case n < minReserve:
		b.fail(key, fmt.Sprintf("Use at least %d MiB: on a full disk what was accepted must still fit, and the checkpoint that frees deleted mail.", minReserve>>20),
			"%s is too small", v)
	}
	return Reserve{Bytes: n}
}

func (b *builder) command(key string, argv []string) []string {
	if len(argv) > 0 && !filepath.IsAbs(argv[0]) {
		b.fail(key, "Name the program by its full path, for example [\"/usr/bin/systemctl\", \"start\", \"dovecot\"].",
			"%q is not an absolute path", argv[0])
	}
	return argv
}
