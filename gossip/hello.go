package gossip

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	magic    = "sfg1"
	tagSize  = 8
	macSize  = 16
	helloMax = 1024
)

// Verdicts of the accepting side.
const (
	welcome byte = iota
	otherKey
	nameTaken
)

// errNotGossip is the answer to a stream that does not start with a hello.
var errNotGossip = errors.New("not a slotfs gossip stream")

// hello introduces a node at the start of a stream.
type hello struct {
	Name        string `json:"name"`
	Addr        string `json:"addr"` // gossip address
	Incarnation uint64 `json:"incarnation"`
}

func mac(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// keyTag marks packets that were encrypted with key.
func keyTag(key []byte) []byte { return mac(key, []byte("packet"))[:tagSize] }

func (h hello) encode(key []byte) ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode hello: %w", err)
	}
	if len(body) > helloMax {
		return nil, fmt.Errorf("encode hello: %d bytes are too many", len(body))
	}
	b := append([]byte(magic), 0, 0)
	binary.BigEndian.PutUint16(b[len(magic):], uint16(len(body)))
	b = append(b, body...)
	return append(b, mac(key, []byte("hello"), b)[:macSize]...), nil
}

// readHello reads one and says whether it was made with key.
func readHello(r io.Reader, key []byte) (h hello, genuine bool, err error) {
	b := make([]byte, len(magic)+2, len(magic)+2+helloMax+macSize)
	if _, err := io.ReadFull(r, b); err != nil {
		return h, false, fmt.Errorf("read hello: %w", err)
	}
	n := int(binary.BigEndian.Uint16(b[len(magic):]))
	if string(b[:len(magic)]) != magic || n > helloMax {
		return h, false, errNotGossip
	}
	head := len(b)
	b = b[:head+n+macSize]
	if _, err := io.ReadFull(r, b[head:]); err != nil {
		return h, false, fmt.Errorf("read hello: %w", err)
	}
	if err := json.Unmarshal(b[head:head+n], &h); err != nil {
		return h, false, fmt.Errorf("read hello: %w", err)
	}
	genuine = hmac.Equal(b[head+n:], mac(key, []byte("hello"), b[:head+n])[:macSize])
	return h, genuine, nil
}
