package meta

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"slotfs/meta/op"
)

// fork is an index that begins with what x has now, and that x does not see:
// entries that may never be applied are tried out on it. It takes memory for
// what is not in badger yet and for what is applied to it. Nothing may be
// written to badger through it; release ends it.
func (x *index) fork() (f *index, release func()) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	f = &index{dir: x.dir, log: x.log, db: x.db, active: newDelta(), frozen: newDelta(), state: x.state, base: x.base, clean: map[op.ID]*Inode{}}
	for _, d := range x.deltas() {
		f.frozen.merge(d)
	}
	txn := x.db.NewTransaction(false)
	f.now = view{txn}
	return f, txn.Discard
}

// merge lays what o says over d.
func (d *delta) merge(o *delta) {
	maps.Copy(d.inodes, o.inodes)
	maps.Copy(d.lacking, o.lacking)
	for dir, names := range o.entries {
		if d.entries[dir] == nil {
			d.entries[dir] = make(map[string]Child, len(names))
		}
		maps.Copy(d.entries[dir], names)
	}
	for dir, ids := range o.subdirs {
		if d.subdirs[dir] == nil {
			d.subdirs[dir] = make(map[op.ID]bool, len(ids))
		}
		maps.Copy(d.subdirs[dir], ids)
	}
}

// eachAfter calls visit for every inode of a fork with an id above after, in
// order of id.
func (x *index) eachAfter(after op.ID, visit func(*Inode) error) error {
	return x.now.eachAmended(after+1, x.inodesSince(after+1), visit)
}

// Mail is one message of a slot, for people.
type Mail struct {
	Seq       uint64 `json:"seq"`   // of the entry that published it, which is its id
	Epoch     uint64 `json:"epoch"` // of that entry; 0 if the log no longer says
	Path      string `json:"path"`
	User      string `json:"user"`
	MessageID string `json:"message_id,omitempty"`
	Size      int64  `json:"size"`
	Time      int64  `json:"time"` // its mtime, ns since 1970
	SHA256    string `json:"sha256"`

	Inode *Inode `json:"-"` // as at the end of the log
}

// MessagesAfter tells, in order of seq, the messages that exist at the end of
// the log, applied or not, and that were published after seq after. It needs
// memory for what is not applied only, and the log for nothing else.
//
// What is appended meanwhile may be missing.
func (s *Slot) MessagesAfter(ctx context.Context, after uint64, emit func(*Mail) error) error {
	if s.Resyncing() {
		return fmt.Errorf("list messages: %w", ErrResyncing)
	}
	t, err := s.tryTail(ctx)
	if err != nil {
		return err
	}
	defer t.release()
	dirs := map[op.ID]string{} // paths; mailboxes are few beside messages
	return t.x.eachAfter(op.ID(after), func(n *Inode) error {
		if err := ctx.Err(); err != nil || !n.Sealed {
			return err
		}
		m := &Mail{Seq: uint64(n.ID), Size: n.Size, Time: n.Mtime, Inode: n}
		if n.Sum != nil {
			m.SHA256 = fmt.Sprintf("%x", n.Sum.SHA256)
		}
		if len(n.Names) > 0 {
			dir, err := t.x.dirPath(n.Names[0].Dir, dirs)
			if err != nil {
				return fmt.Errorf("path of id %d: %w", n.ID, err)
			}
			m.Path = join(dir, n.Names[0].Name)
		}
		m.User = UserOf(m.Path)
		if id, ok := t.messageIDs[n.ID]; ok {
			m.MessageID = id
		} else {
			m.MessageID = s.messageID(n)
		}
		m.Epoch = s.epochOf(m.Seq)
		return emit(m)
	})
}

// tail is a slot as it is at the end of its log.
type tail struct {
	x          *index
	release    func()
	messageIDs map[op.ID]string // of what is not applied
}

