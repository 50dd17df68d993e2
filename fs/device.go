package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// device is our end of /dev/fuse.
//
// One goroutine at a time reads it, and carries out what it reads by itself: no
// thread changes between a request and its answer. A call that has to wait for
// the log leaves its answer to whoever ends the wait (call.Waited). Whoever may
// be held up by anything else calls mayBlock first, and another goroutine
// reads meanwhile; when it is done it reads on, or ends if somebody else does.
//
// Reads do not block in the kernel but in Go's poller: a thread in a blocking
// system call makes Go's monitor look at it every few tens of microseconds,
// which costs more than many a request.
type device struct {
	file *os.File // owns fd, and is known to the poller
	conn syscall.RawConn

	mu sync.RWMutex // of fd: closed only while nobody writes
	fd int          // -1: closed

	reading atomic.Bool    // somebody has the right to read
	loops   sync.WaitGroup // the goroutines that serve
	ended   chan struct{}  // closed when the connection is over

	// Of who has the right to read.
	big    []byte // what is read into
	n      int    // the last read's
	err    error
	try    func(fd uintptr) bool
	streak int // requests read without waiting

	busy atomic.Int32 // goroutines that carry out requests
	most int32        // beyond that many, who is at one goes on by himself
}

// maxWrite is the most that one WRITE carries, in bytes.
const maxWrite = 1 << 20

// readSize is what the kernel wants a read to have room for.
const readSize = maxWrite + 4096

func newDevice(fd int) (*device, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	d := &device{fd: fd, file: os.NewFile(uintptr(fd), "/dev/fuse"), ended: make(chan struct{})}
	var err error
	if d.conn, err = d.file.SyscallConn(); err != nil {
		d.file.Close()
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	d.try = func(fd uintptr) bool {
		d.n, d.err = unix.Read(int(fd), d.big)
		if d.err == unix.EAGAIN {
			d.streak = 0
			return false
		}
		return true
	}
	return d, nil
}

// read waits for a request and returns its length in big. Needs the right to
// read.
func (d *device) read() (int, error) {
	if d.big == nil {
		d.big = make([]byte, readSize)
	}
	for {
		d.streak++
		// Go's poller refuses a descriptor of which it was told an error while nobody
		// waited, which is how it hears of the end of the connection. What it was, the
		// device says.
		if err := d.conn.Read(d.try); err != nil && !d.try(uintptr(d.fd)) {
			return 0, err
		}
		// ENOENT: the request was given up while it was being read.
		if d.err != unix.EINTR && d.err != unix.ENOENT {
			return d.n, d.err
		}
	}
}

// write sends an answer. What has become of a connection that is over interests
// nobody any more.
func (d *device) write(b []byte) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.fd < 0 {
		return nil
	}
	for {
		_, err := unix.Write(d.fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ENOENT || err == unix.ENODEV: // the request, or all, was given up
			return nil
		}
		return err
	}
}

// What the kernel is told without having asked: codes of the protocol.
const (
	notifyInode = 2
	notifyEntry = 3
)

// forgetNode makes the kernel forget what it has cached of a node: attributes,
// pages, a listing. It may wait for a request under way. What the kernel does not
// know need not be forgotten.
func (d *device) forgetNode(nodeid uint64) error {
	b := notice(notifyInode)
	b = binary.NativeEndian.AppendUint64(b, nodeid)
	b = binary.NativeEndian.AppendUint64(b, 0) // from where
	b = binary.NativeEndian.AppendUint64(b, 0) // how much: all
	return d.notify(b)
}

// forgetName makes the kernel forget what it knows of a name in a directory, like
// forgetNode.
func (d *device) forgetName(parent uint64, name string) error {
	b := notice(notifyEntry)
	b = binary.NativeEndian.AppendUint64(b, parent)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, 0) // flags
	b = append(b, name...)
	return d.notify(append(b, 0))
}

// notice begins a notification: an answer to nothing, whose status is the code.
func notice(code uint32) []byte {
	b := make([]byte, 4, 64)
	b = binary.NativeEndian.AppendUint32(b, code)
	return binary.NativeEndian.AppendUint64(b, 0)
}

func (d *device) notify(b []byte) error {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return d.write(b)
}

func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fd = -1
	d.file.Close()
}

// mountFUSE mounts a new connection at dir and returns the descriptor of its
// device.
func mountFUSE(dir, source string, options []string) (int, error) {
	if os.Geteuid() != 0 {
		return fusermountFUSE(dir, append(options, "fsname="+source, "subtype="+fsName))
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return -1, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options = append([]string{fmt.Sprintf("fd=%d", fd), fmt.Sprintf("rootmode=%o", st.Mode&unix.S_IFMT),
		fmt.Sprintf("user_id=%d", os.Geteuid()), fmt.Sprintf("group_id=%d", os.Getegid())}, options...)
	err = unix.Mount(source, dir, "fuse."+fsName, unix.MS_NOSUID|unix.MS_NODEV, strings.Join(options, ","))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fusermountFUSE has the system's helper mount for those who may not.
func fusermountFUSE(dir string, options []string) (int, error) {
	bin, err := exec.LookPath("fusermount3")
	if err != nil {
		if bin, err = exec.LookPath("fusermount"); err != nil {
			return -1, err
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer ours.Close()
	cmd := exec.Command(bin, dir, "-o", strings.Join(options, ","))
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return -1, fmt.Errorf("%s: %w: %s", bin, err, strings.TrimSpace(string(out)))
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", bin, err)
	}
	defer conn.Close()
	return receiveFD(conn.(*net.UnixConn))
}

// receiveFD receives one descriptor.
func receiveFD(c *net.UnixConn) (int, error) {
	var data [4]byte
	var control [64]byte
	_, n, _, _, err := c.ReadMsgUnix(data[:], control[:])
	if err != nil {
		return -1, fmt.Errorf("receive /dev/fuse: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(control[:n])
	if err == nil && len(msgs) == 1 {
		var fds []int
		if fds, err = unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
			unix.CloseOnExec(fds[0])
			return fds[0], nil
		}
	}
	return -1, fmt.Errorf("receive /dev/fuse: %w", errors.Join(errNoDevice, err))
}

var errNoDevice = errors.New("the helper sent no descriptor")
