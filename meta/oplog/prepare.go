package oplog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// makeSegment makes a durable, named, empty segment of at least size bytes,
// from a file of the pool if there is one. Needs no lock; num is the caller's.
func (l *Log) makeSegment(num uint64, size int64) (*segment, error) {
	size = roundUp(max(size, 2*page))
	id := newSegmentID()
	s := &segment{num: num, id: id, size: size, start: page, end: page, path: filepath.Join(l.dir, segmentName(num, id))}
	path := l.takeFromPool(size)
	if path != "" {
		err := l.reuse(s, path)
		if err == nil {
			return s, nil
		}
		l.log.Warn("cannot reuse a segment", "path", path, "err", err)
		l.remove(path)
	}
	tmp := s.path + ".tmp"
	f, err := l.fs.Create(tmp)
	if err != nil {
		return nil, noSpace(err)
	}
	s.f = f
	if err := l.fill(s); err != nil {
		f.Close()
		l.remove(tmp)
		return nil, noSpace(err)
	}
	if err := l.publish(s, tmp); err != nil {
		return nil, noSpace(err)
	}
	return s, nil
}

// fill writes zeros to the whole file: blocks that have been written need no
// change of the file system's metadata, hence no commit of its journal, when
// they are written again. In pieces, so that the log's own flushes don't queue
// behind 64 MiB of zeros.
func (l *Log) fill(s *segment) error {
	if err := s.f.Allocate(s.size); err != nil {
		return err
	}
	if _, err := s.f.WriteAt(encodeSegmentHeader(s.num, s.id, time.Now().UnixNano()), 0); err != nil {
		return err
	}
	zeros := make([]byte, min(s.size, 1<<20))
	for off := int64(page); off < s.size; {
		n, err := s.f.WriteAt(zeros[:min(int64(len(zeros)), s.size-off)], off)
		if err != nil {
			return err
		}
		if off += int64(n); off%(4<<20) < int64(n) {
			if err := s.f.Datasync(); err != nil {
				return err
			}
		}
	}
	return s.f.Sync()
}

// reuse turns the file at path, whose blocks have been written already, into
// s. Old batches in it don't count, because they carry another segment id.
func (l *Log) reuse(s *segment, path string) error {
	f, err := l.fs.Open(path, true)
	if err != nil {
		return err
	}
	s.f = f
	if s.size, err = f.Size(); err == nil {
		_, err = f.WriteAt(encodeSegmentHeader(s.num, s.id, time.Now().UnixNano()), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		f.Close()
		return err
	}
	return l.publish(s, path)
}

// publish gives s its name for good.
func (l *Log) publish(s *segment, from string) error {
	err := l.fs.Rename(from, s.path)
	if err == nil {
		err = l.fs.SyncDir(l.dir)
	}
	if err != nil {
		s.f.Close()
		l.remove(from)
		return fmt.Errorf("publish segment: %w", err)
	}
	return nil
}

// remove deletes a file that nothing depends on.
func (l *Log) remove(path string) {
	if err := l.fs.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.log.Warn("cannot remove a file of the log", "path", path, "err", err)
	}
}

// noSpace marks the errors that a retry may cure.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

func (l *Log) takeFromPool(size int64) string {
	l.mu.Lock()
	defer l.unlock()
	for i, p := range l.pool {
		if p.size >= size {
			l.pool = append(l.pool[:i], l.pool[i+1:]...)
			return p.path
		}
	}
	return ""
}

// prepareLoop keeps a spare segment ready, so that no write waits for one.
func (l *Log) prepareLoop() {
	defer l.wg.Done()
	for {
		select {
		case <-l.closed:
			return
		case <-l.prep:
		}
		l.prepare()
	}
}

// nextSize is how large the segment after the active one should be. They grow,
// so that a small slot takes little room.
func (l *Log) nextSizeLocked() int64 {
	return min(max(2*l.active().size, minSegment), l.o.SegmentSize)
}

func (l *Log) prepare() {
	l.mu.Lock()
	if l.spare != nil || l.err != nil {
		l.unlock()
		return
	}
	num, size := l.nextSeg, max(l.nextSizeLocked(), l.needed)
	l.nextSeg++
	l.prepErr = nil
	l.unlock()

	s, err := l.makeSegment(num, size)

	l.mu.Lock()
	defer l.unlock()
	l.prepErr, l.prepAt = err, l.now()
	l.wakeLocked()
	switch {
	case err == nil && l.err != nil:
		s.f.Close()
	case err == nil && s.num < l.active().num:
		l.poolLocked(s)
		signal(l.prep)
	case err == nil:
		l.spare = s
	default:
		// No fault, whatever it is: nothing that the log holds is in doubt.
		l.prepErr = fmt.Errorf("prepare segment: %w", err)
		l.log.Warn("cannot prepare the next segment of the log", "dir", l.dir, "bytes", size, "err", err)
	}
}

// poolLocked keeps a prepared segment, which has no place any more because a
// restart has taken a later number, as raw material.
func (l *Log) poolLocked(s *segment) {
	if err := s.f.Close(); err != nil {
		l.log.Warn("close segment", "path", s.path, "err", err)
	}
	l.pool = append(l.pool, poolFile{s.path, s.size})
}

// retryLocked makes the preparer try again if the last attempt is old enough;
// false if that failure has to do.
func (l *Log) retryLocked() bool {
	if l.prepErr != nil && l.now()-l.prepAt < prepareRetry {
		return false
	}
	signal(l.prep)
	return true
}
