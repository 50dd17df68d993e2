package mailgen_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"slotfs/integration/mailgen"
)

func TestSameSeedSameMail(t *testing.T) {
	a, b, c := mailgen.New(1), mailgen.New(1), mailgen.New(2)
	for i := range 200 {
		x, y, z := a.Next(), b.Next(), c.Next()
		if !bytes.Equal(x.Data, y.Data) {
			t.Fatalf("message %d differs for the same seed", i)
		}
		if bytes.Equal(x.Data, z.Data) {
			t.Fatalf("message %d is the same for another seed", i)
		}
		if len(x.Data) < 200 || len(x.Data) > 2<<20 {
			t.Errorf("message %d has %d bytes", i, len(x.Data))
		}
	}
}

func TestHard(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mailgen.New(1).Hard(1 << 20) {
		if seen[string(m.Data)] {
			t.Errorf("%s is there twice", m.Name)
		}
		seen[string(m.Data)] = true
		if m.Name == "large attachment" && len(m.Data) < 1<<20 {
			t.Errorf("%s has %d bytes", m.Name, len(m.Data))
		}
	}
}

func TestCorpus(t *testing.T) {
	if _, err := mailgen.Corpus(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no corpus: %v", err)
	}
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, h := range []*tar.Header{
		{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "d/1.eml", Typeflag: tar.TypeReg, Mode: 0o644, Size: 5},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	w.Write([]byte("a\x00\rb\n"))
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "m.tar.zst")
	if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := mailgen.Corpus(name)
	if err != nil || len(got) != 1 || got[0].Name != "d/1.eml" || string(got[0].Data) != "a\x00\rb\n" {
		t.Errorf("Corpus = %q, %v", got, err)
	}
}
