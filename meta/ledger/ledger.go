package ledger

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options is how a ledger is opened. The zero value works.
type Options struct {
	Store string // filled into entries that have none
	Slot  string // filled into entries that have none

	FileSize int64            // a new file after so many bytes; 0 means 1 MiB
	Now      func() time.Time // nil: time.Now
}

// Ledger is open for appending. Its methods are safe for concurrent use.
type Ledger struct {
	dir string
	opt Options

	mu   sync.Mutex // guards what follows
	f    *os.File   // the last file; nil until one is needed
	size int64      // of f
	head Head
	fail error // an append whose effect is unknown: nothing more is written
}

// Head is the end of the chain.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash Hash   `json:"hash"`
}

// String is what ParseHead reads: seq:hash.
func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.Hash) }

// ParseHead reads a head as String writes it.
func ParseHead(s string) (h Head, err error) {
	seq, hash, _ := strings.Cut(s, ":")
	if h.Seq, err = strconv.ParseUint(seq, 10, 63); err == nil {
		err = h.Hash.UnmarshalText([]byte(hash))
	}
	if err != nil {
		return Head{}, fmt.Errorf("head %q is not number:hash: %w", s, err)
	}
	return h, nil
}

// ErrClosed: the ledger was closed.
var ErrClosed = errors.New("ledger is closed")

// Open opens the ledger in dir, which is made if need be. What a crash left of a
// last line is cut off, and recorded.
func Open(dir string, o Options) (*Ledger, error) {
	if o.FileSize == 0 {
		o.FileSize = 1 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := os.Mkdir(dir, 0o700); err == nil {
		err = syncDir(filepath.Dir(dir))
		if err != nil {
			return nil, fmt.Errorf("make ledger: %w", err)
		}
	} else if !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make ledger: %w", err)
	}
	l := &Ledger{dir: dir, opt: o}
	note, err := l.load()
	if err == nil && note != nil {
		err = l.Append(*note)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ledger: %w", err), l.Close())
	}
	return l, nil
}

// load finds the head in the last file, and returns what has to be recorded
// about the state that it was found in.
func (l *Ledger) load() (note *Entry, err error) {
	names, err := files(l.dir)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	name := names[len(names)-1]
	path := filepath.Join(l.dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	whole, torn := splitTorn(b)
	if len(torn) > 0 {
		if err := truncate(path, int64(len(whole))); err != nil {
			return nil, fmt.Errorf("cut a torn line: %w", err)
		}
		note = &Entry{Kind: Torn, Path: "./ledger/" + name, Outcome: Noted,
			Text: fmt.Sprintf("the last line ended after %d bytes, as a crash leaves it, and was cut; SHA-256 of what was cut: %x", len(torn), sha256.Sum256(torn))}
	}
	first, _ := seqOf(name)
	l.head = Head{Seq: first - 1}
	bad := 0
	for i, line := range lines(whole) {
		e, err := decode(line)
		switch {
		case err == nil:
			l.head = Head{e.Seq, e.Hash}
		case bad == 0:
			bad = i + 1
			note = &Entry{Kind: Broken, Path: "./ledger/" + name, Outcome: Noted,
				Text: fmt.Sprintf("line %d is damaged (%v); this file is kept as it is, and the chain goes on from the last line that could be read", bad, err)}
			fallthrough
		default:
			l.head.Seq++ // as far as one can tell
		}
	}
	if l.head.Hash == (Hash{}) && first > 1 {
		// A file was begun and nothing whole is in it: the chain ends one before.
		if l.head.Hash, err = l.lastHash(names[:len(names)-1]); err != nil {
			return nil, err
		}
	}
	if bad > 0 {
		return note, nil // a new file
	}
	if l.f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return nil, err
	}
	l.size = int64(len(whole))
	return note, nil
}

