package history

import (
	"fmt"
	"sync"
)

// Box is what an IMAP client saw of a mailbox.
type Box struct {
	UIDValidity uint64
	UIDNext     uint64         // 0: it was not asked for
	Messages    map[uint64]Sum // by UID; not necessarily all
}

// UIDs remembers mailboxes for as long as the store lives. The zero value
// knows none.
type UIDs struct {
	mu    sync.Mutex
	boxes map[string]*Box
}

// Observe compares a mailbox with all that was ever seen of it, remembers it,
// and returns a line for every rule that is broken.
func (u *UIDs) Observe(name string, now Box) (broken []string) {
	say := func(rule, format string, args ...any) {
		broken = append(broken, rule+": "+name+": "+fmt.Sprintf(format, args...))
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.boxes == nil {
		u.boxes = map[string]*Box{}
	}
	was := u.boxes[name]
	if was == nil {
		was = &Box{UIDValidity: now.UIDValidity, Messages: map[uint64]Sum{}}
		u.boxes[name] = was
	}
	if was.UIDValidity != now.UIDValidity {
		say("U1", "UIDVALIDITY was %d, is %d", was.UIDValidity, now.UIDValidity)
	}
	if now.UIDNext > 0 && now.UIDNext < was.UIDNext {
		say("U3", "UIDNEXT was %d, is %d", was.UIDNext, now.UIDNext)
	}
	for uid, sum := range now.Messages {
		if old, ok := was.Messages[uid]; ok && old != sum {
			say("U2", "UID %d names another message than before", uid)
		}
		if now.UIDNext > 0 && uid >= now.UIDNext {
			say("U3", "UID %d is not below UIDNEXT %d", uid, now.UIDNext)
		}
		was.Messages[uid] = sum
	}
	was.UIDValidity, was.UIDNext = now.UIDValidity, max(was.UIDNext, now.UIDNext)
	return broken
}
