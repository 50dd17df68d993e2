package powerloss

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Spoil makes the disk unable to read where the content of a file of its file
// system lies, as a disk does that has lost these sectors: whoever reads it gets
// EIO. Writing elsewhere, or reading any other file, goes on. The file must be
// on the disk: sync it before.
func (d *Disk) Spoil(name string) error {
	extents, err := extentsOf(name)
	if err != nil {
		return fmt.Errorf("find %s on the disk: %w", name, err)
	}
	d.image.mu.Lock()
	d.image.bad = append(d.image.bad, extents...)
	d.image.mu.Unlock()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// Unspoil makes everything readable again.
func (d *Disk) Unspoil() {
	d.image.mu.Lock()
	defer d.image.mu.Unlock()
	d.image.bad = nil
}

const (
	fiemapRequest = 0xC020660B // FS_IOC_FIEMAP
	fiemapSync    = 1
	fiemapHeader  = 32
	fiemapExtent  = 56
	fiemapMax     = 64
)

// extentsOf asks the file system where a file's content is (fiemap.rst of the
// kernel's documentation).
func extentsOf(name string) ([]extent, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, fiemapHeader+fiemapMax*fiemapExtent)
	binary.NativeEndian.PutUint64(b[8:], ^uint64(0)) // length: all of it
	binary.NativeEndian.PutUint32(b[16:], fiemapSync)
	binary.NativeEndian.PutUint32(b[24:], fiemapMax)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapRequest, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return nil, errno
	}
	n := binary.NativeEndian.Uint32(b[20:])
	if n == 0 {
		return nil, errors.New("it has no blocks of its own")
	}
	var out []extent
	for i := range n {
		e := b[fiemapHeader+int(i)*fiemapExtent:]
		out = append(out, extent{int64(binary.NativeEndian.Uint64(e[8:])), int64(binary.NativeEndian.Uint64(e[16:]))})
	}
	return out, nil
}
