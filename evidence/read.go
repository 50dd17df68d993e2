package evidence

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"
)

// maxLine bounds a line: a path of 4096 bytes and a Message-ID, all escaped.
const maxLine = 64 << 10

// List is what Read has read.
type List struct {
	Head
	Messages []Message
	Signer   *x509.Certificate
}

// reader reads line by line and keeps the sum of all before the present one.
type reader struct {
	b      *bufio.Reader
	sum    hash.Hash
	n      int // number of the line read last
	before []byte
}

// line reads the next line; what it is goes into the sum only with the one after.
func (r *reader) line() (string, error) {
	r.sum.Write(r.before)
	raw, err := r.b.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", r.bad("is too long")
	}
	if errors.Is(err, io.EOF) {
		r.n++
		return "", r.bad("is missing: the file is cut short")
	}
	if err != nil {
		return "", err
	}
	r.before = append(r.before[:0], raw...)
	r.n++
	return string(raw[:len(raw)-1]), nil
}

func (r *reader) bad(what string) error { return fmt.Errorf("%w: line %d %s", ErrForged, r.n, what) }

// field reads a line "name: value".
func (r *reader) field(name string) (string, error) {
	text, err := r.line()
	if err != nil {
		return "", err
	}
	v, ok := strings.CutPrefix(text, name+": ")
	if !ok {
		return "", r.bad(fmt.Sprintf("is not %q", name))
	}
	return v, nil
}

// Read reads a list and proves that it is what the node's certificate signed, and
// that trusted accepts that certificate. Every error that is not the reader's
// wraps ErrForged.
func Read(in io.Reader, trusted func(*x509.Certificate) error) (*List, error) {
	r := &reader{b: bufio.NewReaderSize(in, maxLine), sum: sha256.New()}
	l := &List{}
	if err := r.head(l); err != nil {
		return nil, err
	}
	if err := r.messages(l); err != nil {
		return nil, err
	}
	if err := r.signature(l, trusted); err != nil {
		return nil, err
	}
	return l, nil
}

func (r *reader) head(l *List) error {
	text, err := r.line()
	if err != nil {
		return err
	}
	if text != firstLine {
		return r.bad("is not \"" + firstLine + "\": this is no list of evidence, or of a newer version")
	}
	values := map[string]string{}
	for _, f := range l.fields() {
		v, err := r.headField(f[0])
		if err != nil {
			return err
		}
		values[f[0]] = v
	}
	l.Store, l.StoreID, l.Cluster, l.User = values["store"], values["store-id"], values["cluster"], values["user"]
	l.Node, l.Slot, l.Position, l.Digest = values["node"], values["slot"], values["position"], values["digest"]
	var e1, e2 error
	l.LogFrom, e1 = strconv.ParseUint(values["log-from"], 10, 64)
	l.Time, e2 = readStamp(values["time"])
	if errors.Join(e1, e2) != nil || l.Time.IsZero() {
		return r.bad("or one before it is malformed")
	}
	for i, f := range l.fields() {
		if values[f[0]] != f[1] {
			return fmt.Errorf("%w: field %d of the head is not written as it should be", ErrForged, i+1)
		}
	}
	if text, err = r.field("columns"); err == nil && text != columns {
		err = r.bad("names other columns")
	}
	if err != nil {
		return err
	}
	if text, err = r.line(); err == nil && text != "" {
		err = r.bad("should be empty")
	}
	return err
}

// headField reads a field, past what is for people.
func (r *reader) headField(name string) (string, error) {
	for {
		text, err := r.line()
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(text, "#") {
			continue
		}
		v, ok := strings.CutPrefix(text, name+": ")
		if !ok {
			return "", r.bad(fmt.Sprintf("is not %q", name))
		}
		if v, err = unescape(v); err != nil {
			return "", r.bad("is malformed")
		}
		return v, nil
	}
}

func (r *reader) messages(l *List) error {
	for {
		text, err := r.line()
		if err != nil {
			return err
		}
		if text == "" {
			return nil
		}
		m, err := readMessage(text)
		if err != nil {
			return r.bad("is no message: " + err.Error())
		}
		l.Messages = append(l.Messages, m)
	}
}

func readMessage(text string) (m Message, err error) {
	f := strings.Split(text, "\t")
	if len(f) != len(strings.Fields(columns)) {
		return m, fmt.Errorf("%d fields", len(f))
	}
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	m.ID, err = strconv.ParseUint(f[0], 10, 64)
	note(err)
	m.Size, err = strconv.ParseInt(f[1], 10, 64)
	note(err)
	m.Date, err = readStamp(f[2])
	note(err)
	m.Arrived, err = readStamp(f[3])
	note(err)
	m.How, m.Content = f[4], f[7]
	m.XXH, err = strconv.ParseUint(f[5], 16, 64)
	note(err)
	sum, err := hex.DecodeString(f[6])
	note(err)
	copy(m.SHA256[:], sum)
	m.Path, err = unescape(f[8])
	note(err)
	m.MessageID, err = unescape(f[9])
	note(err)
	if err := errors.Join(errs...); err != nil {
		return m, err
	}
	if m.line() != text {
		return m, errors.New("not written as it should be")
	}
	return m, nil
}

func readStamp(text string) (time.Time, error) {
	if text == "-" {
		return time.Time{}, nil
	}
	return time.Parse("2006-01-02T15:04:05.000000000Z", text)
}

func (r *reader) signature(l *List, trusted func(*x509.Certificate) error) error {
	end, err := r.field("end")
	if err == nil && end != strconv.Itoa(len(l.Messages)) {
		err = r.bad(fmt.Sprintf("tells of another number of messages than the %d above", len(l.Messages)))
	}
	if err != nil {
		return err
	}
	r.sum.Write(r.before)
	r.before = nil
	want := hex.EncodeToString(r.sum.Sum(nil))
	if text, err := r.field("sha256"); err != nil || text != want {
		return errors.Join(err, r.bad("does not fit what is above: something was changed"))
	}
	raw, err := r.bytes("certificate")
	if err != nil {
		return err
	}
	if l.Signer, err = x509.ParseCertificate(raw); err != nil {
		return r.bad("is no certificate")
	}
	r.sum.Write(r.before)
	r.before = nil
	message := signed(r.sum)
	sig, err := r.bytes("signature")
	if err != nil {
		return err
	}
	if _, err := r.b.ReadByte(); !errors.Is(err, io.EOF) {
		r.n++
		return errors.Join(err, r.bad("comes after the end"))
	}
	if !verifySignature(l.Signer.PublicKey, message, sig) {
		return fmt.Errorf("%w: the signature is not of this list", ErrForged)
	}
	if l.Signer.Subject.CommonName != l.Node {
		return fmt.Errorf("%w: it says that node %q made it, the certificate is of %q", ErrForged, l.Node, l.Signer.Subject.CommonName)
	}
	if err := trusted(l.Signer); err != nil {
		return fmt.Errorf("%w: %w", ErrForged, err)
	}
	return nil
}

// bytes reads a field in base64.
func (r *reader) bytes(name string) ([]byte, error) {
	text, err := r.field(name)
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || !bytes.Equal([]byte(base64.StdEncoding.EncodeToString(b)), []byte(text)) {
		return nil, r.bad("is malformed")
	}
	return b, nil
}
