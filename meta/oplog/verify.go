package oplog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// forgetter is a file whose pages in memory can be given up, so that the next
// read is one of the disk.
type forgetter interface{ Forget(off, n int64) }

// Forget implements forgetter.
func (f *osFile) Forget(off, n int64) {
	// Advice: if it is not taken, what is read is what was in memory.
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED)
}

// Verify reads the log from the disk, and returns what of it cannot be read. pace
// is called after every piece with its bytes, and ends it with an error. Entries
// may be appended and trimmed meanwhile.
func (l *Log) Verify(ctx context.Context, pace func(bytes int) error) (damage []*DamageError, err error) {
	l.mu.Lock()
	segs := slices.Clone(l.segs)
	l.mu.Unlock()
	for _, s := range segs {
		v := &verifier{l: l, s: s}
		for {
			if err := ctx.Err(); err != nil {
				return damage, err
			}
			n, more, err := v.piece()
			if err != nil {
				return damage, err
			}
			if !more {
				break
			}
			if err := pace(n); err != nil {
				return damage, err
			}
		}
		damage = append(damage, v.damage...)
	}
	return damage, nil
}

// verifyPiece is how much is read at a time, bytes.
const verifyPiece = 1 << 20

// verifier reads one segment.
type verifier struct {
	l      *Log
	s      *segment
	off    int64
	pos    op.Pos // before off
	damage []*DamageError
}

// piece verifies some batches; more is false at the end, or if the segment is
// no longer part of the log.
func (v *verifier) piece() (n int, more bool, err error) {
	v.l.segMu.RLock()
	defer v.l.segMu.RUnlock()
	v.l.mu.Lock()
	c, in := *v.s, slices.Contains(v.l.segs, v.s)
	v.l.mu.Unlock()
	if v.off == 0 {
		v.off, v.pos = c.start, c.base
		if in {
			v.head(&c)
		}
	}
	if !in || v.off >= c.end || v.pos.Seq >= c.last {
		return 0, false, nil
	}
	begun := v.off
	if f, ok := c.f.(forgetter); ok && begun == c.start {
		f.Forget(begun, c.end-begun) // all at once: the kernel reads ahead of the pieces
	}
	w := &window{r: c.f, size: c.size, step: verifyPiece}
	for v.off < c.end && v.off-begun < verifyPiece {
		h, body, err := batchAt(w, c.id, v.off)
		if err == nil && v.off > c.start && (h.base.Seq != v.pos.Seq || h.base.Chain != v.pos.Chain) {
			err = errBody
		}
		var es []*op.Entry
		if err == nil {
			es, err = h.entries(body)
		}
		switch {
		case err == nil:
			v.pos = h.base
			if len(es) > 0 {
				v.pos = es[len(es)-1].Pos()
			}
			v.off += h.extent()
			continue
		case !isFormat(err):
			return 0, false, err
		}
		v.skip(&c, w, err)
	}
	return int(v.off - begun), true, nil
}

// head notes a damaged header: nobody needs it, as long as the name of the file is
// right, but it is what people go by who find the file.
func (v *verifier) head(c *segment) {
	if f, ok := c.f.(forgetter); ok {
		f.Forget(0, page)
	}
	num, id, err := decodeSegmentHeader(c.f)
	if err == nil && (num != c.num || id != c.id) {
		err = fmt.Errorf("segment header: %w: of another segment", op.ErrCorrupt)
	}
	if err != nil {
		next := c.base.Seq + 1
		v.damage = append(v.damage, &DamageError{Path: c.path, From: next, Next: next, Err: err})
	}
}

// skip notes damage at off and goes on where the segment makes sense again.
func (v *verifier) skip(c *segment, w *window, cause error) {
	d := &DamageError{Path: c.path, Offset: v.off, From: v.pos.Seq + 1, Next: c.last + 1, Err: cause}
	at := v.off
	v.off = c.end
	if first, next := c.search(w, at+page); first != 0 && next < c.end {
		d.Next, v.off = first, next
		// What the next batch continues is not known until it is read.
		if h, _, err := batchAt(w, c.id, next); err == nil {
			v.pos = h.base
		}
	}
	d.Next = max(d.Next, d.From) // a batch may have no entries
	v.damage = append(v.damage, d)
}

// keepDamaged is how many damaged segments are kept beside the log.
const keepDamaged = 2

// Mend puts a damaged segment right: what can be read of it stays, what cannot is
// taken from entries, which another slot of the store has sent. They count only
// if they fit the chain on both sides. A copy of the damaged file is kept. nil
// also if the segment has been trimmed meanwhile.
func (l *Log) Mend(path string, entries []*op.Entry) error {
	l.token <- struct{}{}
	defer l.release()
	l.mu.Lock()
	i := slices.IndexFunc(l.segs, func(s *segment) bool { return s.path == path })
	active := i >= 0 && i == len(l.segs)-1
	l.mu.Unlock()
	if i < 0 {
		return nil
	}
	if active && !l.rotate(0) {
		return fmt.Errorf("mend log: %w", l.Err())
	}
	l.mu.Lock()
	s := l.segs[i] // trimming needs no token, but never takes what may be needed
	if s.path != path {
		l.mu.Unlock()
		return nil
	}
	c, end := *s, op.Pos{}
	if i+1 < len(l.segs) && l.segs[i+1].end > page {
		end = l.segs[i+1].base
	} else if c.last == l.last.Seq {
		end = l.last
	}
	l.mu.Unlock()
	all, err := c.gather(entries, end)
	if err != nil {
		return fmt.Errorf("mend %s: %w", path, err)
	}
	if err := l.replaceSegment(s, &c, all); err != nil {
		return fmt.Errorf("mend %s: %w", path, err)
	}
	return nil
}

