package repl

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"slotfs/meta/op"
)

// encode makes a frame as a link would.
func encode(t frameType, body []byte, extra []byte) []byte {
	b := make([]byte, headerSize)
	putHeader(b, t, body, len(extra))
	b = append(b, body...)
	return append(b, extra...)
}

func testEntries(n int) (list []*op.Entry, raw []byte) {
	var at op.Pos
	for i := range n {
		data := bytes.Repeat([]byte{byte(i)}, 10*i)
		e := op.NewEntry(at, 1, int64(i+1), &op.Put{Parent: op.Root, Name: "x", Attr: op.Attr{Mode: 0o100600}, Sum: op.SumOf(data), Sealed: true, Data: data})
		list, raw, at = append(list, e), append(raw, e.Raw...), e.Pos()
	}
	return list, raw
}

func TestFrameRoundTrip(t *testing.T) {
	_, raw := testEntries(5)
	marks := make([]byte, marksSize)
	stream := encode(frameEntries, marks, raw)
	stream = append(stream, encode(frameAck, make([]byte, 24), nil)...)
	stream = append(stream, encode(frameContent, nil, nil)...)
	stream = append(stream, encode(frameReply, bytes.Repeat([]byte("x"), 3<<20), nil)...)
	for _, r := range []io.Reader{bytes.NewReader(stream), iotest.OneByteReader(bytes.NewReader(stream))} {
		f := frameReader{r: r}
		for i, want := range []struct {
			t frameType
			n int
		}{{frameEntries, marksSize + len(raw)}, {frameAck, 24}, {frameContent, 0}, {frameReply, 3 << 20}} {
			got, err := f.next()
			if err != nil || got.typ != want.t || len(got.body) != want.n {
				t.Fatalf("frame %d: type %d, %d bytes, %v", i, got.typ, len(got.body), err)
			}
			if i == 0 {
				list, err := splitEntries(got.body[marksSize:], nil)
				if err != nil || len(list) != 5 {
					t.Fatalf("%d entries, %v", len(list), err)
				}
			}
		}
		if _, err := f.next(); err != io.EOF {
			t.Fatalf("after the last frame: %v", err)
		}
	}
}

