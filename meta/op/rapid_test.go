package op_test

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"slotfs/meta/op"
)

var (
	genName  = rapid.StringMatching(`[ -.0-~]{1,80}`).Filter(op.ValidName)
	genID    = rapid.Custom(func(t *rapid.T) op.ID { return op.ID(rapid.Uint64Min(1).Draw(t, "id")) })
	genData  = rapid.SliceOfN(rapid.Byte(), 0, 300)
	genSlot  = rapid.Custom(func(t *rapid.T) op.SlotID { return op.SlotID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "slot")) })
	genOff   = rapid.Int64Range(0, 1<<50)
	genXattr = rapid.MapOfN(rapid.StringMatching(`user\.[a-z]{1,8}`), genData, 0, 4)
	genAttr  = rapid.Custom(func(t *rapid.T) op.Attr {
		return op.Attr{Mode: rapid.Uint32().Draw(t, "mode"), UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"),
			Mtime: rapid.Int64().Draw(t, "mtime"), Xattr: genXattr.Draw(t, "xattr")}
	})
)

// genOp draws an operation that a correct slot may log.
func genOp(t *rapid.T) op.Op {
	id := func() op.ID { return genID.Draw(t, "id") }
	name := func() string { return genName.Draw(t, "name") }
	data := genData.Draw(t, "data")
	switch op.Kind(rapid.IntRange(1, int(op.KindCheckpoint)).Draw(t, "kind")) {
	case op.KindEpochBegin:
		return &op.EpochBegin{Epoch: rapid.Uint64().Draw(t, "epoch"), Primary: genSlot.Draw(t, "primary"),
			Members: rapid.SliceOfN(genSlot, 1, 4).Draw(t, "members"), Nonce: genSlot.Draw(t, "nonce"), Store: genSlot.Draw(t, "store"), Reason: name()}
	case op.KindMkdir:
		return &op.Mkdir{Parent: id(), Name: name(), Attr: genAttr.Draw(t, "attr")}
	case op.KindCreate:
		return &op.Create{Parent: id(), Name: name(), Attr: genAttr.Draw(t, "attr"), Target: name(), Rdev: rapid.Uint32().Draw(t, "rdev")}
	case op.KindPut:
		return &op.Put{Parent: id(), Name: name(), Attr: genAttr.Draw(t, "attr"), Sum: op.SumOf(data), Sealed: rapid.Bool().Draw(t, "sealed"), Victim: id(), Data: data}
	case op.KindChunk:
		return &op.Chunk{Stage: rapid.Uint64().Draw(t, "stage"), Off: genOff.Draw(t, "off"), Data: data}
	case op.KindWrite:
		return &op.Write{ID: id(), Off: genOff.Draw(t, "off"), Data: data}
	case op.KindTruncate:
		return &op.Truncate{ID: id(), Size: genOff.Draw(t, "size")}
	case op.KindFallocate:
		return &op.Fallocate{ID: id(), Mode: rapid.Uint32().Draw(t, "mode"), Off: genOff.Draw(t, "off"), Len: genOff.Draw(t, "len")}
	case op.KindSetAttr:
		return &op.SetAttr{ID: id(), Valid: rapid.Uint32Range(0, 15).Draw(t, "valid"), Mode: rapid.Uint32().Draw(t, "mode"),
			UID: rapid.Uint32().Draw(t, "uid"), GID: rapid.Uint32().Draw(t, "gid"), Mtime: rapid.Int64().Draw(t, "mtime")}
	case op.KindSetXattr:
		return &op.SetXattr{ID: id(), Name: name(), Value: data, Remove: rapid.Bool().Draw(t, "remove")}
	case op.KindLink:
		return &op.Link{ID: id(), Parent: id(), Name: name(), Victim: op.ID(rapid.Uint64().Draw(t, "victim"))}
	case op.KindRename:
		return &op.Rename{ID: id(), OldParent: id(), OldName: name(), NewParent: id(), NewName: name(), Victim: id(), Exchange: rapid.Bool().Draw(t, "exchange")}
	case op.KindUnlink:
		return &op.Unlink{ID: id(), Parent: id(), Name: name()}
	case op.KindSeal:
		return &op.Seal{ID: id(), Of: rapid.Uint64().Draw(t, "of"), Sum: op.BlockSumOf(data)}
	default:
		return &op.Checkpoint{At: rapid.Uint64().Draw(t, "at"), Digest: op.Digest{rapid.Uint64().Draw(t, "lo"), rapid.Uint64().Draw(t, "hi")}}
	}
}

// TestRapidRoundTrip: Decode∘Encode is the identity, Encode∘Decode too, and
// equal operations have equal bytes.
func TestRapidRoundTrip(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		prev := op.Pos{Epoch: 1, Seq: rapid.Uint64Range(0, 1<<60).Draw(r, "seq"), Chain: rapid.Uint64().Draw(r, "chain")}
		epoch, now := rapid.Uint64().Draw(r, "epoch"), rapid.Int64().Draw(r, "time")
		o := genOp(r)
		e := op.NewEntry(prev, epoch, now, o)
		if e.Seq != prev.Seq+1 || e.Before != prev.Chain || e.Epoch != epoch || e.Time != now {
			r.Fatalf("misplaced: %+v", e)
		}
		same(t, e.Op, o)
		d, err := op.Decode(bytes.Clone(e.Raw))
		if err != nil {
			r.Fatal(err)
		}
		if !reflect.DeepEqual(d, e) {
			r.Fatalf("got %+v, want %+v", d, e)
		}
		if again := op.NewEntry(prev, epoch, now, d.Op); !bytes.Equal(again.Raw, e.Raw) {
			r.Fatal("encodings differ")
		}
	})
}
