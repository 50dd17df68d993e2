package meta

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// What a slot has beyond the store's history is a lost branch: the entries of a
// primary that went on while another slot was promoted. Before they are cut
// off the log, or a resync replaces what they did, the branch is kept in
// rescue/, under a name made of its first and last entry and its last chain:
//
//	NAME.json      the Branch: last of all, so that it means that the rest is whole
//	NAME.log       its entries, as far as the log still has them (package oplog)
//	NAME.mail      a Lost for each message that was made in the branch and exists
//	               at its end, one JSON object a line, in order of seq
//	NAME.content/  SEQ: messages whose entry the log no longer has (links)
//	NAME.done      a Decision for each message that was decided about, one JSON
//	               object a line
//
// Keeping the same branch again, after a crash, gives the same files. A NAME.log
// alone was kept by an older version.

// Branch says what a lost branch is.
type Branch struct {
	Format  int       `json:"format"`
	Name    string    `json:"name"`
	Time    time.Time `json:"time"` // when it was kept
	Store   StoreID   `json:"store_id"`
	Slot    op.SlotID `json:"slot"` // whose branch it is
	From    string    `json:"from"` // node whose history goes on
	Fork    uint64    `json:"fork"` // last entry that both histories hold
	Unknown bool      `json:"fork_unknown,omitempty"`
	Last    op.Pos    `json:"last"`
	LogFrom uint64    `json:"log_from"` // first entry in NAME.log; 0: there is no such file
	// Acked is up to which entry messages may have been acknowledged to those
	// who delivered them; 0: none were.
	Acked    uint64        `json:"acked"`
	Epochs   []BranchEpoch `json:"epochs"`
	Messages uint64        `json:"messages"`
	Bytes    uint64        `json:"bytes"`
	Offered  uint64        `json:"offered"` // messages to be delivered again by themselves
	Changes  BranchChanges `json:"changes"`
	// Dirs are the paths, at the end of the branch, of the directories that its
	// entries name: the store may not have them any more.
	Dirs map[op.ID]string `json:"dirs,omitempty"`
}

// Text says in a sentence what the branch is.
func (b *Branch) Text() string {
	from := b.From
	if from == "" {
		from = "the store"
	}
	where := fmt.Sprintf("after seq %d", b.Fork)
	if b.Unknown {
		where = fmt.Sprintf("from seq %d on (where the histories part is not known)", b.LogFrom)
	}
	c := b.Changes
	return fmt.Sprintf("what this slot has %s and %s has not is kept as %s/%s: %d messages, of which %d had been acknowledged and are delivered again; "+
		"dropped are %d changes of flags, %d moves, %d deletions, %d changes of mailboxes: see slotfs rescue show",
		where, from, dirRescue, b.Name, b.Messages, b.Offered, c.Flags, c.Moved, c.Removed, c.Mailboxes)
}

// BranchEpoch is an epoch with entries in the branch.
type BranchEpoch struct {
	Epoch   uint64      `json:"epoch"`
	From    uint64      `json:"from"` // its first entry
	Primary op.SlotID   `json:"primary"`
	Members []op.SlotID `json:"members"`
	Reason  string      `json:"reason,omitempty"`
}

// BranchChanges counts what the branch did to messages and mailboxes that both
// histories have: it is dropped, and can be read in the branch's log.
type BranchChanges struct {
	Flags     uint64 `json:"flags"`
	Moved     uint64 `json:"moved"` // and copied
	Removed   uint64 `json:"removed"`
	Mailboxes uint64 `json:"mailboxes"` // made, renamed and removed directories
	Control   uint64 `json:"control"`   // changes of files that are no messages
}

// BranchInfo is what package repl knows of a branch.
type BranchInfo struct {
	Fork    uint64
	Unknown bool
	Acked   uint64
	From    string
	Epochs  []BranchEpoch
}

