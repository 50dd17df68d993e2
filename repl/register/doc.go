// Package register keeps the register that decides who is primary, in etcd.
//
//	Etcd      a client: a repl.Register over one or more etcd endpoints
//	Member    an embedded etcd member; several of them make the register
//	Process   keeps a Member running in a process of its own
//
// # Keys
//
//	/slotfs/<cluster id>/store/<store name>   a record, JSON (version 1):
//	    {"version":1, "store":"<32 hex>", "epoch":7, "primary":"<32 hex>",
//	     "in_sync":["<32 hex>", …], "nonce":"<32 hex>",
//	     "nodes":{"<32 hex>":"n1", …}, "reason":"…", "time":"…"}
//	/slotfs/<cluster id>/probe                never written; read to see whether a majority answers
//
// Slot ids are in primary, in_sync and nodes. Unknown fields, a newer version,
// and what contradicts itself are refused: a record that cannot be used stops
// changes of role and nothing else. nodes, reason and time are for people.
//
// A change is one transaction that compares the key's revision with the one
// that was read. Requests go to one endpoint and, if it does not answer within
// 300 ms, to the next as well; that is harmless because the condition holds for
// one of them only, and the nonce says whether it was ours. The register is not
// written otherwise: no leases, no heartbeats. Each client reads once a second,
// which etcd answers from memory after it has asked a majority.
//
// # Forming
//
// The config lists all members. A member with data starts. One without asks all
// others, at their addresses, over TLS: if none of them has data and all say so
// they make a register together; if there is one that expects this member, it
// joins. If it was a member before, and lost its data, it is refused: what it
// acknowledged and voted is forgotten, and a majority that counts it could
// forget a change. It has to be replaced (remove, add).
//
// A member that was removed finds that out from the others, and puts its data
// aside in removed-<time>.
//
// # A process of its own
//
// etcd ends its process when its disk fails or is full, and its files are mapped
// into memory, so that a bad sector kills the process that reads it. Mail must
// go on then; and a process that serves mail must not be late with a heartbeat
// because of it. So a node runs its member as a child, which gets its config on
// standard input, tells its progress on standard output, and ends when its
// input does: a killed node leaves no member behind.
//
// # Locks
//
// Etcd.mu and Process.mu are leaves; nothing is waited for with them held.
package register
