package meta

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reads are reads of the beginnings of files that the disk is asked for all at
// once, by Linux AIO (io_submit(2)). One by one, it would wait for us as long as we
// wait for it, and every file would be a request, an interrupt and a change of
// threads of its own. Without AIO (aio-max-nr is used up, say) they are made one
// after the other.
//
// It is clear, add for each, and run; then again.
type reads struct {
	ctx  uintptr // aio_context_t; 0: none as yet
	none bool    // there is no AIO

	n      int // of those below in use
	asked  [readsMost]iocb
	refs   [readsMost]*iocb
	into   [readsMost][]byte
	events [readsMost]ioEvent
}

// readsMost is how many reads are made at once at most.
const readsMost = 32

// iocb is struct iocb of linux/aio_abi.h, for a read.
type iocb struct {
	data   uint64    // comes back in the event
	_      [2]uint32 // key, flags of the read
	opcode uint16
	_      int16 // priority: that of the thread
	fd     uint32
	buf    uint64
	bytes  uint64
	_      int64     // offset: 0
	_      [2]uint64 // reserved, flags, eventfd
}

// ioEvent is struct io_event.
type ioEvent struct {
	data  uint64
	_     uint64 // the iocb
	bytes int64  // read, or the negative of an errno
	_     int64
}

const iocbRead = 0 // IOCB_CMD_PREAD

func (r *reads) clear()     { r.n = 0 }
func (r *reads) full() bool { return r.n == readsMost }

// add asks for the beginning of a file, as far as p goes, which is aligned. It
// returns the number of the read.
func (r *reads) add(fd int, p []byte) (k int) {
	k = r.n
	r.asked[k] = iocb{data: uint64(k), opcode: iocbRead, fd: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&p[0]))), bytes: uint64(len(p))}
	r.refs[k], r.into[k] = &r.asked[k], p
	r.n++
	return k
}

// run makes the reads, and calls done for each that did not fail: with its number
// and what was read.
func (r *reads) run(done func(k int, data []byte)) {
	flying, ok := r.submit()
	if !ok {
		for k := range r.n {
			if n, err := readAt(int(r.asked[k].fd), r.into[k], 0); err == nil {
				done(k, r.into[k][:n])
			}
		}
		return
	}
	for flying > 0 {
		n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, r.ctx, uintptr(flying), uintptr(flying), uintptr(unsafe.Pointer(&r.events[0])), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			r.close() // waits for them
			break
		}
		for _, e := range r.events[:n] {
			if e.bytes >= 0 {
				done(int(e.data), r.into[e.data][:e.bytes])
			}
		}
		flying -= int(n)
	}
	runtime.KeepAlive(r)
}

// submit gives the reads to the kernel, and says how many it took; false if there is
// no AIO.
func (r *reads) submit() (flying int, ok bool) {
	if r.ctx == 0 && !r.none {
		_, _, errno := unix.Syscall(unix.SYS_IO_SETUP, readsMost, uintptr(unsafe.Pointer(&r.ctx)), 0)
		r.none = errno != 0
	}
	if r.none {
		return 0, false
	}
	for at := 0; at < r.n; {
		n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, r.ctx, uintptr(r.n-at), uintptr(unsafe.Pointer(&r.refs[at])))
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			at++ // not taken
		default:
			at, flying = at+int(n), flying+int(n)
		}
	}
	return flying, true
}

// close gives the kernel's part back; r may be used again.
func (r *reads) close() {
	if r.ctx != 0 {
		_, _, _ = unix.Syscall(unix.SYS_IO_DESTROY, r.ctx, 0, 0)
		r.ctx = 0
	}
}
