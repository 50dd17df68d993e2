package integration_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"slotfs/integration/cluster"
)

// terminal opens a pseudo-terminal that is wide enough for a progress bar: pty(7).
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	must(t, err)
	fd := int(master.Fd())
	must(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 200}))
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	return master, slave
}

// onTerminal runs a command with standard error on a terminal, and returns what it
// drew there.
func onTerminal(t *testing.T, n *cluster.Node, args ...string) string {
	t.Helper()
	bin, err := cluster.Binary()
	must(t, err)
	master, slave := terminal(t)
	defer master.Close()
	cmd := exec.Command(bin, append(args, "--config", n.Config)...)
	cmd.Stderr = slave
	must(t, cmd.Start())
	must(t, slave.Close())
	var drawn bytes.Buffer
	_, _ = io.Copy(&drawn, master) // EIO when nobody has the other side any more
	if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("%v: %v: %q", args, err, drawn.String())
	}
	return drawn.String()
}

// TestTerminal: adopt and scrub draw a bar with rate, remaining time and what was
// found in a terminal, and print plain lines elsewhere.
func TestTerminal(t *testing.T) {
	t.Parallel()
	f := newCluster(t, 1, cluster.Options{})
	f.expect(provoked...)
	f.expect("damaged", "scrub", "checksum")
	n := f.Nodes[0]
	must(t, n.Edit("[scrub]\n", "[scrub]\nrate = \"300kB/s\"\n"))
	mail := spool(t, n.Tree(), 1, 100)
	if drawn := onTerminal(t, n, "adopt", f.Store); !strings.Contains(drawn, "adopt") || !strings.Contains(drawn, "%") {
		t.Errorf("the first pass drew %q", drawn)
	}
	must(t, n.Start())
	must(t, n.WaitMounted())
	shows := func(drawn string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !regexp.MustCompile(part).MatchString(drawn) {
				t.Errorf("no %q in %.2000q", part, drawn)
			}
		}
	}
	const rate, left = `[kM]?B/s`, `\[\d+m?\d*s:\d+m?\d*s\]`
	shows(onTerminal(t, n, "adopt", f.Store), rate, left, `\d+ of 600 messages unverified, 0 cannot be read`)
	for rel := range mail {
		flip(t, filepath.Join(n.Tree(), rel), 3)
		break
	}
	shows(onTerminal(t, n, "scrub", f.Store, "--rate", "500kB/s"), rate, left, `scrub, \d found`)

	out, err := n.Run("adopt", f.Store)
	if err != nil || strings.ContainsRune(out, '\r') || !strings.Contains(out, "have a checksum (600 messages") {
		t.Errorf("without a terminal: %q, %v", out, err)
	}
	out, err = n.Run("scrub", f.Store)
	if exitCode(err) != 2 || strings.ContainsRune(out, '\r') || !strings.Contains(out, "NOT repaired") {
		t.Errorf("without a terminal: %q, %v", out, err)
	}
}
