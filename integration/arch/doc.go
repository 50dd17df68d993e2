// Package arch holds no code: its test keeps the shape of the repository.
//
// Imports go one way, cmd/slotfs → fs, repl, gossip → meta → meta/oplog →
// meta/op, so that each package can be read and tested without those above
// it. fs, repl and gossip don't know each other: each declares the small
// interface that it needs and cmd/slotfs joins them. integration runs the built
// binary and therefore imports none of them but the leaf formats.
package arch
