// Package op defines the logical operations that make up a store's history,
// and the one encoding that the log, the stream to replicas, the rescue files
// and the backup share.
//
// # Encoding of an entry
//
// Integers are big-endian and of fixed width. The header has 64 bytes:
//
//	 0  u32  length of the whole entry, header included
//	 4  u8   version, now 1
//	 5  u8   kind of the operation
//	 6  u16  reserved, zero
//	 8  u64  seq
//	16  u64  epoch
//	24  i64  time, ns since 1970
//	32  u64  chain before this entry
//	40  u64  chain after it
//	48  u64  xxHash64 of the payload
//	56  u64  xxHash64 of bytes 0 to 55
//	64       payload
//
// chain after = xxHash64(chain before, seq, epoch, time, kind, payload hash),
// each but the kind (u8) as a u64.
//
// Checksums and chain cover the payload by its hash, so that the content of a
// message is hashed once only, and outside of the lock under which an entry
// gets its place (see Draft).
//
// # Payloads
//
// A name is u8 length and bytes. A text is u16 length and bytes. Data is u32
// length and bytes. A sum is i64 size, u32 number of blocks, that many u64,
// and 32 bytes SHA-256. An attr is u32 mode, u32 uid, u32 gid, i64 mtime,
// u16 number of extended attributes, and for each, in ascending order of
// names, a name and data.
//
//	 1 EpochBegin  u64 epoch, 16 primary, u16 members, 16 each, 16 nonce, 16 store, text reason
//	 2 Mkdir       u64 parent, name, attr
//	 3 Create      u64 parent, name, attr, text target, u32 rdev
//	 4 Put         u64 parent, name, attr, sum, u8 sealed, u64 victim, u64 stage, data
//	 5 Chunk       u64 stage, i64 offset, data
//	 6 Write       u64 id, i64 offset, data
//	 7 Truncate    u64 id, i64 size
//	 8 Fallocate   u64 id, u32 mode, i64 offset, i64 length
//	 9 SetAttr     u64 id, u32 valid, u32 mode, u32 uid, u32 gid, i64 mtime
//	10 SetXattr    u64 id, name, data, u8 remove
//	11 Link        u64 id, u64 parent, name, u64 victim
//	12 Rename      u64 id, u64 old parent, name, u64 new parent, name, u64 victim, u8 exchange
//	13 Unlink      u64 id, u64 parent, name
//	14 Seal        u64 id, u64 of, sum
//	15 Checkpoint  u64 at, 16 digest
//
// The encoding is canonical: an operation has one encoding, and Decode refuses
// every other. It refuses whatever a correct slot cannot have written, too:
// names that are no names of directory entries, sizes out of range, an id of
// zero. An entry that decodes can still be wrong about the tree that it is
// applied to; that is for the applier to find.
//
// # Changing it
//
// testdata/golden.txt holds one encoding of every kind. A change of the format
// needs a new version number, and a decoder that still reads the old one.
package op
