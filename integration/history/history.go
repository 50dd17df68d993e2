// Package history judges a store by what it has said: every delivery that was
// acknowledged, with the node that acknowledged it, against what the store
// holds afterwards and what its log tells.
//
// [Check] tests these rules; each has a test that breaks it:
//
//	H1  an acknowledged delivery is there exactly once
//	H2  one whose outcome nobody learned is there once or not at all
//	H3  nothing else is there
//	H4  what is there has the bytes that were delivered
//	H5  an acknowledged delivery is in the log exactly once
//	H6  it was acknowledged by the node that the log names as the primary of
//	    the entry's epoch: no two primaries ever acknowledged in one epoch, and
//	    none acknowledged in an epoch that was not its own
//	H7  each epoch begins once, and epochs and seqs only grow
//	H8  a delivery that was acknowledged before another was begun comes before
//	    it in the log
//
// [UIDs] tests, over the whole life of mailboxes as IMAP clients see them:
//
//	U1  UIDVALIDITY never changes
//	U2  a UID never names another message
//	U3  UIDNEXT never goes back, and every UID is below it
package history

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Sum names bytes.
type Sum = [sha256.Size]byte

// Delivery is one attempt to deliver one message.
type Delivery struct {
	Key        string // unique; what Held and Entry call it, too
	Sum        Sum
	Node       string // where it was delivered
	From       string // who delivered it, for the caller
	Start, End time.Time
	Acked      bool // false: the outcome is not known
}

// Recorder collects deliveries from several goroutines.
type Recorder struct {
	mu   sync.Mutex
	list []Delivery
	acks int
	last time.Time
}

// Add notes the outcome of a delivery.
func (r *Recorder) Add(d Delivery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, d)
	if d.Acked {
		r.acks++
		if d.End.After(r.last) {
			r.last = d.End
		}
	}
}

// Acks is how many were acknowledged so far.
func (r *Recorder) Acks() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.acks
}

// Take returns what was collected, and forgets it.
func (r *Recorder) Take() []Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list, r.acks = nil, 0
	return list
}

// FirstAfter is when the first delivery that was begun after a moment was
// acknowledged: the end of an outage that began then. False: none was yet.
func (r *Recorder) FirstAfter(t time.Time) (end time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.list {
		if d.Acked && d.Start.After(t) && (!ok || d.End.Before(end)) {
			end, ok = d.End, true
		}
	}
	return end, ok
}

// Held is a message that the store holds.
type Held struct {
	Key  string
	Sum  Sum
	Path string // for people
}

// Entry is a delivery in the store's log.
type Entry struct {
	Seq, Epoch uint64
	Key        string
}

// Epoch is an entry that begins one.
type Epoch struct {
	Seq, Epoch uint64
	Primary    string // node; empty: not known
}

// Log is what the store's log tells.
type Log struct {
	Entries []Entry
	Epochs  []Epoch
}

// Check returns a line for every rule that is broken.
func Check(made []Delivery, held []Held, log Log) []string {
	c := &checker{made: made, byKey: map[string]*Delivery{}, held: map[string][]Held{}, logged: map[string][]Entry{}}
	for i := range made {
		c.byKey[made[i].Key] = &made[i]
	}
	for _, h := range held {
		c.held[h.Key] = append(c.held[h.Key], h)
	}
	for _, e := range log.Entries {
		c.logged[e.Key] = append(c.logged[e.Key], e)
	}
	c.content()
	c.epochs(log)
	c.order()
	slices.Sort(c.broken)
	return c.broken
}

type checker struct {
	made   []Delivery
	byKey  map[string]*Delivery
	held   map[string][]Held
	logged map[string][]Entry
	broken []string
}

func (c *checker) say(rule, format string, args ...any) {
	c.broken = append(c.broken, rule+": "+fmt.Sprintf(format, args...))
}

// content tests H1 to H4.
func (c *checker) content() {
	for i := range c.made {
		d := &c.made[i]
		n := len(c.held[d.Key])
		switch {
		case d.Acked && n == 0:
			c.say("H1", "%s, acknowledged by %s at %s, is lost", d.Key, d.Node, d.End.Format(clock))
		case d.Acked && n > 1:
			c.say("H1", "%s is there %d times: %s", d.Key, n, paths(c.held[d.Key]))
		case n > 1:
			c.say("H2", "%s, of unknown outcome, is there %d times: %s", d.Key, n, paths(c.held[d.Key]))
		}
		for _, h := range c.held[d.Key] {
			if h.Sum != d.Sum {
				c.say("H4", "%s has other bytes than were delivered", h.Path)
			}
		}
	}
	for key, list := range c.held {
		if c.byKey[key] == nil {
			c.say("H3", "nobody delivered %s", paths(list))
		}
	}
}

const clock = "15:04:05.000"

func paths(list []Held) string {
	var p []string
	for _, h := range list {
		p = append(p, h.Path)
	}
	return strings.Join(p, ", ")
}

// epochs tests H5 to H7.
func (c *checker) epochs(log Log) {
	primary := map[uint64]string{}
	var last Epoch
	for _, e := range log.Epochs {
		if e.Epoch <= last.Epoch || e.Seq <= last.Seq {
			c.say("H7", "epoch %d begins at seq %d after epoch %d at seq %d", e.Epoch, e.Seq, last.Epoch, last.Seq)
		}
		primary[e.Epoch], last = e.Primary, e
	}
	var before Entry
	for _, e := range log.Entries {
		if e.Seq <= before.Seq || e.Epoch < before.Epoch {
			c.say("H7", "entry %d of epoch %d follows entry %d of epoch %d", e.Seq, e.Epoch, before.Seq, before.Epoch)
		}
		before = e
	}
	for i := range c.made {
		d := &c.made[i]
		if !d.Acked {
			continue
		}
		list := c.logged[d.Key]
		if len(list) != 1 {
			c.say("H5", "%s was acknowledged by %s and is in the log %d times", d.Key, d.Node, len(list))
			continue
		}
		e := list[0]
		if p, ok := primary[e.Epoch]; !ok {
			c.say("H7", "entry %d is of epoch %d, which never began", e.Seq, e.Epoch)
		} else if p != d.Node {
			c.say("H6", "%s was acknowledged by %s, but entry %d is of epoch %d, whose primary is %s", d.Key, d.Node, e.Seq, e.Epoch, p)
		}
	}
}

// order tests H8.
func (c *checker) order() {
	type point struct {
		d   *Delivery
		seq uint64
	}
	var list []point
	for i := range c.made {
		if l := c.logged[c.made[i].Key]; c.made[i].Acked && len(l) == 1 {
			list = append(list, point{&c.made[i], l[0].Seq})
		}
	}
	slices.SortFunc(list, func(a, b point) int { return int(int64(b.seq) - int64(a.seq)) })
	var first *Delivery // the earliest acknowledged of those that come later in the log
	for _, p := range list {
		if first != nil && first.End.Before(p.d.Start) {
			c.say("H8", "%s was acknowledged %v before %s was begun, and comes after it in the log", first.Key, p.d.Start.Sub(first.End), p.d.Key)
		}
		if first == nil || p.d.End.Before(first.End) {
			first = p.d
		}
	}
}
