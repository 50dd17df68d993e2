// Package workload writes to a Maildir as a mail server does and knows,
// whenever the server or its machine is killed, what may and what must be
// there afterwards.
//
// A [Writer] works alone in a directory of its own, one call after another. It
// keeps a model: the state that its directory had when everything so far was
// certainly on stable storage, and the steps since then. After a crash the
// directory must hold the state after some prefix of the steps: slotfs keeps
// one history, and what a slot holds is the result of a prefix of it. How
// short the prefix may be depends on who died:
//
//	Durable   everything up to the last barrier: also if all nodes died
//	Received  everything up to the last answered write to a control file, or
//	          barrier: if one node of the in-sync set lives
//	Answered  everything that was answered: if the primary lives
//
// The call that was under way may have happened or not. Each step is one call
// that the store must make all or nothing; what a step needs before it (a file
// in tmp/, a lock file) is volatile, vanishes with a crash, and is no part of
// the state.
package workload
