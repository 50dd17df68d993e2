package repl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

// fetchIdle is how long a fetch or resync connection may do nothing.
const fetchIdle = 30 * time.Second

// fetchDoubtful is how long a fetch may take from a slot that gossip takes for
// dead.
const fetchDoubtful = time.Second

// maxFetch is the largest object that Fetch takes into memory, in bytes.
const maxFetch = 1 << 30

// contentReply comes before content.
type contentReply struct {
	Inode *meta.Inode `json:"inode,omitempty"` // as it was right before the content was read
	None  Code        `json:"none,omitempty"`  // there is no content, and why
	Why   string      `json:"why,omitempty"`
}

// Fetch gets the content of id from another slot of the store. What it returns
// matches want; ErrNoCopy if nobody has that.
func (r *Member) Fetch(ctx context.Context, id op.ID, want op.Sum) (meta.Copy, error) {
	if ctx.Value(serving{}) != nil {
		return meta.Copy{}, fmt.Errorf("fetch id %d: %w: asked by another slot", id, ErrNoCopy)
	}
	if want.Size > maxFetch {
		return meta.Copy{}, fmt.Errorf("fetch id %d: %d bytes are too many", id, want.Size)
	}
	// Somebody waits for a read.
	errs := []error{ErrNoCopy}
	for _, p := range slices.SortedStableFunc(slices.Values(r.Peers.Slots(r.Store)), deadLast) {
		if p.Slot == r.ID || p.Slot.IsZero() {
			continue
		}
		b, err := r.fetchWithin(ctx, p, id, want)
		if err == nil {
			return meta.Copy{Data: b, From: p.Node}, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", p.Node, err))
		if ctx.Err() != nil {
			break
		}
	}
	return meta.Copy{}, fmt.Errorf("fetch id %d: %w", id, errors.Join(errs...))
}

// deadLast puts those last that gossip takes for dead; they get little time, too:
// gossip may not have heard yet that one is back.
func deadLast(a, b PeerSlot) int {
	switch {
	case a.Alive == b.Alive:
		return 0
	case a.Alive:
		return -1
	}
	return 1
}

// fetchWithin is fetchFrom, which must be quick if p is taken for dead.
func (r *Member) fetchWithin(ctx context.Context, p PeerSlot, id op.ID, want op.Sum) ([]byte, error) {
	if !p.Alive {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, fetchDoubtful)
		defer cancel()
	}
	return r.fetchFrom(ctx, p, id, want)
}

func (r *Member) fetchFrom(ctx context.Context, p PeerSlot, id op.ID, want op.Sum) ([]byte, error) {
	l, _, err := r.connect(ctx, p, forFetch)
	if err != nil {
		return nil, err
	}
	defer l.close()
	defer l.closeOn(ctx)()
	if err := l.sendJSON(frameRequest, request{Content: id}); err != nil {
		return nil, err
	}
	c, err := l.content()
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, want.Size)
	for {
		piece, err := c.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if int64(len(b)+len(piece)) > want.Size {
			return nil, fmt.Errorf("%w: longer than %d bytes", errContent, want.Size)
		}
		b = append(b, piece...)
	}
	if err := verifySum(b, want); err != nil {
		return nil, err
	}
	return b, nil
}

// verifySum compares b with every part of want that says something.
func verifySum(b []byte, want op.Sum) error {
	if int64(len(b)) != want.Size {
		return fmt.Errorf("%w: %d bytes for a size of %d", errContent, len(b), want.Size)
	}
	for i, off := 0, 0; off < len(b); i, off = i+1, off+op.BlockSize {
		if !want.VerifyBlock(i, b[off:min(off+op.BlockSize, len(b))]) {
			return fmt.Errorf("%w: block %d", errContent, i)
		}
	}
	if want.SHA256 != ([32]byte{}) && op.SumOf(b).SHA256 != want.SHA256 {
		return fmt.Errorf("%w: SHA-256", errContent)
	}
	return nil
}

// contentReader reads the content frames of one object.
type contentReader struct {
	l     *link
	Inode *meta.Inode // of the moment right before
	rest  []byte
	err   error
}

