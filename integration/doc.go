// Package integration holds the tests that run the built binary: real
// processes on loopback, real mounts, a real Dovecot, killed nodes, disks that
// lose power. The packages below it are their tools, also used by the
// demonstration, the benchmark and the soak; none is imported by slotfs.
//
//	scratch    a directory from which nothing survives: processes, mounts, loop devices
//	loopback   an address of 127.0.0.0/8 for each server
//	cluster    nodes of slotfs as processes
//	netns      hosts of their own, and a network between them that can be cut
//	sender     MTAs that deliver to whichever node takes the mail
//	history    what was acknowledged against what is there, and the log
//	workload   a Maildir writer that knows what a crash may take
//	loop       ext4 in a file
//	powerloss  a disk that forgets what was not flushed
//	mailgen    messages; lmtp, imap: clients; mailbox: what is in a mailbox
//	dovecot    a private Dovecot
//	treediff   are two directories the same?
//
// The tests need root, FUSE, loop devices and Dovecot, and take the binary
// from $SLOTFS_BIN or bin/slotfs. These variables change what they do:
//
//	SLOTFS_SEED         the seed of what is random; printed by every test that uses it
//	SLOTFS_SOAK_ROUNDS  rounds of TestKill, TestPowerLoss and the campaigns of faults ("make soak")
//	SLOTFS_FAULTS       a regular expression: only faults with such a name in TestFaults and TestFaultsMail
//	SLOTFS_KEEP_LOGS    a directory to which a failed test copies its nodes' logs
package integration
