package node

import (
	"bufio"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"slotfs/cmd/slotfs/exit"
	"slotfs/evidence"
	"slotfs/meta"
	"slotfs/meta/op"
)

// getEvidence sends a signed list of a user's messages.
func (n *Node) getEvidence(w http.ResponseWriter, r *http.Request) {
	s, err := n.slot(r.FormValue("store"))
	if err != nil {
		problem(w, err)
		return
	}
	out := &started{ResponseWriter: w}
	err = s.evidence(r.Context(), bufio.NewWriterSize(out, 64<<10), r.FormValue("user"))
	switch {
	case err == nil || r.Context().Err() != nil:
	case out.sent:
		n.Log.Warn("answer cut short", "err", err)
		panic(http.ErrAbortHandler) // so that the client notices
	default:
		problem(w, err)
	}
}

// started knows whether anything of the answer was sent.
type started struct {
	http.ResponseWriter
	sent bool
}

func (w *started) Write(b []byte) (int, error) {
	if !w.sent {
		w.sent = true
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	return w.ResponseWriter.Write(b)
}

// witnessed is one name of a message in a list in the making.
type witnessed struct {
	in   *meta.Inode
	path string
}

// evidence writes the list of what the slot holds for user, as of one entry.
func (s *Slot) evidence(ctx context.Context, out *bufio.Writer, user string) error {
	signer, ok := s.node.Identity.Cert.PrivateKey.(crypto.Signer)
	if !ok {
		return errors.New("the node's key cannot sign")
	}
	dir, path, err := s.Meta.FindUser(user)
	var ambiguous *meta.AmbiguousError
	if errors.As(err, &ambiguous) {
		return exit.With(exit.Usage, err)
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", s.Conf.Store, err)
	}
	sn, err := s.Meta.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer sn.Close()
	digest, err := sn.DirDigest(dir)
	if err != nil {
		return err
	}
	all, err := messagesBelow(ctx, sn, dir, path)
	if err != nil {
		return err
	}
	h := evidence.Head{
		Store: s.Conf.Store, StoreID: s.Meta.StoreID().String(), Cluster: s.node.Identity.Cluster.ID, User: path,
		Node: s.node.Config.Node, Slot: s.Meta.ID.String(), Position: sn.Pos().String(), Digest: digest.String(),
		LogFrom: s.Meta.Log.First(), Time: time.Now().UTC(),
	}
	arrivals, err := s.arrivals(ctx, all, sn.Pos().Seq)
	if err != nil {
		return err
	}
	adopted := s.Meta.Adopted()
	list := evidence.NewWriter(out, h)
	seen := map[op.ID]evidence.Message{}
	for _, x := range all {
		m, again := seen[x.in.ID]
		if !again {
			if m, err = s.witness(ctx, x.in, arrivals[x.in.ID]); err != nil {
				return err
			}
			if adopted != nil && x.in.ID <= adopted.UpTo {
				m.How = evidence.Adopted
				if m.Arrived.IsZero() && !x.in.Unverified() {
					m.Arrived = adopted.Verified // the log no longer says when
				}
			}
			if len(x.in.Names) > 1 {
				seen[x.in.ID] = m
			}
		}
		m.Path = x.path
		if err := list.Add(m); err != nil {
			return err
		}
	}
	if err := list.Sign(s.node.Identity.Cert.Certificate[0], signer); err != nil {
		return err
	}
	return out.Flush()
}

// messagesBelow lists the names of messages below a directory, in order of path.
func messagesBelow(ctx context.Context, sn *meta.Snapshot, dir op.ID, path string) (all []witnessed, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	children, err := sn.Children(dir)
	if err != nil {
		return nil, err
	}
	for _, c := range children {
		at := path + "/" + c.Name
		if c.Type == typeDir {
			below, err := messagesBelow(ctx, sn, c.ID, at)
			if err != nil {
				return nil, err
			}
			all = append(all, below...)
			continue
		}
		in, err := sn.Inode(c.ID)
		if err != nil {
			return nil, err
		}
		if in.Sealed {
			all = append(all, witnessed{in, at})
		}
	}
	return all, nil
}

// typeDir is S_IFDIR.
const typeDir = 0o040000

// arrivals finds in the log when messages came, or when the checksums of adopted
// ones were taken, as far as it reaches back.
func (s *Slot) arrivals(ctx context.Context, all []witnessed, last uint64) (map[op.ID]time.Time, error) {
	wanted := map[op.ID]bool{}
	from := last + 1
	first := s.Meta.Log.First()
	adopted := s.Meta.Adopted()
	for _, x := range all {
		id := uint64(x.in.ID)
		if adopted != nil && x.in.ID <= adopted.UpTo {
			id = max(id, first) // its checksum came later
		}
		if id >= first {
			wanted[x.in.ID] = true
			from = min(from, id)
		}
	}
	found := map[op.ID]time.Time{}
	err := s.eachEntry(ctx, from, last, func(e *op.Entry) {
		id := op.ID(e.Seq)
		if o, ok := e.Op.(*op.Seal); ok {
			id = o.ID
		}
		if wanted[id] {
			found[id] = time.Unix(0, e.Time).UTC()
		}
	})
	return found, err
}

// eachEntry goes through a part of the log; what is trimmed meanwhile is left out.
func (s *Slot) eachEntry(ctx context.Context, from, to uint64, f func(*op.Entry)) error {
	log := s.Meta.Log
	for from <= to {
		if err := ctx.Err(); err != nil {
			return err
		}
		from = max(from, log.First())
		if from > to {
			return nil
		}
		entries, err := log.Read(from, historyBatch)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			if e.Seq > to {
				return nil
			}
			f(e)
			from = e.Seq + 1
		}
	}
	return nil
}