// tryTail applies what is in the log and not applied to a fork of the index.
func (s *Slot) tryTail(ctx context.Context) (*tail, error) {
	x, release := s.ix.fork()
	t := &tail{x: x, release: release, messageIDs: map[op.ID]string{}}
	if err := s.applyTail(ctx, t); err != nil {
		release()
		return nil, err
	}
	return t, nil
}

func (s *Slot) applyTail(ctx context.Context, t *tail) error {
	heads := map[uint64]string{} // stage: Message-ID of its first chunk
	return eachEntry(s.Log, t.x.state.Pos.Seq+1, s.Log.Last().Seq, func(e *op.Entry) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := t.x.apply(e); err != nil {
			return err
		}
		switch o := e.Op.(type) {
		case *op.Chunk:
			if o.Off == 0 {
				heads[stageOf(o, e.Seq)] = printableID(MessageID(o.Data))
			}
		case *op.Put:
			id := heads[o.Stage]
			if o.Stage == 0 {
				id = printableID(MessageID(o.Data))
			}
			if o.Sealed {
				t.messageIDs[op.ID(e.Seq)] = id
			}
			delete(heads, o.Stage)
		}
		return nil
	})
}

// dirPath is path for directories, with a memory.
func (x *index) dirPath(id op.ID, known map[op.ID]string) (string, error) {
	if id == op.Root {
		return "", nil
	}
	if p, ok := known[id]; ok {
		return p, nil
	}
	n, err := x.inode(id)
	if err != nil {
		return "", err
	}
	if len(n.Names) == 0 {
		return "", fmt.Errorf("directory %d has no name: %w", id, ErrNotExist)
	}
	above, err := x.dirPath(n.Names[0].Dir, known)
	if err != nil {
		return "", err
	}
	if len(known) > 1<<16 {
		clear(known)
	}
	known[id] = join(above, n.Names[0].Name)
	return known[id], nil
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// epochOf is the epoch of an entry, 0 if the log no longer says.
func (s *Slot) epochOf(seq uint64) uint64 {
	epochs := s.Log.Epochs()
	for i := len(epochs) - 1; i >= 0; i-- {
		if epochs[i].Seq <= seq {
			return epochs[i].Epoch
		}
	}
	return 0
}

// messageID reads a message's header as it lies in the tree, unverified: it is
// for people to recognise the message by.
func (s *Slot) messageID(n *Inode) string {
	h, err := s.openStable(n.ID)
	if err != nil {
		return ""
	}
	defer h.release()
	b := make([]byte, min(n.Size, headerMax))
	k, err := readAt(h.fd, b, 0)
	if err != nil {
		return ""
	}
	return printableID(MessageID(b[:k]))
}

// maxMessageID bounds what is shown of a Message-ID.
const maxMessageID = 250

// printableID keeps what a sender chose from controlling a terminal.
func printableID(id string) string {
	id = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '\uFFFD' || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(id, "?"))
	if len(id) > maxMessageID {
		id = strings.ToValidUTF8(id[:maxMessageID], "")
	}
	return strings.TrimSpace(id)
}

// UserOf guesses from a message's path whose it is: the path of the directory
// that holds the user's mailboxes. Above cur/ and new/ it leaves out Maildir++
// folders (.Sent) and one directory called Maildir, mail or mailboxes, and
// below that what comes after.
func UserOf(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) < 2 {
		return ""
	}
	parts = parts[:len(parts)-1] // the file
	if last := parts[len(parts)-1]; last == "cur" || last == "new" || last == "tmp" {
		parts = parts[:len(parts)-1]
	}
	for len(parts) > 1 && strings.HasPrefix(parts[len(parts)-1], ".") {
		parts = parts[:len(parts)-1]
	}
	for i := 1; i < len(parts); i++ {
		switch parts[i] {
		case "Maildir", "mail", "mailboxes":
			return strings.Join(parts[:i], "/")
		}
	}
	return strings.Join(parts, "/")
}
