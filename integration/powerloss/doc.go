// Package powerloss is a disk from which a test can take the power.
//
// A [Disk] is an ext4 file system on a loop device on an image file, and the
// image file is served by a small FUSE file system of this package. Every
// WRITE to the image is remembered as unsynced until a FSYNC of the image
// comes: the loop device sends one for each flush of the block layer, which
// is what fsync(2) of a file on the ext4 ends in. So the disk behaves as one
// with a volatile write cache of unlimited size:
//
//	program ── write, fsync ──► ext4 ── blocks, flushes ──► loop ── WRITE, FSYNC ──► Disk
//
// At a loss of power ([Disk.Freeze], then [Disk.Lose]) the disk stops, drops
// a random part of the unsynced writes, keeps others in any order, and tears
// some at the boundary of a sector (512 bytes) or of a page (4096 bytes).
// [Disk.Restart] then mounts what is left, as after the reboot: ext4 replays
// its journal.
//
// Rules that make it a proof:
//
//   - The image is opened with FOPEN_DIRECT_IO, so no page cache stands
//     between loop device and this package; what the kernel holds of the old
//     ext4 is gone with its unmount.
//   - Each life of the disk has an image name of its own. Requests for an
//     earlier one fail with EIO for ever, so a late write of a file system
//     that dies slowly cannot reach the disk after the loss.
//   - From Freeze to Lose requests wait, rather than fail: a program that is
//     about to be killed sees a disk that has become slow, not an error that
//     it would never get from a loss of power.
package powerloss
