package imap

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// A response is a list of values: atom (string), quoted string or literal
// (text), or list ([]any). NIL is an atom.
type text []byte

// maxLiteral refuses sizes that only a broken stream can announce.
const maxLiteral = 1 << 30

type parser struct{ r *bufio.Reader }

// line reads one whole response, literals included.
func (p *parser) line() ([]any, error) {
	values, err := p.list('\n')
	if err != nil {
		return nil, fmt.Errorf("read response: %w", err)
	}
	return values, nil
}

// status reports whether the rest of a response is text for people, with at
// most a code in brackets before it (RFC 9051 §7.1).
func status(values []any) bool {
	if len(values) != 2 {
		return false
	}
	switch values[1] {
	case "OK", "NO", "BAD", "BYE", "PREAUTH":
		return true
	}
	return false
}

func (p *parser) statusText(values []any) ([]any, error) {
	rest, err := p.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	rest = strings.TrimSpace(rest)
	if code, after, ok := strings.Cut(rest, "]"); ok && strings.HasPrefix(code, "[") {
		values, rest = append(values, code+"]"), strings.TrimSpace(after)
	}
	return append(values, rest), nil
}

// list reads values up to the closing character.
func (p *parser) list(end byte) ([]any, error) {
	values := []any{}
	for {
		if end == '\n' && status(values) {
			return p.statusText(values)
		}
		c, err := p.r.ReadByte()
		if err != nil {
			return nil, err
		}
		switch {
		case c == end:
			return values, nil
		case c == ' ' || c == '\r':
		case c == '(':
			inner, err := p.list(')')
			if err != nil {
				return nil, err
			}
			values = append(values, inner)
		case c == '"':
			s, err := p.quoted()
			if err != nil {
				return nil, err
			}
			values = append(values, s)
		case c == '{' || c == '~':
			s, err := p.literal(c)
			if err != nil {
				return nil, err
			}
			values = append(values, s)
		default:
			p.r.UnreadByte()
			s, err := p.atom(end)
			if err != nil {
				return nil, err
			}
			values = append(values, s)
		}
	}
}

func (p *parser) quoted() (text, error) {
	var s text
	for {
		c, err := p.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if c == '"' {
			return s, nil
		}
		if c == '\\' {
			if c, err = p.r.ReadByte(); err != nil {
				return nil, err
			}
		}
		s = append(s, c)
	}
}

// literal reads {n}CRLF and n bytes, or ~{n} (literal8, RFC 3516), which
// alone may hold NULs.
func (p *parser) literal(first byte) (text, error) {
	if first == '~' {
		if c, err := p.r.ReadByte(); err != nil || c != '{' {
			return nil, fmt.Errorf("~ without a literal: %w", err)
		}
	}
	head, err := p.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(strings.TrimRight(head, "+}\r\n"), 10, 64)
	if err != nil || n > maxLiteral {
		return nil, fmt.Errorf("literal {%q", head)
	}
	s := make(text, n)
	_, err = io.ReadFull(p.r, s)
	return s, err
}

// atom reads up to a space or a bracket of the list; BODY[…] and [CODE x] are
// atoms up to the matching ].
func (p *parser) atom(end byte) (string, error) {
	var s strings.Builder
	depth := 0
	for {
		c, err := p.r.ReadByte()
		if err != nil {
			return "", err
		}
		switch {
		case c == '[':
			depth++
		case c == ']' && depth > 0:
			depth--
		case c == '\r' || c == '\n', depth == 0 && (c == ' ' || c == end || c == '('):
			return s.String(), p.r.UnreadByte()
		}
		s.WriteByte(c)
	}
}
