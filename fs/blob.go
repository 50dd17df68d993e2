package fs

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
)

// blob is the content of one file that the tree does not have (yet): in memory,
// or, once it is too big, in an unlinked file. Whoever shares one sees to the
// locking: node.data while it is a volatile file's, nothing once it cannot
// change any more.
type blob struct {
	from *spill
	refs atomic.Int32
	size int64
	mem  []byte // len is at most size; what follows up to size is zeros
	cost int64  // bytes of the budget
	file *os.File
}

// spill is where blobs go that are too big for memory, and how much memory
// they may take.
type spill struct {
	dir          string
	perFile, all int64
	used         atomic.Int64
}

func (s *spill) blob() *blob {
	b := &blob{from: s}
	b.refs.Store(1)
	return b
}

// fixed is a blob around bytes that belong to an entry of the log.
func (s *spill) fixed(data []byte) *blob {
	b := s.blob()
	b.mem, b.size = data, int64(len(data))
	return b
}

func (b *blob) acquire() *blob {
	b.refs.Add(1)
	return b
}

func (b *blob) release() {
	if b.refs.Add(-1) != 0 {
		return
	}
	b.from.used.Add(-b.cost)
	b.mem, b.cost = nil, 0
	if b.file != nil {
		b.file.Close()
	}
}

// room sees to it that bytes up to end can be written; it moves the content
// into a file when memory is not for it.
func (b *blob) room(end int64) error {
	if b.file != nil || end <= int64(cap(b.mem)) {
		return nil
	}
	want := max(end, min(2*int64(cap(b.mem)), b.from.perFile), 4096)
	if end <= b.from.perFile {
		if b.from.used.Add(want-b.cost) <= b.from.all {
			b.cost = want
			grown := make([]byte, len(b.mem), want)
			copy(grown, b.mem)
			b.mem = grown
			return nil
		}
		b.from.used.Add(b.cost - want)
	}
	return b.toFile()
}

func (b *blob) toFile() error {
	file, err := os.CreateTemp(b.from.dir, "v")
	if err != nil {
		return fmt.Errorf("spill volatile file: %w", err)
	}
	// Nobody else shall find it, and a crash leaves nothing behind.
	if err := os.Remove(file.Name()); err != nil {
		file.Close()
		return fmt.Errorf("spill volatile file: %w", err)
	}
	if _, err = file.WriteAt(b.mem, 0); err == nil {
		err = file.Truncate(b.size)
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("spill volatile file: %w", err)
	}
	b.file, b.mem = file, nil
	b.from.used.Add(-b.cost)
	b.cost = 0
	return nil
}

// ReadAt implements io.ReaderAt.
func (b *blob) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > b.size-off
	if short {
		p = p[:b.size-off]
	}
	if b.file != nil {
		if n, err := b.file.ReadAt(p, off); err != nil {
			return n, fmt.Errorf("read volatile file: %w", err)
		}
	} else {
		n := 0
		if off < int64(len(b.mem)) {
			n = copy(p, b.mem[off:])
		}
		clear(p[n:])
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

// WriteAt implements io.WriterAt.
func (b *blob) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if err := b.room(end); err != nil {
		return 0, err
	}
	if b.file != nil {
		n, err := b.file.WriteAt(p, off)
		if err != nil {
			return n, fmt.Errorf("write volatile file: %w", err)
		}
	} else {
		b.extend(end)
		copy(b.mem[off:end], p)
	}
	b.size = max(b.size, end)
	return len(p), nil
}

// extend makes mem reach end, which room has made possible.
func (b *blob) extend(end int64) {
	if have := int64(len(b.mem)); have < end {
		b.mem = b.mem[:end]
		clear(b.mem[have:])
	}
}

// truncate sets the size. What a growing file gets costs nothing: it is zeros.
func (b *blob) truncate(size int64) error {
	if b.file != nil {
		if err := b.file.Truncate(size); err != nil {
			return fmt.Errorf("truncate volatile file: %w", err)
		}
	} else if size < int64(len(b.mem)) {
		b.mem = b.mem[:size]
	}
	b.size = size
	return nil
}

// zero makes a range zero, as far as it lies within the size.
func (b *blob) zero(off, n int64) error {
	end := min(off+n, b.size)
	if b.file == nil {
		if end = min(end, int64(len(b.mem))); off < end {
			clear(b.mem[off:end])
		}
		return nil
	}
	buf := make([]byte, min(max(end-off, 0), 1<<20))
	for off < end {
		p := buf[:min(end-off, int64(len(buf)))]
		if _, err := b.file.WriteAt(p, off); err != nil {
			return fmt.Errorf("write volatile file: %w", err)
		}
		off += int64(len(p))
	}
	return nil
}

// bytes is the whole content; a copy only if it is not in memory as it is.
func (b *blob) bytes() ([]byte, error) {
	if b.file == nil && int64(len(b.mem)) == b.size {
		return b.mem, nil
	}
	p := make([]byte, b.size)
	if _, err := b.ReadAt(p, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return p, nil
}
