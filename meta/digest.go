package meta

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

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

// Digest is the digest of the applied state, and the last entry in it.
func (s *Slot) Digest() (seq uint64, d op.Digest) {
	st := s.ix.current()
	return st.Pos.Seq, st.Digest
}

// DigestAt is the digest right after entry seq, if that was not long ago.
func (s *Slot) DigestAt(seq uint64) (op.Digest, bool) {
	s.ix.mu.RLock()
	defer s.ix.mu.RUnlock()
	return s.ix.ring.get(seq)
}

// Stats is what a slot holds, in the applied state.
type Stats struct {
	Pos        op.Pos    `json:"pos"`  // last entry applied
	Time       int64     `json:"time"` // of that entry, ns since 1970
	Digest     op.Digest `json:"digest"`
	Objects    uint64    `json:"objects"`  // files and directories
	Messages   uint64    `json:"messages"` // sealed files
	Bytes      uint64    `json:"bytes"`    // of regular files
	Checkpoint op.Pos    `json:"checkpoint"`

	Unverified      uint64 `json:"unverified"` // adopted messages without a checksum as yet
	UnverifiedBytes uint64 `json:"unverified_bytes"`
}

// Stats returns the totals of the applied state.
func (s *Slot) Stats() Stats {
	st, base := s.ix.current(), s.ix.checkpointed()
	return Stats{
		Pos: st.Pos, Time: st.Time, Digest: st.Digest,
		Objects: st.Objects, Messages: st.Messages, Bytes: st.Bytes, Checkpoint: base.Pos,
		Unverified: st.Unverified, UnverifiedBytes: st.UnverifiedBytes,
	}
}

// DirDigest sums what is below a directory: the digest elements of all names,
// the number of those that are no directories, and the bytes of their regular
// files (a file with two names counts twice). It looks at directories only,
// and is exact if nothing is applied meanwhile.
func (s *Slot) DirDigest(id op.ID) (d op.Digest, files, bytes uint64, err error) {
	todo := []op.ID{id}
	for len(todo) > 0 {
		id, todo = todo[len(todo)-1], todo[:len(todo)-1]
		n, err := s.ix.inode(id)
		if err != nil {
			return op.Digest{}, 0, 0, fmt.Errorf("digest of directory %d: %w", id, err)
		}
		if !n.IsDir() {
			return op.Digest{}, 0, 0, fmt.Errorf("digest of id %d: %w", id, unix.ENOTDIR)
		}
		subdirs, err := s.ix.subdirs(id)
		if err != nil {
			return op.Digest{}, 0, 0, fmt.Errorf("digest of directory %d: %w", id, err)
		}
		d.Add(n.Entries)
		files += n.Count - uint64(len(subdirs))
		bytes += n.Bytes
		todo = append(todo, subdirs...)
	}
	return d, files, bytes, nil
}
