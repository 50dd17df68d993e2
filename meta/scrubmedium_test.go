package meta

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"slotfs/meta/op"
)

// TestMedium: the bytes come from the disk, and what that has is told from what
// memory has.
func TestMedium(t *testing.T) {
	dir := t.TempDir()
	m := newMediumReader()
	media := map[string]bool{}
	for _, size := range []int{0, 1, 4095, 4096, 4097, 1 << 20, 1<<20 + 1, 3<<20 + 5} {
		data := pattern(size)
		path := filepath.Join(dir, "f")
		noErr(t, os.WriteFile(path, data, 0o600))
		f, err := os.Open(path)
		noErr(t, err)
		sum := op.SumOf(data)
		medium, bad, err := m.verify(int(f.Fd()), &sum)
		if bad != nil || err != nil {
			t.Errorf("%d: %v, %v", size, bad, err)
		}
		media[medium] = true
		if got, err := m.sum(int(f.Fd())); err != nil || !got.Equal(sum) || got.SHA256 != sum.SHA256 {
			t.Errorf("%d: %+v, %v", size, got, err)
		}
		for _, wrong := range [][]byte{append(bytes.Clone(data), 'x'), data[:max(0, size-1)]} {
			w := op.SumOf(wrong)
			if _, bad, err := m.verify(int(f.Fd()), &w); (bad == nil) != (len(wrong) == size) || err != nil {
				t.Errorf("%d for %d: %v, %v", size, len(wrong), bad, err)
			}
		}
		f.Close()
	}
	t.Logf("read by %v", slices.Collect(maps.Keys(media)))
}

// TestMediumAtOnce: of many files that are read at once those are whole that are as
// they should be, and no others; also without Linux AIO.
func TestMediumAtOnce(t *testing.T) {
	for _, none := range []bool{false, true} {
		t.Run(fmt.Sprint("without AIO ", none), func(t *testing.T) {
			m := newMediumReader()
			m.reads.none = none
			defer m.reads.close()
			for range 2 { // a reader is used again and again
				mediumAtOnce(t, m)
			}
		})
	}
}

func mediumAtOnce(t *testing.T, m *mediumReader) {
	dir := t.TempDir()
	var files []mediumFile
	var whole []bool
	add := func(have, should []byte) {
		path := filepath.Join(dir, fmt.Sprint(len(files)))
		noErr(t, os.WriteFile(path, have, 0o600))
		f, err := os.Open(path)
		noErr(t, err)
		t.Cleanup(func() { f.Close() })
		sum := op.SumOf(should)
		files = append(files, mediumFile{fd: int(f.Fd()), want: &sum})
		whole = append(whole, bytes.Equal(have, should) && len(should) < op.BlockSize)
	}
	for _, size := range []int{0, 1, 4095, 4096, 4097, 24 << 10, 300 << 10, 1<<20 - 1, 1 << 20, 3<<20 + 5} {
		data := pattern(size)
		add(data, data)
		add(append(bytes.Clone(data), 'x'), data)
		add(append(bytes.Clone(data), make([]byte, 8192)...), data)
		if size > 0 {
			add(data[:size-1], data)
			flipped := bytes.Clone(data)
			flipped[size/2] ^= 1
			add(flipped, data)
		}
	}
	for i := range 2*readsMost + 1 {
		add(pattern(100+i), pattern(100+i))
	}
	bad := op.SumOf(nil)
	files, whole = append(files, mediumFile{fd: -1, want: &bad}), append(whole, false)
	m.verifyAll(files)
	for i, f := range files {
		if f.whole != whole[i] {
			t.Errorf("file %d of %d bytes: %v, should be %v", i, f.want.Size, f.whole, whole[i])
		}
		if f.whole && f.medium == "" {
			t.Errorf("file %d: it does not say how it was read", i)
		}
	}
}

// TestScrubAtOnce: damage to one of the files that are read at once is found, and the
// others are not; every message is counted once.
func TestScrubAtOnce(t *testing.T) {
	const count = 100
	w := newTwins(t, false, func(s *mailSlot) {
		for i := range count {
			s.put(fmt.Sprint("n", i), pattern(1000*i))
		}
	})
	for _, i := range []int{3, 4, 50, 99} {
		rewrite(t, w.a.file(fmt.Sprint("n", i)), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	}
	p, found := scrubbed(t, w.a.Slot, ScrubOptions{})
	want := []string{"content cur/n3 repaired", "content cur/n4 repaired", "content cur/n50 repaired", "content cur/n99 repaired"}
	if !slices.Equal(found, want) {
		t.Errorf("found %q", found)
	}
	if p.Messages != count || p.Bytes != 1000*count*(count-1)/2 {
		t.Errorf("%d messages, %d bytes", p.Messages, p.Bytes)
	}
	if p, found := scrubbed(t, w.a.Slot, ScrubOptions{}); len(found) > 0 || !p.Clean() {
		t.Errorf("again: %q", found)
	}
}