// lastHash is that of the last good line in the files; zero if there is none.
func (l *Ledger) lastHash(names []string) (h Hash, err error) {
	for _, name := range slices.Backward(names) {
		b, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			return h, err
		}
		for _, line := range slices.Backward(lines(b)) {
			if e, err := decode(line); err == nil {
				return e.Hash, nil
			}
		}
	}
	return h, nil
}

// splitTorn divides a file into its lines and what follows the last of them. A
// line with zero bytes in it, at the end, is one whose pages a crash kept from
// the disk.
func splitTorn(b []byte) (whole, torn []byte) {
	end := bytes.LastIndexByte(b, '\n') + 1
	if last := bytes.LastIndexByte(b[:max(end-1, 0)], '\n') + 1; bytes.IndexByte(b[last:end], 0) >= 0 {
		end = last
	}
	return b[:end], b[end:]
}

// lines splits at newlines; a rest without one counts.
func lines(b []byte) [][]byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

// Append writes entries, in order, and returns when they are on stable storage.
// Seq, Time, Store, Slot and the chain are filled in. After an fsync that failed
// nothing more is written: what is on disk is unknown until the next Open.
func (l *Ledger) Append(entries ...Entry) error {
	if len(entries) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return fmt.Errorf("append to ledger: %w", l.fail)
	}
	for len(entries) > 0 {
		n, err := l.appendSome(entries)
		if err != nil {
			return fmt.Errorf("append to ledger: %w", err)
		}
		entries = entries[n:]
	}
	return nil
}

// appendSome writes as many entries as the present file takes, at least one.
func (l *Ledger) appendSome(entries []Entry) (n int, err error) {
	if l.f == nil || l.size >= l.opt.FileSize {
		if err := l.begin(); err != nil {
			return 0, err
		}
	}
	var b []byte
	head := l.head
	for _, e := range entries {
		if n > 0 && l.size+int64(len(b)) >= l.opt.FileSize {
			break
		}
		if e.Time.IsZero() {
			e.Time = l.opt.Now()
		}
		if e.Store == "" {
			e.Store = l.opt.Store
		}
		if e.Slot == "" {
			e.Slot = l.opt.Slot
		}
		e = e.clean()
		e.Seq, e.Prev = head.Seq+1, head.Hash
		if e.Hash, err = e.sum(); err != nil {
			return 0, err
		}
		line, err := e.line()
		if err != nil {
			return 0, err
		}
		b = append(append(b, line...), '\n')
		head = Head{e.Seq, e.Hash}
		n++
	}
	if _, err := l.f.Write(b); err != nil {
		// A full disk, most likely: nothing of it may stay.
		if e := l.f.Truncate(l.size); e != nil {
			l.fail = errors.Join(err, e)
		}
		return 0, err
	}
	if err := l.f.Sync(); err != nil {
		l.fail = err
		return 0, err
	}
	l.size += int64(len(b))
	l.head = head
	return n, nil
}

// begin begins a new file.
func (l *Ledger) begin() error {
	if l.f != nil {
		if err := l.f.Close(); err != nil {
			return err
		}
		l.f = nil
	}
	path := filepath.Join(l.dir, fmt.Sprintf("%012d%s", l.head.Seq+1, suffix))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	l.f, l.size = f, 0
	return syncDir(l.dir)
}

// Head is the number and the hash of the last entry.
func (l *Ledger) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Dir is where the ledger is.
func (l *Ledger) Dir() string { return l.dir }

// Close closes the ledger.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail == nil {
		l.fail = ErrClosed
	}
	if l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}

const suffix = ".jsonl"

// files lists the ledger's files, oldest first.
func files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if _, ok := seqOf(e.Name()); ok {
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		x, _ := seqOf(a)
		y, _ := seqOf(b)
		return int(int64(x - y))
	})
	return names, nil
}

// seqOf is the number of a file's first entry.
func seqOf(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) < 12 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	return n, err == nil && n > 0
}

func truncate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
