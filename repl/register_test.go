package repl

import (
	"errors"
	"testing"

	"slotfs/meta"
	"slotfs/meta/op"
)

func TestRecordCheck(t *testing.T) {
	a, b := op.SlotID{1}, op.SlotID{2}
	good := func() Record {
		return Record{Version: RecordVersion, Store: meta.StoreID{9}, Epoch: 3, Primary: a, InSync: []op.SlotID{a, b}, Nonce: Nonce{7}}
	}
	r := good()
	if err := r.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Record){
		"newer version":            func(r *Record) { r.Version = RecordVersion + 1 },
		"no version":               func(r *Record) { r.Version = 0 },
		"no store":                 func(r *Record) { r.Store = meta.StoreID{} },
		"no epoch":                 func(r *Record) { r.Epoch = 0 },
		"no primary":               func(r *Record) { r.Primary = op.SlotID{} },
		"no nonce":                 func(r *Record) { r.Nonce = Nonce{} },
		"primary not in the set":   func(r *Record) { r.InSync = []op.SlotID{b} },
		"no set":                   func(r *Record) { r.InSync = nil },
		"slot twice in the set":    func(r *Record) { r.InSync = []op.SlotID{a, b, b} },
		"empty slot id in the set": func(r *Record) { r.InSync = []op.SlotID{a, {}} },
	} {
		r := good()
		spoil(&r)
		if err := r.Check(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
