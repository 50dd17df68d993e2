package mailgen

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// Corpus reads the messages (*.eml) of a compressed tar file. The error wraps
// fs.ErrNotExist if there is none; use generated messages then.
func Corpus(name string) ([]Message, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read corpus: %w", err)
	}
	defer z.Close()
	var all []Message
	for files := tar.NewReader(z); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read corpus: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(files)
		if err != nil {
			return nil, fmt.Errorf("read corpus: %s: %w", h.Name, err)
		}
		all = append(all, Message{h.Name, data})
	}
}
