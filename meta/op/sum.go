package op

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"slices"

	"github.com/cespare/xxhash/v2"
)

// SumOf returns the checksum of a file whose content is data.
func SumOf(data []byte) Sum {
	s := BlockSumOf(data)
	s.SHA256 = sha256.Sum256(data)
	return s
}

// BlockSumOf is SumOf without the SHA-256, as a Seal has it.
func BlockSumOf(data []byte) Sum {
	s := Sum{Size: int64(len(data))}
	if len(data) > 0 {
		s.Blocks = make([]uint64, 0, blocks(s.Size))
	}
	for len(data) > 0 {
		n := min(len(data), BlockSize)
		s.Blocks = append(s.Blocks, xxhash.Sum64(data[:n]))
		data = data[n:]
	}
	return s
}

// sumBuffer divides BlockSize.
const sumBuffer = 32 << 10

// SumReader returns the checksum of what r yields until EOF.
func SumReader(r io.Reader) (Sum, error) {
	h := sha256.New()
	s, err := sumReader(r, h)
	h.Sum(s.SHA256[:0])
	return s, err
}

// BlockSumReader is SumReader without the SHA-256, as a Seal has it.
func BlockSumReader(r io.Reader) (Sum, error) { return sumReader(r, nil) }

func sumReader(r io.Reader, h hash.Hash) (Sum, error) {
	var s Sum
	// Most of what is summed is small: a buffer of a whole block would cost more
	// than its content.
	buf := make([]byte, sumBuffer)
	block := xxhash.New()
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			s.Size += int64(n)
			block.Write(buf[:n])
			if h != nil {
				h.Write(buf[:n])
			}
		}
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if s.Size%BlockSize == 0 && n > 0 || end && s.Size%BlockSize != 0 {
			s.Blocks = append(s.Blocks, block.Sum64())
			block.Reset()
		}
		switch {
		case err == nil:
		case end:
			return s, nil
		default:
			return s, err
		}
	}
}

// XXH folds the blocks into one value: the block's own checksum if there is
// one block, the xxHash64 of the big-endian checksums if there are more, the
// xxHash64 of nothing for an empty file.
func (s Sum) XXH() uint64 {
	if len(s.Blocks) == 1 {
		return s.Blocks[0]
	}
	h := xxhash.New()
	var b [8]byte
	for _, x := range s.Blocks {
		binary.BigEndian.PutUint64(b[:], x)
		h.Write(b[:])
	}
	return h.Sum64()
}

// VerifyBlock reports whether b is the whole block i.
func (s Sum) VerifyBlock(i int, b []byte) bool {
	if i < 0 || i >= len(s.Blocks) {
		return false
	}
	want := min(s.Size-int64(i)*BlockSize, BlockSize)
	return int64(len(b)) == want && xxhash.Sum64(b) == s.Blocks[i]
}

// Verify reports whether data is the whole content, by the block checksums.
func (s Sum) Verify(data []byte) bool {
	if int64(len(data)) != s.Size || int64(len(s.Blocks)) != blocks(s.Size) {
		return false
	}
	for i := range s.Blocks {
		n := min(len(data), BlockSize)
		if xxhash.Sum64(data[:n]) != s.Blocks[i] {
			return false
		}
		data = data[n:]
	}
	return true
}

// Equal reports whether both are checksums of one content. SHA-256 counts
// where both have it.
func (s Sum) Equal(t Sum) bool {
	if s.Size != t.Size || !slices.Equal(s.Blocks, t.Blocks) {
		return false
	}
	var none [32]byte
	return s.SHA256 == t.SHA256 || s.SHA256 == none || t.SHA256 == none
}
