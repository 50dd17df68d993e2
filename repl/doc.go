// Package repl replicates a store: it decides which slot is primary, streams
// the primary's entries to the others, brings back slots that were away, and
// fetches good content for repair.
//
// A Member is one slot's part. A Server is a node's listener, for all of its
// members. What decides is the machine (role*.go): pure, events and the time
// in, effects out; its scenarios are text files in testdata/. The Member drives
// it: one loop, which never waits for the network. With a register (Register,
// package repl/register) the machine decides by itself who is primary; without
// one, mode none, operators do.
//
// # Guarantees
//
//   - An entry is committed when it is durable here and on every other member of
//     the in-sync set (oplog computes that, from Log.Lead and Log.Ack). A replica
//     acknowledges an entry as received only after it has verified its frame,
//     its place in the chain, and the content of a Put against its checksum.
//   - The in-sync set changes by an EpochBegin entry of the primary only. A
//     smaller set commits nothing before that entry is durable here.
//   - On its path to primary a slot first stops following, and waits until that
//     has ended: from then on it acknowledges nothing.
//   - With a register: every slot that the record names in sync has, durably, all
//     that was ever acknowledged, whatever is lost, late or repeated; and only
//     such a slot becomes primary. Hence no acknowledged entry is lost without
//     --force, and a superseded primary acknowledges nothing that the new history
//     lacks: what it can still commit needs every member of its set, and its
//     successor was one, follows nobody any more, and holds what it ever
//     acknowledged. That goes for acknowledgements which lie unread in a socket.
//     No clock has a part in it.
//   - Control writes are answered when received. What a replica has received and
//     not yet written stays in its log when it becomes primary: it is lost only
//     if the replica's process dies as well.
//   - In register mode none a change of primary is an operator's command. No
//     acknowledged entry is lost if the promoted slot is in the in-sync set and
//     the old primary has not gone on alone; on_replica_loss = "stop" makes sure
//     of the latter.
//   - If two primaries were made independently there are two histories with one
//     epoch number. Both sides say so and stay apart; neither gives up anything
//     before an operator says which (Rejoin).
//
// What is not promised: a disk restored to an older state of the present epoch,
// while no other member is there to contradict it, cannot be told from one whose
// node was off. If the last sign of life on it is more than six hours older than
// the start, an operator is asked. A member that comes back like that to a
// primary is noticed, and dropped before it gets anything.
//
// # Path to primary, with a register
//
// Boot, failover, switchover and force go the same way (roleelect.go):
//
//  1. Get the record, and ask the other slots, briefly. Judge: the record names
//     this slot in sync; the slot's own disk proves that it belongs to the
//     record's epoch (its log has the epoch's first entry with the record's
//     nonce, or it noted that it may join); store and epochs fit; it is whole,
//     healthy, not drained. Without an answer of the register nothing more
//     happens: an intact pair must not be broken for nothing.
//  2. Stop following; when that has ended nothing is acknowledged any more. Seal
//     the record's epoch, durably.
//  3. Fetch the longest tail from a member whose log extends ours. It is a help
//     only: what was committed is here.
//  4. Every slot of the next set, this one too, durably notes epoch and nonce.
//     The next set is this slot and those of the record's set which answered,
//     proved that they belong to it, whose log is the beginning of ours, and
//     which noted. So whatever happens next each of them can prove itself.
//  5. Swap. If there is no answer it is repeated until the record has left the
//     expected epoch; the nonce in it says who won.
//  6. EpochBegin with the record's nonce; apply; mount; on_promote.
//
// A primary changes its set in the same order (rolechange.go): Get, notes, Swap,
// EpochBegin. While the outcome of the Swap is unknown commits wait for the old
// set and the new one.
//
// A replica starts that by itself (machine.due) if the record names it primary;
// if the primary's process is gone (connection refused, after it had been
// heard); if the primary says of itself that it will not lead (faulted, drained,
// demoted); or if nothing was heard from it for failover_timeout. A primary that
// hears of a higher epoch, from the register or with proof from another slot,
// steps down: from that moment nothing is acknowledged, and calls that wait get
// oplog.ErrNotLeading (EROFS); then on_demote, then the mount ends. A primary
// whose disk fails does the same, so that another slot can serve.
//
//	silence, primary drops a replica         replica_timeout    1.5 s
//	silence, replica takes over              failover_timeout   3 s
//	process gone, either way                 at once
//	other slots' answers are waited for      0.3 s by a failover, replica_timeout by an operator
//	no automatic failover after one          failover_pause     30 s, doubling up to 10 min;
//	                                         30 s again after ten quiet pauses. In memory, told
//	                                         to the other slots
//	neither member nor register heard        primary ends its mount after 5 s; bounds how long
//	                                         waiting calls of a cut off primary hang, and how
//	                                         old its reads can be
//	Get while there is no primary            every second at most; none while all is well
//
// Silence is measured by the monotonic clock, and not held against anybody while
// this process itself stood still.
//
// What speaks against the record stops every change of role, with a sentence in
// the status, and no mail: no record of a store that has a history; an older
// epoch than a slot has; another nonce for an epoch; another store; garbage.
//
// # Path to primary, without a register
//
// Boot, promotion and force go the same way: ask all other slots what they are;
// judge; stop following; fetch the longest tail from a member whose log extends
// ours; seal; lead; append EpochBegin, epoch one above any that was heard of;
// apply it; mount. The tail is fetched before the seal, where DESIGN has it
// after: the seal refuses entries of the old epochs, and not following is seal
// enough as long as nothing has been decided. Two slots on this path at one
// time tell each other their intent when they ask, and one yields.
//
// A slot resumes by itself at boot if its last epoch names it primary, and it is
// alone in the set, or every other member answers and knows no later epoch. A
// slot that was demoted by an operator does not.
//
// # Re-entry into the in-sync set
//
// A replica's lag is within a window; commits wait for it, too (Log.Lead with
// the old epoch and one peer more), without a gap, however the set changes
// meanwhile; everything acknowledged before that is durable there and here; it notes durably that it may join epoch e+1, with a register
// only if its disk has that entry now (what it acknowledged may have been said by
// a former life of it, on another disk); with a register, Swap; EpochBegin e+1.
// If that takes too long, and the register has not been asked yet, commits wait
// for it no more, and it may try again later. A slot with durability "local"
// never enters. One that has sealed off the primary's epoch, because it was about
// to become primary, gets a new epoch with the same set.
//
// # Proof
//
// testdata/*.txt are scenarios of the machine. explore_test.go walks it at random
// through lost, late and repeated messages, crashes, processes that stand still,
// disks that are emptied or restored, operators: "make test" takes some million
// steps, SLOTFS_SEED repeats one walk, a failure is shortened before it is
// printed; mistakes in the protocol that it must find are part of the test.
// model/ has the protocol for spin, which searches small cases exhaustively.
//
// # Rejoin
//
// A hello carries the epochs of the slot's history. Within one epoch there is
// one primary and hence one sequence of entries, so the last common entry
// follows from the two lists (history.meet). What the replica has beyond it is
// kept in rescue/ (meta.Branch) and cut, if it is not applied yet; otherwise the
// slot is resynced. If the primary's log no longer reaches back, also.
//
// Messages of that branch that were acknowledged, because they were committed by
// a set without the slot with which the other history goes on, are offered to the
// primary, one after the other (rescue.go). It delivers them as new messages,
// whose entries say where they come from: that makes it happen once.
//
// # Switchover
//
// roleswitch.go: checks, unmount, drain, step down, and the target goes the one
// path to primary because it was asked to. Commands for another node travel
// over connections of their own (command.go).
//
// # Refill
//
// A slot that has lost its tree, or entries of its log that it needs, is of no use
// before another one has filled it (rolerefill.go, meta.Options.Refill): as primary
// it ends its mount and acknowledges nothing more, as replica it leaves the
// stream; then it follows whoever is primary, which means a resync. Entries that a
// running slot's log has lost are asked for on a fetch connection (fetchlog.go).
//
// # Frames
//
// TLS 1.3 with certificates on both sides; the certificate's common name is the
// node's name. Everything is big-endian.
//
//	 0  u32  length of the body
//	 4  u8   type
//	 5  u8   version of the frame format, now 1
//	 6  u16  reserved, zero
//	 8  u64  xxHash64 of bytes 0 to 7 and of the body; of an Entries frame only
//	         of the body's first 24 bytes: each entry has checksums of its own
//	16       body
//
// Bodies:
//
//	 1 Hello     JSON, first on each connection: purpose, who, history
//	 2 Welcome   JSON, the grant
//	 3 Refuse    JSON {code, text}; the connection ends
//	 4 Entries   u64 committed, u64 wanted, u64 awaited, entries as package op encodes them
//	 5 Mark      u64 committed, u64 wanted, u64 awaited
//	 6 Ack       u64 received, u64 durable, u64 applied
//	 7 Prepare   u64 epoch
//	 8 Prepared  u64 epoch
//	 9 Request   JSON question of a fetch or resync connection
//	10 Reply     JSON answer
//	11 Content   bytes of one content, at most 1 MiB; an empty one is the end
//
// # Stream
//
// The replica dials. The sender reads from the log, so that a slow replica costs
// no memory; entries that somebody waits for go at once, others within five
// milliseconds or when there are 64. Which change of the log concerns the sender
// is decided by the log (oplog.Watcher), so that it is woken for nothing else. A
// replica fsyncs when told that somebody waits for durability (wanted). It
// acknowledges receipt at once if somebody waits for that (awaited), or for 64
// entries at a time, and durability when its log has it, from the goroutine that
// flushed; each acknowledgement says both. It withholds acknowledgements while
// more than 64 MiB are received and not applied. Marks and Acks also serve as
// signs of life, four in each timeout.
//
// A connection's writes are gathered beneath TLS (corked): one system call for
// all that is sent together.
//
// # Locks
//
// Member.noteMu, then Member.mu. following.ackMu and sender.ackMu are held while
// sending or telling the log of one acknowledgement, never together with mu.
package repl
