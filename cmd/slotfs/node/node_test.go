package node

import (
	"testing"

	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/op"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"1234.M5P6.host:2,FS": "1234.M5P6.host:2,FS",
		"Entwürfe":            "Entwürfe",
		"latin1 \xfc":         `latin1 \xfc`,
		"bell\a\x1b[31m":      `bell\x07\x1b[31m`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestHistorian: paths are those of the time of the entry.
func TestHistorian(t *testing.T) {
	h := &historian{names: map[op.ID]meta.Name{}}
	tests := []struct {
		op       op.Op
		what     string
		path, to string
	}{
		{&op.Mkdir{Parent: op.Root, Name: "alice"}, "mkdir", "alice", ""},
		{&op.Put{Parent: 1, Name: "1.x", Sealed: true}, "deliver", "1.x", ""},
		{&op.Rename{ID: 2, OldParent: op.Root, OldName: "alice", NewParent: op.Root, NewName: "bob"}, "rename", "alice", "bob"},
		{&op.Rename{ID: 3, OldParent: 1, OldName: "1.x", NewParent: 2, NewName: "1.x:2,S"}, "flags", "1.x", "bob/1.x:2,S"},
		{&op.Link{ID: 3, Parent: op.Root, Name: "copy"}, "link", "bob/1.x:2,S", "copy"},
		{&op.Create{Parent: 2, Name: "dovecot-uidlist"}, "create", "bob/dovecot-uidlist", ""},
		{&op.Write{ID: 7, Data: []byte("x")}, "write", "bob/dovecot-uidlist", ""},
		{&op.Unlink{ID: 3, Parent: 2, Name: "1.x:2,S"}, "remove", "bob/1.x:2,S", ""},
		{&op.Seal{ID: 7}, "", "", ""},
	}
	for i, tt := range tests {
		l := h.line(&op.Entry{Seq: uint64(i + 2), Op: tt.op})
		if tt.what == "" {
			if l != nil {
				t.Errorf("entry %d is told: %+v", i+2, l)
			}
			continue
		}
		if l.Op != tt.what || l.Path != tt.path || l.To != tt.to {
			t.Errorf("entry %d: got %q %q %q, want %q %q %q", i+2, l.Op, l.Path, l.To, tt.what, tt.path, tt.to)
		}
	}
}

// TestByPrimaries: what the primary says about its replicas counts.
func TestByPrimaries(t *testing.T) {
	id := func(b byte) string { return op.SlotID{b}.String() }
	nodes := []gossip.Member{
		{State: gossip.State{Name: "a", Slots: []gossip.Slot{{Store: "s", StoreID: "x", ID: id(1), Role: "primary", Epoch: 5,
			Members: []string{id(1)}, Peers: []gossip.PeerLag{{ID: id(2), Entries: 7, Bytes: 700}}}}}, Alive: true},
		{State: gossip.State{Name: "b", Slots: []gossip.Slot{{Store: "s", StoreID: "x", ID: id(2), Role: "replica", Epoch: 4, InSync: true}}}},
		{State: gossip.State{Name: "c", Slots: []gossip.Slot{{Store: "s", StoreID: "y", ID: id(3), Role: "replica", Epoch: 1, InSync: true}}}},
	}
	byPrimaries(nodes)
	if b := nodes[1].Slots[0]; b.InSync || b.LagEntries != 7 || b.LagBytes != 700 {
		t.Errorf("the dropped replica: %+v", b)
	}
	if c := nodes[2].Slots[0]; !c.InSync {
		t.Error("another store was touched")
	}
}
