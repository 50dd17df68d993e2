package meta

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// markName is the extended attribute that ties a file or directory of the tree
// to its id. The mount hides it.
const markName = "trusted.slotfs"

// mark is the value of that attribute, 34 bytes, so that it fits into an ext4
// inode of 256 bytes:
//
//	0  version u8 = 1
//	1  flags u8: 1 = size and checksum hold; 2 = lost: the content is not on this
//	   slot (set by reconcile); 4 = sealed: a message
//	2  id u64
//	10 size u64
//	18 xxh64 u64, Sum.XXH of the content
//	26 changed u64, Seq of the last change of the content; 0 for directories
//
// Together with names and attributes this is all that the index has, so the
// index can be made again from the tree. Of control files, whose content
// changes, it is what was true at a checkpoint: what came later is in the log.
type mark struct {
	ID      op.ID
	Sized   bool
	Lost    bool
	Sealed  bool
	Size    int64
	XXH     uint64
	Changed uint64
}

const (
	markVersion = 1
	markSize    = 34
	markSized   = 1
	markLost    = 2
	markSealed  = 4
)

// errNoMark: the file has no mark, or one that this program did not write.
var errNoMark = errors.New("no slotfs mark")

// markOf is the mark that n should have.
func markOf(n *Inode) mark {
	m := mark{ID: n.ID, Sealed: n.Sealed}
	if n.IsRegular() {
		m.Changed = n.Changed
	}
	if n.Sum != nil {
		m.Sized, m.Size, m.XXH = true, n.Sum.Size, n.Sum.XXH()
	}
	return m
}

func (m mark) encode() []byte {
	b := make([]byte, markSize)
	b[0] = markVersion
	if m.Sized {
		b[1] |= markSized
	}
	if m.Lost {
		b[1] |= markLost
	}
	if m.Sealed {
		b[1] |= markSealed
	}
	binary.BigEndian.PutUint64(b[2:], uint64(m.ID))
	binary.BigEndian.PutUint64(b[10:], uint64(m.Size))
	binary.BigEndian.PutUint64(b[18:], m.XXH)
	binary.BigEndian.PutUint64(b[26:], m.Changed)
	return b
}

func decodeMark(b []byte) (mark, error) {
	if len(b) != markSize || b[0] != markVersion {
		return mark{}, fmt.Errorf("%w: %d bytes", errNoMark, len(b))
	}
	return mark{
		ID:      op.ID(binary.BigEndian.Uint64(b[2:])),
		Sized:   b[1]&markSized != 0,
		Lost:    b[1]&markLost != 0,
		Sealed:  b[1]&markSealed != 0,
		Size:    int64(binary.BigEndian.Uint64(b[10:])),
		XXH:     binary.BigEndian.Uint64(b[18:]),
		Changed: binary.BigEndian.Uint64(b[26:]),
	}, nil
}

// tells reports whether m tells of content with this checksum.
func (m mark) tells(sum *op.Sum) bool { return sum.Size == m.Size && sum.XXH() == m.XXH }

// readMark reads the mark of path itself, symlinks not followed.
func readMark(path string) (mark, error) {
	var b [64]byte
	n, err := unix.Lgetxattr(path, markName, b[:])
	return checkMark(b[:max(n, 0)], err)
}

// readMarkFd reads the mark of an open file or directory.
func readMarkFd(fd int) (mark, error) {
	var b [64]byte
	n, err := unix.Fgetxattr(fd, markName, b[:])
	return checkMark(b[:max(n, 0)], err)
}

func checkMark(b []byte, err error) (mark, error) {
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ERANGE) {
		return mark{}, errNoMark
	}
	if err != nil {
		return mark{}, err
	}
	return decodeMark(b)
}

// writeMark sets the mark of path itself, symlinks not followed.
func writeMark(path string, m mark) error {
	return unix.Lsetxattr(path, markName, m.encode(), 0)
}
