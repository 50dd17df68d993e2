package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"slotfs/meta/op"
)

// Keys of the index, all numbers big-endian:
//
//	'm' "state"              state, as JSON: what the index is the index of
//	'i' id u64               inode record
//	'e' directory u64 name   id u64, type u32
//	's' directory u64 id u64 (empty) id is a directory in directory
//	'u' id u64               id is a regular file without a checksum: (empty) a
//	                         control file, or u8 2: an adopted message
//	'w' id u64               u8: content that a resync still has to fetch (0), or
//	                         that the source has no longer (1); see resync.go
//
//	'd' id u64               the record of a deletion, see deleted.go
//
// 'e', 's' and 'u' follow from the inode records; they are the ways in.
const (
	prefixState   = 'm'
	prefixInode   = 'i'
	prefixEntry   = 'e'
	prefixSubdir  = 's'
	prefixLack    = 'u'
	prefixWanted  = 'w'
	prefixDeleted = 'd'
)

const keyState = "mstate"

func inodeKey(id op.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixInode}, uint64(id))
}

func lackKey(id op.ID) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixLack}, uint64(id))
}

func entryKey(dir op.ID, name string) []byte {
	b := make([]byte, 0, 9+len(name))
	b = append(b, prefixEntry)
	b = binary.BigEndian.AppendUint64(b, uint64(dir))
	return append(b, name...)
}

func subdirKey(dir, id op.ID) []byte {
	b := make([]byte, 0, 17)
	b = append(b, prefixSubdir)
	b = binary.BigEndian.AppendUint64(b, uint64(dir))
	return binary.BigEndian.AppendUint64(b, uint64(id))
}

func encodeChild(c Child) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 12), uint64(c.ID))
	return binary.BigEndian.AppendUint32(b, c.Type)
}

func decodeChild(name string, v []byte) (Child, error) {
	if len(v) != 12 {
		return Child{}, fmt.Errorf("directory entry record of %d bytes: %w", len(v), errRecord)
	}
	return Child{Name: name, ID: op.ID(binary.BigEndian.Uint64(v)), Type: binary.BigEndian.Uint32(v[8:])}, nil
}

// errRecord: the index holds something that this program did not write.
var errRecord = errors.New("malformed index record")

// inodeVersion is the first byte of an inode record. The rest is, in order:
// flags u8, then varints (unsigned unless said otherwise) mode, uid, gid,
// nlink, rdev, size, mtime (signed), ctime (signed), changed; then by flag
// target; sum (size, number of blocks, blocks u64 each, SHA-256); xattrs
// (number, then name and value each); of a directory entries (2 × u64), count,
// bytes; then the names (number, then directory and name each). Strings and
// byte strings are preceded by their length.
const inodeVersion = 1

const (
	flagSealed = 1 << iota
	flagSum
	flagTarget
	flagXattr
	flagDir
)

func encodeInode(n *Inode) []byte {
	b := make([]byte, 2, 160)
	b[0] = inodeVersion
	for _, v := range []uint64{uint64(n.Mode), uint64(n.UID), uint64(n.GID), uint64(n.Nlink), uint64(n.Rdev), uint64(n.Size)} {
		b = binary.AppendUvarint(b, v)
	}
	b = binary.AppendVarint(b, n.Mtime)
	b = binary.AppendVarint(b, n.Ctime)
	b = binary.AppendUvarint(b, n.Changed)
	if n.Sealed {
		b[1] |= flagSealed
	}
	if n.Target != "" {
		b[1] |= flagTarget
		b = appendString(b, n.Target)
	}
	if n.Sum != nil {
		b[1] |= flagSum
		b = binary.AppendUvarint(b, uint64(n.Sum.Size))
		b = binary.AppendUvarint(b, uint64(len(n.Sum.Blocks)))
		for _, v := range n.Sum.Blocks {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		b = append(b, n.Sum.SHA256[:]...)
	}
	if len(n.Xattr) > 0 {
		b[1] |= flagXattr
		b = binary.AppendUvarint(b, uint64(len(n.Xattr)))
		for _, k := range slices.Sorted(maps.Keys(n.Xattr)) {
			b = appendString(b, k)
			b = appendString(b, string(n.Xattr[k]))
		}
	}
	if n.IsDir() {
		b[1] |= flagDir
		b = binary.BigEndian.AppendUint64(b, n.Entries[0])
		b = binary.BigEndian.AppendUint64(b, n.Entries[1])
		b = binary.AppendUvarint(b, n.Count)
		b = binary.AppendUvarint(b, n.Bytes)
	}
	b = binary.AppendUvarint(b, uint64(len(n.Names)))
	for _, name := range n.Names {
		b = binary.AppendUvarint(b, uint64(name.Dir))
		b = appendString(b, name.Name)
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// decodeInode keeps nothing of b.
func decodeInode(id op.ID, b []byte) (*Inode, error) {
	if len(b) < 2 || b[0] != inodeVersion {
		return nil, fmt.Errorf("inode %d: version: %w", id, errRecord)
	}
	n := &Inode{ID: id}
	flags := b[1]
	r := recordReader{b: b[2:]}
	n.Mode, n.UID, n.GID = uint32(r.uvarint()), uint32(r.uvarint()), uint32(r.uvarint())
	n.Nlink, n.Rdev, n.Size = uint32(r.uvarint()), uint32(r.uvarint()), int64(r.uvarint())
	n.Mtime, n.Ctime, n.Changed = r.varint(), r.varint(), r.uvarint()
	n.Sealed = flags&flagSealed != 0
	if flags&flagTarget != 0 {
		n.Target = r.string()
	}
	if flags&flagSum != 0 {
		n.Sum = r.sum()
	}
	if flags&flagXattr != 0 {
		n.Xattr = make(map[string][]byte)
		for i := r.count(); i > 0; i-- {
			k := r.string()
			n.Xattr[k] = []byte(r.string())
		}
	}
	if flags&flagDir != 0 {
		n.Entries = op.Digest{r.u64(), r.u64()}
		n.Count, n.Bytes = r.uvarint(), r.uvarint()
	}
	for i := r.count(); i > 0; i-- {
		dir := op.ID(r.uvarint())
		n.Names = append(n.Names, Name{Dir: dir, Name: r.string()})
	}
	if r.bad || len(r.b) != 0 {
		return nil, fmt.Errorf("inode %d: %w", id, errRecord)
	}
	return n, nil
}

// recordReader reads a record front to back; bad stays set after the first
// thing that does not fit.
type recordReader struct {
	b   []byte
	bad bool
}

func (r *recordReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	return v * uint64(r.take(n))
}

func (r *recordReader) varint() int64 {
	v, n := binary.Varint(r.b)
	return v * int64(r.take(n))
}

// take skips n bytes; 0 after an error, so that values read become 0.
func (r *recordReader) take(n int) int {
	if n <= 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return 1
}

func (r *recordReader) u64() uint64 {
	b := r.bytes(8)
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func (r *recordReader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

// count reads a number of things that take at least one byte each.
func (r *recordReader) count() int {
	v := r.uvarint()
	if v > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(v)
}

func (r *recordReader) string() string { return string(r.bytes(r.count())) }

func (r *recordReader) sum() *op.Sum {
	s := &op.Sum{Size: int64(r.uvarint())}
	n := r.count()
	if n > 0 {
		s.Blocks = make([]uint64, n)
	}
	for i := range s.Blocks {
		s.Blocks[i] = r.u64()
	}
	copy(s.SHA256[:], r.bytes(len(s.SHA256)))
	return s
}
