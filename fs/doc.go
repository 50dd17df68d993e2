// Package fs mounts a slot: it turns system calls into operations of the log.
//
// # How a call is answered
//
// Everything that requests ask for is in memory: the inodes and directories
// that the kernel knows, as they are after the last entry of the log, applied
// or not. A changing call is checked against that, appended to the log and
// carried out in memory under one lock (FS.mu), so the order of the log is the
// order of the changes, and nothing has to be undone. Then, without the lock,
// it waits for what its class demands, and answers:
//
//   - a barrier (committed on every member of the in-sync set, with all before
//     it): fsync and fdatasync of a logged file, fsync of a directory, writes
//     with O_SYNC or O_DSYNC, the rename or link that makes a message appear in
//     a mailbox, and the one that takes a file that was fsynced out of the
//     volatile class (its fsync was a debt);
//   - received by every member: changes of the content of control files, and
//     renames onto one;
//   - everything else only what [oplog.Log.Reserve] demands before the append.
//
// The answer of a call that waits is sent by whoever ends the wait (call.Waited):
// it holds no goroutine, and there is nobody to be woken.
//
// Waits end with the log's state, never with a signal: the operation is logged,
// and EINTR would say that it is not.
//
// Inodes and directories are read from meta when first needed, outside the
// lock; what the log concerns and is not yet applied never leaves memory, so
// what is read is complete. Content of logged files is not kept: a read takes
// the applied content and lays the changes over it that may not be applied yet
// (see image).
//
// # Why the raw protocol
//
// Requests are read and answered here (device.go, serve.go); only the rare ones
// go through go-fuse's decoder. Its server hands the device from goroutine to
// goroutine for every request, and blocks a thread in every read.
//
// go-fuse's node API keeps a tree of its own beside the file system's, cannot
// give listings stable offsets without OPENDIR (an answer of ENOSYS to it saves
// three requests per listing), hides the umask (needed for default ACLs) and
// the kill-privileges flags. Here the nodes are the inode table that is needed
// anyway.
//
// # Classes
//
// A name is logged or in memory only (volatile, by the slot's layout). Only
// regular files can have volatile names; directories, symlinks and the like are
// always logged. A file is one of:
//
//	L  logged: it has at least one logged name; id names it in the log. It may
//	   have volatile names beside (Maildir's COPY links cur/x to tmp/y).
//	V  volatile: the log has never heard of it. Content in memory, or in an
//	   unlinked file when it is big; gone after a crash.
//	O  orphan: it was L and has lost its last logged name, but still has a
//	   volatile one or is open. Its content is in meta's trash until the node
//	   is forgotten. The first change, or a publication, copies it: then it is V.
//
// Renames and links, by what has the old name and what the new name is:
//
//	old name                 new name volatile         new name logged
//	-----------------------  ------------------------  ------------------------------
//	logged                   op.Rename: a name that    op.Rename
//	                         is logged stays logged
//	volatile, of V or O      memory only               op.Put (after Chunks if big)
//	volatile, of L           memory only               op.Link
//	link(2) of L             memory only               op.Link
//	link(2) of V or O        memory only               op.Put
//	link(2) of not regular   op.Link                   op.Link
//
// A new name that exists is replaced in the same entry (Victim); if the victim
// is a logged name, the new one is logged whatever its class. Names that are
// logged stay so because mail moved into tmp/ by hand must not depend on this
// process; only what begins in a volatile class lives in memory. RENAME_EXCHANGE
// works between two logged or two volatile names, and is EXDEV otherwise. A
// directory that is not empty cannot become one of another kind: EXDEV, and
// mv(1) copies.
//
// A Put takes the checksum of the content without FS.mu, but with node.data
// held, so that nobody writes meanwhile. A message published so is sealed:
// writes and truncates are EPERM, everything else works; it stays so under
// whatever name it gets later, because the log has nothing to take it back with.
// Files created directly in cur/ or new/, or moved there from another class, are
// logged with their writes; like control files they are sealed (op.Seal) when
// they have been quiet, and can be written after that.
//
// Directory times: mtime is the time of the last entry that changed the
// directory, exactly what apply sets. Changes of volatile names move it in
// memory only; the kernel and this process see it never go backwards, but after
// a restart tmp/, and a directory with lock files, show their last logged time.
//
// # Kernel policy
//
// All changes come through the mount and a demoted slot is unmounted, so names,
// attributes, absence of names, listings, symlinks and pages may be cached
// without end; what does not come through the mount, a message rescued from a
// lost branch and the correction of a damaged record, is told to the kernel
// (Deliver, Refresh). ENOSYS to OPEN, OPENDIR and FLUSH is remembered by the
// kernel. No RELEASE comes then, not even for what CREATE opened, so there are no
// handles (Fh is 0), and a node can be read and written by itself. No writeback
// cache: order across files would be lost. Locks stay in the kernel (one mount
// per store). default_permissions: with attributes cached the kernel alone sees
// every access. HANDLE_KILLPRIV_V2 tells us when to clear set-user-id, and
// DONT_MASK gives us the umask, so that a default ACL can take its place.
//
// st_ino is the id of the log, which survives failover; what was created
// volatile keeps its own number while it is in memory, since st_ino of an open
// file may not change.
//
// # Locks
//
// node.data (one node's at a time), then FS.mu. A request that may be held up
// calls mayBlock before (device.go): nobody else reads requests meanwhile
// otherwise. No I/O and no waiting under FS.mu; both under node.data are fine.
// All sections end by defer, so a panic in a request (answered EIO, the slot is
// faulted) leaves no lock behind.
//
// # A limit that the kernel sets
//
// rename(2) from one directory to another holds a lock of the whole mounted file
// system (s_vfs_rename_mutex) until we answer, so the barriers of renames out of
// tmp/ come one after the other within one mount: they share a flush with fsyncs
// and links, but not with each other. What a mount delivers per second is at most
// one message per barrier; another slot, with a mount of its own, has its own
// lock. link(2) holds only its directory.
//
// # What is not kept
//
// atime; holes (a hole is zeros; SEEK_HOLE finds the end); st_blocks (from the
// size). sync(2) and syncfs(2) do not reach a FUSE file system: fsync does.
// Extended attributes of one object must fit in one block of ext4 (3.9 KiB).
package fs
