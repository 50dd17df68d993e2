// Package dovecot starts a stock Dovecot 2.3 privately: its own
// configuration, run directory and ports, an unprivileged mail user given by
// number, Maildirs below one directory. It is for tests and for the
// demonstration; nothing of the system's Dovecot is touched.
//
// Any user name is accepted with the one password; user u's mail is in
// <root>/u, indexes included. mail_fsync is "always": what LMTP acknowledges
// has been synced.
package dovecot

import (
	"bufio"
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

	"slotfs/integration/scratch"
)

// ErrMissing says that no Dovecot is installed.
var ErrMissing = errors.New("no dovecot: install dovecot-imapd and dovecot-lmtpd")

// Options of a server. The zero value of each is its default.
type Options struct {
	UID, GID int    // of the mail user; 5000
	Password string // "secret"
	Extra    string // more configuration, read last
}

func (o *Options) defaults() {
	if o.UID == 0 {
		o.UID, o.GID = 5000, 5000
	}
	if o.Password == "" {
		o.Password = "secret"
	}
}

// Server is a running Dovecot.
type Server struct {
	LMTP, IMAP string // addresses
	Pid        int    // of the master process, leader of the process group
	Run        string // its run directory, the log included

	scratch *scratch.Dir
	cmd     *exec.Cmd
	done    chan error
	ended   int64 // length of the log when the end was asked for; -1 before
}

// Binary finds the server; Debian keeps it out of other users' PATH.
func Binary() (string, error) {
	if bin, err := exec.LookPath("dovecot"); err == nil {
		return bin, nil
	}
	const bin = "/usr/sbin/dovecot"
	if _, err := os.Stat(bin); err != nil {
		return "", ErrMissing
	}
	return bin, nil
}

// Start starts a server for the Maildirs below root. name distinguishes the
// servers of one scratch directory. root must exist and is given to the mail
// user.
func Start(d *scratch.Dir, name, root string, o Options) (*Server, error) {
	bin, err := Binary()
	if err != nil {
		return nil, err
	}
	o.defaults()
	if err := os.Chown(root, o.UID, o.GID); err != nil {
		return nil, err
	}
	s := &Server{Run: filepath.Join(d.Path, name), scratch: d, ended: -1}
	if err := os.RemoveAll(s.Run); err != nil {
		return nil, err
	}
	// The length of socket names is limited to 107 bytes.
	for _, sub := range []string{"b", "s"} {
		if err := os.MkdirAll(filepath.Join(s.Run, sub), 0o755); err != nil {
			return nil, err
		}
	}
	if err := s.start(bin, root, o); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) start(bin, root string, o Options) error {
	host, err := s.scratch.Loopback()
	if err != nil {
		return err
	}
	conf := filepath.Join(s.Run, "dovecot.conf")
	if err := os.WriteFile(conf, []byte(config(s.Run, root, host.IP, o)), 0o644); err != nil {
		return err
	}
	s.LMTP, s.IMAP = host.Addr(lmtpPort), host.Addr(imapPort)
	s.cmd = exec.Command(bin, "-F", "-c", conf)
	s.cmd.Dir = s.Run
	// A file and no pipe: the server may outlive this process.
	stderr, err := os.Create(s.errFile())
	if err != nil {
		return err
	}
	defer stderr.Close()
	s.cmd.Stderr = stderr
	if err := s.scratch.Start(s.cmd); err != nil {
		return err
	}
	s.Pid = s.cmd.Process.Pid
	s.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait() }(s.cmd, s.done)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if greets(s.LMTP, "220 ") && greets(s.IMAP, "* OK") {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("dovecot ended: %s", s.said())
		default:
		}
		if time.Now().After(end) {
			return errors.Join(fmt.Errorf("dovecot does not answer: %s", s.said()), s.Kill())
		}
	}
}

// greets reports whether a server at addr says hello: a listening socket
// alone is not a server that works.
func greets(addr, with string) bool {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.HasPrefix(line, with)
}

// Stop ends the server properly and waits until it has gone.
func (s *Server) Stop() error {
	if s.cmd == nil {
		return nil
	}
	s.ending()
	s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		return errors.Join(errors.New("dovecot does not end on SIGTERM"), s.Kill())
	}
	// What the master left behind ends by itself when it notices; not to wait
	// for that, and not to leave anything on the mount, it is killed.
	err := s.scratch.Kill(s.Pid)
	s.cmd = nil
	return err
}

// Kill ends the master and all its children as a crash would.
func (s *Server) Kill() error {
	if s.cmd == nil {
		return nil
	}
	s.ending()
	err := s.scratch.Kill(s.Pid)
	select {
	case <-s.done:
	case <-time.After(20 * time.Second):
		err = errors.Join(err, errors.New("dovecot survives SIGKILL"))
	}
	s.cmd = nil
	return err
}

// ending notes how much the server has logged so far.
func (s *Server) ending() {
	if info, err := os.Stat(s.logFile()); err == nil && s.ended < 0 {
		s.ended = info.Size()
	}
}

func (s *Server) logFile() string { return filepath.Join(s.Run, "log") }
func (s *Server) errFile() string { return filepath.Join(s.Run, "stderr") }

// said is all that the server wrote until now, for an error.
func (s *Server) said() string {
	early, _ := os.ReadFile(s.errFile())
	log, _ := os.ReadFile(s.logFile())
	return string(early) + string(log)
}

// Problems returns the lines of the log that report a warning or worse,
// except those that contain one of the expected texts. What was logged after
// the end was asked for does not count: Dovecot's processes lose each other
// then, and complain of it.
func (s *Server) Problems(expected ...string) ([]string, error) {
	f, err := os.Open(s.logFile())
	if err != nil {
		return nil, err
	}
	defer f.Close()
	until := s.ended
	if until < 0 {
		until = 1 << 62
	}
	var found []string
	lines := bufio.NewScanner(io.LimitReader(f, until))
	lines.Buffer(nil, 1<<20)
scan:
	for lines.Scan() {
		line := lines.Text()
		if !problem(line) {
			continue
		}
		for _, e := range expected {
			if strings.Contains(line, e) {
				continue scan
			}
		}
		found = append(found, line)
	}
	return found, lines.Err()
}

func problem(line string) bool {
	for _, level := range []string{"Warning: ", "Error: ", "Fatal: ", "Panic: "} {
		if strings.Contains(line, level) {
			return true
		}
	}
	return false
}