// Lost is a message of a lost branch.
type Lost struct {
	Mail
	Fork    uint64            `json:"fork"`
	Mailbox string            `json:"mailbox"` // path; empty: it is in none
	Dir     op.ID             `json:"dir"`     // the mailbox's directory
	Base    string            `json:"base"`    // the message's name
	Cur     bool              `json:"cur"`     // it was in cur/
	Mode    uint32            `json:"mode"`
	UID     uint32            `json:"uid"`
	GID     uint32            `json:"gid"`
	Xattr   map[string][]byte `json:"xattr,omitempty"`
	Offer   bool              `json:"offer"` // it was acknowledged: deliver it again
	InLog   bool              `json:"in_log"`
	// Into is the mailbox that an operator wants it in; usually empty.
	Into string `json:"into,omitempty"`
}

// Origin names the message for ever.
func (l *Lost) Origin() Origin {
	o := Origin{Epoch: l.Epoch, Seq: l.Seq}
	for i := range o.Content {
		if 2*i+2 <= len(l.SHA256) {
			_, _ = fmt.Sscanf(l.SHA256[2*i:2*i+2], "%02x", &o.Content[i])
		}
	}
	return o
}

const branchFormat = 1

func (s *Slot) branchFile(name, suffix string) string {
	return filepath.Join(s.dir, dirRescue, name+suffix)
}

// KeepBranch keeps what is after info.Fork. The log has to be whole, and nothing
// may be appended meanwhile.
func (s *Slot) KeepBranch(ctx context.Context, info BranchInfo) (*Branch, error) {
	last, first := s.Log.Last(), s.Log.First()
	after := max(info.Fork, first-1)
	b := &Branch{
		Format: branchFormat, Name: fmt.Sprintf("%d-%d-%016x", after+1, last.Seq, last.Chain), Time: time.Now().UTC(),
		Store: s.StoreID(), Slot: s.ID, From: info.From, Fork: info.Fork, Unknown: info.Unknown,
		Last: last, Acked: info.Acked, Epochs: info.Epochs,
	}
	have, err := s.Branch(b.Name)
	switch {
	case err == nil && have.Format > 0:
		return have, nil // a crash came between keeping and cutting
	case err != nil && !errors.Is(err, ErrNoBranch):
		return nil, err
	}
	// A log without a record: a crash came in the middle of keeping.
	name, err := s.Log.Rescue(after, filepath.Join(s.dir, dirRescue))
	if err != nil {
		return nil, err
	}
	if name != "" {
		b.LogFrom = after + 1
		if name != b.Name+".log" {
			return nil, fmt.Errorf("keep branch %s: its log was kept as %s", b.Name, name)
		}
	}
	t, err := s.tryTail(ctx)
	if err != nil {
		return nil, fmt.Errorf("keep branch %s: %w", b.Name, err)
	}
	defer t.release()
	if err := errors.Join(s.keepMails(ctx, b, t), s.countChanges(b, t)); err != nil {
		return nil, fmt.Errorf("keep branch %s: %w", b.Name, err)
	}
	if err := writeRecord(s.branchFile(b.Name, ".json"), b); err != nil {
		return nil, fmt.Errorf("keep branch %s: %w", b.Name, err)
	}
	return b, nil
}

// keepMails writes the list of messages, and keeps the content of those that
// are not in the log.
func (s *Slot) keepMails(ctx context.Context, b *Branch, t *tail) error {
	content := s.branchFile(b.Name, ".content")
	if err := os.RemoveAll(content); err != nil {
		return err
	}
	tmp := s.branchFile(b.Name, ".mail.new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriter(f)
	enc := json.NewEncoder(out)
	after := b.Fork
	if b.Unknown {
		after = max(after, b.LogFrom-1) // all of the slot's mail is after 0
	}
	dirs := map[op.ID]string{}
	err = t.x.eachAfter(op.ID(after), func(n *Inode) error {
		if err := ctx.Err(); err != nil || !n.Sealed {
			return err
		}
		l, err := s.lostMail(b, t, n, dirs)
		if err != nil {
			return err
		}
		if !l.InLog {
			if err := s.linkContent(content, n.ID); err != nil {
				return err
			}
		}
		b.Messages++
		b.Bytes += uint64(l.Size)
		if l.Offer {
			b.Offered++
		}
		return enc.Encode(l)
	})
	if err == nil {
		err = errors.Join(out.Flush(), f.Sync())
	}
	if err == nil {
		err = os.Rename(tmp, s.branchFile(b.Name, ".mail"))
	}
	if err != nil {
		return err
	}
	if err := syncDir(content); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Join(s.dir, dirRescue))
}

