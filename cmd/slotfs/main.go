package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/config"
	"slotfs/cmd/slotfs/exit"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = ""

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, getenv: os.Getenv}
	os.Exit(int(a.run(ctx, os.Args[1:])))
}

// app is one run of the command.
type app struct {
	in       io.Reader
	out, err io.Writer
	getenv   func(string) string

	configPath string // --config
	socketPath string // --socket
}

// usageError is wrong use of the command line.
type usageError struct{ err error }

func (e *usageError) Error() string       { return e.err.Error() }
func (e *usageError) Unwrap() error       { return e.err }
func (e *usageError) ExitCode() exit.Code { return exit.Usage }

// run carries out one command line.
func (a *app) run(ctx context.Context, args []string) exit.Code {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exit.OK
	}
	code := exit.Of(err)
	var silent *silentError
	if !errors.As(err, &silent) {
		for _, line := range strings.Split(err.Error(), "\n") {
			fmt.Fprintf(a.err, "slotfs: %s\n", line)
		}
	}
	if code == exit.Usage {
		fmt.Fprintln(a.err, "Try slotfs --help.")
	}
	return code
}

// silentError sets the exit code when the output has said everything.
type silentError struct{ code exit.Code }

func (e *silentError) Error() string       { return fmt.Sprintf("exit code %d", e.code) }
func (e *silentError) ExitCode() exit.Code { return e.code }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "slotfs",
		Short: "Replicated, self-checking storage under a stock IMAP server",
		Long: `slotfs mounts a directory where a stock Dovecot or Cyrus keeps its mail. Every
message is checksummed, kept as a plain file, and replicated to another node.

A node runs "slotfs serve"; the other commands talk to it over its admin socket,
which they find in the config: --config, $` + config.EnvPath + `, or
` + config.DefaultPath + `.`,
		Example: `  slotfs init /etc/slotfs --node n1 --store mail1
  slotfs serve --config /etc/slotfs/slotfs.toml
  slotfs promote mail1
  slotfs status`,
		Version:       versionText(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("slotfs {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	pf := root.PersistentFlags()
	pf.StringVarP(&a.configPath, "config", "c", "", "config file (default $"+config.EnvPath+" or "+config.DefaultPath+")")
	pf.StringVar(&a.socketPath, "socket", "", "admin socket of the node (default: from the config)")
	root.AddGroup(&cobra.Group{ID: "node", Title: "Running a node:"}, &cobra.Group{ID: "look", Title: "Looking at it:"},
		&cobra.Group{ID: "act", Title: "Changing roles:"}, &cobra.Group{ID: "fix", Title: "Checking and repairing:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("node", a.initCmd(), a.createCmd(), a.adoptCmd(), a.serveCmd(), a.witnessCmd(), a.registerCmd())
	add("look", a.statusCmd(), a.digestCmd(), a.logCmd(), a.metricsCmd())
	add("act", a.promoteCmd(), a.demoteCmd(), a.switchCmd(), a.drainCmd(), a.undrainCmd(), a.rejoinCmd())
	add("fix", a.rescueCmd(), a.checkCmd(), a.recoverCmd(), a.scrubCmd(), a.verifyCmd(), a.ledgerCmd(), a.evidenceCmd(), a.undeleteCmd())
	root.AddCommand(a.versionCmd(), exitCodesCmd(), a.memberCmd())
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() {
		if c.Name() == "completion" {
			c.Example = "  slotfs completion bash > /etc/bash_completion.d/slotfs"
		}
	}
	wrapArgs(root)
	return root
}

// wrapArgs makes wrong arguments of every command usage errors.
func wrapArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return &usageError{err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
}

// config path, in the documented order.
func (a *app) findConfig() string {
	if a.configPath != "" {
		return a.configPath
	}
	if p := a.getenv(config.EnvPath); p != "" {
		return p
	}
	return config.DefaultPath
}

// client connects to the admin socket that --socket or the config names.
func (a *app) client() (*admin.Client, error) {
	if a.socketPath != "" {
		return admin.NewClient(a.socketPath), nil
	}
	c, err := config.Parse(a.findConfig())
	if err != nil {
		return nil, err
	}
	return admin.NewClient(c.Socket), nil
}

func versionText() string {
	info, ok := debug.ReadBuildInfo()
	v := version
	if v == "" {
		v = "development"
	}
	if !ok {
		return v
	}
	var revision, dirty string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = ", modified"
		}
	}
	if revision == "" {
		return fmt.Sprintf("%s (%s)", v, info.GoVersion)
	}
	return fmt.Sprintf("%s (%s%s, %s)", v, revision, dirty, info.GoVersion)
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  slotfs version",
		Args:    cobra.NoArgs,
		Run:     func(*cobra.Command, []string) { fmt.Fprintln(a.out, "slotfs", versionText()) },
	}
}

func exitCodesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit codes mean",
		Long: `slotfs exits with one of these codes:

  0  done
  1  any other error
  2  wrong use of the command line
  3  the config was refused
  4  a data directory was refused (missing, of another store, newer format, in use)
  5  a mount was refused (mount point missing, not empty, in use, no FUSE)
  6  the network or the cluster refused (address in use, wrong key, name taken twice)
  7  slotfs is not running, or its admin socket cannot be reached
  8  the operation was refused in the present state (role, epoch, divergence)
  9  check, verify, ledger --verify or evidence verify found differences; adopt
     or undelete could not take all
  10 it wants --yes; nothing was changed
  11 a signed list is not as it was signed

slotfs scrub has codes of its own: 0 clean, 1 everything found was repaired, 2
unrepaired damage, 3 it could not run.`,
	}
}
