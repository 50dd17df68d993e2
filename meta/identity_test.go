package meta

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/meta/op"
)

func makeSlot(t *testing.T) (dir string, id op.SlotID) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "new", "data")
	id, err := Create(dir, Identity{Store: "mail1"})
	if err != nil {
		t.Fatal(err)
	}
	return dir, id
}

// edit changes slot.json.
func editIdentity(t *testing.T, dir string, change func(m map[string]any)) {
	t.Helper()
	file := filepath.Join(dir, fileIdentity)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// refused checks that err names the file, the reason, and what to do.
func refused(t *testing.T, err error, reason error, file string) {
	t.Helper()
	var d *DataError
	if !errors.As(err, &d) || !errors.Is(err, reason) {
		t.Fatalf("got %v, want %v", err, reason)
	}
	if !strings.HasSuffix(d.File, file) || d.Remedy == "" || !strings.Contains(err.Error(), d.File) {
		t.Errorf("error %q does not help", err)
	}
}

func TestCreateAndOpen(t *testing.T) {
	dir, id := makeSlot(t)
	s, err := Open(dir, Options{Store: "mail1", Layout: LayoutMaildir, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.ID != id || s.StoreName != "mail1" || !s.StoreID().IsZero() || s.Layout.Name != LayoutMaildir {
		t.Errorf("slot %v of %q (%v), layout %v", s.ID, s.StoreName, s.StoreID(), s.Layout)
	}
	if _, err := s.Inode(op.Root); !errors.Is(err, ErrNotExist) {
		t.Errorf("root of a fresh slot: %v", err)
	}
	if err := s.SetStore(StoreID{1}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetStore(StoreID{1}); err != nil {
		t.Errorf("the same store again: %v", err)
	}
	refused(t, s.SetStore(StoreID{2}), ErrOtherStore, fileIdentity)
	identity, err := ReadIdentity(dir)
	if err != nil || identity.ID != (StoreID{1}) || identity.Slot != id {
		t.Errorf("identity %+v, %v", identity, err)
	}
	_, err = Open(dir, Options{Reserve: -1})
	refused(t, err, ErrLocked, fileLock)
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Create(dir, Identity{Store: "s"})
	refused(t, err, ErrNotEmpty, filepath.Base(dir))
	if _, err := Create(filepath.Join(t.TempDir(), "d"), Identity{Layout: "none"}); err == nil {
		t.Error("unknown layout accepted")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Run("no slot", func(t *testing.T) {
		_, err := Open(t.TempDir(), Options{})
		refused(t, err, ErrNotSlot, fileIdentity)
	})
	t.Run("broken", func(t *testing.T) {
		dir, _ := makeSlot(t)
		if err := os.WriteFile(filepath.Join(dir, fileIdentity), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir, Options{})
		refused(t, err, ErrNotSlot, fileIdentity)
	})
	t.Run("newer", func(t *testing.T) {
		dir, _ := makeSlot(t)
		editIdentity(t, dir, func(m map[string]any) { m["format"] = Format + 1 })
		_, err := Open(dir, Options{})
		refused(t, err, ErrNewerFormat, fileIdentity)
	})
	t.Run("another store", func(t *testing.T) {
		dir, _ := makeSlot(t)
		_, err := Open(dir, Options{Store: "mail2"})
		refused(t, err, ErrOtherStore, fileIdentity)
	})
	t.Run("another layout", func(t *testing.T) {
		dir, _ := makeSlot(t)
		_, err := Open(dir, Options{Layout: "dbox"})
		refused(t, err, ErrLayout, fileIdentity)
	})
}

// A refused or failed Open leaves nothing behind that would refuse the next.
func TestOpenAfterRefusal(t *testing.T) {
	dir, _ := makeSlot(t)
	if _, err := Open(dir, Options{Store: "other"}); err == nil {
		t.Fatal("accepted")
	}
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(filepath.Join(dir, dirTree), moved); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{Reserve: -1}); err == nil {
		t.Fatal("opened without a tree")
	}
	if err := os.Rename(moved, filepath.Join(dir, dirTree)); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
}

func TestSpace(t *testing.T) {
	dir, _ := makeSlot(t)
	s, err := Open(dir, Options{Reserve: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Space(4096); err != nil {
		t.Errorf("4096 bytes: %v", err)
	}
	if err := s.Space(1 << 60); !errors.Is(err, ErrNoSpace) {
		t.Errorf("an exbibyte: %v", err)
	}
	if err := s.Space(4096); err != nil {
		t.Errorf("4096 bytes again: %v", err)
	}
	if got := s.Events.Counts()[EventSpace]; got != 2 {
		t.Errorf("%d events, want that it was full and that it is over", got)
	}
	if _, err := os.Stat(filepath.Join(dir, dirIndex, ballastName)); err != nil {
		t.Errorf("ballast: %v", err)
	}
}
