// Package ledger keeps a slot's record of what was found wrong and what was
// decided about it: append-only, and chained by hashes, so that nobody changes,
// removes or inserts a line without that being seen.
//
// # Files
//
// The directory ledger/ of a data directory holds files named by the number of
// their first entry, in 12 digits: 000000000001.jsonl. Each is JSON, one entry a
// line. A new file is begun when the last one has reached Options.FileSize;
// files are never changed afterwards, nor removed: archive them, if at all, from
// the oldest on, and Verify begins with what is left (it says so).
//
// # Lines
//
// A line is the JSON of an Entry in the order of its fields, without spaces,
// ended by one newline. It is canonical: decoding and encoding gives the same
// bytes, and Verify refuses any other. The last two fields are the chain, in
// lower-case hexadecimal:
//
//	prev  the hash of the entry before; of entry 1 64 zeros
//	hash  SHA-256 of the 32 bytes of prev, followed by the line without its
//	      newline and with 64 zeros for "hash"
//
// The chain goes on over the files. It does not show that lines are missing at
// the very end, or that everything was written anew: note the head elsewhere
// from time to time, and give it to Verify later.
//
// # Crashes and damage
//
// Append returns when the entry is fsynced. A crash in the middle of it leaves a
// last line without its end: Open cuts that, and records having done so (kind
// "ledger-torn", with length and SHA-256 of what was cut). A line that is
// complete and wrong is damage: nothing is changed, a new file is begun, and its
// first entry says what was found (kind "ledger-damaged"); Verify names the
// broken line from then on.
package ledger
