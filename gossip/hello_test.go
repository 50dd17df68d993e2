package gossip

import (
	"bytes"
	"testing"
)

func TestHello(t *testing.T) {
	key, other := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	want := hello{Name: "n1", Addr: "192.0.2.1:7946", Incarnation: 1795441294382528634}
	b, err := want.encode(key)
	if err != nil {
		t.Fatal(err)
	}
	got, genuine, err := readHello(bytes.NewReader(b), key)
	if err != nil || !genuine || got != want {
		t.Errorf("got %+v, genuine %v, %v", got, genuine, err)
	}
	if got, genuine, err = readHello(bytes.NewReader(b), other); err != nil || genuine || got != want {
		t.Errorf("with another key: got %+v, genuine %v, %v", got, genuine, err)
	}
	// Whatever is changed is no longer genuine.
	for i := range b {
		c := bytes.Clone(b)
		c[i] ^= 1
		if _, genuine, err := readHello(bytes.NewReader(c), key); err == nil && genuine {
			t.Errorf("byte %d changed, and still genuine", i)
		}
	}
}

// FuzzHello: a stranger's bytes are refused, and never believed.
func FuzzHello(f *testing.F) {
	key := bytes.Repeat([]byte{1}, 32)
	b, err := hello{Name: "n1", Addr: "192.0.2.1:7946"}.encode(bytes.Repeat([]byte{2}, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(magic + "\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, genuine, err := readHello(bytes.NewReader(b), key); err == nil && genuine {
			t.Errorf("genuine: %q", b)
		}
	})
}
