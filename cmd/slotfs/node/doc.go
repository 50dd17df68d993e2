// Package node is a running slotfs node: it joins what the other packages do.
//
//	config ─► Node ─┬─ per slot: meta.Slot (tree, log, index)
//	                │            repl.Member (role) ── hooks ─► fs.FS (mount)
//	                ├─ gossip.Gossip ── addresses, roles ─► members
//	                ├─ repl.Server (other nodes come in here, over TLS)
//	                └─ admin socket, metrics
//
// # Start and stop
//
// [Node.Open] checks and opens everything in this order, and undoes all of it
// if one step fails, so that a node is never half there: the config against the
// machine; the sockets; every slot (recovery runs here); gossip, where a name
// that is taken ends the start. Only [Node.Run] lets members take roles, and so
// mounts anything.
//
// The end is the reverse: members first, because a primary needs its replicas
// to commit what it accepted and a replica is wanted until the last moment;
// they run on_demote and unmount. Then gossip says goodbye, connections and
// slots are closed.
//
// # Hooks
//
// on_promote runs after the mount is there, and does not hold up replication: a
// mail server that starts may well wait for a barrier. on_demote runs before
// changes are refused, so that the server can end in good order, and is waited
// for. on_degraded runs on a primary that is left alone in its in-sync set, and
// when it is alone no more; after on_promote, never instead of it. Hooks of one
// store never run at the same time; on_demote ends one that still runs for the
// primary. A failed hook is reported, and changes no role.
//
// # Locks
//
// Slot.change is held while the mount is made or ended, Slot.hook while a hook
// runs. Slot.mu guards the fields; it is never held while waiting. They are
// taken in this order.
package node
