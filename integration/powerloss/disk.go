package powerloss

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"slotfs/integration/loop"
)

// Disk is an ext4 file system whose disk can lose power.
type Disk struct {
	size   int64
	dir    string // below it: image, fuse/, mnt/
	image  image
	power  power
	server *fuse.Server
	dev    string // the loop device; empty when there is none
}

// New makes a disk of size bytes in the existing directory dir, with an empty
// file system, and mounts it.
func New(dir string, size int64) (*Disk, error) {
	d := &Disk{size: size, dir: dir}
	for _, sub := range []string{d.fuse(), d.Path()} {
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, err
		}
	}
	name := filepath.Join(dir, "image")
	if err := loop.Mkfs(name, size); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	d.image = image{durable: f, pages: map[int64][]byte{}}
	never := time.Duration(0)
	d.server, err = fs.Mount(d.fuse(), &root{disk: d}, &fs.Options{
		EntryTimeout: &never, AttrTimeout: &never,
		MountOptions: fuse.MountOptions{
			FsName: "powerloss", Name: "powerloss", DirectMountStrict: true,
			DisableXAttrs: true, MaxWrite: 512 << 10, DisableSplice: true,
		},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", d.fuse(), err), f.Close())
	}
	if err := d.attach(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Path is where the file system is mounted.
func (d *Disk) Path() string { return filepath.Join(d.dir, "mnt") }

func (d *Disk) fuse() string { return filepath.Join(d.dir, "fuse") }

// Flushes is how many flushes have reached the disk.
func (d *Disk) Flushes() uint64 {
	d.image.mu.RLock()
	defer d.image.mu.RUnlock()
	return d.image.flushes
}

func (d *Disk) attach() error {
	dev, err := loop.Attach(filepath.Join(d.fuse(), imageName(d.power.life)))
	if err != nil {
		return err
	}
	d.dev = dev
	return loop.Mount(dev, d.Path())
}

func (d *Disk) detach() error {
	if d.dev == "" {
		return nil
	}
	err := errors.Join(loop.Unmount(d.Path()), loop.Detach(d.dev))
	d.dev = ""
	return err
}

// Writeback makes the kernel write dirty pages of a random half of the files
// to the disk, without a flush, as it does by itself when it finds the time.
// Without it a loss of power shortly after the writes only ever finds them in
// the page cache, and tears nothing.
func (d *Disk) Writeback(rng *rand.Rand) error {
	return filepath.WalkDir(d.Path(), func(name string, e iofs.DirEntry, err error) error {
		if errors.Is(err, iofs.ErrNotExist) { // files come and go meanwhile
			return nil
		}
		if err != nil || !e.Type().IsRegular() || rng.IntN(2) == 0 {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return nil
		}
		defer f.Close()
		return unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
}

// Freeze stops the disk: from now on nothing is read or written; requests
// wait. The processes that use it are to be killed next.
func (d *Disk) Freeze() {
	d.power.mu.Lock()
	if d.power.frozen == nil {
		d.power.frozen = make(chan struct{})
	}
	d.power.mu.Unlock()
	d.power.active.Wait()
}

// Lose takes the power from a frozen disk whose users have been killed:
// unsynced writes are lost, waiting requests and all later ones fail. The
// users can now end; wait for them before Restart.
func (d *Disk) Lose(rng *rand.Rand) (Loss, error) {
	loss, err := d.image.lose(rng)
	d.power.mu.Lock()
	defer d.power.mu.Unlock()
	d.power.life++
	close(d.power.frozen)
	d.power.frozen = nil
	return loss, err
}

// Restart mounts the file system again after Lose.
func (d *Disk) Restart() error {
	if err := d.detach(); err != nil {
		return err
	}
	return d.attach()
}

// Close unmounts everything. The image stays for the owner of the directory
// to remove.
func (d *Disk) Close() error {
	return errors.Join(d.detach(), d.server.Unmount(), d.image.durable.Close())
}
