// Package meta owns one slot's local truth: the index, the tree, and the
// applier that makes both from the committed entries of the oplog.
//
// # The data directory
//
//	slot.json     which slot of which store this is (Identity), and the format
//	lock          flock: one process at a time; holds its pid, for people
//	home.json     which file that is: a copied or restored directory has another
//	tree/         the mail, as plain files and directories: what the mount shows
//	oplog/        the log (package oplog)
//	index/        badger; its keys and records are described in record.go
//	trash/        <id>: files that lost their last name, freed later
//	stage/        <seq>: content on its way, named by the first Chunk's seq;
//	              repair-…: a good copy about to replace a damaged one;
//	              sync-…: content that a resync fetched; limbo-…, new-…: of
//	              reconcile
//	quarantine/   damaged and unexplained files, each with a record in JSON
//	rescue/       log of lost branches
//	ledger/       what was found wrong, and decided about it (package ledger)
//	volatile/     spilled content of files that fs keeps in memory; emptied at start
//	scrub.json    what scrub remembers: when which ids were verified
//	index.N/      an index that was made anew while the slot ran; the next start puts
//	              it in the place of index/
//	brake.json    bursts of removals whose messages are kept (brake.go)
//	adopt.json    there while a tree is being adopted (adopt.go); what could not be
//	adopt-left/   taken over
//	resync.json   there while a resync is under way: index and tree are a mixture
//	rebuild.json  there while the index is made anew, or is to be at the next start
//
// Every file and directory in tree/ carries its id in the attribute
// trusted.slotfs (mark.go). Volatile files are not in here at all: fs keeps
// them in memory. So the tree is purely the result of the log.
//
// # One applier
//
// Entries are applied in order by one goroutine, and only once they are
// committed and durable in this slot's own log. It gathers them for 50 ms, unless
// somebody waits for Applied or there is much: nobody needs the tree up to date,
// fs has in memory what is not applied. The index goes first: what an
// entry does to it depends on the entry and the index alone (apply.go), so every
// slot, and every replay, gets the same. What it did is then done to the tree
// (treedo.go), by system calls relative to directory descriptors found by id.
// mtimes of directories and control files are set at the end of a batch, from
// the index, so that they do not depend on how entries were batched.
//
// Apply must not fail: every entry was validated before it was appended. An
// entry that contradicts the index, or a system call that fails, faults the slot
// (Slot.Fault): the log stops, everybody who waits for it gets an error, and the
// next start recovers. Two things are no faults: a full disk, which is waited
// out, and a file that is missing from the tree, which is an Event and left to
// check and repair.
//
// # Checkpoints and recovery
//
// badger holds exactly the index of the last checkpoint C; what was applied
// later is in memory (index.go). A checkpoint freezes that delta, makes the tree
// durable (syncfs), and then writes the delta and C's Pos in one transaction.
// Only then are trash and log given up that recovery from before C would need.
//
// So recovery always starts from exactly the index of C, replays the log on it,
// and then makes the tree agree with the index wherever the log since C touched
// it, by id and by comparing states. It does not repeat operations on the tree:
// a tree that a crash left between C and the last applied entry can be anywhere
// in between, in any order, and there is no path by which an operation could be
// repeated safely. Comparing states is idempotent at any crash point, and the same
// code serves resync and check.
//
// Where to read: recover.go says what recovery does, reconcile.go how the tree
// follows, rebuild.go how the index is made anew if badger's files are damaged
// or gone, resync.go how a slot becomes another one's copy without its log, and
// check.go which invariants all this keeps.
//
// A file that loses its last name goes to trash/, never to nothing, as recovery
// may have to return to an entry before the loss. It is freed at the checkpoint
// after next, unless the kernel still has it open (Slot.Keep).
//
// If a deletion is on record (deleted.go: of every message) it stays longer, for
// undelete; how long is up to the brake (brake.go).
//
// # What the slot looks after by itself
//
// One goroutine, the keeper, looks every two seconds whether the tree is still
// the slot's (treeguard.go), and verifies the index again and again, because
// badger takes a block that it cannot read for one that does not have the key.
// A damaged index is made anew beside the old one while reads go on
// (rebuildonline.go). A primary stays primary meanwhile, also if a replica is in
// sync: the index is a view of log and tree, neither of which is in doubt, so
// nothing acknowledged is at risk; stepping down would end every session for
// damage that costs changes a pause. A tree or a log that is lost is another matter. Another goroutine reads the log (verifylog.go). A slot that
// has lost its tree, or entries of its log that it needs, is unfit: it serves
// nothing and waits to be resynced (refill.go).
//
// # Content
//
// A message, and a control file that was quiet long enough for the primary to
// append a Seal, has a checksum in the index; an adopted message as soon as the
// primary has read it, and logged that as a Seal (adopted.go). Reads of it are answered from
// the very buffer that was verified (read.go). What does not verify is fetched
// from another slot, verified, and put in place under all its names, before
// the read is answered; the bad copy goes to quarantine/. Without a good copy the
// read fails with a *DamagedError. Damage to a control file between two seals
// cannot be noticed.
//
// # Locks, in order
//
//	Slot.admin   the applier is made to stand still
//	tree.mu      for writing: an entry goes into index and tree. For reading: they agree
//	index.mu     the index in memory; readers take it for a lookup
//	Slot.mu, trash.mu, brake.mu, keeper.mu, fdCache.mu, Events.mu, verifiedCache.mu   a few fields each
//
// keeper.verifying comes before Slot.admin, trash.freeing before index.mu. No
// other lock is held while another slot is asked, or while OnEvent, OnFault, Keep
// or Retain are called.
package meta
