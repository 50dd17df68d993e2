package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"slotfs/integration/netns"
	"slotfs/integration/scratch"
)

// Node is one slotfs process.
type Node struct {
	Name                string
	Dir                 string // config, keys, log, socket
	Config, Data, Mount string
	Gossip, Repl        string // addresses
	Env                 []string
	Host                *netns.Host // nil: it is on loopback

	cluster     *Cluster
	witness     bool
	register    string // addresses
	clients     string
	socket, log string
	cmd         *exec.Cmd
	done        chan struct{} // closed when the process has ended
	exit        error
	ending      int64 // length of the log when all nodes were told to end; 0 before
}

// ExitError says that a command of slotfs failed.
type ExitError struct {
	Args   string
	Code   int
	Output string // the end of standard error
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("slotfs %s: exit code %d: %s", e.Args, e.Code, strings.TrimSpace(e.Output))
}

// Tree is the directory that the mount shows.
func (n *Node) Tree() string { return filepath.Join(n.Data, "tree") }

// Pid of the process; 0 if it does not run.
func (n *Node) Pid() int {
	if !n.Running() {
		return 0
	}
	return n.cmd.Process.Pid
}

// Running reports whether the process lives.
func (n *Node) Running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.done:
		return false
	default:
		return true
	}
}

// addJoin adds an address to gossip.join.
func (n *Node) addJoin(addr string) error {
	text, err := os.ReadFile(n.Config)
	if err != nil {
		return err
	}
	if strings.Contains(string(text), "join = []") {
		return n.Edit("join = []", fmt.Sprintf("join = [%q]", addr))
	}
	return n.Edit("join = [", fmt.Sprintf("join = [%q, ", addr))
}

// Edit replaces a text of the config that must be there once.
func (n *Node) Edit(old, new string) error {
	text, err := os.ReadFile(n.Config)
	if err != nil {
		return err
	}
	if strings.Count(string(text), old) != 1 {
		return fmt.Errorf("%s has %q %d times", n.Config, old, strings.Count(string(text), old))
	}
	return os.WriteFile(n.Config, []byte(strings.Replace(string(text), old, new, 1)), 0o600)
}

// Start starts the process and waits until it says, as to systemd, that it is
// ready. If it ends instead, the error is an *ExitError.
func (n *Node) Start() error {
	if n.Running() {
		return fmt.Errorf("%s runs already", n.Name)
	}
	os.Remove(filepath.Join(n.Dir, "n")) // of a process before, which was killed
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(n.Dir, "n"), Net: "unixgram"})
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		notify.Close()
		return err
	}
	defer log.Close()
	var tail bytes.Buffer
	verb := "serve"
	if n.witness {
		verb = "witness"
	}
	n.cmd = exec.Command(n.cluster.bin, verb, "--config", n.Config)
	n.cmd.Dir = n.Dir
	n.cmd.Env = append(append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(n.Dir, "n")), n.Env...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if err := n.onHost(func() error { return n.cluster.Scratch.Start(n.cmd) }); err != nil {
		notify.Close()
		return err
	}
	n.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		n.exit = cmd.Wait()
		notify.Close()
		close(done)
	}(n.cmd, n.done)
	ready := make(chan error, 1)
	go watch(notify, ready)
	select {
	case err = <-ready:
	case <-n.done:
		f, err := os.Open(n.log)
		if err != nil {
			return err
		}
		defer f.Close()
		io.Copy(&tail, io.NewSectionReader(f, from, 1<<20))
		return &ExitError{verb, n.cmd.ProcessState.ExitCode(), tail.String()}
	case <-time.After(n.cluster.timeout):
		err = fmt.Errorf("%s is not ready after %v", n.Name, n.cluster.timeout)
	}
	return err
}

// onHost runs f where the node's network is.
func (n *Node) onHost(f func() error) error {
	if n.Host == nil {
		return f()
	}
	return n.Host.Do(f)
}

// watch plays systemd: it reads what the process says of itself for as long
// as it lives, and passes on that it is ready.
func watch(notify *net.UnixConn, ready chan<- error) {
	buf := make([]byte, 4096)
	for {
		k, err := notify.Read(buf)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(buf[:k])) {
			if strings.TrimSpace(line) == "READY=1" {
				select {
				case ready <- nil:
				default:
				}
			}
		}
	}
}

