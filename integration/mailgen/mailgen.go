// Package mailgen makes mail for tests: realistic messages, the same for the
// same seed, and a set of hard ones that each broke some mail store once. It
// also reads a corpus of real messages where one is present.
//
// Line ends are LF, as a Maildir stores them; what goes over a wire gets CRLF
// there. A bare CR is meant.
package mailgen

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"
)

// Message is one message and a name for people.
type Message struct {
	Name string
	Data []byte
}

// Generator makes messages. It is not safe for concurrent use.
type Generator struct {
	rng *rand.Rand
	n   int
	// Median and Max of the size in bytes: log-normal, sigma 1.2, 20 KiB and 1 MiB.
	Median, Max int
}

// New returns a generator of the messages of one seed.
func New(seed uint64) *Generator {
	return &Generator{rng: rand.New(rand.NewPCG(seed, 0x6d61696c)), Median: 20 << 10, Max: 1 << 20}
}

var words = strings.Fields(`the of and to in a is that for it as was with be by on not he I this are or his from at which but have
an had they you were their one all we can her has there been if more when will would who so no out up into them then she may about
over any must time well quite report invoice meeting backup tomorrow attached please regards Grüße naïve café 日本語 Привет`)

func (g *Generator) text(size int) []byte {
	var b bytes.Buffer
	b.Grow(size + 80)
	for line := 0; b.Len() < size; {
		w := words[g.rng.IntN(len(words))]
		if line += len(w) + 1; line > 72 {
			b.WriteByte('\n')
			line = 0
		}
		b.WriteString(w)
		b.WriteByte(' ')
	}
	b.WriteByte('\n')
	return b.Bytes()
}

// attachment is base64 of random bytes, about size bytes long.
func (g *Generator) attachment(size int) []byte {
	raw := make([]byte, size*3/4)
	for i := range raw {
		raw[i] = byte(g.rng.Uint32())
	}
	text := base64.StdEncoding.EncodeToString(raw)
	var b bytes.Buffer
	b.Grow(size + size/76 + 1)
	for len(text) > 0 {
		n := min(76, len(text))
		b.WriteString(text[:n])
		b.WriteByte('\n')
		text = text[n:]
	}
	return b.Bytes()
}

func (g *Generator) header(subject, more string) []byte {
	g.n++
	date := time.Unix(1.6e9+int64(g.n)*61, 0).UTC()
	return fmt.Appendf(nil, "From: Sender %d <sender%d@example.org>\nTo: Reader <reader@example.net>\nSubject: %s\nDate: %s\n"+
		"Message-ID: <%d.%x@example.org>\nMIME-Version: 1.0\n%s\n",
		g.n, g.rng.IntN(50), subject, date.Format(time.RFC1123Z), g.n, g.rng.Uint64(), more)
}

// Next makes one ordinary message: plain text, 8-bit text, or a nested MIME
// structure with an attachment.
func (g *Generator) Next() Message {
	size := min(g.Max, max(200, int(float64(g.Median)*math.Exp(1.2*g.rng.NormFloat64()))))
	subject := strings.TrimSpace(string(g.text(20)))
	subject = strings.ReplaceAll(subject, "\n", " ")
	var data []byte
	switch g.rng.IntN(3) {
	case 0:
		data = append(g.header(subject, "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"), g.text(size)...)
	case 1:
		data = append(g.header(subject, "Content-Type: text/plain; charset=us-ascii\nX-Spam: no\n"), g.attachment(size)...)
	default:
		data = append(g.header(subject, "Content-Type: multipart/mixed; boundary=\"=_a\"\n"), g.multipart(size)...)
	}
	return Message{fmt.Sprintf("generated %d", g.n), data}
}

func (g *Generator) multipart(size int) []byte {
	return fmt.Appendf(nil, "preamble\n--=_a\nContent-Type: multipart/alternative; boundary=\"=_b\"\n\n--=_b\nContent-Type: text/plain; charset=utf-8\n\n%s"+
		"--=_b\nContent-Type: text/html; charset=utf-8\n\n<p>%s</p>\n--=_b--\n\n--=_a\nContent-Type: application/octet-stream; name=\"a;b.bin\"\n"+
		"Content-Transfer-Encoding: base64\nContent-Disposition: attachment\n\n%s\n--=_a--\nepilogue\n",
		g.text(size/10), g.text(size/10), g.attachment(size*8/10))
}

// Hard makes one message of each kind that is known to hurt. big is the size
// of the large attachment, in bytes.
func (g *Generator) Hard(big int) []Message {
	var all []Message
	add := func(name string, data []byte) { all = append(all, Message{name, data}) }
	add("empty", nil)
	add("one line end", []byte("\n"))
	add("no header", []byte("\nbody only\n"))
	add("header only", []byte("Subject: nothing follows\n"))
	add("no final line end", []byte("Subject: x\n\nno line end"))
	add("8-bit header", append(g.header("Gr\xfc\xdfe in latin1 und \xf0\x9f\x93\xa8", "X-8bit: \xff\xfe\x80\n"), g.text(300)...))
	add("every byte", append(g.header("every byte", "Content-Transfer-Encoding: 8bit\n"), everyByte()...))
	add("NULs", append(g.header("nul", ""), "a\x00b\x00\x00\nline\x00\n\x00\n"...))
	add("bare CR", append(g.header("bare cr", ""), "one\rtwo\r\rthree\n\rfour\n"...))
	add("dots", append(g.header("dots", ""), ".\n..\n.a\n\n.\n"...))
	add("long lines", append(g.header("long lines", ""), bytes.Repeat([]byte("0123456789"), 100_000)...))
	add("huge header field", append(g.header("huge", "X-Huge: "+strings.Repeat("h", 300_000)+"\n"), g.text(100)...))
	add("many header fields", append(g.header("many", strings.Repeat("X-Many: v\n", 5_000)), g.text(100)...))
	add("folded header", append(g.header("folded", "X-Folded: a"+strings.Repeat("\n\tb", 2_000)+"\n"), g.text(100)...))
	add("From_ lines", append(g.header("from", ""), "From me Mon Jan  1 00:00:00 2020\n>From you\n"...))
	add("broken MIME", append(g.header("broken", "Content-Type: multipart/mixed; boundary=\"x\n"), "--x\nContent-Type: multipart/mixed; boundary=x\n\n--x--\n--x\n"...))
	add("deep MIME", append(g.header("deep", ""), deep(120)...))
	add("nested message", append(g.header("nested", "Content-Type: message/rfc822\n"), append(g.header("inner", ""), g.text(500)...)...))
	add("large attachment", append(g.header("large", "Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n"), g.attachment(big)...))
	return all
}

func everyByte() []byte {
	var b []byte
	for i := 1; i < 256; i++ { // NUL has a message of its own
		if i != '\n' {
			b = append(b, byte(i))
		}
		if i%32 == 0 {
			b = append(b, '\n')
		}
	}
	return append(b, '\n')
}

func deep(levels int) []byte {
	var b []byte
	for i := range levels {
		b = fmt.Appendf(b, "Content-Type: multipart/mixed; boundary=\"b%d\"\n\n--b%d\n", i, i)
	}
	return append(b, "Content-Type: text/plain\n\nthe bottom\n"...)
}
