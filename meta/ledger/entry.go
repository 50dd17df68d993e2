package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Kinds of entries. A reader must expect others.
const (
	Damaged     = "damaged"     // content or attributes differ from what they should be
	Missing     = "missing"     // something that should be in the tree is not
	Unexpected  = "unexpected"  // something in the tree that no entry of the log explains
	Quarantined = "quarantined" // something was moved to quarantine/
	Digest      = "digest"      // digests of two slots differ at the same entry
	Rescue      = "rescue"      // log entries of a lost branch were set aside
	Index       = "index"       // the index was damaged or made anew
	Log         = "log"         // the log was damaged
	Scrub       = "scrub"       // a pass over everything began or ended
	Torn        = "ledger-torn"
	Broken      = "ledger-damaged"
)

// Outcomes.
const (
	Repaired   = "repaired"   // put right from Source
	Unrepaired = "unrepaired" // nobody has a good copy; kept as it is
	Kept       = "kept"       // set aside, nothing was lost
	Noted      = "noted"      // nothing had to be done
)

// Entry is one finding or decision.
type Entry struct {
	Seq   uint64    `json:"seq"`  // number within the ledger, from 1; filled in
	Time  time.Time `json:"time"` // UTC; filled in if zero
	Store string    `json:"store"`
	Slot  string    `json:"slot"` // id of the slot that writes
	Kind  string    `json:"kind"`

	Path      string `json:"path,omitempty"` // in the store; in the data directory if it begins with "./"
	MessageID string `json:"message_id,omitempty"`
	ID        uint64 `json:"id,omitempty"` // of the object

	// Checksums by who says them: "index", "log", "xattr", "disk", or the name of
	// a peer's node.
	Expected map[string]string `json:"expected,omitempty"`
	Found    map[string]string `json:"found,omitempty"`

	Source  string `json:"source,omitempty"` // where good bytes came from
	Outcome string `json:"outcome,omitempty"`
	Text    string `json:"text,omitempty"` // for people

	Prev Hash `json:"prev"`
	Hash Hash `json:"hash"`
}

// Hash is a link of the chain.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText gives the hexadecimal form.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (h *Hash) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(h) || len(text)%2 != 0 {
		return fmt.Errorf("hash of %d digits, not %d", len(text), hex.EncodedLen(len(h)))
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// maxText bounds each string of an entry, in bytes: a line is for people.
const maxText = 4 << 10

// printable makes what came from a disk or a client fit for JSON and for people:
// valid UTF-8, of bounded length.
func printable(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, "\\x%02x", s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

func printables(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[printable(k)] = printable(v)
	}
	return out
}

// clean is e in the form that is written.
func (e Entry) clean() Entry {
	for _, s := range []*string{&e.Store, &e.Slot, &e.Kind, &e.Path, &e.MessageID, &e.Source, &e.Outcome, &e.Text} {
		*s = printable(*s)
	}
	e.Expected, e.Found = printables(e.Expected), printables(e.Found)
	e.Time = e.Time.UTC().Round(0)
	return e
}

// sum is the hash that e should have.
func (e Entry) sum() (Hash, error) {
	e.Hash = Hash{}
	line, err := e.line()
	if err != nil {
		return Hash{}, err
	}
	h := sha256.New()
	h.Write(e.Prev[:])
	h.Write(line)
	return Hash(h.Sum(nil)), nil
}

// line is e's JSON, without the newline.
func (e Entry) line() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// errLine is wrapped by what is wrong with a line.
var errLine = errors.New("malformed line")

// decode reads one line and proves that it hashes to what it says.
func decode(line []byte) (Entry, error) {
	var e Entry
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return e, fmt.Errorf("%w: %w", errLine, err)
	}
	again, err := e.line()
	if err != nil {
		return e, fmt.Errorf("%w: %w", errLine, err)
	}
	if !bytes.Equal(again, line) {
		return e, fmt.Errorf("%w: it is not as slotfs writes it", errLine)
	}
	want, err := e.sum()
	if err != nil {
		return e, fmt.Errorf("%w: %w", errLine, err)
	}
	if want != e.Hash {
		return e, fmt.Errorf("%w: its hash is %s, what it says has %s", errLine, e.Hash, want)
	}
	return e, nil
}
