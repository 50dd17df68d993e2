// Slotfs keeps mail under an unmodified IMAP server: every message checksummed,
// a plain file, and on two nodes.
//
// This command is the whole program: "slotfs serve" is the daemon of a node,
// the other verbs administer one. Package node wires the parts together, config
// reads the configuration, pki makes certificates, admin is what goes over the
// admin socket; here is only the command line.
//
// Exit codes are those of package exit, and "slotfs help exit-codes" lists
// them. Results go to standard output, everything else to standard error; with
// --json the output is stable for scripts.
package main
