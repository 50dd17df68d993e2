package oplog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cespare/xxhash/v2"

	"slotfs/meta/op"
)

const (
	sealName  = "sealed"
	sealMagic = "slotfsSE"
)

// Seal makes the log durably refuse entries of epochs up to epoch, for ever.
func (l *Log) Seal(epoch uint64) error {
	l.sealMu.Lock()
	defer l.sealMu.Unlock()
	l.mu.Lock()
	err := l.err
	l.sealed = max(l.sealed, epoch)
	l.unlock()
	if err != nil || epoch <= l.sealedOnDisk {
		return err
	}
	b := make([]byte, 32)
	copy(b, sealMagic)
	binary.BigEndian.PutUint32(b[8:], formatVersion)
	binary.BigEndian.PutUint64(b[16:], epoch)
	binary.BigEndian.PutUint64(b[24:], xxhash.Sum64(b[:24]))
	if err := replace(l.fs, filepath.Join(l.dir, sealName), b); err != nil {
		// In memory the seal stays: refusing more than needed is safe.
		return fmt.Errorf("seal epoch %d: %w", epoch, noSpace(err))
	}
	l.sealedOnDisk = epoch
	return nil
}

// Sealed returns the epoch up to which the log is sealed.
func (l *Log) Sealed() uint64 {
	l.mu.Lock()
	defer l.unlock()
	return l.sealed
}

func readSeal(fs fsys, dir string) (uint64, error) {
	f, err := fs.Open(filepath.Join(dir, sealName), false)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return 0, err
	case n != len(b) || string(b[:8]) != sealMagic || binary.BigEndian.Uint64(b[24:]) != xxhash.Sum64(b[:24]):
		return 0, fmt.Errorf("%s: %w", filepath.Join(dir, sealName), op.ErrCorrupt)
	case binary.BigEndian.Uint32(b[8:]) != formatVersion:
		return 0, fmt.Errorf("%s: %w", filepath.Join(dir, sealName), ErrVersion)
	}
	return binary.BigEndian.Uint64(b[16:]), nil
}

// Cut takes everything after seq after off a following log, and keeps it in a
// new file in rescueDir, which ScanFile reads; with no rescueDir the caller has
// kept it (Rescue). It returns how many entries that were. Committed or applied
// entries cannot be cut. The caller appends nothing meanwhile.
func (l *Log) Cut(after uint64, rescueDir string) (n int, err error) {
	l.token <- struct{}{}
	defer l.release()
	l.mu.Lock()
	last := l.last
	switch {
	case l.err != nil:
		err = l.err
	case l.leading:
		err = errors.New("cut: the log leads")
	case after < l.Committed.Get() || after < l.Applied.Get():
		err = fmt.Errorf("cut after %d: committed up to %d, applied up to %d", after, l.Committed.Get(), l.Applied.Get())
	}
	l.wantLocked(last.Seq)
	l.unlock()
	if err != nil || after >= last.Seq {
		return 0, err
	}
	for !l.flushBatch(true) {
	}
	base, err := l.PosAt(after)
	if err != nil {
		return 0, err
	}
	if rescueDir != "" {
		if _, err := l.rescue(base, last, rescueDir); err != nil {
			return 0, fmt.Errorf("rescue seq %d to %d: %w", after+1, last.Seq, err)
		}
	}
	l.mu.Lock()
	if err = l.err; err == nil && l.last != last {
		err = errors.New("cut: entries were appended meanwhile")
	}
	l.unlock()
	if err != nil {
		return 0, err
	}
	if err := l.restart(base, false); err != nil {
		return 0, fmt.Errorf("cut: %w", err)
	}
	return int(last.Seq - after), nil
}

// Rescue copies everything after seq after to a file in rescueDir, which
// ScanFile reads: before a Reset or Cut, which drops it. It returns the file's
// name, empty if there is nothing to copy; the same entries always get the same
// name. The caller appends nothing meanwhile.
func (l *Log) Rescue(after uint64, rescueDir string) (name string, err error) {
	base, err := l.PosAt(after)
	if err != nil {
		return "", err
	}
	last := l.Last()
	if last.Seq <= after {
		return "", nil
	}
	if name, err = l.rescue(base, last, rescueDir); err != nil {
		return "", fmt.Errorf("rescue seq %d to %d: %w", after+1, last.Seq, err)
	}
	return name, nil
}

// rescue writes the entries after base, up to end, to a file of their own.
func (l *Log) rescue(base, end op.Pos, dir string) (name string, err error) {
	s := &segment{id: newSegmentID(), start: page, end: page}
	last := end.Seq
	name = fmt.Sprintf("%d-%d-%016x.log", base.Seq+1, last, end.Chain)
	path := filepath.Join(dir, name)
	tmp := path + ".tmp"
	l.remove(tmp) // of an attempt that a crash ended
	f, err := l.fs.Create(tmp)
	if err != nil {
		return "", err
	}
	_, err = f.WriteAt(encodeSegmentHeader(0, s.id, time.Now().UnixNano()), 0)
	for pos := base; err == nil && pos.Seq < last; {
		var es []*op.Entry
		if es, err = l.Read(pos.Seq+1, batchBytes/2); err != nil {
			break
		}
		h := batchHeader{first: pos.Seq + 1, count: uint32(len(es)), base: pos, chain: es[len(es)-1].After, durable: base.Seq, committed: base.Seq}
		for _, e := range es {
			h.bytes += uint32(len(e.Raw))
		}
		if _, err = f.WriteAt(assemble(nil, &h, es, s), s.end); err == nil {
			s.end += h.extent()
			pos = es[len(es)-1].Pos()
		}
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = l.fs.Rename(tmp, path)
	}
	if err == nil {
		err = l.fs.SyncDir(dir)
	}
	if err != nil {
		l.remove(tmp)
	}
	return name, err
}

