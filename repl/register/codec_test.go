package register_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
	"slotfs/repl/register"
)

// record is a valid one.
func record(epoch uint64) repl.Record {
	a, b := op.SlotID{1}, op.SlotID{2}
	return repl.Record{Version: repl.RecordVersion, Store: meta.StoreID{9}, Epoch: epoch, Primary: a, InSync: []op.SlotID{a, b},
		Nonce: repl.Nonce{byte(epoch), 1}, Nodes: map[op.SlotID]string{a: "n1", b: "n2"}, Reason: "test", Time: time.Unix(1e9, 0).UTC()}
}

func TestCodec(t *testing.T) {
	want := record(7)
	b, err := register.Encode(&want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := register.Decode("/k", b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	bad := want
	bad.Primary = op.SlotID{8}
	if _, err := register.Encode(&bad); !errors.Is(err, repl.ErrRecord) {
		t.Errorf("a primary outside the set was encoded: %v", err)
	}
}

// TestDecodeRefuses: what is not a record is refused by a message that names
// the key, the reason and the remedy.
func TestDecodeRefuses(t *testing.T) {
	r := record(7)
	b, err := register.Encode(&r)
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	tests := []struct{ name, text, want string }{
		{"empty", "", "not a record"},
		{"no JSON", "epoch 7", "not a record"},
		{"cut short", good[:len(good)-9], "not a record"},
		{"two records", good + good, "something follows"},
		{"unknown field", strings.Replace(good, `"epoch"`, `"leader":1,"epoch"`, 1), "unknown field"},
		{"newer version", strings.Replace(good, `{"version":1`, `{"version":2,"lease":5`, 1), "written by a newer one"},
		{"epoch 0", strings.Replace(good, `"epoch":7`, `"epoch":0`, 1), "epoch 0"},
		{"negative epoch", strings.Replace(good, `"epoch":7`, `"epoch":-7`, 1), "not a record"},
		{"short primary", strings.Replace(good, r.Primary.String(), "0102", 1), "slot id \"0102\""},
		{"primary outside the set", strings.Replace(good, r.Primary.String(), op.SlotID{5}.String(), 1), "primary is not in its in-sync set"},
		{"short nonce", strings.Replace(good, r.Nonce.String(), "00", 1), "nonce \"00\""},
		{"store id", strings.Replace(good, r.Store.String(), "zz", 1), "store id"},
		{"huge", good + strings.Repeat(" ", 1<<15), "more than any record"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.text == good {
				t.Fatal("the text was not changed")
			}
			_, err := register.Decode("/slotfs/c/store/mail1", []byte(tt.text))
			var re *register.RecordError
			if !errors.As(err, &re) || !errors.Is(err, repl.ErrRecord) {
				t.Fatalf("got %v", err)
			}
			for _, want := range []string{"/slotfs/c/store/mail1", tt.want, "slotfs register restore"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("message lacks %q: %v", want, err)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	r := record(3)
	b, err := register.Encode(&r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := register.Decode("/k", b)
		if err != nil {
			if !errors.Is(err, repl.ErrRecord) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if err := r.Check(); err != nil {
			t.Fatalf("an invalid record was accepted: %v", err)
		}
		again, err := register.Encode(&r)
		if err != nil {
			t.Fatalf("cannot be encoded again: %v", err)
		}
		if back, err := register.Decode("/k", again); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("came back as %+v, %v", back, err)
		}
	})
}
