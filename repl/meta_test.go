package repl

import "slotfs/meta/oplog"

func (n *node) openMeta() (testSlot, *oplog.Log) { panic("later") }
