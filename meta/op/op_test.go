package op_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cespare/xxhash/v2"

	"slotfs/meta/op"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew: a change of the format")

// samples has one operation of every kind, with every field set.
func samples() []op.Op {
	attr := op.Attr{Mode: 0o100640, UID: 1000, GID: 100, Mtime: 1700000000123456789, Xattr: map[string][]byte{
		"user.b": []byte("two"), "user.a": nil, "user.c": {0, 255},
	}}
	data := []byte("From: a@example.com\r\n\r\nhello\r\n")
	slot := func(b byte) (s op.SlotID) {
		for i := range s {
			s[i] = b + byte(i)
		}
		return s
	}
	return []op.Op{
		&op.EpochBegin{Epoch: 7, Primary: slot(1), Members: []op.SlotID{slot(1), slot(32)}, Nonce: slot(64), Store: slot(96), Reason: "promoted by operator"},
		&op.Mkdir{Parent: 1, Name: "cur", Attr: attr},
		&op.Create{Parent: 2, Name: "link", Attr: attr, Target: "../somewhere", Rdev: 259},
		&op.Put{Parent: 3, Name: "1700000000.M1P2.host:2,S", Attr: attr, Sum: op.SumOf(data), Sealed: true, Victim: 12, Data: data},
		&op.Chunk{Stage: 55, Off: 4 << 20, Data: []byte("chunk")},
		&op.Write{ID: 9, Off: 4096, Data: []byte("uidlist")},
		&op.Truncate{ID: 9, Size: 12},
		&op.Fallocate{ID: 9, Mode: 3, Off: 8192, Len: 4096},
		&op.SetAttr{ID: 9, Valid: op.SetMode | op.SetUID | op.SetGID | op.SetMtime, Mode: 0o600, UID: 1, GID: 2, Mtime: -5},
		&op.SetXattr{ID: 9, Name: "user.x", Value: []byte("value")},
		&op.Link{ID: 9, Parent: 3, Name: "other", Victim: 8},
		&op.Rename{ID: 9, OldParent: 3, OldName: "a", NewParent: 4, NewName: "b:2,S", Victim: 10, Exchange: true},
		&op.Unlink{ID: 9, Parent: 4, Name: "b:2,S"},
		&op.Seal{ID: 9, Of: 44, Sum: op.BlockSumOf(data)},
		&op.Checkpoint{At: 45, Digest: op.Digest{1, math.MaxUint64}},
	}
}

// chain makes entries of ops, one after the other.
func chain(ops []op.Op) []*op.Entry {
	var pos op.Pos
	es := make([]*op.Entry, 0, len(ops))
	for i, o := range ops {
		e := op.NewEntry(pos, 3, 1700000000000000000+int64(i), o)
		es = append(es, e)
		pos = e.Pos()
	}
	return es
}

// TestGolden pins the format: it may not change under its version number.
func TestGolden(t *testing.T) {
	const path = "testdata/golden.txt"
	var got strings.Builder
	for _, e := range chain(samples()) {
		fmt.Fprintf(&got, "%v %x\n", e.Op.Kind(), e.Raw)
	}
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the encoding has changed:\ngot\n%s\nwant\n%s", got.String(), want)
	}
	// What was written once must be readable for ever.
	ops := samples()
	sc := bufio.NewScanner(bytes.NewReader(want))
	for i := 0; sc.Scan(); i++ {
		_, text, _ := strings.Cut(sc.Text(), " ")
		raw, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		e, err := op.Decode(raw)
		if err != nil {
			t.Errorf("golden entry %d: %v", i, err)
			continue
		}
		same(t, e.Op, ops[i])
	}
}

