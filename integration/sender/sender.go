// Package sender delivers mail as an MTA does: each message until it is
// acknowledged, to whichever node takes it, without ever waiting long for one.
// What each attempt came to goes to a [history.Recorder].
//
// An attempt that does not return is left alone and the next one goes
// elsewhere, as a time-out of an MTA does. It still counts: if it returns
// success in the end, the store has acknowledged it. How long attempts hang is
// bounded by [Sender.Wait].
package sender

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"slotfs/integration/history"
)

// ErrUnknown is wrapped by an attempt whose message may be there or not. Any
// other error says that it is not.
var ErrUnknown = errors.New("outcome not known")

// Target is a node that takes mail, perhaps.
type Target struct {
	Node    string
	Deliver func(key string, data []byte) error
}

// Sender sends until it is told to stop.
type Sender struct {
	Name     string // distinguishes the keys of all senders; no dots
	Targets  []Target
	Record   *history.Recorder
	Patience time.Duration                    // with one attempt; a second
	Pause    time.Duration                    // after each acknowledged message
	Sum      func(message []byte) history.Sum // what the store will show of it; default: of its bytes

	rng  *rand.Rand
	n    int
	pool sync.WaitGroup // attempts under way

	mu      sync.Mutex
	pending map[string]time.Time // begin of attempts under way, by key
	longest time.Duration
}

// hopeless is how long a connection may be silent before it is given up.
const hopeless = time.Minute

// maxPending is how many attempts may hang before a sender waits for one.
const maxPending = 8

// New makes a sender.
func New(name string, seed uint64, record *history.Recorder, targets ...Target) *Sender {
	return &Sender{Name: name, Targets: targets, Record: record, Patience: time.Second, Sum: func(b []byte) history.Sum { return sha256.Sum256(b) },
		rng: rand.New(rand.NewPCG(seed, 0x73656e64)), pending: map[string]time.Time{}}
}

// Run sends until stop is closed.
func (s *Sender) Run(stop <-chan struct{}) {
	at, failed := s.rng.IntN(len(s.Targets)), 0
	for {
		pause := s.Pause
		if failed > 0 && failed%len(s.Targets) == 0 {
			pause = 10 * time.Millisecond // nobody takes mail now
		}
		if pause > 0 {
			time.Sleep(pause)
		}
		select {
		case <-stop:
			return
		default:
		}
		if s.attempt(s.Targets[at], stop) {
			failed = 0
			continue
		}
		failed++
		at = (at + 1) % len(s.Targets)
	}
}

// attempt delivers one new message; false if it was not acknowledged in time.
func (s *Sender) attempt(to Target, stop <-chan struct{}) bool {
	s.n++
	key, data := s.message()
	done := make(chan error, 1)
	d := history.Delivery{Key: key, Sum: s.Sum(data), Node: to.Node, From: s.Name, Start: time.Now()}
	s.begin(key, d.Start)
	s.pool.Go(func() {
		err := to.Deliver(key, data)
		d.End, d.Acked = time.Now(), err == nil
		if err == nil || errors.Is(err, ErrUnknown) {
			s.Record.Add(d)
		}
		s.end(key)
		done <- err
	})
	patience := time.NewTimer(s.Patience)
	defer patience.Stop()
	var late <-chan time.Time = patience.C
	if s.hanging() > maxPending {
		late = nil
	}
	select {
	case err := <-done:
		return err == nil
	case <-late:
		return false
	case <-stop:
		return false
	}
}

func (s *Sender) begin(key string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[key] = at
}

func (s *Sender) end(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.longest = max(s.longest, time.Since(s.pending[key]))
	delete(s.pending, key)
}

func (s *Sender) hanging() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// Longest is how long the slowest attempt took that has returned, and forgets
// it.
func (s *Sender) Longest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.longest
	s.longest = 0
	return d
}

// Wait waits until every attempt has returned; one that takes longer than
// bound from now hangs. Run must have ended.
func (s *Sender) Wait(bound time.Duration) error {
	done := make(chan struct{})
	go func() { s.pool.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(bound):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []error
	for key, at := range s.pending {
		all = append(all, fmt.Errorf("the delivery of %s hangs for %v", key, time.Since(at).Round(time.Millisecond)))
	}
	return errors.Join(all...)
}

// message makes a message that says what it is called; most are small.
func (s *Sender) message() (key string, data []byte) {
	size := 200 + s.rng.IntN(8<<10)
	if s.rng.IntN(40) == 0 {
		size = s.rng.IntN(1500 << 10)
	}
	key = fmt.Sprintf("%d.%s.host", s.n, s.Name)
	return key, Text(key, size, s.rng.Uint64())
}

// Text is a message of about a size that carries its key in its header.
func Text(key string, size int, salt uint64) []byte {
	data := fmt.Appendf(nil, "From: sender@example.org\nSubject: %s\n%s: %s\n\n", key, KeyField, key)
	line := fmt.Appendf(nil, "%s %x of %d bytes\n", key, salt, size)
	for len(data) < size {
		data = append(data, line...)
	}
	return data
}

// KeyField is the header field that holds a message's key.
const KeyField = "X-Key"
