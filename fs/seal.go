package fs

import (
	"errors"
	"fmt"
	"io"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// quiet is a control file that has no seal.
type quiet struct {
	changed uint64    // Seq of the last change of its content
	since   time.Time // when that was
}

// wantSeal notes that the content of n is not sealed. mu is held.
func (f *FS) wantSeal(n *node) {
	if f.opt.SealAfter > 0 && n.id != 0 {
		f.dirty[n.id] = quiet{n.changed, time.Now()}
	}
}

// seal appends an op.Seal for control files that have been quiet, until the
// mount ends.
func (f *FS) seal() {
	defer f.wg.Done()
	f.wantOldSeals()
	tick := time.NewTicker(max(f.opt.SealAfter/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-tick.C:
		}
		for id, q := range f.due(time.Now()) {
			err := f.sealOne(id, q)
			if errors.Is(err, oplog.ErrNotLeading) {
				continue // no primary any more; the next one seals
			}
			if err != nil && f.ctx.Err() == nil && f.refused.Load() == 0 {
				f.log.Warn("control file not sealed", keyID, uint64(id), keyErr, err)
			}
		}
	}
}

// wantOldSeals notes the files that were not sealed when the mount began: those
// that nobody asks for would stay so.
func (f *FS) wantOldSeals() {
	ids, err := f.slot.Unsealed()
	if err != nil {
		f.log.Warn("list of unsealed files", keyErr, err)
		return
	}
	for _, id := range ids {
		in, err := f.slot.Inode(id)
		if err != nil {
			continue // gone
		}
		f.mu.Lock()
		if _, known := f.dirty[id]; !known && f.opt.SealAfter > 0 {
			f.dirty[id] = quiet{in.Changed, time.Now()}
		}
		f.mu.Unlock()
	}
}

// due lists the files that were quiet long enough and are applied.
func (f *FS) due(at time.Time) map[op.ID]quiet {
	applied := f.oplog.Applied.Get()
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make(map[op.ID]quiet)
	for id, q := range f.dirty {
		if q.changed <= applied && at.Sub(q.since) >= f.opt.SealAfter {
			list[id] = q
		}
	}
	return list
}

// sealOne takes the checksum of a file and logs it, unless the file changed.
// A file that cannot be read is not tried again before it changes.
func (f *FS) sealOne(id op.ID, q quiet) error {
	sum, err := f.sumOf(id)
	if err == nil {
		err = f.admit(0, false)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dirty[id] != q {
		return nil
	}
	delete(f.dirty, id)
	if errors.Is(err, meta.ErrNotExist) {
		return nil // unlinked before it was noted
	}
	if err != nil {
		return fmt.Errorf("read content: %w", err)
	}
	_, err = f.append(&op.Seal{ID: id, Of: q.changed, Sum: sum})
	return err
}

func (f *FS) sumOf(id op.ID) (op.Sum, error) {
	in, err := f.slot.Inode(id)
	if err != nil {
		return op.Sum{}, err
	}
	sum, err := op.SumReader(io.NewSectionReader(reader{f, id}, 0, in.Size))
	sum.SHA256 = [32]byte{} // op.Sum: none for a control file
	return sum, err
}

// reader reads the applied content of id.
type reader struct {
	f  *FS
	id op.ID
}

func (r reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.f.slot.ReadAt(r.f.ctx, r.id, p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
