package repl

import (
	"context"
	"fmt"

	"slotfs/meta"
	"slotfs/meta/op"
)

const (
	// askDirs is how many directories one question is about.
	askDirs = 256
	// askFiles and askBytes are how many contents one question asks for.
	askFiles = 64
	askBytes = 16 << 20
	// listPart is about how many bytes of a directory's entries one reply holds.
	listPart = 1 << 20
	// resyncRestarts is how often a resync begins from nothing before it waits.
	resyncRestarts = 2
)

// request is what a fetch or resync connection asks for: one of its fields.
type request struct {
	Content op.ID      `json:"content,omitempty"` // the bytes of an object
	Log     *logRange  `json:"log,omitempty"`     // entries of the log
	Digests []op.ID    `json:"digests,omitempty"` // resync: of directories and what is below
	List    op.ID      `json:"list,omitempty"`    // resync: a directory's entries
	Rescue  *meta.Lost `json:"rescue,omitempty"`  // a message of a lost branch; its content follows
	Rescued int        `json:"rescued,omitempty"` // resync: what was delivered again, from this number, counted from 1
	Files   []op.ID    `json:"files,omitempty"`   // resync: contents, with the inodes of now
}

// digestReply answers Digests, in their order.
type digestReply struct {
	Digests [][2]uint64 `json:"digests"`
}

// rescuedReply answers Rescued; an empty one is the end.
type rescuedReply struct {
	List []string `json:"list"`
}

// rescuedPart is how many entries one such reply has at most.
const rescuedPart = 10_000

// listReply is a part of the answer to List.
type listReply struct {
	Dir      *meta.Inode   `json:"dir,omitempty"` // in the first part
	Children []meta.Child  `json:"children,omitempty"`
	Inodes   []*meta.Inode `json:"inodes,omitempty"` // of those that are no directories
	More     bool          `json:"more,omitempty"`
}

// serveResync answers questions about a snapshot that it holds for as long as
// the connection lives. The primary goes on serving meanwhile.
func (r *Member) serveResync(ctx context.Context, l *link, h hello) {
	defer l.closeOn(ctx)()
	s, ok := r.Slot.(*meta.Slot)
	r.refresh()
	r.mu.Lock()
	hist := r.hist
	r.mu.Unlock()
	seq, v, why := hist.meet(r.Log.Last(), h.History, h.Last, h.Yield)
	switch {
	case !ok:
		l.turnAway(CodeFailed, "this slot cannot be resynced from")
		return
	case !r.leading.Load():
		l.turnAway(CodeNotPrimary, "the slot on "+r.Node+" is not primary")
		return
	case v == vDiverged:
		r.turnAway(l, h, &PeerError{r.Node, CodeDiverged, why})
		return
	case v == vBehind:
		r.turnAway(l, h, &PeerError{r.Node, CodeBehind, why})
		return
	case v == vResync:
		seq = 0
	}
	sn, err := s.Snapshot(ctx)
	if err != nil {
		r.turnAway(l, h, err)
		return
	}
	defer sn.Close()
	r.tell(false, fmt.Sprintf("%s is resynced from here, from seq %d", h.Node, sn.Pos().Seq))
	l.deadline(fetchIdle)
	st := sn.State()
	w := r.identity()
	w.Common, w.Last, w.History, w.Snapshot, w.Rescued = op.Pos{Seq: seq}, sn.Pos(), hist.until(sn.Pos().Seq), &st, s.RescuedCount()
	if l.sendJSON(frameWelcome, w) != nil {
		return
	}
	questions(l, fetchIdle, func(q *request) error {
		err := r.answerResync(ctx, l, sn, q)
		if err != nil {
			r.fail(fmt.Errorf("resync of %s: %w", h.Node, err))
			l.turnAway(CodeFailed, err.Error())
		}
		return err
	})
}

func (r *Member) answerResync(ctx context.Context, l *link, sn *meta.Snapshot, q *request) error {
	switch {
	case len(q.Digests) > 0:
		var a digestReply
		for _, id := range q.Digests {
			d, err := sn.DirDigest(id)
			if err != nil {
				return err
			}
			a.Digests = append(a.Digests, d)
		}
		return l.sendJSON(frameReply, a)
	case q.Rescued > 0:
		return l.sendJSON(frameReply, rescuedReply{r.Slot.(*meta.Slot).RescuedFrom(q.Rescued-1, rescuedPart)})
	case q.List != 0:
		return sendList(l, sn, q.List)
	default:
		for _, id := range q.Files {
			if err := r.sendContent(ctx, l, id); err != nil {
				return err
			}
		}
		return l.flush()
	}
}

// sendList sends a directory's entries in parts.
func sendList(l *link, sn *meta.Snapshot, id op.ID) error {
	dir, err := sn.Inode(id)
	if err != nil {
		return err
	}
	children, err := sn.Children(id)
	if err != nil {
		return err
	}
	a := listReply{Dir: dir}
	for {
		n, size := 0, 0
		for n < len(children) && size < listPart {
			c := children[n]
			n++
			size += len(c.Name) + 64
			if c.Type == typeDir {
				continue
			}
			in, err := sn.Inode(c.ID)
			if err != nil {
				return err
			}
			a.Inodes = append(a.Inodes, in)
			size += inodeSize(in)
		}
		a.Children, a.More = children[:n], n < len(children)
		if err := l.sendJSON(frameReply, a); err != nil {
			return err
		}
		if !a.More {
			return nil
		}
		children = children[n:]
		a = listReply{}
		l.deadline(fetchIdle)
	}
}

// inodeSize is about how many bytes an inode takes in a reply.
func inodeSize(in *meta.Inode) int {
	n := 256 + len(in.Target)
	for name, value := range in.Xattr {
		n += 16 + len(name) + len(value)
	}
	for _, x := range in.Names {
		n += 16 + len(x.Name)
	}
	if in.Sum != nil {
		n += 8 * len(in.Sum.Blocks)
	}
	return n
}

// typeDir is S_IFDIR.
const typeDir = 0o040000
