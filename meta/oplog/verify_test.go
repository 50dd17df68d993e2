package oplog

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/meta/op"
)

// flipByte damages a file that is open.
func flipByte(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func unpaced(int) error { return nil }

// Damage anywhere in a running log is found, and mended with what another slot
// sends; nothing else is accepted in its place.
func TestVerifyAndMend(t *testing.T) {
	dir := t.TempDir()
	l := primary(t, dir, Options{SegmentSize: 64 << 10})
	var all []*op.Entry
	for i := range 300 {
		all = append(all, add(t, l, write(1000+i)))
		if i%5 == 0 {
			durable(t, l)
		}
	}
	durable(t, l)
	if d, err := l.Verify(context.Background(), unpaced); err != nil || len(d) > 0 {
		t.Fatal(d, err)
	}
	list := batches(t, dir)
	if n := len(files(t, dir)); n < 4 {
		t.Fatalf("only %d segments", n)
	}
	for _, c := range []struct {
		name string
		of   batch
		at   int64 // within the batch
	}{
		{"head", list[0], 20},
		{"first entries", list[1], batchHeaderSize + 100},
		{"middle", list[len(list)/2], batchHeaderSize + 50},
		{"header in the middle", list[len(list)/2+1], 30},
		{"last", list[len(list)-1], batchHeaderSize + 30},
		{"header of the first segment", list[0], 20 - list[0].off},
		{"header of the last segment", list[len(list)-1], 40 - list[len(list)-1].off},
	} {
		t.Run(c.name, func(t *testing.T) {
			flipByte(t, c.of.path, c.of.off+c.at)
			d, err := l.Verify(context.Background(), unpaced)
			if err != nil || len(d) != 1 || d[0].From > c.of.header.first || c.at >= 0 && d[0].Next < c.of.header.last()+1 {
				t.Fatalf("found %v, %v; batch is %+v", d, err, c.of.header)
			}
			if c.at < 0 && d[0].Next != d[0].From {
				t.Errorf("entries are lost with a header: %v", d)
			}
			if d[0].Next > d[0].From {
				if err := l.Mend(d[0].Path, nil); err == nil {
					t.Error("mended with nothing")
				}
				wrong := op.NewEntry(op.Pos{Epoch: 1, Seq: d[0].From - 1, Chain: 7}, 1, 1, write(3))
				if err := l.Mend(d[0].Path, []*op.Entry{wrong}); err == nil {
					t.Error("mended with what does not fit")
				}
			}
			var sent []*op.Entry
			for seq := d[0].From; seq < d[0].Next; seq++ {
				if seq == 1 {
					e, err := l.Read(1, 1) // memory has it
					if err != nil {
						t.Fatal(err)
					}
					sent = append(sent, e[0])
					continue
				}
				sent = append(sent, all[seq-2])
			}
			if err := l.Mend(d[0].Path, sent); err != nil {
				t.Fatal(err)
			}
			if d, err := l.Verify(context.Background(), unpaced); err != nil || len(d) > 0 {
				t.Errorf("afterwards: %v, %v", d, err)
			}
			add(t, l, write(10))
			durable(t, l)
		})
	}
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, n := range names {
		if strings.HasSuffix(n.Name(), ".damaged") {
			kept++
		}
	}
	if kept != keepDamaged {
		t.Errorf("%d damaged segments kept, want %d", kept, keepDamaged)
	}
	last := l.Last()
	closeLog(t, l)
	l = open(t, dir, Options{SegmentSize: 64 << 10})
	if l.Last() != last || l.First() != 1 {
		t.Errorf("reopened: %d to %v, want 1 to %v", l.First(), l.Last(), last)
	}
	next := uint64(1)
	if err := Scan(dir, 0, func(e *op.Entry) error {
		if e.Seq != next || next > 1 && next <= uint64(len(all))+1 && e.After != all[next-2].After {
			t.Errorf("entry %d is %v", next, e.Pos())
		}
		next++
		return nil
	}); err != nil {
		t.Error(err)
	}
	if l.Mend(filepath.Join(dir, "no.log"), nil) != nil {
		t.Error("a segment that was trimmed is no error")
	}
}