// gather puts together what can be read and what was sent, and proves that it is
// the segment's part of the history; end is where that ends, if it is known.
func (s *segment) gather(sent []*op.Entry, end op.Pos) ([]*op.Entry, error) {
	have := make(map[uint64]*op.Entry)
	for _, e := range sent {
		have[e.Seq] = e
	}
	w := &window{r: s.f, size: s.size, step: verifyPiece, keep: true}
	for off := s.start; off < s.end; {
		h, body, err := batchAt(w, s.id, off)
		var es []*op.Entry
		if err == nil {
			es, err = h.entries(body)
		}
		if err != nil {
			if first, at := s.search(w, off+page); first != 0 {
				off = at
				continue
			}
			break
		}
		for _, e := range es {
			have[e.Seq] = e
		}
		off += h.extent()
	}
	var all []*op.Entry
	for pos := s.base; pos.Seq < s.last; {
		e := have[pos.Seq+1]
		if e == nil {
			return nil, fmt.Errorf("entry %d is still missing", pos.Seq+1)
		}
		if e.Before != pos.Chain || e.Epoch < pos.Epoch {
			return nil, fmt.Errorf("entry %v does not continue %v", e.Pos(), pos)
		}
		all, pos = append(all, e), e.Pos()
	}
	if n := len(all); n > 0 && end.Seq == s.last && all[n-1].After != end.Chain {
		return nil, fmt.Errorf("entry %v is not what is continued, %v", all[n-1].Pos(), end)
	}
	return all, nil
}

// replaceSegment writes the file of s anew. Needs the token.
func (l *Log) replaceSegment(s, was *segment, all []*op.Entry) error {
	made := &segment{num: was.num, id: was.id, path: was.path, start: page, end: page}
	tmp := was.path + ".mend.tmp"
	l.remove(tmp)
	f, err := l.fs.Create(tmp)
	if err != nil {
		return noSpace(err)
	}
	made.f = f
	err = errors.Join(l.keepCopy(was), made.fillWith(was, all))
	if err == nil {
		made.size = made.end
		err = f.Sync()
	}
	if err == nil {
		err = l.fs.Rename(tmp, was.path)
	}
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		l.remove(tmp)
		return errors.Join(noSpace(err), f.Close())
	}
	l.segMu.Lock()
	defer l.segMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	old := s.f
	s.f, s.size, s.start, s.end, s.places = made.f, made.size, made.start, made.end, made.places
	l.cursor = cursor{}
	return old.Close()
}

// fillWith writes the header and the entries of was.
func (s *segment) fillWith(was *segment, all []*op.Entry) error {
	if _, err := s.f.WriteAt(encodeSegmentHeader(s.num, s.id, time.Now().UnixNano()), 0); err != nil {
		return err
	}
	pos, first := was.base, true
	for len(all) > 0 || first {
		h := batchHeader{base: pos, first: pos.Seq + 1, chain: pos.Chain, durable: was.base.Seq, committed: was.base.Seq}
		h.restart, h.reset = first && was.restart, first && was.reset
		n := 0
		for n < len(all) && (n == 0 || int(h.bytes)+len(all[n].Raw) <= batchBytes) {
			h.bytes += uint32(len(all[n].Raw))
			n++
		}
		if h.count = uint32(n); n > 0 {
			h.chain = all[n-1].After
		}
		if _, err := s.f.WriteAt(assemble(nil, &h, all[:n], s), s.end); err != nil {
			return err
		}
		s.note(&h, s.end)
		if n > 0 {
			pos = all[n-1].Pos()
		}
		all, first = all[n:], false
	}
	return nil
}

// keepCopy keeps what can be read of a damaged segment, for people.
func (l *Log) keepCopy(s *segment) error {
	names, err := l.fs.List(l.dir)
	if err != nil {
		return err
	}
	slices.Sort(names)
	path := s.path + ".damaged" // may be there already
	kept := slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".damaged") || n == filepath.Base(path) })
	for len(kept) >= keepDamaged {
		l.remove(filepath.Join(l.dir, kept[0]))
		kept = kept[1:]
	}
	l.remove(path)
	f, err := l.fs.Create(path)
	if err != nil {
		return noSpace(err)
	}
	buf := make([]byte, page)
	for off := int64(0); off < s.end; off += page {
		n, err := s.f.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			continue // what cannot be read stays a hole
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return errors.Join(noSpace(err), f.Close())
		}
	}
	return f.Close()
}
