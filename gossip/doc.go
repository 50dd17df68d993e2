// Package gossip knows which nodes are there, where they are, and what they
// say about their slots. It wraps hashicorp/memberlist.
//
// Gossip finds and suspects; it never decides. What it knows may be old or
// missing, so nothing that mail depends on may follow from it: the epoch in a
// slot's log decides, and gossip only says whom to ask.
//
// # State
//
// Every node has one State: its name, its addresses, and a line per slot. A
// State is versioned by (Incarnation, Version): the start of its process in ns
// since 1970 and a counter. It travels in two ways: with each push/pull
// exchange of memberlist (all states that a node knows), and, when it changes,
// directly to every living node, in a packet if it fits or else over TCP: the
// clusters we expect have a handful of nodes, so that spreading it by rumour
// would only be slower. memberlist's node metadata is limited to 512 bytes and
// not used. A node that hears of a later incarnation of itself (its clock went
// back) continues from there.
//
// # On the wire
//
// Everything is encrypted by memberlist with the cluster's key (AES-256-GCM).
// memberlist says only in its log that it could not decrypt something. So the
// transport puts a few bytes of its own before it, from which both sides learn
// in so many words that their keys, or that their names, collide.
//
// Packet:
//
//	0   4  magic "sfg1"
//	4   8  key tag: the first bytes of HMAC-SHA256(key, "packet")
//	12     what memberlist sends
//
// Stream: the dialling side sends a hello, the accepting side answers with one
// verdict byte (0 welcome, 1 other key, 2 your name is mine) and a hello, then
// memberlist's stream follows.
//
//	0   4  magic "sfg1"
//	4   2  n, big endian
//	6   n  JSON of hello
//	6+n 16 the first bytes of HMAC-SHA256(key, "hello" and bytes 0 to 6+n)
//
// A hello whose HMAC is right is believed; from any other only the addresses
// are shown to the operator. It discloses nothing but name and address.
//
// # Refusals
//
//   - Other cluster's key: the packet or stream is dropped; both sides report
//     a KeyMismatch.
//   - One name, two nodes: the second node's streams are refused by the first;
//     both report a NameConflict. A node that learns from a third one that its
//     name is taken asks the holder first, which tells that one too, and shows
//     whether it is still alive.
//   - One store name, two store ids: whoever sees both reports a StoreConflict.
//
// # Locks
//
// memberlist calls delegates with its own lock held; they take Gossip.mu,
// briefly. So memberlist is never called with mu held.
package gossip
