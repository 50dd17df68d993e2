package meta

import (
	"encoding/binary"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"

	"slotfs/meta/op"
)

// digestSeed makes the second half of a digest element independent of the
// first.
const digestSeed = 0x9e3779b97f4a7c15

// element is the digest element of one name of n:
//
//	H(directory id, name, id, mode, uid, gid, size, mtime, target, xattrs, checksum)
//
// where the checksum is 0 while the content is not sealed. The root has no
// name; its element is that of the empty name in directory 0. Not in it: ctime,
// nlink and whatever follows from other elements.
func element(at Name, n *Inode) op.Digest {
	var buf [512]byte
	b := buf[:0]
	b = binary.BigEndian.AppendUint64(b, uint64(at.Dir))
	b = appendString(b, at.Name)
	b = binary.BigEndian.AppendUint64(b, uint64(n.ID))
	b = binary.BigEndian.AppendUint32(b, n.Mode)
	b = binary.BigEndian.AppendUint32(b, n.UID)
	b = binary.BigEndian.AppendUint32(b, n.GID)
	b = binary.BigEndian.AppendUint32(b, n.Rdev)
	b = binary.BigEndian.AppendUint64(b, uint64(n.Size))
	b = binary.BigEndian.AppendUint64(b, uint64(n.Mtime))
	b = appendString(b, n.Target)
	b = binary.AppendUvarint(b, uint64(len(n.Xattr)))
	if len(n.Xattr) > 0 {
		for _, k := range slices.Sorted(maps.Keys(n.Xattr)) {
			b = appendString(b, k)
			b = appendString(b, string(n.Xattr[k]))
		}
	}
	var sum uint64
	if n.Sum != nil {
		sum = n.Sum.XXH()
	}
	b = binary.BigEndian.AppendUint64(b, sum)

	first := xxhash.Sum64(b)
	var second xxhash.Digest
	second.ResetWithSeed(digestSeed)
	second.Write(b)
	return op.Digest{first, second.Sum64()}
}

// ownElements is the sum of the elements of all names of n: what n adds to the
// digest of its slot.
func ownElements(n *Inode) op.Digest {
	var d op.Digest
	if n.ID == op.Root {
		return element(Name{}, n)
	}
	for _, at := range n.Names {
		d.Add(element(at, n))
	}
	return d
}
