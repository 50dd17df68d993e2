package dovecot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"slotfs/integration/scratch"
)

// Service is a Dovecot that is started and stopped by the hooks of slotfs, as
// a unit of systemd would be: with a fixed configuration, whenever the store is
// mounted on its node.
type Service struct {
	LMTP, IMAP string // addresses
	Run        string // its run directory, the log included
	Hook       string // program for on_promote (argument start) and on_demote (argument stop)
}

// NewService configures a server for the Maildirs below root, which need not
// be there yet.
func NewService(d *scratch.Dir, name, root string, o Options) (*Service, error) {
	bin, err := Binary()
	if err != nil {
		return nil, err
	}
	o.defaults()
	host, err := d.Loopback()
	if err != nil {
		return nil, err
	}
	s := &Service{Run: filepath.Join(d.Path, name), LMTP: host.Addr(lmtpPort), IMAP: host.Addr(imapPort)}
	for _, sub := range []string{"b", "s"} {
		if err := os.MkdirAll(filepath.Join(s.Run, sub), 0o755); err != nil {
			return nil, err
		}
	}
	conf := filepath.Join(s.Run, "dovecot.conf")
	if err := os.WriteFile(conf, []byte(config(s.Run, root, host.IP, o)), 0o644); err != nil {
		return nil, err
	}
	s.Hook = filepath.Join(s.Run, "hook")
	script := strings.NewReplacer("@RUN@", s.Run, "@BIN@", bin, "@ROOT@", root, "@UID@", fmt.Sprint(o.UID), "@GID@", fmt.Sprint(o.GID), "@NOTES@", d.Notes()).Replace(hook)
	return s, os.WriteFile(s.Hook, []byte(script), 0o755)
}

// hook is what systemctl start and stop would do. The server becomes the
// leader of a group of its own, noted where the scratch directory looks for
// what is to be ended with it. What the master leaves behind is killed, as
// systemd does. A start ends a server that is left from before:
// after a crash of slotfs nobody has run on_demote.
const hook = `#!/bin/sh
set -eu
stop() {
	[ -s @RUN@/pid ] || return 0
	pid=$(cat @RUN@/pid)
	kill -TERM "$pid" 2>/dev/null || true
	n=0
	while [ -e "/proc/$pid/exe" ]; do
		n=$((n + 1))
		[ $n -lt 40 ] || break
		sleep 0.05
	done
	kill -KILL "-$pid" 2>/dev/null || true
	rm -f @RUN@/pid
}
case $1 in
start)
	stop
	[ "$(stat -c %u:%g @ROOT@)" = @UID@:@GID@ ] || chown @UID@:@GID@ @ROOT@
	setsid @BIN@ -F -c @RUN@/dovecot.conf </dev/null >>@RUN@/stderr 2>&1 &
	pid=$!
	echo $pid >@RUN@/pid
	cut -d' ' -f22 /proc/$pid/stat | tr -d '\n' >@NOTES@/$pid
	echo "Dovecot $pid started in epoch $SLOTFS_EPOCH"
	;;
stop)
	stop
	;;
esac
`

// Kill ends whatever runs, as a crash of the machine would.
func (s *Service) Kill(d *scratch.Dir) error {
	pid, err := s.Pid()
	if pid == 0 {
		return err
	}
	if err := d.Kill(pid); err != nil {
		return err
	}
	return os.Remove(filepath.Join(s.Run, "pid"))
}

// Pid of the server that was started last; 0 if it was stopped.
func (s *Service) Pid() (int, error) {
	text, err := os.ReadFile(filepath.Join(s.Run, "pid"))
	if os.IsNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var pid int
	_, err = fmt.Sscan(string(text), &pid)
	return pid, err
}

// Log is what it has logged so far.
func (s *Service) Log() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.Run, "log"))
	if os.IsNotExist(err) {
		return "", nil
	}
	return string(text), err
}

// Answers reports whether it takes mail and shows it.
func (s *Service) Answers() bool { return greets(s.LMTP, "220 ") && greets(s.IMAP, "* OK") }