// content reads the beginning of a content.
func (l *link) content() (*contentReader, error) {
	l.deadline(fetchIdle)
	var a contentReply
	if err := l.expect(frameReply, &a); err != nil {
		return nil, noEOF(err)
	}
	if a.None != "" {
		return nil, &PeerError{l.peer, a.None, a.Why}
	}
	return &contentReader{l: l, Inode: a.Inode}, nil
}

// next returns the next piece, which is valid until the next read; io.EOF after
// the last one.
func (c *contentReader) next() ([]byte, error) {
	c.l.deadline(fetchIdle)
	f, err := c.l.next()
	switch {
	case err != nil:
		return nil, noEOF(err)
	case f.typ == frameRefuse:
		return nil, c.l.refused(f)
	case f.typ != frameContent:
		return nil, fmt.Errorf("%w: type %d within content", ErrWire, f.typ)
	case len(f.body) == 0:
		return nil, io.EOF
	}
	return f.body, nil
}

// noEOF keeps the end of a connection from looking like the end of content.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// serveFetch answers questions for content and for entries of the log.
func (r *Member) serveFetch(ctx context.Context, l *link) {
	l.deadline(fetchIdle)
	if l.sendJSON(frameWelcome, r.identity()) != nil {
		return
	}
	questions(l, fetchIdle, func(q *request) error {
		switch {
		case q.Log != nil:
			return r.sendLog(l, *q.Log)
		case q.Content == 0:
			l.turnAway(CodeProtocol, "not a request for content")
			return ErrWire
		}
		if err := r.sendContent(ctx, l, q.Content); err != nil {
			return err
		}
		return l.flush()
	})
}

// sendContent writes an object's content, as verified by the slot. If reading
// fails in the middle the connection ends without the last piece.
func (r *Member) sendContent(ctx context.Context, l *link, id op.ID) error {
	ctx, cancel := context.WithTimeout(context.WithValue(meta.ForSlot(ctx), serving{}, true), fetchIdle)
	defer cancel()
	in, err := r.Slot.Find(id)
	if err == nil && in.Mode&typeMask != typeRegular {
		err = meta.ErrNotExist
	}
	if err != nil {
		return r.noContent(l, id, err)
	}
	buf := make([]byte, min(max(in.Size, 1), op.BlockSize))
	// The first piece decides whether there is content at all.
	n, err := r.Slot.ReadAt(ctx, id, buf, 0)
	var damaged *meta.DamagedError
	if in.Unverified() && (errors.Is(err, syscall.EIO) || errors.As(err, &damaged)) {
		// Adopted as it is, and never read: there is no better copy anywhere, and
		// one message must not keep a slot from being filled.
		err = fmt.Errorf("%w: %w", meta.ErrNotExist, err)
	}
	if err != nil {
		return r.noContent(l, id, err)
	}
	l.deadline(fetchIdle)
	if err := l.writeJSON(frameReply, contentReply{Inode: in}); err != nil {
		return err
	}
	for off := int64(0); n > 0; {
		l.deadline(fetchIdle)
		if err := l.write(frameContent, buf[:n]); err != nil {
			return err
		}
		off += int64(n)
		if n, err = r.Slot.ReadAt(ctx, id, buf, off); err != nil {
			return fmt.Errorf("read id %d: %w", id, err)
		}
	}
	return l.write(frameContent, nil)
}

// serving marks the context of a read for another slot: damage found by it is
// not repaired from other slots. Two slots that both have a bad copy would ask
// each other for ever.
type serving struct{}

func (r *Member) noContent(l *link, id op.ID, err error) error {
	code, why := CodeFailed, err.Error()
	if errors.Is(err, meta.ErrNotExist) {
		code, why = CodeNotFound, fmt.Sprintf("no file with id %d on %s", id, r.Node)
	}
	return l.writeJSON(frameReply, contentReply{None: code, Why: why})
}

const (
	typeMask    = 0o170000
	typeRegular = 0o100000
)
