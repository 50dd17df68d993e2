package powerloss

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// power is whether requests of a life of the disk are served.
type power struct {
	mu     sync.Mutex
	life   int           // the present one; requests of earlier ones get EIO
	frozen chan struct{} // not nil: requests wait until it is closed
	active sync.WaitGroup
}

// enter waits while the disk is frozen and reports whether a request of the
// given life may be served; leave must then be called.
func (p *power) enter(life int) bool {
	for {
		p.mu.Lock()
		if life != p.life {
			p.mu.Unlock()
			return false
		}
		frozen := p.frozen
		if frozen == nil {
			p.active.Add(1)
			p.mu.Unlock()
			return true
		}
		p.mu.Unlock()
		<-frozen
	}
}

func (p *power) leave() { p.active.Done() }

// root is the directory: the name of the present life's image.
type root struct {
	fs.Inode
	disk *Disk
}

// file is the image, as one life of the disk sees it.
type file struct {
	fs.Inode
	disk *Disk
	life int
}

var (
	_ fs.NodeLookuper  = (*root)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
)

func imageName(life int) string { return fmt.Sprintf("disk-%d", life) }

func (r *root) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	life, err := strconv.Atoi(strings.TrimPrefix(name, "disk-"))
	if err != nil || name != imageName(life) {
		return nil, syscall.ENOENT
	}
	f := &file{disk: r.disk, life: life}
	f.attr(&out.Attr)
	return r.NewInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG, Ino: uint64(life) + 2}), 0
}

func (f *file) attr(out *fuse.Attr) {
	out.Mode = syscall.S_IFREG | 0o600
	out.Size = uint64(f.disk.size)
}

func (f *file) Getattr(ctx context.Context, h fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.attr(&out.Attr)
	return 0
}

func (f *file) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Read(ctx context.Context, h fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if !f.disk.power.enter(f.life) {
		return nil, syscall.EIO
	}
	defer f.disk.power.leave()
	if off >= f.disk.size {
		return fuse.ReadResultData(nil), 0
	}
	p = p[:min(int64(len(p)), f.disk.size-off)]
	if err := f.disk.image.readAt(p, off); err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(p), 0
}

func (f *file) Write(ctx context.Context, h fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	if !f.disk.power.enter(f.life) {
		return 0, syscall.EIO
	}
	defer f.disk.power.leave()
	if off+int64(len(p)) > f.disk.size {
		return 0, syscall.ENOSPC
	}
	if err := f.disk.image.writeAt(p, off); err != nil {
		return 0, syscall.EIO
	}
	return uint32(len(p)), 0
}

func (f *file) Fsync(ctx context.Context, h fs.FileHandle, flags uint32) syscall.Errno {
	if !f.disk.power.enter(f.life) {
		return syscall.EIO
	}
	defer f.disk.power.leave()
	if err := f.disk.image.flush(); err != nil {
		return syscall.EIO
	}
	return 0
}
