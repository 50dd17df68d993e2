package fs

import (
	"errors"
	"io"
	"math"

	"slotfs/meta/op"
)

// change is a logged change of content that may not be applied yet: data put
// at off, or n bytes from off made zero (n to the end of all for a truncate).
type change struct {
	seq  uint64
	off  int64
	data []byte // belongs to the entry
	n    int64
}

// apply overlays c on p, which stands at off.
func (c *change) apply(p []byte, off int64) {
	end := off + int64(len(p))
	if c.data != nil {
		if c.off < end && c.off+int64(len(c.data)) > off {
			if c.off >= off {
				copy(p[c.off-off:], c.data)
			} else {
				copy(p, c.data[off-c.off:])
			}
		}
		return
	}
	from, to := max(c.off, off), end
	if c.n < math.MaxInt64-c.off {
		to = min(to, c.off+c.n)
	}
	if from < to {
		clear(p[from-off : to-off])
	}
}

// image is the content of a logged file at one moment: the applied state, or
// base while not even the file is applied, and over it in their order the
// changes that were not applied at that moment.
//
// The applier may apply some of them before or while the tree is read. That
// does no harm: every byte that one of them touches gets its value from the
// last of them in any case, because they are all laid over it again, and other
// bytes are not theirs. Only a change that came after the moment can show in
// part; then the file is read again (FS.read).
type image struct {
	id      op.ID
	size    int64
	base    *blob
	pend    []change
	changed uint64
}

// image takes the image of n; it must be closed. mu is held.
func (n *node) image() image {
	im := image{id: n.id, size: n.size, pend: n.pend, changed: n.changed}
	if n.base != nil {
		im.base = n.base.acquire()
	}
	return im
}

func (im *image) close() {
	if im.base != nil {
		im.base.release()
		im.base = nil
	}
}

// readImage fills p from off and returns how many bytes there are.
func (f *FS) readImage(im *image, p []byte, off int64) (int, error) {
	if off >= im.size {
		return 0, nil
	}
	if int64(len(p)) > im.size-off {
		p = p[:im.size-off]
	}
	var n int
	var err error
	if im.base != nil {
		n, err = im.base.ReadAt(p, off)
	} else {
		f.mayBlock()
		n, err = f.slot.ReadAt(f.ctx, im.id, p, off)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	clear(p[n:]) // a hole at the end: changes have made it longer
	for i := range im.pend {
		im.pend[i].apply(p, off)
	}
	return len(p), nil
}
