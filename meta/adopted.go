package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// Adopted messages are served before anybody has read them: their index records
// say that they are messages, and have no checksum. They are unverified: reads are
// answered as the disk has it, for there is nothing to hold them against.
//
// The primary reads them in the background, in order of id, and logs what it found
// as a Seal, which makes each of them a message like every other, on every slot;
// replicas compare their copies then. What is left to do is in the index ('u'
// records, record.go), so there is no cursor, and it goes on after a restart or a
// change of primary wherever the log ends. The continuous scrub waits meanwhile:
// it would read the same.
//
// A message that cannot be read stays unverified, and in place: it is a finding,
// and is tried again later.

// adopting is where a slot is with that.
type adopting struct {
	busy  atomic.Bool   // messages are being read
	seals atomic.Uint64 // entries appended since the start

	mu  sync.Mutex
	bad map[op.ID]string // could not be read, and why
}

// adoptAgain is when messages that could not be read are tried again.
const adoptAgain = 10 * time.Minute

// AdoptionStatus says how far the reading of adopted messages is.
type AdoptionStatus struct {
	Messages        uint64    `json:"messages"` // of the store, adopted or not
	Bytes           uint64    `json:"bytes"`
	Unverified      uint64    `json:"unverified"` // without a checksum as yet
	UnverifiedBytes uint64    `json:"unverified_bytes"`
	Begun           time.Time `json:"begun"`
	Verified        time.Time `json:"verified,omitzero"` // when all had a checksum
	Bad             []BadFile `json:"bad,omitempty"`     // found by this slot since its start: at most badShown
	BadCount        int       `json:"bad_count,omitempty"`
}

// BadFile is an adopted message that could not be read.
type BadFile struct {
	ID    op.ID  `json:"id"`
	Path  string `json:"path"`
	Error string `json:"error"`
}

// badShown is how many of them a status names.
const badShown = 100

// Adoption says how far it is; nil if the store was not adopted.
func (s *Slot) Adoption() *AdoptionStatus {
	a := s.Adopted()
	if a == nil {
		return nil
	}
	held := s.Stats()
	st := &AdoptionStatus{Messages: held.Messages, Bytes: held.Bytes, Unverified: held.Unverified, UnverifiedBytes: held.UnverifiedBytes,
		Begun: a.Begun, Verified: a.Verified}
	d := &s.adopting
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, text := range d.bad {
		n, err := s.ix.inode(id)
		if err != nil || !n.Unverified() {
			delete(d.bad, id) // removed, or another primary could read it
			continue
		}
		st.BadCount++
		st.Bad = append(st.Bad, BadFile{ID: id, Path: s.pathOf(n), Error: text})
	}
	slices.SortFunc(st.Bad, func(a, b BadFile) int { return strings.Compare(a.Path, b.Path) })
	st.Bad = st.Bad[:min(len(st.Bad), badShown)]
	return st
}

// AdoptLoop takes the checksums of adopted messages while this slot is the
// primary. It ends with ctx, or with the slot.
func (s *Slot) AdoptLoop(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	for ctx.Err() == nil {
		applied := s.Log.Applied.Changed()
		wait := lookEvery
		switch {
		case s.Resyncing() || !s.unread():
			applied = nil // only a resync can change that
		case s.leads():
			if err := s.takeSums(ctx); err == nil {
				applied, wait = nil, adoptAgain
			} else if ctx.Err() == nil && !errors.Is(err, oplog.ErrNotLeading) {
				applied = nil
				s.log.Warn("checksums of adopted messages", keyErr, err)
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-applied:
		case <-t.C:
		}
		t.Stop()
	}
}

// unread reports whether there may be messages to read.
func (s *Slot) unread() bool {
	a := s.Adopted()
	return s.ix.current().Unverified > 0 || a != nil && a.Verified.IsZero()
}

// leads reports whether this slot is the primary, and its epoch has begun.
func (s *Slot) leads() bool {
	epochs := s.Log.Epochs()
	return s.Log.Leading() && len(epochs) > 0 && epochs[len(epochs)-1].Begin.Primary == s.ID
}

// takeSums goes once through the messages that have no checksum.
func (s *Slot) takeSums(ctx context.Context) error {
	s.adopting.busy.Store(true)
	defer s.adopting.busy.Store(false)
	s.scrub.mu.Lock()
	rate := s.scrub.conf.Rate
	s.scrub.mu.Unlock()
	pace := newPacer(rate, s.usersDid)
	readers := newReaders()
	for from := op.ID(0); ; {
		ids, err := s.ix.lacking(lacksSum, from, scrubBatch)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			break
		}
		one := func() int { return 1 }
		err = readers.sideBySide(ctx, ids, one, func(ctx context.Context, ids []op.ID, m *mediumReader) error {
			return s.takeSum(ctx, ids[0], m, pace)
		})
		if err == nil {
			// Not ahead of the replicas, or of the applier.
			last := s.Log.Last().Seq
			err = errors.Join(s.Log.Barrier(ctx, last), s.Log.Applied.Wait(ctx, last))
		}
		if err != nil {
			return err
		}
		from = ids[len(ids)-1] + 1
	}
	if s.ix.current().Unverified > 0 {
		return nil
	}
	return s.noteAdopted(ctx)
}

