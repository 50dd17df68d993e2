package config

import "slices"

// RestartNeeded names the keys in which next differs from c and that only a
// restart can change.
func (c *Config) RestartNeeded(next *Config) []string {
	var keys []string
	differ := func(key string, differs bool) {
		if differs {
			keys = append(keys, key)
		}
	}
	differ("node", c.Node != next.Node)
	differ("cluster_dir", c.ClusterDir != next.ClusterDir)
	differ("gossip.bind", c.GossipBind != next.GossipBind)
	differ("gossip.advertise", c.GossipAdvertise != next.GossipAdvertise)
	differ("replication.listen", c.Listen != next.Listen)
	differ("replication.advertise", c.Advertise != next.Advertise)
	differ("replication.cert", c.Cert != next.Cert)
	differ("replication.key", c.Key != next.Key)
	differ("replication.replica_timeout", c.ReplicaTimeout != next.ReplicaTimeout)
	differ("replication.failover_timeout", c.FailoverTimeout != next.FailoverTimeout)
	differ("replication.failover_pause", c.FailoverPause != next.FailoverPause)
	differ("admin.socket", c.Socket != next.Socket)
	differ("admin.mode", c.SocketMode != next.SocketMode)
	differ("admin.group", c.SocketGID != next.SocketGID)
	differ("register", !c.Register.equal(next.Register))
	differ("metrics.listen", c.MetricsListen != next.MetricsListen)
	differ("log.format", c.LogFormat != next.LogFormat)
	differ("slot", !slices.EqualFunc(c.Slots, next.Slots, Slot.equal))
	return keys
}

func (s Slot) equal(t Slot) bool {
	return s.Store == t.Store && s.Data == t.Data && s.Mount == t.Mount && s.Layout == t.Layout &&
		s.Durability == t.Durability && s.OnReplicaLoss == t.OnReplicaLoss && s.LogMax == t.LogMax &&
		s.Reserve == t.Reserve && s.ProtectMountPoint == t.ProtectMountPoint && s.Xattrs == t.Xattrs && s.HookTimeout == t.HookTimeout &&
		s.BrakeShare == t.BrakeShare && s.BrakeWindow == t.BrakeWindow && s.BrakeKeep == t.BrakeKeep && s.BrakeMin == t.BrakeMin &&
		slices.Equal(s.OnPromote, t.OnPromote) && slices.Equal(s.OnDemote, t.OnDemote) && slices.Equal(s.OnDegraded, t.OnDegraded)
}