// lostMail describes a message of the branch.
func (s *Slot) lostMail(b *Branch, t *tail, n *Inode, dirs map[op.ID]string) (*Lost, error) {
	l := &Lost{Fork: b.Fork, Mode: n.Mode, UID: n.UID, GID: n.GID, Xattr: n.Xattr}
	l.Seq, l.Size, l.Time = uint64(n.ID), n.Size, n.Mtime
	l.InLog = b.LogFrom > 0 && l.Seq >= b.LogFrom
	l.Offer = l.Seq <= b.Acked && !b.Unknown
	for _, e := range b.Epochs {
		if e.From <= l.Seq {
			l.Epoch = e.Epoch
		}
	}
	if n.Sum != nil {
		l.SHA256 = fmt.Sprintf("%x", n.Sum.SHA256)
	}
	at := n.Names[0]
	l.Base = at.Name
	dir, err := t.x.dirPath(at.Dir, dirs)
	if err != nil {
		return nil, err
	}
	l.Path = join(dir, at.Name)
	l.User = UserOf(l.Path)
	if d, err := t.x.inode(at.Dir); err == nil && len(d.Names) > 0 && (d.Names[0].Name == "cur" || d.Names[0].Name == "new") {
		l.Cur, l.Dir = d.Names[0].Name == "cur", d.Names[0].Dir
		if l.Mailbox, err = t.x.dirPath(l.Dir, dirs); err != nil {
			return nil, err
		}
	}
	var known bool
	if l.MessageID, known = t.messageIDs[n.ID]; !known {
		l.MessageID = s.messageID(n)
	}
	return l, nil
}

// linkContent keeps the content of an applied message by one more link.
func (s *Slot) linkContent(dir string, id op.ID) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	h, err := s.openStable(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it is missing in the tree, and was reported
	}
	if err != nil {
		return err
	}
	defer h.release()
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", h.fd), unix.AT_FDCWD,
		filepath.Join(dir, fmt.Sprint(uint64(id))), unix.AT_SYMLINK_FOLLOW)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link id %d: %w", id, err)
	}
	return nil
}

// ErrNoBranch: no lost branch of that name is kept.
var ErrNoBranch = errors.New("no such branch in rescue/")

// Branch reads what is kept of one lost branch.
func (s *Slot) Branch(name string) (*Branch, error) {
	if name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return nil, fmt.Errorf("%q: %w", name, ErrNoBranch)
	}
	text, err := os.ReadFile(s.branchFile(name, ".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s.oldBranch(name)
	}
	if err != nil {
		return nil, err
	}
	b := new(Branch)
	if err := json.Unmarshal(text, b); err != nil {
		return nil, fmt.Errorf("rescue/%s.json: %w", name, err)
	}
	if b.Format > branchFormat {
		return nil, fmt.Errorf("rescue/%s.json: %w (format %d)", name, ErrNewerFormat, b.Format)
	}
	return b, nil
}

// oldBranch is a log that was kept without a record.
func (s *Slot) oldBranch(name string) (*Branch, error) {
	st, err := os.Stat(s.branchFile(name, ".log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%q: %w", name, ErrNoBranch)
	}
	if err != nil {
		return nil, err
	}
	b := &Branch{Name: name, Time: st.ModTime().UTC(), Unknown: true, Slot: s.ID}
	if _, err := fmt.Sscanf(name, "%d-%d-", &b.LogFrom, &b.Last.Seq); err != nil {
		return nil, fmt.Errorf("%q: %w", name, ErrNoBranch)
	}
	return b, nil
}

// Branches lists the lost branches that are kept, the oldest first.
func (s *Slot) Branches() ([]*Branch, error) {
	names, err := readNames(s.dir, dirRescue)
	if err != nil {
		return nil, err
	}
	var list []*Branch
	seen := map[string]bool{}
	for _, file := range names {
		name, ok := strings.CutSuffix(file, ".json")
		if !ok {
			name, ok = strings.CutSuffix(file, ".log")
		}
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		b, err := s.Branch(name)
		if errors.Is(err, ErrNoBranch) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	slices.SortStableFunc(list, func(a, b *Branch) int { return a.Time.Compare(b.Time) })
	return list, nil
}
