package main

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
)

// Sizes of the generated mail: log-normal, as mail is.
const (
	medianSize = 20 << 10
	sigma      = 1.2
	leastSize  = 600
	mostSize   = 1 << 20
)

// generator makes mail that is the same for the same seed, and that carries the
// checksum of its body in a header, so that every fetch is verified.
type generator struct {
	seed  uint64
	fixed int    // size of every message, where not 0
	text  []byte // what bodies are cut from: lines of 76 letters and digits
}

const line = 78

func newGenerator(seed uint64) *generator {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, 0, 3<<20)
	for len(b) < 3<<20-line {
		for range line - 2 {
			b = append(b, letters[r.IntN(len(letters))])
		}
		b = append(b, "\r\n"...)
	}
	return &generator{seed: seed, text: b}
}

const sumHeader = "X-Bench-CRC: "

// message is the i-th of a stream.
func (g *generator) message(stream string, i int) []byte {
	r := rand.New(rand.NewPCG(g.seed, uint64(crc32.ChecksumIEEE([]byte(stream)))<<32|uint64(i)))
	size := g.fixed
	if size == 0 {
		size = max(leastSize, min(int(medianSize*math.Exp(sigma*r.NormFloat64())), mostSize))
	}
	lines := max(1, (size-500)/line)
	off := r.IntN(len(g.text)/line-lines) * line
	body := g.text[off : off+lines*line]
	var b bytes.Buffer
	b.Grow(len(body) + 600)
	minute, second := i/60%60, i%60
	fmt.Fprintf(&b, "Received: from mx.example (mx.example [192.0.2.1])\r\n"+
		"\tby in.example with ESMTP id %08x; Mon, 02 Mar 2026 10:%02d:%02d +0000\r\n"+
		"From: \"Sender %d\" <sender%d@example>\r\nTo: <recipient@example>\r\n"+
		"Subject: message %d of %s\r\nDate: Mon, 02 Mar 2026 10:%02d:%02d +0000\r\n"+
		"Message-ID: <%s.%d.%x@bench.example>\r\nMIME-Version: 1.0\r\n"+
		"Content-Type: text/plain; charset=us-ascii\r\n%s%08x\r\n\r\n",
		r.Uint32(), minute, second, i%97, i%97, i, stream, minute, second,
		stream, i, r.Uint64(), sumHeader, crc32.ChecksumIEEE(body))
	b.Write(body)
	return b.Bytes()
}

// verify compares a fetched message with its checksum.
func (g *generator) verify(msg []byte) error {
	head, body, ok := bytes.Cut(msg, []byte("\r\n\r\n"))
	if !ok {
		return fmt.Errorf("message of %d bytes has no end of headers", len(msg))
	}
	_, rest, ok := bytes.Cut(head, []byte(sumHeader))
	if !ok || len(rest) < 8 {
		return fmt.Errorf("message of %d bytes has no checksum", len(msg))
	}
	if got := fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)); got != string(rest[:8]) {
		return fmt.Errorf("body has checksum %s, was sent with %s", got, rest[:8])
	}
	return nil
}