// Reset empties a following log, which then continues at pos at: what a resync
// needs. All marks become at.Seq.
func (l *Log) Reset(at op.Pos) error {
	l.token <- struct{}{}
	defer l.release()
	l.mu.Lock()
	err := l.err
	if err == nil && l.leading {
		err = errors.New("the log leads")
	}
	l.unlock()
	if err == nil {
		err = l.restart(at, true)
	}
	if err != nil {
		return fmt.Errorf("reset log: %w", err)
	}
	return nil
}

// restart makes the log end at base, durably. With reset nothing before base
// counts either. Needs the token.
func (l *Log) restart(base op.Pos, reset bool) error {
	l.mu.Lock()
	keep, dead := retain(l.segs, base.Seq)
	if reset {
		keep, dead = nil, l.segs
	}
	h := batchHeader{restart: true, reset: len(keep) == 0, durable: base.Seq, base: base, time: l.lastTime}
	if h.committed = l.Committed.Get(); reset {
		h.committed = base.Seq
	}
	l.unlock()
	s, err := l.startSegment(&h, nil, firstSegment)
	if err != nil {
		return err
	}
	l.segMu.Lock()
	defer l.segMu.Unlock()
	l.mu.Lock()
	for _, s := range keep {
		s.last = min(s.last, base.Seq)
	}
	l.segs = append(keep, s)
	if l.spare != nil {
		l.poolLocked(l.spare)
		l.spare = nil
		signal(l.prep)
	}
	l.truncateLocked(base, reset)
	l.unlock()
	l.retire(dead)
	return nil
}

// truncateLocked makes the state in memory end at base.
func (l *Log) truncateLocked(base op.Pos, reset bool) {
	keep := 0
	for keep < len(l.recs) && l.recs[keep].e.Seq <= base.Seq && !reset {
		keep++
	}
	for _, r := range l.recs[keep:] {
		n := int64(len(r.e.Raw))
		l.recBytes -= n + entryOverhead
		if r.e.Seq > l.Applied.Get() {
			l.unapplied -= n
		}
		if r.e.Seq > l.written {
			l.pending -= n
		}
	}
	clear(l.recs[keep:])
	l.recs = l.recs[:keep]
	for len(l.epochs) > 0 && (reset || l.epochs[len(l.epochs)-1].Seq > base.Seq) {
		l.epochs = l.epochs[:len(l.epochs)-1]
	}
	l.last = base
	l.written, l.writtenEpoch, l.writtenTime, l.wanted = base.Seq, base.Epoch, l.lastTime, base.Seq
	marks := []*Mark{l.Appended, l.Durable}
	if reset {
		marks = append(marks, l.Received, l.Committed, l.Applied)
	} else {
		l.Received.set(min(l.Received.Get(), base.Seq), nil)
	}
	for _, m := range marks {
		m.set(base.Seq, ErrCut)
	}
	for _, m := range []*Mark{l.Wanted, l.Awaited} {
		m.set(min(m.Get(), base.Seq), nil)
	}
	l.told = l.Committed.Get()
	l.wakeLocked()
}

// Trim removes what is before seq before, as far as whole segments hold
// nothing else, and never what is not yet applied.
func (l *Log) Trim(before uint64) error {
	l.segMu.Lock()
	defer l.segMu.Unlock()
	l.mu.Lock()
	if l.err != nil {
		defer l.unlock()
		return l.err
	}
	before = min(before, l.Applied.Get()+1)
	n := 0
	// A segment with a batch in it knows where its predecessors end.
	for n+1 < len(l.segs) && l.segs[n].last < before && l.segs[n+1].end > page {
		n++
	}
	old := l.segs[:n:n]
	l.segs = l.segs[n:]
	first := l.segs[0].first()
	for len(l.epochs) > 0 && l.epochs[0].Seq < first {
		l.epochs = l.epochs[1:]
	}
	l.unlock()
	l.retire(old)
	if n == 0 {
		return nil
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("trim log: %w", err)
	}
	return nil
}

// retire does away with segments, oldest first: with a file system that keeps
// the order of names, no crash brings one back without its successors. For the
// same reason nothing more is removed once that has failed. One segment may be
// kept as raw material. Needs segMu, or that nobody reads yet.
func (l *Log) retire(old []*segment) {
	for _, s := range old {
		if err := s.f.Close(); err != nil {
			l.log.Warn("close segment", "path", s.path, "err", err)
		}
		l.mu.Lock()
		stuck := l.stuck
		keep := len(l.pool) == 0 && s.size >= l.o.SegmentSize && s.size <= 2*l.o.SegmentSize
		l.unlock()
		if stuck {
			continue
		}
		var err error
		pooled := filepath.Join(l.dir, fmt.Sprintf("%016x.pool", s.num))
		if keep {
			err = l.fs.Rename(s.path, pooled)
		} else {
			err = l.fs.Remove(s.path)
		}
		l.mu.Lock()
		switch {
		case err != nil:
			l.stuck = true
			l.log.Warn("cannot remove a segment, so none is until the next start", "path", s.path, "err", err)
		case keep:
			l.pool = append(l.pool, poolFile{pooled, s.size})
		}
		l.unlock()
	}
}
