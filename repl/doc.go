// Package repl replicates a store: roles, the stream of entries, resync, and
// the fetching of good content for repair.
package repl