// Stop ends the process with SIGTERM and waits; it must then have unmounted
// and exit with 0.
func (n *Node) Stop() error {
	if !n.Running() {
		return nil
	}
	n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.done:
	case <-time.After(n.cluster.timeout):
		// Where it hangs is what one wants to know.
		n.cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-n.done:
		case <-time.After(5 * time.Second):
		}
		return errors.Join(fmt.Errorf("%s does not end on SIGTERM", n.Name), n.Kill())
	}
	if n.exit != nil {
		return fmt.Errorf("%s: %w", n.Name, n.exit)
	}
	return nil
}

// Signal sends a signal and does not wait.
func (n *Node) Signal(sig syscall.Signal) error {
	if !n.Running() {
		return fmt.Errorf("%s does not run", n.Name)
	}
	return n.cmd.Process.Signal(sig)
}

// SignalAll sends a signal to the process and to what it has started, hooks
// excepted: all that a machine would stop with it.
func (n *Node) SignalAll(sig syscall.Signal) error {
	if !n.Running() {
		return fmt.Errorf("%s does not run", n.Name)
	}
	return syscall.Kill(-n.cmd.Process.Pid, sig)
}

// Kill ends the process and what it has started with SIGKILL. The mount stays
// behind, as after a crash.
func (n *Node) Kill() error {
	if n.cmd == nil {
		return nil
	}
	err := n.cluster.Scratch.Kill(n.cmd.Process.Pid)
	<-n.done
	return err
}

// Run runs a command of slotfs against this node and returns its standard
// output. The error is an *ExitError.
func (n *Node) Run(args ...string) (string, error) {
	return n.RunBare(append(args, "--config", n.Config)...)
}

// RunBare runs a command of slotfs that is told of no node.
func (n *Node) RunBare(args ...string) (string, error) {
	cmd := exec.Command(n.cluster.bin, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), &ExitError{strings.Join(args, " "), cmd.ProcessState.ExitCode(), errs.String()}
	}
	return out.String(), nil
}

// RunJSON is Run with --json, decoded.
func (n *Node) RunJSON(v any, args ...string) error {
	out, err := n.Run(append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("slotfs %s: %w: %.200s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Promote makes this node the primary and waits for the mount.
func (n *Node) Promote(flags ...string) error {
	if _, err := n.Run(append([]string{"promote", n.cluster.Store}, flags...)...); err != nil {
		return err
	}
	return n.WaitMounted()
}

// WaitMounted waits until the node is primary and mounted.
func (n *Node) WaitMounted() error {
	return n.cluster.Wait(n.Name+" to be primary and mounted", func() error {
		s, err := n.Slot()
		if err != nil {
			return err
		}
		return s.Serves()
	})
}

// Demote makes the primary a replica.
func (n *Node) Demote() error {
	_, err := n.Run("demote", n.cluster.Store)
	return err
}

// Check runs a full check, bytes included.
func (n *Node) Check() error {
	out, err := n.Run("check", n.cluster.Store, "--content")
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return err
}

// Empty removes the data directory, as a new disk would, and has slotfs make
// a new one. The node must not run.
func (n *Node) Empty() error {
	if err := os.RemoveAll(n.Data); err != nil {
		return err
	}
	_, err := n.Run("create", n.cluster.Store)
	return err
}

// AddSlot adds a slot of another store to the config, and makes its data
// directory; it returns the mount point. The node must not run.
func (n *Node) AddSlot(store string) (mount string, err error) {
	mount = filepath.Join(n.Dir, "mount-"+store)
	f, err := os.OpenFile(n.Config, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(f, "\n[[slot]]\nstore = %q\ndata = %q\nmount = %q\n%s\n", store, n.Data+"-"+store, mount, n.cluster.options.Slot)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	_, err = n.Run("create", store)
	return mount, err
}

// Clear removes a mount that a killed process has left behind, and makes the
// bare mount point writable again.
func (n *Node) Clear() error {
	for syscall.Unmount(n.Mount, syscall.MNT_DETACH) == nil {
	}
	return scratch.Mutable(n.Mount)
}
