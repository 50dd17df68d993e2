package node

import (
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"

	"slotfs/cmd/slotfs/config"
)

// reload reads the config again and applies what can be applied. A config
// that is refused changes nothing.
func (n *Node) reload() {
	// For Type=notify-reload, sd_notify(3).
	n.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, monotonic()))
	defer n.notify(daemon.SdNotifyReady)
	next, err := config.Parse(n.Config.Path)
	if err != nil {
		n.Log.Error("config not reloaded", "err", err)
		return
	}
	n.mu.Lock()
	old := n.conf.Reloadable
	n.conf = next
	n.mu.Unlock()
	if n.Level != nil {
		n.Level.Set(next.LogLevel)
	}
	for _, s := range n.Slots {
		s.Meta.ConfigureScrub(scrubConfig(next))
	}
	if !slices.Equal(old.Join, next.Join) {
		n.Gossip.SetJoin(next.Join)
	}
	n.Log.Info("config reloaded", "level", next.LogLevel.String(), "join", next.Join)
	if keys := n.Config.RestartNeeded(next); len(keys) > 0 {
		n.Log.Warn("these changes need a restart", "keys", strings.Join(keys, ", "))
	}
}
