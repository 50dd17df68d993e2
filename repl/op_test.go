package repl

import (
	"os"
	"path/filepath"
	"testing"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

func mkdirOp(name string) op.Op {
	return &op.Mkdir{Parent: op.Root, Name: name, Attr: op.Attr{Mode: 0o40755}}
}

// rescued counts the entries in a node's rescue files.
func rescued(t *testing.T, n *node) (count int) {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(n.dir, "rescue"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, f := range files {
		if filepath.Ext(f.Name()) != ".log" {
			continue
		}
		err := oplog.ScanFile(filepath.Join(n.dir, "rescue", f.Name()), func(*op.Entry) error { count++; return nil })
		if err != nil {
			t.Errorf("scan %s: %v", f.Name(), err)
		}
	}
	return count
}
