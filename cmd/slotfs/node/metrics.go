package node

import (
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"slotfs/meta"
	"slotfs/repl"
	"slotfs/repl/register"
)

// collector reads all metrics from the state at the time of asking: nothing is
// counted twice, and nothing can be forgotten on the way.
type collector struct{ n *Node }

var _ prometheus.Collector = collector{}

func (n *Node) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{n})
	return r
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("slotfs_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector: what there is depends on the
// state, so the collector is unchecked.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	gauge := func(v float64, name, help string, kv ...string) {
		keys, values := split(kv)
		out <- prometheus.MustNewConstMetric(desc(name, help, keys...), prometheus.GaugeValue, v, values...)
	}
	counter := func(v float64, name, help string, kv ...string) {
		keys, values := split(kv)
		out <- prometheus.MustNewConstMetric(desc(name, help, keys...), prometheus.CounterValue, v, values...)
	}
	gauge(1, "build_info", "The running version.", "version", c.n.Version, "node", c.n.Config.Node)
	for _, m := range c.n.Gossip.Members() {
		gauge(truth(m.Alive), "node_up", "Whether gossip hears the node.", "node", m.Name)
	}
	gauge(float64(len(c.n.Gossip.Problems())), "cluster_problems", "Refused peers and conflicts of names, as in status.")
	c.register(gauge, counter)
	for _, s := range c.n.Slots {
		c.slot(s, gauge, counter)
	}
}

// register counts what register status shows.
func (c collector) register(gauge, counter func(v float64, name, help string, kv ...string)) {
	r := c.n.registerStatus()
	gauge(truth(c.n.Register != nil), "register_configured", "Whether the node uses a register.", "mode", r.Mode)
	if c.n.Register == nil {
		return
	}
	gauge(truth(r.Answers), "register_up", "Whether a majority of the register answers; if not, roles cannot change.")
	gauge(heardAgo(r.Heard), "register_heard_seconds", "Time since the register last answered; -1 if it never did.")
	gauge(float64(len(r.Garbage)), "register_unusable_records", "Records that cannot be used; their stores change no role.")
	for _, m := range r.Members {
		gauge(truth(m.State == "up"), "register_member_up", "Whether the register's member is up.", "member", firstOf(m.Name, m.Peer))
		gauge(truth(m.Leads), "register_member_leads", "Whether the member leads the register.", "member", firstOf(m.Name, m.Peer))
	}
	if r.Member != nil {
		gauge(truth(r.Member.Phase == register.Running), "register_process_up", "Whether this node's register member runs.")
		counter(float64(r.Member.Restarts), "register_process_restarts_total", "How often this node's register member ended and was started again.")
		c.n.Register.mu.Lock()
		bytes := c.n.Register.local.Bytes
		c.n.Register.mu.Unlock()
		gauge(float64(bytes), "register_bytes", "Size of the database of this node's register member.")
	}
}

type emit func(v float64, name, help string, kv ...string)