// witness reads one message, and says what there is to say about it.
func (s *Slot) witness(ctx context.Context, in *meta.Inode, arrived time.Time) (evidence.Message, error) {
	m := evidence.Message{
		ID: uint64(in.ID), Size: in.Size, Date: time.Unix(0, in.Mtime).UTC(), Arrived: arrived,
		How: evidence.Delivered, Content: evidence.Verified,
	}
	var sum op.Sum
	begin, err := s.readWhole(ctx, in)
	if !in.Unverified() {
		sum = *in.Sum
	} else if m.Content = evidence.Unverified; err == nil {
		sum, err = s.sumNow(ctx, in)
	}
	m.XXH, m.SHA256 = sum.XXH(), sum.SHA256
	var damaged *meta.DamagedError
	switch {
	case errors.As(err, &damaged), in.Unverified() && errors.Is(err, syscall.EIO):
		m.Content = evidence.Damaged
	case errors.Is(err, meta.ErrNotExist):
		m.Content = evidence.Removed
	case err != nil:
		return m, err
	}
	m.MessageID = meta.MessageID(begin)
	return m, nil
}

// readWhole reads all of a message, verified, and returns its beginning.
func (s *Slot) readWhole(ctx context.Context, in *meta.Inode) (begin []byte, err error) {
	buf := make([]byte, min(max(in.Size, 1), op.BlockSize))
	for off := int64(0); off < in.Size; {
		n, err := s.Meta.ReadAt(ctx, in.ID, buf, off)
		if err != nil {
			return begin, err
		}
		if n == 0 {
			return begin, meta.ErrNotExist // it was replaced meanwhile
		}
		if off == 0 {
			begin = append(begin, buf[:min(n, 64<<10)]...)
		}
		off += int64(n)
	}
	return begin, nil
}

// sumNow is the checksum of what the disk has of an unverified message.
func (s *Slot) sumNow(ctx context.Context, in *meta.Inode) (op.Sum, error) {
	return op.SumReader(io.NewSectionReader(contentAt{ctx, s.Meta, in.ID}, 0, in.Size))
}

// contentAt reads the content of a file.
type contentAt struct {
	ctx  context.Context
	slot *meta.Slot
	id   op.ID
}

func (r contentAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.slot.ReadAt(r.ctx, r.id, p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}