func TestFrameRefused(t *testing.T) {
	good := encode(frameAck, make([]byte, 24), nil)
	for name, spoil := range map[string]func(b []byte) []byte{
		"version":      func(b []byte) []byte { b[5]++; return b },
		"type 0":       func(b []byte) []byte { b[4] = 0; return b },
		"unknown type": func(b []byte) []byte { b[4] = byte(frameTypes); return b },
		"reserved":     func(b []byte) []byte { b[6] = 1; return b },
		"too long":     func(b []byte) []byte { binary.BigEndian.PutUint32(b, 25); return append(b, 0) },
		"huge":         func(b []byte) []byte { binary.BigEndian.PutUint32(b, 1<<32-1); return b },
		"body":         func(b []byte) []byte { b[20] ^= 1; return b },
		"checksum":     func(b []byte) []byte { b[9] ^= 1; return b },
		"no marks":     func([]byte) []byte { return encode(frameEntries, make([]byte, 8), nil) },
	} {
		f := frameReader{r: bytes.NewReader(spoil(bytes.Clone(good)))}
		if _, err := f.next(); !errors.Is(err, ErrWire) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := frameReader{r: bytes.NewReader(good[:len(good)-1])}
	if _, err := f.next(); err != io.ErrUnexpectedEOF {
		t.Errorf("cut off: %v", err)
	}
}

func TestEntriesRefused(t *testing.T) {
	list, raw := testEntries(3)
	for name, b := range map[string][]byte{
		"flipped":  func() []byte { b := bytes.Clone(raw); b[len(b)-1] ^= 1; return b }(),
		"cut off":  raw[:len(raw)-1],
		"missing":  append(bytes.Clone(list[0].Raw), list[2].Raw...),
		"trailing": append(bytes.Clone(raw), 1, 2, 3),
		"no entry": make([]byte, 100),
	} {
		if _, err := splitEntries(b, nil); !errors.Is(err, ErrWire) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyContent(t *testing.T) {
	data := bytes.Repeat([]byte("mail"), 700_000) // three blocks
	p := &op.Put{Sum: op.SumOf(data), Data: data}
	if err := verifyContent(p); err != nil {
		t.Error(err)
	}
	bad := *p
	bad.Data = bytes.Clone(data)
	bad.Data[len(data)-1] ^= 1
	if err := verifyContent(&bad); !errors.Is(err, errContent) {
		t.Errorf("one bit: %v", err)
	}
	bad.Data = data[:len(data)-1]
	if err := verifyContent(&bad); !errors.Is(err, errContent) {
		t.Errorf("one byte less: %v", err)
	}
	if err := verifyContent(&op.Put{Sum: op.SumOf(nil)}); err != nil {
		t.Errorf("empty: %v", err)
	}
}

// FuzzFrame feeds arbitrary bytes to the decoder: it must end with an error or
// the end, and what it accepts must encode to the same bytes.
func FuzzFrame(f *testing.F) {
	_, raw := testEntries(3)
	f.Add(encode(frameEntries, make([]byte, marksSize), raw))
	f.Add(encode(frameHello, []byte(`{"protocol":1,"for":"stream"}`), nil))
	f.Add(encode(frameAck, make([]byte, 24), nil))
	f.Add(append(encode(frameMark, make([]byte, marksSize), nil), encode(framePrepare, make([]byte, 8), nil)...))
	f.Add(encode(frameReply, []byte("{}"), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := frameReader{r: bytes.NewReader(b)}
		for at := 0; ; {
			fr, err := r.next()
			if err != nil {
				return
			}
			n := headerSize + len(fr.body)
			body, extra := fr.body, []byte(nil)
			if fr.typ == frameEntries {
				body, extra = fr.body[:marksSize], fr.body[marksSize:]
				_, _ = splitEntries(extra, nil)
			}
			if again := encode(fr.typ, body, extra); !bytes.Equal(again, b[at:at+n]) {
				t.Fatalf("decoded %x, encodes to %x", b[at:at+n], again)
			}
			at += n
		}
	})
}

// FuzzHello takes arbitrary greetings as far as a server does before it grants
// one: whatever a peer says of its history, judging it ends, and never grants a
// place that this slot's history or the peer's does not have.
func FuzzHello(f *testing.F) {
	id := op.SlotID{1}
	own := history{
		{Pos: op.Pos{Epoch: 1, Seq: 1, Chain: 11}, Primary: id, Members: []op.SlotID{id}},
		{Pos: op.Pos{Epoch: 2, Seq: 50, Chain: 22}, Primary: id, Members: []op.SlotID{id}},
		{Pos: op.Pos{Epoch: 4, Seq: 80, Chain: 44}, Primary: id, Members: []op.SlotID{id}},
	}
	last := op.Pos{Epoch: 4, Seq: 100, Chain: 99}
	for _, h := range []hello{
		{Protocol: Protocol, For: forStream, Cluster: "c", Node: "x", Store: "mail", Slot: op.SlotID{2}, Last: op.Pos{Epoch: 2, Seq: 60, Chain: 5}, History: own[:2]},
		{Protocol: 99, For: "dance"},
		{Protocol: 1, For: forTail, History: history{own[2], own[0]}, Last: op.Pos{Epoch: 1 << 63, Seq: 1}, Yield: true},
	} {
		text, err := json.Marshal(h)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"last":{"epoch":-1}}`))
	f.Add([]byte(`{"history":[{"pos":{"seq":18446744073709551615}},{}]}`))
	s := NewServer("n1", "c", nil, nil)
	l := &link{peer: "x"}
	f.Fuzz(func(t *testing.T, text []byte) {
		var h hello
		if json.Unmarshal(text, &h) != nil {
			return
		}
		_ = s.check(l, h)
		seq, v, why := own.meet(last, h.History, h.Last, h.Yield)
		switch v {
		case vStream, vCut:
			if seq > last.Seq || seq > h.Last.Seq {
				t.Errorf("%v after seq %d, but the slots end at %d and %d", v, seq, last.Seq, h.Last.Seq)
			}
		default:
			if why == "" {
				t.Errorf("%v without a reason", v)
			}
		}
	})
}
