package main

import (
	"log/slog"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/node"
	"slotfs/cmd/slotfs/pki"
	"slotfs/repl/register"
)

// memberMemory is what the member's heap may grow by before it is collected,
// in percent: it holds little, and should stay small beside a mail server.
const memberMemory = 50

// memberCmd is what serve and witness start for the register's member. It gets
// its orders from them and is of no use to anybody else.
func (a *app) memberCmd() *cobra.Command {
	return &cobra.Command{
		Use:    node.MemberCommand,
		Short:  "Run the register's member (started by serve and witness)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// The node decides when it ends, also when a terminal or a service manager
			// signals both.
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
			debug.SetGCPercent(memberMemory)
			cfg, err := config.Parse(a.findConfig())
			if err != nil {
				return err
			}
			level := new(slog.LevelVar)
			level.Set(cfg.LogLevel)
			logger := a.logger(cfg, level)
			return register.Serve(a.in, a.out, func(c register.MemberConfig) (*register.Member, error) {
				cluster, err := pki.Load(cfg.ClusterDir)
				if err != nil {
					return nil, err
				}
				id, err := cluster.LoadNode(cfg.Node, cfg.Cert, cfg.Key)
				if err != nil {
					return nil, err
				}
				return &register.Member{Config: c, Server: id.ServerTLS(), Client: id.ClientTLS(), Log: logger}, nil
			})
		},
	}
}

func (a *app) witnessCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "witness",
		Short: "Run a witness: a node without mail that votes in the register",
		Long: `Witness runs a node that has no slots. It is a member of the register, so that
two mail nodes and a witness have a majority when one of them is lost; a small
machine will do. It is shown by slotfs status on every node, and leads the register
when it is up, so that the loss of a mail node costs no election.

It stops on SIGTERM. While it is away nothing changes for mail, but the loss of a
mail node as well would leave no majority.`,
		Example: `  slotfs init /etc/slotfs --node w --witness --members n1=192.0.2.1:7948,n2=192.0.2.2:7948,w=192.0.2.3:7948
  slotfs witness --config /etc/slotfs/slotfs.toml`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), true) },
	}
}
