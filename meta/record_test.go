package meta

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"slotfs/meta/op"
)

func drawInode(t *rapid.T) *Inode {
	n := &Inode{
		ID:      op.ID(rapid.Uint64Range(1, 1<<63).Draw(t, "id")),
		Mode:    rapid.SampledFrom([]uint32{typeDir, typeRegular, typeSymlink, 0o010000}).Draw(t, "type") | rapid.Uint32Range(0, 0o7777).Draw(t, "mode"),
		UID:     rapid.Uint32().Draw(t, "uid"),
		GID:     rapid.Uint32().Draw(t, "gid"),
		Nlink:   rapid.Uint32().Draw(t, "nlink"),
		Rdev:    rapid.Uint32().Draw(t, "rdev"),
		Size:    rapid.Int64Min(0).Draw(t, "size"),
		Mtime:   rapid.Int64().Draw(t, "mtime"),
		Ctime:   rapid.Int64().Draw(t, "ctime"),
		Target:  string(rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "target")),
		Sealed:  rapid.Bool().Draw(t, "sealed"),
		Changed: rapid.Uint64().Draw(t, "changed"),
	}
	if rapid.Bool().Draw(t, "summed") {
		n.Sum = &op.Sum{Size: n.Size, Blocks: rapid.SliceOfN(rapid.Uint64(), 1, 4).Draw(t, "blocks")}
		copy(n.Sum.SHA256[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "sha256"))
	}
	if rapid.Bool().Draw(t, "xattrs") {
		n.Xattr = rapid.MapOfN(rapid.StringMatching(`user\.[a-z]{1,9}`), rapid.SliceOfN(rapid.Byte(), 1, 30), 1, 4).Draw(t, "xattr")
	}
	if n.IsDir() {
		n.Entries = op.Digest{rapid.Uint64().Draw(t, "d0"), rapid.Uint64().Draw(t, "d1")}
		n.Count, n.Bytes = rapid.Uint64().Draw(t, "count"), rapid.Uint64().Draw(t, "bytes")
	}
	for range rapid.IntRange(0, 3).Draw(t, "names") {
		n.Names = append(n.Names, Name{
			Dir:  op.ID(rapid.Uint64().Draw(t, "dir")),
			Name: string(rapid.SliceOfN(rapid.Byte(), 1, 255).Draw(t, "name")),
		})
	}
	return n
}

func TestInodeRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawInode(t)
		b := encodeInode(n)
		got, err := decodeInode(n.ID, b)
		if err != nil || !reflect.DeepEqual(got, n) {
			t.Fatalf("got %+v, %v; want %+v", got, err, n)
		}
		if cost(n) < int64(len(b)+9) {
			t.Fatalf("cost %d of a record of %d", cost(n), len(b))
		}
		for _, cut := range []int{0, 1, len(b) / 2, len(b) - 1} {
			if _, err := decodeInode(n.ID, b[:cut]); !errors.Is(err, errRecord) {
				t.Fatalf("cut to %d: %v", cut, err)
			}
		}
		text, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		var back Inode
		if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(&back, n) {
			t.Fatalf("through JSON %+v, %v; want %+v", back, err, n)
		}
	})
}

func FuzzInodeRecord(f *testing.F) {
	f.Add(encodeInode(&Inode{Mode: typeDir, Names: []Name{{1, "a"}}}))
	f.Add(encodeInode(&Inode{Mode: typeRegular, Sum: &op.Sum{Size: 1, Blocks: []uint64{1}}, Xattr: map[string][]byte{"user.a": {1}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeInode(1, b)
		if err != nil {
			return
		}
		again, err := decodeInode(1, encodeInode(n))
		if err != nil || !reflect.DeepEqual(n, again) {
			t.Errorf("%+v, %v; want %+v", again, err, n)
		}
	})
}

func TestMark(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawInode(t)
		m := markOf(n)
		got, err := decodeMark(m.encode())
		if err != nil || got != m {
			t.Fatalf("got %+v, %v; want %+v", got, err, m)
		}
		if len(m.encode()) > 56 {
			t.Fatal("the mark does not fit into an inode of ext4")
		}
	})
	if _, err := decodeMark([]byte("short")); !errors.Is(err, errNoMark) {
		t.Errorf("short mark: %v", err)
	}
}

// Elements tell apart what must not be taken for the same.
func TestElementsDiffer(t *testing.T) {
	base := func() *Inode {
		return &Inode{ID: 7, Mode: typeRegular | 0o600, UID: 1, GID: 2, Size: 3, Mtime: 4, Sum: &op.Sum{Size: 3, Blocks: []uint64{9}}}
	}
	at := Name{2, "n"}
	seen := map[op.Digest]string{element(at, base()): "base"}
	for what, change := range map[string]func(n *Inode, at *Name){
		"dir":    func(_ *Inode, at *Name) { at.Dir = 3 },
		"name":   func(_ *Inode, at *Name) { at.Name = "m" },
		"id":     func(n *Inode, _ *Name) { n.ID = 8 },
		"mode":   func(n *Inode, _ *Name) { n.Mode ^= 1 },
		"uid":    func(n *Inode, _ *Name) { n.UID = 9 },
		"gid":    func(n *Inode, _ *Name) { n.GID = 9 },
		"size":   func(n *Inode, _ *Name) { n.Size = 9 },
		"mtime":  func(n *Inode, _ *Name) { n.Mtime = 9 },
		"target": func(n *Inode, _ *Name) { n.Target = "t" },
		"xattr":  func(n *Inode, _ *Name) { n.Xattr = map[string][]byte{"user.a": []byte("b")} },
		"xattr2": func(n *Inode, _ *Name) { n.Xattr = map[string][]byte{"user.ab": []byte("")} },
		"sum":    func(n *Inode, _ *Name) { n.Sum = &op.Sum{Size: 3, Blocks: []uint64{10}} },
		"no sum": func(n *Inode, _ *Name) { n.Sum = nil },
	} {
		n, at := base(), at
		change(n, &at)
		d := element(at, n)
		if other, ok := seen[d]; ok {
			t.Errorf("%s equals %s", what, other)
		}
		if d[0] == d[1] {
			t.Errorf("%s: both halves are equal", what)
		}
		seen[d] = what
	}
	n := base()
	n.Ctime, n.Nlink = 5, 6
	if seen[element(at, n)] != "base" {
		t.Error("ctime or nlink counts")
	}
}
