package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/node"
)

func (a *app) serveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run a node",
		Long: `Serve runs a node until it gets SIGTERM: it opens the slots that the config
names, finds the other nodes, takes part in replication, and mounts the stores
whose primary it is. It stays in the foreground and tells systemd when it is
ready (Type=notify).

On SIGTERM or SIGINT it runs on_demote, commits what was accepted, unmounts and
ends; a second signal is ignored, because an unclean end costs a recovery.
On SIGHUP it reads the config again and applies log.level and gossip.join; it
logs which other changes need a restart.

Everything is checked before anything is mounted; a config, a data directory, a
mount point or a cluster that does not fit is refused with an exit code of its
own (slotfs exit-codes).`,
		Example: `  slotfs serve --config /etc/slotfs/slotfs.toml
  SLOTFS_CONFIG=/etc/slotfs/n2.toml slotfs serve`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), false) },
	}
}

func (a *app) serve(ctx context.Context, witness bool) error {
	cfg, err := config.Parse(a.findConfig())
	if err != nil {
		return err
	}
	switch {
	case witness && !cfg.Witness():
		return &config.Error{File: cfg.Path, Key: "slot", Reason: "a witness has no slots", Remedy: "Run slotfs serve for a node with mail, or remove the [[slot]] sections."}
	case !witness && cfg.Witness():
		return &config.Error{File: cfg.Path, Key: "slot", Reason: "there is no slot", Remedy: "Add a [[slot]] section with store, data and mount; if this node is a witness, run slotfs witness."}
	}
	level := new(slog.LevelVar)
	level.Set(cfg.LogLevel)
	log := a.logger(cfg, level)
	useProcessors()
	if err := relaxTimers(); err != nil {
		log.Debug("timers stay exact, which costs CPU time", "err", err)
	}
	n := node.New(cfg, log, versionText())
	n.Level = level
	if err := n.Open(ctx); err != nil {
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	reload := make(chan struct{})
	go func() {
		for range hup {
			select {
			case reload <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	if err := n.Run(ctx, reload); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

func (a *app) logger(c *config.Config, level slog.Leveler) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(a.err, o)
	if c.LogFormat == "json" {
		h = slog.NewJSONHandler(a.err, o)
	}
	return slog.New(h).With("node", c.Node)
}
