package evidence

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	firstLine    = "slotfs evidence 1"
	signedPrefix = "slotfs evidence signature 1\x00"
	columns      = "id size date arrived how xxh64 sha256 content path message-id"
)

// How a message came into the store.
const (
	Delivered = "delivered"
	Adopted   = "adopted"
)

// What its content was when the list was made.
const (
	Verified = "verified"
	// Unverified: adopted, and its checksum was taken for this list; the store has
	// none yet.
	Unverified = "unverified"
	Damaged    = "damaged"
	Removed    = "removed" // while the list was being made
)

// Head says what a list is of.
type Head struct {
	Store    string    `json:"store"`
	StoreID  string    `json:"store_id"`
	Cluster  string    `json:"cluster"` // id
	User     string    `json:"user"`    // path of the user's directory
	Node     string    `json:"node"`
	Slot     string    `json:"slot"`
	Position string    `json:"position"` // epoch/seq/chain of the last entry applied
	Digest   string    `json:"digest"`   // of the user's directory at that position
	LogFrom  uint64    `json:"log_from"` // first entry that the node's log still had
	Time     time.Time `json:"time"`
}

// Message is one name of a message.
type Message struct {
	ID        uint64    `json:"id"`
	Size      int64     `json:"size"`
	Date      time.Time `json:"date"`
	Arrived   time.Time `json:"arrived,omitzero"` // zero: not known
	How       string    `json:"how"`
	XXH       uint64    `json:"xxh64"`
	SHA256    [32]byte  `json:"-"`
	Content   string    `json:"content"`
	Path      string    `json:"path"`
	MessageID string    `json:"message_id,omitempty"`
}

// Writer writes a list.
type Writer struct {
	w     io.Writer
	sum   hash.Hash // of everything so far
	lines int
	err   error
}

// NewWriter begins a list.
func NewWriter(w io.Writer, h Head) *Writer {
	x := &Writer{w: w, sum: sha256.New()}
	x.put("%s\n", firstLine)
	x.put("# Every message that the mail store below held for one user at the time below, with\n")
	x.put("# checksums of its content, which was read and compared with those taken when the\n")
	x.put("# message arrived. Signed by the node that made the list; any change is noticed by:\n")
	x.put("#   slotfs evidence verify THIS-FILE\n")
	for _, f := range h.fields() {
		x.put("%s: %s\n", f[0], escape(f[1]))
	}
	x.put("columns: %s\n\n", columns)
	return x
}

// fields are the head's, as they are written.
func (h Head) fields() [][2]string {
	return [][2]string{
		{"store", h.Store}, {"store-id", h.StoreID}, {"cluster", h.Cluster}, {"user", h.User}, {"node", h.Node}, {"slot", h.Slot},
		{"position", h.Position}, {"digest", h.Digest}, {"log-from", strconv.FormatUint(h.LogFrom, 10)}, {"time", stamp(h.Time)},
	}
}

// stamp writes a time so that it can be written in one way only.
func stamp(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000000000Z")
}

func (x *Writer) put(format string, args ...any) {
	if x.err != nil {
		return
	}
	text := fmt.Sprintf(format, args...)
	x.sum.Write([]byte(text))
	_, x.err = io.WriteString(x.w, text)
}

// Add writes one name of a message.
func (x *Writer) Add(m Message) error {
	x.lines++
	x.put("%s\n", m.line())
	return x.err
}

func (m Message) line() string {
	return strings.Join([]string{
		strconv.FormatUint(m.ID, 10), strconv.FormatInt(m.Size, 10), stamp(m.Date), stamp(m.Arrived), m.How,
		fmt.Sprintf("%016x", m.XXH), hex.EncodeToString(m.SHA256[:]), m.Content, escape(m.Path), escape(m.MessageID),
	}, "\t")
}

// Sign ends the list. cert is the DER certificate of key, which is Ed25519.
func (x *Writer) Sign(cert []byte, key crypto.Signer) error {
	x.put("\nend: %d\n", x.lines)
	x.put("sha256: %x\n", x.sum.Sum(nil))
	x.put("certificate: %s\n", base64.StdEncoding.EncodeToString(cert))
	if x.err != nil {
		return fmt.Errorf("write evidence: %w", x.err)
	}
	sig, err := key.Sign(rand.Reader, signed(x.sum), crypto.Hash(0))
	if err != nil {
		return fmt.Errorf("sign evidence: %w", err)
	}
	x.put("signature: %s\n", base64.StdEncoding.EncodeToString(sig))
	return x.err
}

// signed is what the signature is of.
func signed(sum hash.Hash) []byte { return sum.Sum([]byte(signedPrefix)) }

// ErrForged is wrapped by every error about a list that is not as it was signed.
var ErrForged = errors.New("this is not the list that was signed")

// verifySignature is ed25519.Verify, of a key of another kind false.
func verifySignature(key any, message, sig []byte) bool {
	k, ok := key.(ed25519.PublicKey)
	return ok && ed25519.Verify(k, message, sig)
}

// escape writes text so that it is one field of printable UTF-8.
func escape(text string) string {
	clean := utf8.ValidString(text) && strings.IndexFunc(text, func(r rune) bool { return r == '\\' || !unicode.IsPrint(r) }) < 0
	if clean {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == '\\':
			b.WriteString(`\\`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == utf8.RuneError && n == 1 || !unicode.IsPrint(r):
			for _, c := range []byte(text[i : i+n]) {
				fmt.Fprintf(&b, "\\x%02x", c)
			}
		default:
			b.WriteString(text[i : i+n])
		}
		i += n
	}
	return b.String()
}

// unescape reads what escape wrote.
func unescape(text string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			b.WriteByte(text[i])
			continue
		}
		rest := text[i+1:]
		switch {
		case strings.HasPrefix(rest, `\`):
			b.WriteByte('\\')
			i++
		case strings.HasPrefix(rest, "t"):
			b.WriteByte('\t')
			i++
		case strings.HasPrefix(rest, "n"):
			b.WriteByte('\n')
			i++
		case strings.HasPrefix(rest, "x") && len(rest) >= 3:
			c, err := strconv.ParseUint(rest[1:3], 16, 8)
			if err != nil {
				return "", fmt.Errorf("bad escape in %q", text)
			}
			b.WriteByte(byte(c))
			i += 3
		default:
			return "", fmt.Errorf("bad escape in %q", text)
		}
	}
	if s := b.String(); escape(s) != text {
		return "", fmt.Errorf("%q is not written as it should be", text)
	}
	return b.String(), nil
}
