package oplog

import (
	"context"
	"testing"

	"slotfs/meta/op"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.Lead(1, nil)
	if _, err := l.Append(&op.EpochBegin{Epoch: 1}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		e, err := l.Append(&op.Write{ID: 2, Data: make([]byte, 30000)})
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Barrier(context.Background(), e.Seq); err != nil {
			t.Fatal(err)
		}
	}
	last := l.Last()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Last() != last || l.RecoveredCommitted() != 101 {
		t.Fatal(l.Last(), last, l.RecoveredCommitted())
	}
	es, err := l.Read(1, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(len(es), l.First(), l.Size(), l.Epochs())
}
