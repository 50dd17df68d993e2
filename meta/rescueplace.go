package meta

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"slotfs/meta/op"
)

// Place is where a message of a lost branch is delivered again.
type Place struct {
	Mailbox string // path of the mailbox
	New     op.ID  // its new/
	Cur     op.ID  // its cur/
	Text    string // why it is not the mailbox where the message was; may be empty
}

// ErrNoMailbox: there is no mailbox to deliver a message into.
var ErrNoMailbox = errors.New("neither the mailbox nor the user's INBOX exists")

// RescuePlace finds where l goes, in the applied state: into the same mailbox,
// whatever it is called now; else into one that has its path; else into the INBOX
// of the same user, which is the nearest mailbox above it; or into the mailbox
// into, if that is given.
func (s *Slot) RescuePlace(l *Lost, into string) (Place, error) {
	if into != "" {
		id, err := s.Lookup(strings.Trim(into, "/"))
		if err != nil {
			return Place{}, err
		}
		p, ok := s.mailbox(id)
		if !ok {
			return Place{}, fmt.Errorf("%s has no cur/ and new/: %w", into, ErrNoMailbox)
		}
		return p, nil
	}
	if l.Mailbox == "" && l.Dir == 0 {
		return Place{}, ErrNoMailbox
	}
	// An id up to the fork is the same object in both histories.
	if uint64(l.Dir) <= l.Fork {
		if p, ok := s.mailbox(l.Dir); ok {
			if p.Mailbox != l.Mailbox {
				p.Text = fmt.Sprintf("the mailbox %s is called %s now", l.Mailbox, p.Mailbox)
			}
			return p, nil
		}
	}
	for at := l.Mailbox; at != "." && at != ""; at = path.Dir(at) {
		id, err := s.Lookup(at)
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil {
			return Place{}, err
		}
		p, ok := s.mailbox(id)
		if !ok {
			continue
		}
		if at != l.Mailbox {
			p.Text = fmt.Sprintf("the mailbox %s is gone, so it went to the INBOX", l.Mailbox)
		}
		return p, nil
	}
	return Place{}, ErrNoMailbox
}

// mailbox looks whether a directory is a Maildir.
func (s *Slot) mailbox(id op.ID) (p Place, ok bool) {
	if _, err := s.ix.child(id, "tmp"); err != nil {
		return p, false
	}
	for name, to := range map[string]*op.ID{"cur": &p.Cur, "new": &p.New} {
		c, err := s.ix.child(id, name)
		if err != nil || c.Type&typeMask != typeDir {
			return p, false
		}
		*to = c.ID
	}
	var err error
	p.Mailbox, err = s.ix.path(id)
	return p, err == nil
}

// RescueName is the name under which l is delivered: one that no other message
// has. What a Maildir name says of the content (S=, W=) stays.
func (l *Lost) RescueName(node string, now time.Time) string {
	base, _, _ := strings.Cut(l.Base, ":2,")
	sizes := ""
	for _, field := range strings.Split(base, ",")[1:] {
		if strings.HasPrefix(field, "S=") || strings.HasPrefix(field, "W=") {
			sizes += "," + field
		}
	}
	host := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, node)
	o := l.Origin()
	name := fmt.Sprintf("%d.R%dS%dC%x.%s", now.Unix(), o.Epoch, o.Seq, o.Content, host)
	if len(name)+len(sizes) < 200 {
		name += sizes
	}
	return name
}

// Flags are those of l's Maildir flags that go with it: what a user did with a
// message that he had seen (Sent mail is Seen, drafts are Drafts). Letters of
// keywords mean something else in another history, and T would have it expunged.
func (l *Lost) Flags() string {
	_, flags, ok := strings.Cut(l.Base, ":2,")
	if !ok || !l.Cur {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("DFPRS", r) {
			return r
		}
		return -1
	}, flags)
}

// RescueAttr is what l is created with.
func (l *Lost) RescueAttr() op.Attr {
	x := maps.Clone(l.Xattr)
	if x == nil {
		x = map[string][]byte{}
	}
	x[RescuedXattr] = []byte(l.Origin().String())
	return op.Attr{Mode: l.Mode, UID: l.UID, GID: l.GID, Mtime: l.Time, Xattr: x}
}

// Since finds messages that came after an entry by their content.
type Since struct {
	slot  *Slot
	after uint64

	mu    sync.Mutex
	seen  uint64             // looked at up to here
	bySum map[uint64][]op.ID // first half of the SHA-256's beginning
}

// Since makes one; it looks at what came after seq after.
func (s *Slot) Since(after uint64) *Since {
	return &Since{slot: s, after: after, seen: after, bySum: map[uint64][]op.ID{}}
}

// After is the entry that it was made with.
func (x *Since) After() uint64 { return x.after }

// Find returns the path of a message in the mailbox p, in the applied state, that
// has the content of l, came after x.After and was not itself delivered again;
// "" if there is none.
func (x *Since) Find(l *Lost, p Place) (string, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f, release := x.slot.ix.fork()
	defer release()
	err := f.eachAfter(op.ID(x.seen), func(n *Inode) error {
		x.seen = uint64(n.ID)
		if _, ours := n.Xattr[RescuedXattr]; n.Sealed && n.Sum != nil && !ours {
			k := sumKey(n.Sum.SHA256[:])
			x.bySum[k] = append(x.bySum[k], n.ID)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	o := l.Origin()
	for _, id := range x.bySum[sumKey(o.Content[:])] {
		n, err := f.inode(id)
		if errors.Is(err, ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if n.Sum == nil || n.Size != l.Size || fmt.Sprintf("%x", n.Sum.SHA256) != l.SHA256 {
			continue
		}
		i := slices.IndexFunc(n.Names, func(at Name) bool { return at.Dir == p.Cur || at.Dir == p.New })
		if i < 0 {
			continue
		}
		dir, err := f.path(n.Names[i].Dir)
		return join(dir, n.Names[i].Name), err
	}
	return "", nil
}

func sumKey(sum []byte) (k uint64) {
	for _, b := range sum[:8] {
		k = k<<8 | uint64(b)
	}
	return k
}
