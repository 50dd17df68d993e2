package evidence

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"
)

func signer(t testing.TB, name string) ([]byte, ed25519.PrivateKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func anybody(*x509.Certificate) error { return nil }

func example(t testing.TB) (Head, []Message, []byte) {
	t.Helper()
	h := Head{Store: "mail", StoreID: "00ff", Cluster: "abc", User: "example.org/al\tice\\", Node: "n1", Slot: "ee",
		Position: "3/70/00000000000000aa", Digest: "1234", LogFrom: 7, Time: time.Unix(1_700_000_000, 5).UTC()}
	var all []Message
	for i := range 5 {
		all = append(all, Message{ID: uint64(10 + i), Size: int64(i), Date: time.Unix(1_600_000_000, int64(i)).UTC(), How: Delivered, XXH: uint64(i) << 50,
			SHA256: [32]byte{byte(i), 255}, Content: Verified, Path: fmt.Sprintf("a/cur/%d\xff\n:2,S", i), MessageID: "<ü@example.org>"})
	}
	all[2].Arrived, all[3].How, all[4].Content = time.Unix(1_600_000_100, 0).UTC(), Adopted, Damaged
	der, key := signer(t, h.Node)
	var b bytes.Buffer
	w := NewWriter(&b, h)
	for _, m := range all {
		if err := w.Add(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Sign(der, key); err != nil {
		t.Fatal(err)
	}
	return h, all, b.Bytes()
}

func TestReadWhatWasWritten(t *testing.T) {
	h, all, b := example(t)
	l, err := Read(bytes.NewReader(b), anybody)
	if err != nil {
		t.Fatal(err)
	}
	if l.Head != h || !reflect.DeepEqual(l.Messages, all) || l.Signer.Subject.CommonName != "n1" {
		t.Errorf("read %+v, want %+v, %+v", l, h, all)
	}
}

// No byte can be changed, taken away or added.
func TestTampering(t *testing.T) {
	_, _, b := example(t)
	forged := func(what string, c []byte) {
		t.Helper()
		if _, err := Read(bytes.NewReader(c), anybody); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range b {
		for _, x := range []byte{1, 0x20, 0x80} {
			c := bytes.Clone(b)
			c[i] ^= x
			forged(fmt.Sprintf("byte %d ^ %#x", i, x), c)
		}
		forged(fmt.Sprintf("without byte %d", i), append(bytes.Clone(b[:i]), b[i+1:]...))
		forged(fmt.Sprintf("cut at %d", i), b[:i])
	}
	forged("something after the end", append(bytes.Clone(b), '\n'))
	lines := strings.SplitAfter(string(b), "\n")
	for i := range lines {
		if i+1 < len(lines) && lines[i] != lines[i+1] && lines[i+1] != "" {
			swapped := append([]string{}, lines...)
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			forged(fmt.Sprintf("line %d swapped", i), []byte(strings.Join(swapped, "")))
		}
	}
}

// Whoever has no certificate of the cluster cannot sign.
func TestStranger(t *testing.T) {
	_, _, b := example(t)
	stranger := errors.New("made by another CA")
	if _, err := Read(bytes.NewReader(b), func(*x509.Certificate) error { return stranger }); !errors.Is(err, ErrForged) || !errors.Is(err, stranger) {
		t.Error(err)
	}
	var c bytes.Buffer
	w := NewWriter(&c, Head{Node: "n1", Time: time.Now()})
	der, key := signer(t, "n2")
	if err := w.Sign(der, key); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(&c, anybody); !errors.Is(err, ErrForged) {
		t.Errorf("signed by another node: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	_, _, b := example(f)
	f.Add(b)
	f.Add([]byte(firstLine + "\n"))
	f.Fuzz(func(t *testing.T, c []byte) {
		if l, err := Read(bytes.NewReader(c), anybody); err == nil && l.Signer == nil {
			t.Error("nobody signed")
		} else if err != nil && !errors.Is(err, ErrForged) {
			t.Error(err)
		}
	})
}

func FuzzEscape(f *testing.F) {
	f.Add("a\\\t\n\xff\x7fü")
	f.Fuzz(func(t *testing.T, s string) {
		e := escape(s)
		if strings.ContainsAny(e, "\t\n") {
			t.Errorf("%q", e)
		}
		if got, err := unescape(e); err != nil || got != s {
			t.Errorf("%q -> %q -> %q, %v", s, e, got, err)
		}
	})
}
