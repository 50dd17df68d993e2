// Package evidence writes and reads signed lists of the messages that a store
// held for one user at one moment. A list is for auditors: plain text that can be
// kept, printed, and held against the store years later.
//
// # Format
//
// UTF-8, lines end with LF. The first line is "slotfs evidence 1". Lines with #
// are for people. Then come, in this order:
//
//	name: value     the head, see Head; every name exactly once, in order
//	columns: …      what the fields of a line are
//	(an empty line)
//	one line per name of a message, fields separated by one tab:
//	  id            number of the message within the store, decimal
//	  size          bytes, decimal
//	  date          mtime = INTERNALDATE, RFC 3339 with nanoseconds, UTC
//	  arrived       when the store took it, the same; of an adopted message when its
//	                checksum was taken, at the latest; - if the log no longer says
//	  how           delivered or adopted
//	  xxh64         of the content, 16 hexadecimal digits (of files over 1 MiB the
//	                combination of their blocks, package op)
//	  sha256        of the content, 64 hexadecimal digits
//	  content       verified: it was read and matches; damaged: it could not be;
//	                removed: it was removed while the list was being made;
//	                unverified: adopted, and the store has no checksum yet: this
//	                one was taken for the list
//	  path          from the store's root
//	  message-id    of its header; may be empty
//	(an empty line)
//	end: number of lines
//	sha256: of all bytes before this line
//	certificate: base64 of the DER certificate of the node that signed
//	signature: base64, Ed25519 by that certificate's key over signedPrefix and all
//	                bytes before this line
//
// path and message-id are written with \\, \t, \n and \xHH for a backslash, a tab,
// a line feed, and every other byte that is not part of printable UTF-8.
//
// # Rules
//
//   - A reader refuses what it does not expect: a line more or less, another
//     order, a field that is not written as Write writes it. So there is one way
//     to write a list, and a change of any byte is noticed, signature apart.
//   - The certificate has to be one of the cluster's CA; that the node has left
//     the cluster since does not matter.
//   - The signature says what the node held then. That nobody has the node's key
//     is for its administrators to see to.
package evidence
