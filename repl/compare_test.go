package repl

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"

	"slotfs/meta"
	"slotfs/meta/op"
)

// auditEntries is a directory of n files, in order of name.
func auditEntries(n int) (list []meta.AuditEntry) {
	for i := range n {
		list = append(list, meta.AuditEntry{Name: fmt.Appendf(nil, "m%05d", i), ID: op.ID(10 + i), Sum: op.Digest{1, uint64(i)}})
	}
	return list
}

// compareWithReplies compares a directory of this slot with what a peer says of its
// own; the peer says the same to every question once its replies are used up.
func compareWithReplies(t *testing.T, own []meta.AuditEntry, replies ...compareReply) (*Comparison, error) {
	asked := 0
	d := &differ{
		entries: func(op.ID) ([]meta.AuditEntry, error) { return slices.Clone(own), nil },
		path:    func(op.ID) (string, error) { return "", nil },
		ask: func(q compareRequest) (*compareReply, error) {
			if asked++; asked > 10_000 {
				t.Fatal("asks for ever")
			}
			a := replies[min(asked, len(replies))-1]
			return &a, nil
		},
		most: uint64(len(own)), here: "a", there: "b", out: &Comparison{},
	}
	err := d.dir(t.Context(), op.Root, "", op.Digest{1}, op.Digest{2})
	return d.out, err
}

func TestCompareDirectory(t *testing.T) {
	own := auditEntries(5)
	other := slices.Clone(own)
	other[1].Sum[0]++
	other[2].ID++
	other = append(slices.Delete(other, 3, 4), meta.AuditEntry{Name: []byte("z"), ID: 99})
	out, err := compareWithReplies(t, own, compareReply{Entries: other[:2], More: true}, compareReply{Entries: other[2:]})
	if err != nil {
		t.Fatal(err)
	}
	want := []Difference{{11, "m00001", "attributes or checksum differ"}, {12, "m00002", "id 12 on a, id 13 on b"}, {13, "m00003", "only on a"}, {99, "z", "only on b"}}
	if !slices.Equal(out.Differences, want) {
		t.Errorf("differences %+v, want %+v", out.Differences, want)
	}
	// A peer that never comes to an end.
	if _, err := compareWithReplies(t, own, compareReply{Entries: own, More: true}); !errors.Is(err, ErrWire) {
		t.Errorf("endless entries: %v", err)
	}
	if _, err := compareWithReplies(t, own, compareReply{More: true}); err != nil {
		t.Errorf("more of nothing: %v", err)
	}
}

// FuzzCompareReply takes any answer of a peer to a question for a directory:
// comparing ends, and names nothing but what one of the two has.
func FuzzCompareReply(f *testing.F) {
	own := auditEntries(6)
	own[3].Dir = true
	for _, a := range []compareReply{{Entries: own}, {Entries: own[2:], More: true}, {Why: "x", None: CodeFailed}} {
		b, err := json.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"entries":[{"name":"bQ==","id":18446744073709551615,"dir":true},{"name":null},{}],"more":true}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var a compareReply
		if json.Unmarshal(text, &a) != nil {
			return
		}
		last := a
		last.More = false
		out, err := compareWithReplies(t, own, a, last)
		if err != nil && !errors.Is(err, ErrWire) {
			t.Error(err)
		}
		if len(out.Differences) > compareMax {
			t.Errorf("%d differences are listed", len(out.Differences))
		}
	})
}

