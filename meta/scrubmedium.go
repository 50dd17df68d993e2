package meta

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// Ways in which scrub got at the bytes.
const (
	MediumDirect  = "direct"  // O_DIRECT: past the page cache
	MediumDropped = "dropped" // the pages were dropped before, and seen to be gone
	MediumCached  = "cached"  // pages could not be dropped: the medium was not proved
)

// mediumReader reads files from the medium, not from the page cache. It is for
// one goroutine.
type mediumReader struct {
	buf   []byte // aligned
	reads reads
}

// directAlign is the alignment that O_DIRECT wants at most, in bytes.
const directAlign = 4096

func newMediumReader() *mediumReader {
	b := make([]byte, op.BlockSize+directAlign)
	skip := (directAlign - int(uintptr(unsafe.Pointer(&b[0]))%directAlign)) % directAlign
	return &mediumReader{buf: b[skip : skip+op.BlockSize]}
}

// verify compares the bytes of an open regular file with want. The descriptor is
// the caller's, and of no use for other reads afterwards. bad is what is wrong with
// them, err a failure that says nothing about the file.
func (m *mediumReader) verify(fd int, want *op.Sum) (medium string, bad, err error) {
	if medium, err = pastCache(fd); err != nil {
		return "", nil, err
	}
	bad, err = m.compare(fd, want)
	if medium == MediumDirect && errors.Is(bad, unix.EINVAL) {
		// A file system that takes the flag and not the read.
		if medium, err = dropped(fd); err == nil {
			bad, err = m.compare(fd, want)
		}
	}
	return medium, bad, err
}

// mediumFile is an open file to be compared with want, and what came of it.
type mediumFile struct {
	fd   int
	want *op.Sum

	medium string
	whole  bool // it is as it should be; if not, verify says what is wrong
}

// verifyAll is verify of several files, for which it asks the disk at once, as many
// as its buffer holds. Those that are larger, and those with which anything is
// wrong, are left to verify.
func (m *mediumReader) verifyAll(files []mediumFile) {
	var asked [readsMost]*mediumFile
	for len(files) > 0 {
		m.reads.clear()
		free := m.buf
		for len(files) > 0 && !m.reads.full() {
			f := &files[0]
			if k := span(f.want.Size); f.want.Size < op.BlockSize {
				if k > len(free) {
					break
				}
				var err error
				if f.medium, err = pastCache(f.fd); err == nil {
					asked[m.reads.add(f.fd, free[:k:k])] = f
					free = free[k:]
				}
			}
			files = files[1:]
		}
		m.reads.run(func(k int, data []byte) { asked[k].whole = asked[k].want.Verify(data) })
	}
}

// sum is the checksum, SHA-256 included, of what the medium has of an open
// regular file; see verify about the descriptor.
func (m *mediumReader) sum(fd int) (*op.Sum, error) {
	medium, err := pastCache(fd)
	if err != nil {
		return nil, err
	}
	sum, err := m.sumOpen(fd)
	if medium == MediumDirect && errors.Is(err, unix.EINVAL) {
		if _, err := dropped(fd); err != nil {
			return nil, err
		}
		return m.sumOpen(fd)
	}
	return sum, err
}

func (m *mediumReader) sumOpen(fd int) (*op.Sum, error) {
	sum, h := &op.Sum{}, sha256.New()
	for {
		n, err := m.readBlock(fd, sum.Size, op.BlockSize)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			sum.Blocks = append(sum.Blocks, xxhash.Sum64(m.buf[:n]))
			h.Write(m.buf[:n])
			sum.Size += int64(n)
		}
		if n < op.BlockSize {
			h.Sum(sum.SHA256[:0])
			return sum, nil
		}
	}
}

// pastCache makes reads of fd, which was opened with openRead, come from the
// medium. A flag costs less than to open the file again.
func pastCache(fd int) (medium string, err error) {
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK|unix.O_NOATIME|unix.O_DIRECT)
	if err == nil {
		return MediumDirect, nil
	}
	return dropPages(fd)
}

// dropped is dropPages for a descriptor with the flag.
func dropped(fd int) (medium string, err error) {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK|unix.O_NOATIME); err != nil {
		return "", fmt.Errorf("clear O_DIRECT: %w", err)
	}
	return dropPages(fd)
}

// dropPages makes the kernel forget the pages of a file, and looks whether it
// has.
func dropPages(fd int) (medium string, err error) {
	for range 2 {
		if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			return MediumCached, nil
		}
		cached, err := cachedPages(fd)
		if err != nil {
			return MediumCached, nil
		}
		if cached == 0 {
			return MediumDropped, nil
		}
		// Dirty pages are kept: write them first.
		if err := unix.Fdatasync(fd); err != nil {
			return MediumCached, nil
		}
	}
	return MediumCached, nil
}

// cachedPages counts the pages of a file in the page cache, by mincore(2).
func cachedPages(fd int) (n int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 {
		return 0, err
	}
	mem, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(mem)
	pages := make([]byte, (len(mem)+unix.Getpagesize()-1)/unix.Getpagesize())
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&pages[0])))
	if errno != 0 {
		return 0, errno
	}
	for _, p := range pages {
		n += int(p & 1)
	}
	return n, nil
}

// compare reads a file block by block, and verifies each.
func (m *mediumReader) compare(fd int, want *op.Sum) (bad, err error) {
	var at int64
	for i := 0; ; i++ {
		n, err := m.readBlock(fd, at, span(want.Size-at))
		if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EINTR) {
			return nil, err
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read block %d: %w", i, err), nil // a disk that cannot read it
		}
		if n > 0 {
			if i >= len(want.Blocks) {
				return fmt.Errorf("longer than %d bytes", want.Size), nil
			}
			whole := min(want.Size-at, op.BlockSize)
			if int64(n) != whole {
				return fmt.Errorf("block %d has %d of %d bytes", i, n, whole), nil
			}
			if have := xxhash.Sum64(m.buf[:n]); have != want.Blocks[i] {
				return fmt.Errorf("checksum of block %d is %016x, should be %016x", i, have, want.Blocks[i]), nil
			}
		}
		at += int64(n)
		if n < op.BlockSize {
			break
		}
	}
	if at != want.Size {
		return fmt.Errorf("%d bytes, should be %d", at, want.Size), nil
	}
	return nil, nil
}

// span is how much to read of a block for what should be the file's next size
// bytes and its end: not more, as the kernel clears what the file does not fill.
func span(size int64) int {
	return int(min(max(size, 0)/directAlign+1, op.BlockSize/directAlign)) * directAlign
}

// readBlock fills n bytes of the buffer from at on. O_DIRECT gives less than asked
// for only at the end of the file.
func (m *mediumReader) readBlock(fd int, at int64, want int) (n int, err error) {
	for n < want {
		k, err := unix.Pread(fd, m.buf[n:want], at+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, err
		}
		n += k
		if k == 0 || k%directAlign != 0 {
			return n, nil
		}
	}
	return n, nil
}

// stepBack makes the calling goroutine's thread one that the disk serves only
// when nobody else wants it (ioprio_set(2)). The thread ends with the goroutine.
// Processors are left to the pacer: a thread of low priority that is put aside
// while it holds tree.mu would keep the applier waiting.
//
// Schedulers without priorities ignore it; that is no error.
func stepBack() {
	runtime.LockOSThread() // never unlocked
	const whoProcess, classIdle = 1, 3 << 13
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle)
}
