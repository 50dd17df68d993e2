package meta

import (
	"strings"
	"testing"

	"slotfs/meta/op"
)

func TestPrintableID(t *testing.T) {
	for id, want := range map[string]string{
		"<x@y>":                   "<x@y>",
		"<\x1b[2J@y>":             "<?[2J@y>",
		"<\xff@y>":                "<?@y>",
		strings.Repeat("x", 1000): strings.Repeat("x", maxMessageID),
	} {
		if got := printableID(id); got != want {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

func TestUserOf(t *testing.T) {
	for path, want := range map[string]string{
		"alice/cur/x":                              "alice",
		"mail/alice/.Sent/new/x":                   "mail/alice",
		"mail/alice/.a.b/.c/cur/x":                 "mail/alice",
		"example.org/bob/Maildir/cur/x":            "example.org/bob",
		"example.org/bob/mail/.Trash/cur/x":        "example.org/bob",
		"example.org/bob/mailboxes/Work/Old/cur/x": "example.org/bob",
		"x":     "",
		"cur/x": "",
	} {
		if got := UserOf(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

// TestMessagesAfter: what is told is what the end of the log leaves, however much
// of the log is applied, and the slot's own state is not touched by telling it.
func TestMessagesAfter(t *testing.T) {
	for seed := range uint64(6) {
		w := newWorld(t, seed)
		for range 300 {
			w.step()
		}
		last := w.log.last()
		cut := 1 + w.rnd.Uint64N(last)
		s := newSlot(t, t.TempDir()+"/d", w.log.entries[:cut])
		before, _ := s.Digest()
		if err := s.Log.AppendEntries(w.log.entries[cut:]); err != nil { // not committed
			t.Fatal(err)
		}
		after := w.rnd.Uint64N(last)
		want := map[op.ID]string{}
		err := w.ix.eachInode(func(n *Inode) error {
			if n.Sealed && uint64(n.ID) > after {
				dir, err := w.ix.path(n.Names[0].Dir)
				want[n.ID] = join(dir, n.Names[0].Name)
				return err
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		seq := uint64(0)
		err = s.MessagesAfter(t.Context(), after, func(m *Mail) error {
			if m.Seq <= seq {
				t.Errorf("seed %d: seq %d after %d", seed, m.Seq, seq)
			}
			seq = m.Seq
			if p, ok := want[op.ID(m.Seq)]; !ok || p != m.Path {
				t.Errorf("seed %d: %d is told as %q, want %q", seed, m.Seq, m.Path, p)
			}
			delete(want, op.ID(m.Seq))
			return nil
		})
		if err != nil || len(want) > 0 {
			t.Errorf("seed %d: not told: %v, %v", seed, want, err)
		}
		if now, _ := s.Digest(); now != before || s.Log.Applied.Get() != cut {
			t.Errorf("seed %d: the slot was at %d, is at %d", seed, before, now)
		}
	}
}