// FuzzCompareRequest asks anything: without a snapshot nothing is answered from
// one, and pages stay within the list.
func FuzzCompareRequest(f *testing.F) {
	for _, q := range []compareRequest{{Dir: 1}, {Dir: 1, From: 3}, {From: -1, Dir: 2}, {}} {
		b, err := json.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var q compareRequest
		if json.Unmarshal(text, &q) != nil {
			return
		}
		if q.At != 0 || q.Testify != 0 || q.Reconsider != 0 || q.Retotal {
			q = compareRequest{Dir: q.Dir, From: q.From} // those are the slot's to answer
		}
		if a, err := (&comparer{}).answer(t.Context(), q); err == nil {
			t.Errorf("%+v is answered without a snapshot: %+v", q, a)
		}
		list := auditEntries(7)
		page, more := pageOf(list, q.From, 3)
		if q.From >= 0 && (len(page) > 3 || more != (q.From+len(page) < len(list)) && len(page) > 0) || q.From < 0 && len(page) > 0 {
			t.Errorf("from %d: %d entries, more %t", q.From, len(page), more)
		}
	})
}

// logFrame is the frame with entries that a peer answers with.
func logFrame(list []*op.Entry) frame {
	body := make([]byte, marksSize)
	for _, e := range list {
		body = append(body, e.Raw...)
	}
	return frame{typ: frameEntries, body: body}
}

// Entries for the log count only if they are those that were asked for, one
// after the other, and whole.
func TestLogEntriesRefused(t *testing.T) {
	list, _ := testEntries(6)
	q := logRange{From: 2, To: 4}
	if got, err := entriesOf(logFrame(list[1:4]), q); err != nil || len(got) != 3 {
		t.Fatalf("%d entries, %v", len(got), err)
	}
	if got, err := entriesOf(logFrame(list[1:2]), q); err != nil || len(got) != 1 {
		t.Errorf("the first of them: %d entries, %v", len(got), err)
	}
	bad := logFrame(list[1:4])
	bad.body[len(bad.body)-1] ^= 1
	data := []byte("not what was delivered")
	sum := op.SumOf(data)
	sum.Blocks[0] ^= 1
	forged := op.NewEntry(list[0].Pos(), 1, 1, &op.Put{Parent: op.Root, Name: "x", Attr: op.Attr{Mode: 0o100600}, Sum: sum, Sealed: true, Data: data})
	for name, f := range map[string]frame{
		"another type":     {typ: frameReply, body: make([]byte, 100)},
		"no marks":         {typ: frameEntries, body: make([]byte, marksSize-1)},
		"half an entry":    {typ: frameEntries, body: logFrame(list[1:3]).body[:marksSize+len(list[1].Raw)+9]},
		"a flipped bit":    bad,
		"from before":      logFrame(list[:3]),
		"from after":       logFrame(list[2:4]),
		"too many":         logFrame(list[1:6]),
		"one is missing":   logFrame([]*op.Entry{list[1], list[3]}),
		"content is wrong": logFrame([]*op.Entry{forged}),
	} {
		if got, err := entriesOf(f, q); err == nil {
			t.Errorf("%s: %d entries were taken", name, len(got))
		}
	}
}

// FuzzLogEntries: whatever comes in a frame, what is taken of it is what was asked
// for, in order, and whole.
func FuzzLogEntries(f *testing.F) {
	list, _ := testEntries(6)
	f.Add(logFrame(list[1:4]).body, uint64(2), uint64(4))
	f.Add(logFrame(list).body, uint64(1), uint64(1<<63))
	f.Add(make([]byte, marksSize+100), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, body []byte, from, to uint64) {
		got, err := entriesOf(frame{typ: frameEntries, body: body}, logRange{from, to})
		if err != nil {
			return
		}
		again := make([]byte, 0, len(body))
		for i, e := range got {
			if e.Seq != from+uint64(i) || e.Seq > to {
				t.Errorf("entry %d of %d to %d", e.Seq, from, to)
			}
			if err := verifyContent(e.Op); err != nil {
				t.Error(err)
			}
			again = append(again, e.Raw...)
		}
		if !bytes.Equal(again, body[min(marksSize, len(body)):]) {
			t.Error("something was left out")
		}
		if !slices.IsSortedFunc(got, func(a, b *op.Entry) int { return cmp.Compare(a.Seq, b.Seq) }) {
			t.Error("out of order")
		}
	})
}