func (c collector) slot(s *Slot, gauge, counter emit) {
	store := s.Conf.Store
	st := s.status()
	r := &st.Repl
	for _, role := range []repl.Role{repl.Replica, repl.Promoting, repl.Primary, repl.Demoting} {
		gauge(truth(r.Role == role), "slot_role", "1 for the role that the slot has.", "store", store, "role", string(role))
	}
	gauge(float64(r.Epoch), "slot_epoch", "Epoch of the slot's history.", "store", store)
	gauge(truth(r.InSync), "slot_in_sync", "Whether the slot is in the in-sync set.", "store", store)
	gauge(float64(len(r.Members)), "slot_members", "Size of the in-sync set; 1 means that one copy is left.", "store", store)
	gauge(truth(st.Mounted), "slot_mounted", "Whether the store is mounted here.", "store", store)
	gauge(truth(r.Faulted != "" || r.Diverged != ""), "slot_fault", "Whether the slot stopped because of a fault or diverged.", "store", store)
	for mark, v := range map[string]uint64{"appended": r.Pos.Seq, "durable": r.Durable, "received": r.Received, "committed": r.Commit, "applied": r.Applied} {
		gauge(float64(v), "slot_seq", "Seq that the slot has reached.", "store", store, "mark", mark)
	}
	gauge(float64(st.Messages), "slot_messages", "Messages in the store.", "store", store)
	gauge(float64(st.Bytes), "slot_bytes", "Bytes in the files of the store.", "store", store)
	gauge(float64(s.Meta.Log.Size()), "slot_log_bytes", "Size of the slot's log.", "store", store)
	// A node that got a new data directory has two slots of the store for a while.
	for _, p := range r.Peers {
		gauge(truth(p.Connected), "peer_connected", "Whether entries stream between this slot and the peer's.", "store", store, "peer", p.Node, "peer_slot", p.Slot.String())
		gauge(float64(p.LagEntries), "peer_lag_entries", "Entries between this slot and the peer's.", "store", store, "peer", p.Node, "peer_slot", p.Slot.String())
		gauge(float64(p.LagBytes), "peer_lag_bytes", "Bytes between this slot and the peer's.", "store", store, "peer", p.Node, "peer_slot", p.Slot.String())
		gauge(p.LagSeconds, "peer_lag_seconds", "Age of the oldest entry that is not on both sides.", "store", store, "peer", p.Node, "peer_slot", p.Slot.String())
	}
	c.scrub(&st.Scrub, store, gauge, counter)
	if a := st.Adoption; a != nil {
		gauge(float64(a.Unverified), "slot_unverified_messages", "Adopted messages whose checksum was not taken yet.", "store", store)
		gauge(float64(a.UnverifiedBytes), "slot_unverified_bytes", "Bytes of these.", "store", store)
		gauge(float64(a.BadCount), "slot_unreadable_messages", "Adopted messages that could not be read.", "store", store)
	}
	gauge(float64(len(st.Brake.Engaged)), "slot_brake_engaged", "Bursts of removals whose messages are kept.", "store", store)
	gauge(float64(st.Brake.Kept), "slot_undeletable_messages", "Removed messages that can be brought back.", "store", store)
	gauge(float64(st.Brake.Bytes), "slot_undeletable_bytes", "Bytes of removed messages that can be brought back.", "store", store)
	for kind, n := range s.Meta.Events.Counts() {
		counter(float64(n), "findings_total", "Findings since start, by kind.", "store", store, "kind", kind)
	}
	if st.Mail != nil {
		for opcode, n := range st.Mail.Requests {
			counter(float64(n), "fuse_requests_total", "FUSE requests since the mount was made, by opcode.", "store", store, "opcode", opcode)
		}
	}
	for _, part := range []string{"tree", "oplog", "index"} {
		if bytes, inodes, err := free(filepath.Join(s.Conf.Data, part)); err == nil {
			gauge(float64(bytes), "disk_free_bytes", "Free space of the file system.", "store", store, "part", part)
			gauge(float64(inodes), "disk_free_inodes", "Free inodes of the file system.", "store", store, "part", part)
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// split turns key, value, key, value … into two lists.
func split(kv []string) (keys, values []string) {
	for i := 0; i+1 < len(kv); i += 2 {
		keys, values = append(keys, kv[i]), append(values, kv[i+1])
	}
	return keys, values
}

// scrub is how far scrubbing is. Times are 0 for never.
func (c collector) scrub(st *meta.ScrubStatus, store string, gauge, counter emit) {
	unix := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return float64(t.Unix())
	}
	gauge(unix(st.LastPass), "scrub_last_pass_timestamp_seconds", "When everything was last gone through.", "store", store)
	gauge(unix(st.Oldest), "scrub_oldest_timestamp_seconds", "When the message was verified, or delivered, that waits longest for it.", "store", store)
	gauge(truth(st.Paused), "scrub_paused", "Whether the continuous scrub is paused.", "store", store)
	gauge(float64(st.Damaged), "damaged_objects", "Objects that are damaged and could not be repaired.", "store", store)
	for kind, n := range st.Found {
		counter(float64(n), "scrub_found_total", "What scrub found since the slot was made, by kind.", "store", store, "kind", kind)
	}
}
