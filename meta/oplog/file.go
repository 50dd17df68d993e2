package oplog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// file is what the log needs of an open segment.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Allocate reserves the disk's blocks for the first size bytes.
	Allocate(size int64) error
	Truncate(size int64) error
	Size() (int64, error)
	// CommitAt is WriteAt and Datasync in one. p begins at a multiple of page in
	// memory and in the file, and is a multiple of it long.
	CommitAt(p []byte, off int64) error
	// Datasync is fdatasync(2).
	Datasync() error
	// Sync is fsync(2).
	Sync() error
}

// fsys is the seam at which tests inject faults and crashes. Paths are whole.
type fsys interface {
	Create(path string) (file, error) // must not exist
	Open(path string, write bool) (file, error)
	Rename(from, to string) error
	Remove(path string) error
	List(dir string) ([]string, error) // names
	SyncDir(dir string) error
}

type osFS struct{}

func (osFS) Create(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

func (osFS) Open(path string, write bool) (file, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }
func (osFS) Remove(path string) error     { return os.Remove(path) }

func (osFS) List(dir string) ([]string, error) {
	des, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(des))
	for _, de := range des {
		names = append(names, de.Name())
	}
	return names, nil
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}

type osFile struct {
	*os.File

	mu     sync.Mutex
	direct *os.File // for CommitAt; nil: not open
	cached bool     // the file system wants all writes through the page cache
}

// CommitAt writes around the page cache: nobody reads the log while all goes
// well, and to take pages into the cache and to clean them is up to half of what
// a flush costs. A write to such a descriptor returns when what it wrote is on
// stable storage.
func (f *osFile) CommitAt(p []byte, off int64) error {
	d, err := f.openDirect()
	if err != nil {
		return err
	}
	if d != nil {
		err = writeBlocking(d, p, off)
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		f.mu.Lock()
		f.cached = true
		f.mu.Unlock()
	}
	if _, err := f.WriteAt(p, off); err != nil {
		return err
	}
	return f.Datasync()
}

// openDirect returns the descriptor that writes around the cache; nil if the file
// system has none.
func (f *osFile) openDirect() (*os.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.cached:
		return nil, nil
	case f.direct != nil:
		return f.direct, nil
	}
	// By the descriptor: the name may have changed.
	d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY|unix.O_DIRECT|unix.O_DSYNC, 0)
	switch {
	case err == nil:
		f.direct = d
	case errors.Is(err, unix.EINVAL) || errors.Is(err, os.ErrNotExist): // no such writes, or no /proc
		f.cached = true
	default:
		return nil, err
	}
	return f.direct, nil
}

func (f *osFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.File.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return err
}

func (f *osFile) Allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil, err == unix.EOPNOTSUPP, err == unix.ENOSYS:
			return nil // the zeros that follow do it
		}
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
}

func (f *osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f *osFile) Datasync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
		return nil
	}
}

// replace makes data the durable content of path.
func replace(fs fsys, path string, data []byte) error {
	tmp := path + ".tmp"
	if err := fs.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := fs.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = fs.Rename(tmp, path)
	}
	if err == nil {
		err = fs.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}