// takeSum reads one message and logs its checksum.
func (s *Slot) takeSum(ctx context.Context, id op.ID, m *mediumReader, pace *pacer) error {
	if err := errors.Join(ctx.Err(), s.Faulted()); err != nil {
		return err
	}
	if !s.leads() {
		return oplog.ErrNotLeading
	}
	begun := time.Now()
	n, sum, err := s.readUnverified(id, m)
	if n == nil {
		return err
	}
	if err != nil {
		s.cannotAdopt(n, err)
		return nil
	}
	o := &op.Seal{ID: id, Of: n.Changed, Sum: *sum}
	if err := s.Log.Reserve(ctx, 8*len(sum.Blocks)+1); err != nil {
		return err
	}
	s.adopting.seals.Add(1)
	if _, err := s.Log.Append(o); err != nil {
		return err
	}
	s.canAdopt(id)
	return pace.rest(ctx, time.Since(begun), sum.Size)
}

// readUnverified reads a message for its checksum. n is nil if it needs none any
// more; an error beside n says why the message cannot be read.
func (s *Slot) readUnverified(id op.ID, m *mediumReader) (n *Inode, sum *op.Sum, err error) {
	n, fd, err := s.openUnverified(id)
	if n == nil || err != nil {
		return n, nil, err
	}
	defer unix.Close(fd)
	has, err := readMarkFd(fd)
	switch {
	case err != nil:
		return n, nil, fmt.Errorf("read its mark: %w", err)
	case has.ID != id:
		return n, nil, fmt.Errorf("what is there carries id %d", has.ID)
	case has.Lost:
		return n, nil, errLost
	}
	if sum, err = m.sum(fd); err == nil && sum.Size != n.Size {
		err = fmt.Errorf("%d bytes, were %d when it was adopted", sum.Size, n.Size)
	}
	return n, sum, err
}

// openUnverified opens a message without a checksum; n is nil if it is gone or has
// one.
func (s *Slot) openUnverified(id op.ID) (n *Inode, fd int, err error) {
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	n, err = s.ix.inode(id)
	if errors.Is(err, ErrNotExist) || err == nil && !n.Unverified() {
		return nil, -1, nil
	}
	if err != nil {
		return nil, -1, err
	}
	fd, err = s.tree.openNamed(n, openRead)
	return n, fd, err
}

// cannotAdopt reports a message that cannot be read, once.
func (s *Slot) cannotAdopt(n *Inode, err error) {
	d := &s.adopting
	d.mu.Lock()
	if d.bad == nil {
		d.bad = map[op.ID]string{}
	}
	d.bad[n.ID] = err.Error()
	d.mu.Unlock()
	bad := &DamagedError{ID: n.ID, Path: s.pathOf(n), Err: fmt.Errorf("adopted, and cannot be read: %w", err)}
	s.suspect(&judged{n: n, path: bad.Path}, bad)
}

// canAdopt takes back what cannotAdopt reported.
func (s *Slot) canAdopt(id op.ID) {
	d := &s.adopting
	d.mu.Lock()
	_, was := d.bad[id]
	delete(d.bad, id)
	d.mu.Unlock()
	if was {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.suspects, id)
	}
}

// AdoptedStore says what was adopted, and when.
type AdoptedStore struct {
	UpTo     op.ID     // objects with higher ids came later
	Begun    time.Time // when the adoption began
	Verified time.Time // when all messages had a checksum; zero: not yet
}

// encode is the value of AdoptedXattr.
func (a *AdoptedStore) encode() []byte {
	b := fmt.Appendf(nil, "%d %d", a.UpTo, a.Begun.UnixNano())
	if !a.Verified.IsZero() {
		b = fmt.Appendf(b, " %d", a.Verified.UnixNano())
	}
	return b
}

// Adopted says what was adopted of the store; nil: nothing.
func (s *Slot) Adopted() *AdoptedStore {
	n, err := s.ix.inode(op.Root)
	if err != nil {
		return nil
	}
	var v []int64
	for _, f := range strings.Fields(string(n.Xattr[AdoptedXattr])) {
		i, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil
		}
		v = append(v, i)
	}
	if len(v) < 2 {
		return nil
	}
	a := &AdoptedStore{UpTo: op.ID(v[0]), Begun: time.Unix(0, v[1]).UTC()}
	if len(v) > 2 {
		a.Verified = time.Unix(0, v[2]).UTC()
	}
	return a
}

// noteAdopted logs, once, that all adopted messages have a checksum.
func (s *Slot) noteAdopted(ctx context.Context) error {
	a := s.Adopted()
	if a == nil || !a.Verified.IsZero() {
		return nil
	}
	a.Verified = time.Now().UTC()
	s.adopting.seals.Add(1)
	e, err := s.Log.Append(&op.SetXattr{ID: op.Root, Name: AdoptedXattr, Value: a.encode()})
	if err != nil {
		return err
	}
	return s.Log.Applied.Wait(ctx, e.Seq)
}
