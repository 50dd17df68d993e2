package integration_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"slotfs/integration/history"
	"slotfs/integration/imap"
	"slotfs/integration/mailbox"
	"slotfs/integration/sender"
)

// flagger is an IMAP client that keeps reconnecting, to whichever node
// answers. It looks at new mail and sets flags; what was confirmed to it must
// stay.
type flagger struct {
	user    string
	nodes   []string
	servers []mailbox.Server // of nodes
	uids    *history.UIDs
	rng     *rand.Rand

	mu     sync.Mutex
	logs   map[string]string      // of the nodes' Dovecots: file names
	set    map[uint64][]confirmed // by UID
	broken []string
	count  int
	lied   int // flags that Dovecot confirmed though the file system had refused them
}

// confirmed is a flag that a server said it has set.
type confirmed struct {
	flag string
	node string
	at   time.Time
	// What the node's Dovecot has logged from shortly before it confirmed the
	// flag until soon afterwards.
	log *span
}

// span is a part of a log file.
type span struct {
	file     string
	from, to atomic.Int64
}

// logLag is how long Dovecot's logging process may be behind.
const logLag = 300 * time.Millisecond

// newSpan begins at the present end of the file.
func newSpan(file string) *span {
	s := &span{file: file}
	s.mark(&s.from)
	return s
}

// end ends it, a little later.
func (s *span) end() { time.AfterFunc(logLag, func() { s.mark(&s.to) }) }

func (s *span) mark(at *atomic.Int64) {
	if info, err := os.Stat(s.file); err == nil {
		at.Store(info.Size())
	}
}

// failed reports whether the user's IMAP session was refused something by the
// file system. When a rename or a write to its index fails, Dovecot says so in
// its log, and OK to the client: it goes on with what it has in memory.
func (s *span) failed(user string) bool {
	if s == nil {
		return false
	}
	f, err := os.Open(s.file)
	if err != nil {
		return false
	}
	defer f.Close()
	text := make([]byte, max(0, s.to.Load()-s.from.Load()))
	n, _ := f.ReadAt(text, s.from.Load())
	for line := range strings.Lines(string(text[:n])) {
		if strings.Contains(line, "imap("+user+")<") && strings.Contains(line, "Error: ") {
			return true
		}
	}
	return false
}

func (c confirmed) String() string {
	return fmt.Sprintf("%s, confirmed by %s at %s", c.flag, c.node, c.at.Format("15:04:05.000"))
}

func (f *flagger) run(end <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-end:
			return
		case <-time.After(20 * time.Millisecond):
		}
		f.session(f.nodes[i%len(f.nodes)], f.servers[i%len(f.servers)], end) // its errors are those of a store that moves
	}
}

// session works until something fails or end.
func (f *flagger) session(node string, s mailbox.Server, end <-chan struct{}) error {
	c, err := s.OpenIMAP(f.user, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	seen := uint64(0)
	for {
		box, err := c.Select("INBOX")
		if err != nil {
			return err
		}
		if box.Messages > 0 {
			news, err := c.Fetch(fmt.Sprintf("%d:*", seen+1), true)
			if err != nil {
				return err
			}
			seen = max(seen, f.look(box.UIDValidity, news))
			if err := f.flag(node, c, news); err != nil {
				return err
			}
		}
		select {
		case <-end:
			return nil
		case <-time.After(30 * time.Millisecond):
		}
	}
}

// look remembers messages and returns the highest UID.
func (f *flagger) look(validity uint64, list []imap.Message) (highest uint64) {
	box := history.Box{UIDValidity: validity, Messages: map[uint64]history.Sum{}}
	for _, m := range list {
		box.Messages[m.UID] = sha256.Sum256(mailbox.Delivered(m.Body))
		highest = max(highest, m.UID)
	}
	broken := f.uids.Observe(f.user, box)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = append(f.broken, broken...)
	return highest
}

// flag sets flags of some messages.
func (f *flagger) flag(node string, c *imap.Client, list []imap.Message) error {
	for range min(3, len(list)) {
		m := list[f.rng.IntN(len(list))]
		log := newSpan(f.logs[node])
		flag := []string{`\Seen`, `\Flagged`, `\Answered`, "$Label1", "work"}[f.rng.IntN(5)]
		if err := c.Store(fmt.Sprint(m.UID), "+FLAGS", flag); err != nil {
			return err
		}
		log.end()
		f.mu.Lock()
		f.set[m.UID] = append(f.set[m.UID], confirmed{flag, node, time.Now(), log})
		f.count++
		f.mu.Unlock()
	}
	return nil
}

// judge looks at the whole mailbox of a store that is whole again: UIDs, and
// the flags that were confirmed. It returns the messages.
func (f *flagger) judge(s mailbox.Server) (held []history.Held, broken []string, err error) {
	c, err := s.OpenIMAP(f.user, time.Minute)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	box, err := c.Select("INBOX")
	if err != nil {
		return nil, nil, err
	}
	var list []imap.Message
	if box.Messages > 0 {
		if list, err = c.Fetch("1:*", true); err != nil {
			return nil, nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	broken, f.broken = f.broken, nil
	all := history.Box{UIDValidity: box.UIDValidity, UIDNext: box.UIDNext, Messages: map[uint64]history.Sum{}}
	for _, m := range list {
		body := mailbox.Delivered(m.Body)
		h := history.Held{Key: sender.Key(body), Sum: sha256.Sum256(body), Path: fmt.Sprintf("%s UID %d", f.user, m.UID)}
		held = append(held, h)
		all.Messages[m.UID] = h.Sum
		for _, set := range f.set[m.UID] {
			switch {
			case slices.Contains(m.Flags, set.flag):
			case set.log.failed(f.user):
				f.lied++
			default:
				broken = append(broken, fmt.Sprintf("F1: %s: lost: %s; it has %v", h.Path, set, m.Flags))
			}
		}
		delete(f.set, m.UID) // what is left then is of messages that are gone
	}
	for uid, set := range f.set {
		broken = append(broken, fmt.Sprintf("F1: %s UID %d is gone, with %v", f.user, uid, set))
	}
	f.set = map[uint64][]confirmed{}
	for _, m := range list {
		for _, flag := range m.Flags {
			f.set[m.UID] = append(f.set[m.UID], confirmed{flag, "all", time.Now(), nil})
		}
	}
	return held, append(broken, f.uids.Observe(f.user, all)...), nil
}

// expunge empties the mailbox.
func (f *flagger) expunge(s mailbox.Server) error {
	c, err := s.OpenIMAP(f.user, time.Minute)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Select("INBOX"); err != nil {
		return err
	}
	f.set = map[uint64][]confirmed{}
	return errors.Join(c.Store("1:*", "+FLAGS", `\Deleted`), c.Expunge(), c.Logout())
}
