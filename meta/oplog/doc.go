// Package oplog is a slot's append-only log of entries: group commit, the
// marks that say how far an entry has come, recovery after a crash.
//
// # Guarantees
//
//   - An entry at or before Durable survives kill -9 and power loss.
//   - Committed never passes an entry that is not durable here and, while this
//     log leads, on every peer given to Lead.
//   - The entries that Open finds are a prefix of those that were appended,
//     and contain all that had been durable; or Open fails with *DamageError.
//   - After a failed write or fsync the log stops: every wait and every later
//     call gets ErrFaulted, and nothing is tried again. A full disk is no fault:
//     segments are made ahead, Reserve says ErrNoSpace, and what has been
//     appended already waits in memory for space.
//
// # Files
//
//	NNNNNNNNNNNNNNNN-IIIIIIIIIIIIIIII.log   segment: number and id, hexadecimal
//	sealed                                  highest sealed epoch
//	*.pool                                  a former segment, to be written again
//	*.damaged                               a segment put aside, see Options.PastDamage; or a copy of
//	                                        one that was mended, the latest two
//	*.torn                                  a torn batch cut by the last start, kept until the next
//	*.tmp                                   unfinished; removed at start
//
// Integers are big-endian. A segment is preallocated, filled with zeros and
// synced before it gets its name, so that writing to it changes no metadata,
// and fdatasync needs no commit of the file system's journal. It begins with
// a header page:
//
//	 0  8    "slotfsOL"
//	 8  u32  format version, now 1
//	12  u32  zero
//	16  u64  number
//	24  u64  id: random, new each time that a file becomes a segment
//	32  i64  time made, ns since 1970
//	40  u64  xxHash64 of bytes 0 to 39
//
// The rest is batches. A batch is one group commit: one write around the page
// cache that returns when it is on stable storage (O_DIRECT, O_DSYNC), or where
// the file system has none, a write and an fdatasync. It starts at a multiple of 4096 bytes, so that no page which holds
// something durable is ever written again:
//
//	 0  u32  0x536c4261
//	 4  u8   format version
//	 5  u8   flags: 1 restart, 2 reset
//	 6  u16  zero
//	 8  u64  id of the segment
//	16  u64  offset in the segment
//	24  u64  seq of the first entry (of the next one, if there are none)
//	32  u32  number of entries
//	36  u32  their length in bytes
//	40  u64  durable: seq that was known durable before this batch was written
//	48  u64  committed: seq that was known committed
//	56  u64  epoch of the entry before the first
//	64  u64  chain before the first entry
//	72  u64  chain after the last entry
//	80  i64  time of the entry before the first; 0 if not known
//	88  u64  xxHash64 of bytes 0 to 87
//	96       entries, see package op; zeros up to the next page
//
// Id and offset bind the header to its place, so that what a former life of
// the file has left behind, or what somebody sends as mail, is never taken for
// a batch. The chain after the last entry binds the entries to the header.
//
// Restart means that entries after the batch's start in earlier segments don't
// count any more, reset that nothing in them does. Such batches only stand at
// the start of a segment. Cut, Reset and Open make one, and it takes effect in
// one step, when it is durable. Nothing is ever cut by truncating a file.
//
// Segments grow from 1 MiB over 8 MiB to Options.SegmentSize, so that a small
// slot takes little room.
//
// # Recovery
//
// A batch is written only when the one before it is durable. So a bad batch is
// a torn tail if no good header of the segment, and no segment that is in use,
// comes after it; otherwise it is damage. A torn batch is cut as a whole.
//
// The last batch may be in the page cache only, and after a failed fsync even
// though its pages count as clean. So Open always starts a new segment, with
// everything after the last durable mark copied into its first batch, synced,
// before anybody is told where the log ends.
//
// Open reads and verifies the whole log: a second or two per GiB. Damage that
// it finds in entries which the slot no longer needs can be given up, see
// Options.PastDamage; those files are kept.
//
// While the log is in use Verify finds what cannot be read any more, and Mend
// writes such a segment anew, with entries that another slot has sent: they have
// to fit the chain on both sides. The new file takes the old one's name in one
// step.
//
// # Locks
//
// In this order: token (whoever writes to segments), sealMu, segMu (keeps the
// files of segments while they are read), mu (everything in memory), and the
// mutex of a Mark. No I/O under mu. A Barrier that finds the token free
// flushes by itself, which spares two changes of goroutine; the others share
// the next flush.
//
// Whoever waits with a Waiter, not with a goroutine (AfterBarrier,
// AfterReceived), is told by whoever moved the mark, when mu is given back
// (unlock): no lock of the log is held then. Append alone tells nobody, as its
// caller may hold what a Waiter needs; a goroutine does.
package oplog
