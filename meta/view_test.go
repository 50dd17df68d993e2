package meta

import (
	"errors"
	"log/slog"
	"testing"

	"slotfs/meta/op"
)

// TestViewPanics: what badger throws while records are read is an error about the
// index, and what is thrown by who is shown the records is not.
func TestViewPanics(t *testing.T) {
	x, err := openIndex(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer x.close()
	for id := op.ID(1); id < 9; id++ {
		x.storeRaw(&Inode{ID: id, Mode: typeRegular | 0o600})
	}
	if err := x.flushRaw(state{}); err != nil {
		t.Fatal(err)
	}

	v := view{x.db.NewTransaction(false)}
	if ids, err := v.inodeIDs(2, 6, 3); err != nil || len(ids) != 3 || ids[0] != 2 {
		t.Errorf("three ids from 2 to 6: %v, %v", ids, err)
	}
	if ids, err := v.inodeIDs(5, 6, 3); err != nil || len(ids) != 2 || ids[1] != 6 {
		t.Errorf("ids 5 and 6: %v, %v", ids, err)
	}
	func() {
		defer func() {
			if p := recover(); p != "ours" {
				t.Errorf("panic %v, want our own", p)
			}
		}()
		v.eachInode(0, func(*Inode) error { panic("ours") })
	}()

	v.txn.Discard()
	var unusable *IndexError
	if err := v.eachInode(0, func(*Inode) error { return nil }); !errors.As(err, &unusable) {
		t.Errorf("records of a view that was given up: %v, want an IndexError", err)
	}
	if _, err := v.inodeIDs(0, 9, 9); !errors.As(err, &unusable) {
		t.Errorf("ids of a view that was given up: %v, want an IndexError", err)
	}
}