// same compares operations; an attribute's nil value is an empty one.
func same(t *testing.T, got, want op.Op) {
	t.Helper()
	if !reflect.DeepEqual(norm(got), norm(want)) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func norm(o op.Op) op.Op {
	fix := func(a *op.Attr) {
		a.Xattr = maps.Clone(a.Xattr)
		if len(a.Xattr) == 0 {
			a.Xattr = nil
		}
		for k, v := range a.Xattr {
			a.Xattr[k] = append([]byte{}, v...)
		}
	}
	some := func(b *[]byte) {
		if len(*b) == 0 {
			*b = nil
		}
	}
	switch o := o.(type) {
	case *op.Mkdir:
		c := *o
		fix(&c.Attr)
		return &c
	case *op.Create:
		c := *o
		fix(&c.Attr)
		return &c
	case *op.Put:
		c := *o
		fix(&c.Attr)
		some(&c.Data)
		return &c
	case *op.Chunk:
		c := *o
		some(&c.Data)
		return &c
	case *op.Write:
		c := *o
		some(&c.Data)
		return &c
	case *op.SetXattr:
		c := *o
		some(&c.Value)
		return &c
	}
	return o
}

func TestRoundTrip(t *testing.T) {
	var pos op.Pos
	for i, e := range chain(samples()) {
		if e.Before != pos.Chain || e.Seq != pos.Seq+1 {
			t.Fatalf("%v: does not continue %v", e.Op.Kind(), pos)
		}
		pos = e.Pos()
		got, err := op.Decode(bytes.Clone(e.Raw))
		if err != nil {
			t.Fatalf("%v: %v", e.Op.Kind(), err)
		}
		if !reflect.DeepEqual(got, e) {
			t.Errorf("%v:\ngot  %+v\nwant %+v", e.Op.Kind(), got, e)
		}
		same(t, e.Op, samples()[i])
	}
}

// TestEveryKind finds a kind that somebody forgot in a table.
func TestEveryKind(t *testing.T) {
	var kinds []op.Kind
	for _, o := range samples() {
		kinds = append(kinds, o.Kind())
		if strings.HasPrefix(o.Kind().String(), "kind-") {
			t.Errorf("kind %d has no name", uint8(o.Kind()))
		}
	}
	slices.Sort(kinds)
	for i, k := range kinds {
		if int(k) != i+1 {
			t.Errorf("kind %d is missing in samples", i+1)
		}
	}
	if k := op.Kind(len(kinds) + 1); k.String() != fmt.Sprintf("kind-%d", len(kinds)+1) {
		t.Errorf("kind %v is not in samples", k)
	}
}

// TestNewEntryCopies: an entry is immutable, whatever the caller does to its
// own buffers.
func TestNewEntryCopies(t *testing.T) {
	data := []byte("0123456789")
	e := op.NewEntry(op.Pos{}, 1, 1, &op.Write{ID: 1, Data: data})
	clear(data)
	w := e.Op.(*op.Write)
	if string(w.Data) != "0123456789" {
		t.Fatalf("data is %q", w.Data)
	}
	if &w.Data[0] != &e.Raw[len(e.Raw)-10] {
		t.Error("data does not share memory with Raw")
	}
	if cap(w.Data) != len(w.Data) {
		t.Error("an append to data could write into Raw")
	}
}

// TestFlippedBits: no changed byte goes unnoticed.
func TestFlippedBits(t *testing.T) {
	for _, e := range chain(samples()) {
		for i := range e.Raw {
			raw := bytes.Clone(e.Raw)
			raw[i] ^= 1 << (i % 8)
			if _, err := op.Decode(raw); !errors.Is(err, op.ErrCorrupt) {
				t.Fatalf("%v with byte %d flipped: %v", e.Op.Kind(), i, err)
			}
		}
		for i := range e.Raw {
			if _, err := op.Decode(e.Raw[:i:i]); !errors.Is(err, op.ErrCorrupt) {
				t.Fatalf("%v of %d bytes: %v", e.Op.Kind(), i, err)
			}
		}
		if _, err := op.Decode(append(bytes.Clone(e.Raw), 0)); !errors.Is(err, op.ErrCorrupt) {
			t.Fatalf("%v with a byte more: %v", e.Op.Kind(), err)
		}
	}
}

func TestInvalid(t *testing.T) {
	long := strings.Repeat("x", 256)
	many := make(map[string][]byte)
	for i := range op.MaxXattrs + 1 {
		many[fmt.Sprint("user.", i)] = nil
	}
	xattr := func(m map[string][]byte) op.Attr { return op.Attr{Xattr: m} }
	for name, o := range map[string]op.Op{
		"empty name":          &op.Mkdir{Parent: 1},
		"long name":           &op.Mkdir{Parent: 1, Name: long},
		"very long name":      &op.Mkdir{Parent: 1, Name: strings.Repeat(long, 300)},
		"dot":                 &op.Mkdir{Parent: 1, Name: "."},
		"dot dot":             &op.Unlink{ID: 4, Parent: 1, Name: ".."},
		"slash":               &op.Rename{ID: 4, OldParent: 1, OldName: "a", NewParent: 1, NewName: "../../etc/passwd"},
		"NUL":                 &op.Link{ID: 4, Parent: 1, Name: "a\x00b"},
		"no parent":           &op.Mkdir{Name: "a"},
		"no id":               &op.Truncate{Size: 1},
		"negative size":       &op.Truncate{ID: 4, Size: -1},
		"negative offset":     &op.Write{ID: 4, Off: -1},
		"overflow":            &op.Write{ID: 4, Off: math.MaxInt64, Data: []byte("a")},
		"fallocate overflow":  &op.Fallocate{ID: 4, Off: math.MaxInt64, Len: 1},
		"long data":           &op.Write{ID: 4, Data: make([]byte, op.ChunkSize+1)},
		"huge data":           &op.Write{ID: 4, Data: make([]byte, op.MaxEntry)},
		"put of less":         &op.Put{Parent: 1, Name: "a", Sum: op.SumOf([]byte("ab")), Data: []byte("a")},
		"put of stage, data":  &op.Put{Parent: 1, Name: "a", Sum: op.SumOf([]byte("a")), Data: []byte("a"), Stage: 4},
		"put without blocks":  &op.Put{Parent: 1, Name: "a", Sum: op.Sum{Size: 1}, Stage: 4},
		"seal without blocks": &op.Seal{ID: 4, Sum: op.Sum{Size: op.BlockSize + 1, Blocks: []uint64{1}}},
		"unknown attribute":   &op.SetAttr{ID: 4, Valid: 1 << 20},
		"exchange nothing":    &op.Rename{ID: 4, OldParent: 1, OldName: "a", NewParent: 1, NewName: "b", Exchange: true},
		"long target":         &op.Create{Parent: 1, Name: "a", Target: strings.Repeat("x", 4096)},
		"target over u16":     &op.Create{Parent: 1, Name: "a", Target: strings.Repeat("x", 1<<16+3)},
		"long reason":         &op.EpochBegin{Epoch: 1, Reason: strings.Repeat("x", 1025)},
		"many members":        &op.EpochBegin{Epoch: 1, Members: make([]op.SlotID, 65)},
		"members over u16":    &op.EpochBegin{Epoch: 1, Members: make([]op.SlotID, 1<<16+1)},
		"many xattrs":         &op.Mkdir{Parent: 1, Name: "a", Attr: xattr(many)},
		"long xattr name":     &op.SetXattr{ID: 4, Name: long},
		"long xattr value":    &op.SetXattr{ID: 4, Name: "user.a", Value: make([]byte, 1<<16+1)},
		"empty xattr name":    &op.Mkdir{Parent: 1, Name: "a", Attr: xattr(map[string][]byte{"": nil})},
		"NUL in xattr name":   &op.Mkdir{Parent: 1, Name: "a", Attr: xattr(map[string][]byte{"user.\x00": nil})},
	} {
		if _, err := op.NewDraft(o); !errors.Is(err, op.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSmuggledName: bytes past a length field's range must not become other
// fields of the operation.
func TestSmuggledName(t *testing.T) {
	// 256 + 3 bytes: a length of 3 if it were cut to its low bits, and then what
	// follows could be a whole attr, and the end of the payload.
	name := "abc" + strings.Repeat("\x01", 256)
	for _, o := range []op.Op{
		&op.Mkdir{Parent: 1, Name: name},
		&op.Unlink{ID: 1, Parent: 1, Name: name},
		&op.SetXattr{ID: 1, Name: name},
	} {
		if _, err := op.NewDraft(o); err == nil {
			t.Errorf("%v accepted", o.Kind())
		}
	}
}

// TestHostileLengths: a good checksum proves nothing about who made an entry.
func TestHostileLengths(t *testing.T) {
	for _, e := range chain(samples()) {
		for at := op.HeaderSize; at+4 <= len(e.Raw); at++ {
			raw := bytes.Clone(e.Raw)
			binary.BigEndian.PutUint32(raw[at:], math.MaxUint32)
			resum(raw)
			if got, err := op.Decode(raw); err == nil && !bytes.Equal(op.NewEntry(op.Pos{Seq: e.Seq - 1, Chain: e.Before}, e.Epoch, e.Time, got.Op).Raw, raw) {
				t.Errorf("%v with 0xffffffff at %d: not canonical", e.Op.Kind(), at)
			}
		}
	}
}

// resum makes all checksums of raw right.
func resum(raw []byte) {
	if len(raw) < op.HeaderSize {
		return
	}
	payload := xxhash.Sum64(raw[op.HeaderSize:])
	var b [41]byte
	copy(b[0:], raw[32:40])
	copy(b[8:], raw[8:32])
	b[32] = raw[5]
	binary.BigEndian.PutUint64(b[33:], payload)
	binary.BigEndian.PutUint64(raw[40:], xxhash.Sum64(b[:]))
	binary.BigEndian.PutUint64(raw[48:], payload)
	binary.BigEndian.PutUint64(raw[56:], xxhash.Sum64(raw[:56]))
}

func TestNewVersion(t *testing.T) {
	raw := bytes.Clone(chain(samples())[0].Raw)
	raw[4]++
	resum(raw)
	if _, err := op.Decode(raw); !errors.Is(err, op.ErrVersion) || !errors.Is(err, op.ErrCorrupt) {
		t.Fatal(err)
	}
}

// FuzzDecode: whatever decodes is canonical, and nothing panics or allocates
// without bound.
func FuzzDecode(f *testing.F) {
	for _, e := range chain(samples()) {
		f.Add(e.Raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) >= op.HeaderSize {
			raw = bytes.Clone(raw)
			binary.BigEndian.PutUint32(raw, uint32(len(raw)))
			raw[4], raw[6], raw[7] = op.Version, 0, 0
			resum(raw)
		}
		e, err := op.Decode(raw)
		if err != nil {
			if !errors.Is(err, op.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again := op.NewEntry(op.Pos{Epoch: 0, Seq: e.Seq - 1, Chain: e.Before}, e.Epoch, e.Time, e.Op)
		if !bytes.Equal(again.Raw, raw) {
			t.Fatalf("not canonical:\n%x\n%x", raw, again.Raw)
		}
	})
}

func TestSum(t *testing.T) {
	for _, n := range []int{0, 1, op.BlockSize - 1, op.BlockSize, op.BlockSize + 1, 3 * op.BlockSize, 3*op.BlockSize + 5} {
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i*7 + i>>20)
		}
		s := op.SumOf(data)
		r, err := op.SumReader(iotest.HalfReader(bytes.NewReader(data)))
		if err != nil || !reflect.DeepEqual(r, s) {
			t.Errorf("%d bytes: SumReader %+v, %v; SumOf %+v", n, r, err, s)
		}
		b, err := op.BlockSumReader(bytes.NewReader(data))
		if err != nil || !b.Equal(s) || !s.Equal(b) || b.SHA256 != [32]byte{} {
			t.Errorf("%d bytes: block sum %+v, %v", n, b, err)
		}
		if want := (n + op.BlockSize - 1) / op.BlockSize; len(s.Blocks) != want {
			t.Errorf("%d bytes: %d blocks, want %d", n, len(s.Blocks), want)
		}
		for i := range s.Blocks {
			blk := data[i*op.BlockSize : min((i+1)*op.BlockSize, n)]
			if !s.VerifyBlock(i, blk) || s.VerifyBlock(i+1, blk) && len(s.Blocks) > i+1 || s.VerifyBlock(i, blk[1:]) {
				t.Errorf("%d bytes: block %d", n, i)
			}
		}
		if !s.Verify(data) || s.VerifyBlock(len(s.Blocks), nil) || s.VerifyBlock(-1, nil) || s.Verify(append(data, 0)) {
			t.Errorf("%d bytes: verify", n)
		}
		if n > 0 {
			data[n-1]++
			if s.Verify(data) || s.Equal(op.SumOf(data)) {
				t.Errorf("%d bytes: changed content verifies", n)
			}
		}
	}
	one := op.SumOf([]byte("a"))
	if one.XXH() != one.Blocks[0] || op.SumOf(nil).XXH() != xxhash.Sum64(nil) {
		t.Error("XXH of one block or none")
	}
	two := op.SumOf(make([]byte, op.BlockSize+1))
	b := binary.BigEndian.AppendUint64(nil, two.Blocks[0])
	if two.XXH() != xxhash.Sum64(binary.BigEndian.AppendUint64(b, two.Blocks[1])) {
		t.Error("XXH of two blocks")
	}
	boom := errors.New("boom")
	if _, err := op.SumReader(iotest.ErrReader(boom)); !errors.Is(err, boom) {
		t.Error(err)
	}
}

func TestSlotID(t *testing.T) {
	s := op.SlotID{1, 2, 0xff}
	got, err := op.ParseSlotID(s.String())
	if err != nil || got != s || s.IsZero() || !(op.SlotID{}).IsZero() {
		t.Fatal(got, err)
	}
	for _, bad := range []string{"", "zz", s.String()[2:], s.String() + "00"} {
		if _, err := op.ParseSlotID(bad); err == nil {
			t.Errorf("%q parsed", bad)
		}
	}
}

func TestDigest(t *testing.T) {
	var d op.Digest
	a, b := op.Digest{math.MaxUint64, 2}, op.Digest{5, math.MaxUint64}
	d.Add(a)
	d.Add(b)
	d.Sub(a)
	if d != b {
		t.Fatal(d)
	}
}

func BenchmarkNewEntry(b *testing.B) {
	data := make([]byte, 20<<10)
	put := &op.Put{Parent: 3, Name: "1700000000.M1P2.host:2,S", Sum: op.BlockSumOf(data), Data: data}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		op.NewEntry(op.Pos{}, 1, 1, put)
	}
}
