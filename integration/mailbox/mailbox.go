// Package mailbox drives mail through an LMTP and IMAP server and remembers
// what must still be there afterwards: which messages were acknowledged, and
// everything IMAP tells about each mailbox.
package mailbox

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"slotfs/integration/imap"
	"slotfs/integration/lmtp"
	"slotfs/integration/mailgen"
)

// Server is where the mail goes.
type Server struct {
	LMTP, IMAP, Password string
	// Dial connects to it; default: from this process's network.
	Dial func(addr string) (net.Conn, error)
}

// OpenIMAP connects and logs in; each command may take so long.
func (s Server) OpenIMAP(user string, timeout time.Duration) (*imap.Client, error) {
	conn, err := s.dial(s.IMAP)
	if err != nil {
		return nil, err
	}
	c, err := imap.New(conn, timeout)
	if err != nil {
		return nil, err
	}
	return c, c.Login(user, s.Password)
}

// OpenLMTP connects and says hello; each exchange may take so long.
func (s Server) OpenLMTP(timeout time.Duration) (*lmtp.Client, error) {
	conn, err := s.dial(s.LMTP)
	if err != nil {
		return nil, err
	}
	return lmtp.New(conn, timeout)
}

func (s Server) dial(addr string) (net.Conn, error) {
	if s.Dial != nil {
		return s.Dial(addr)
	}
	return net.DialTimeout("tcp", addr, 10*time.Second)
}

// Sum names the content of a message, however it was fetched.
type Sum [sha256.Size]byte

// Ack is a delivery that the server has acknowledged.
type Ack struct {
	User string
	Name string // of the message
	Sum  Sum
}

// SumOf is the sum of what IMAP will show of a message that is delivered by
// LMTP.
func SumOf(message []byte) Sum { return sha256.Sum256(imap.Normal(terminated(message))) }

// terminated has the line end at its end that LMTP cannot do without.
func terminated(message []byte) []byte {
	if len(message) > 0 && message[len(message)-1] != '\n' {
		return append(bytes.Clone(message), '\n')
	}
	return message
}

// Delivered removes what the LMTP server has put before the message:
// Return-Path, Delivered-To and its own Received.
func Delivered(body []byte) []byte {
	rest := body
	for _, name := range []string{"Return-Path:", "Delivered-To:", "Received:"} {
		if !bytes.HasPrefix(rest, []byte(name)) {
			return body
		}
		for first := true; first || len(rest) > 0 && rest[0] == '\t'; first = false {
			_, after, ok := bytes.Cut(rest, []byte("\r\n"))
			if !ok {
				return body
			}
			rest = after
		}
	}
	return rest
}

// Deliver delivers messages over several connections; message i goes to user
// i mod len(users). It ends early, without an error, when the server goes
// away, and with one when it refuses: what counts is what was acknowledged.
// onAck is told of each acknowledgement, if it is not nil.
func (s Server) Deliver(users []string, messages []mailgen.Message, connections int, onAck func(n int)) ([]Ack, error) {
	var (
		mu   sync.Mutex
		acks []Ack
		errs []error
		wg   sync.WaitGroup
		next int
	)
	take := func() int {
		mu.Lock()
		defer mu.Unlock()
		next++
		return next - 1
	}
	for range connections {
		wg.Go(func() {
			c, err := s.OpenLMTP(time.Minute)
			if err != nil {
				return
			}
			defer c.Close()
			for i := take(); i < len(messages); i = take() {
				user := users[i%len(users)]
				replies, err := c.Deliver("sender@example.org", []string{user}, messages[i].Data)
				if err != nil {
					return
				}
				mu.Lock()
				if replies[0].OK() {
					acks = append(acks, Ack{user, messages[i].Name, SumOf(messages[i].Data)})
				} else {
					errs = append(errs, fmt.Errorf("deliver %s: %s", messages[i].Name, replies[0]))
				}
				n := len(acks)
				mu.Unlock()
				if !replies[0].OK() {
					return
				}
				if onAck != nil {
					onAck(n)
				}
			}
		})
	}
	wg.Wait()
	return acks, errors.Join(errs...)
}

// Box is everything that IMAP tells of one mailbox.
type Box struct {
	imap.Mailbox
	Messages []imap.Message // without bytes
	Sums     []Sum          // of the bytes as fetched, for each of Messages
	Received []Sum          // of the bytes as they were delivered
}

// Snapshot is the state of some users' mailboxes, by "user/mailbox".
type Snapshot map[string]Box

// Snapshot reads all mailboxes of the users. It selects each once before it
// looks, so that the server has moved new mail to its place.
func (s Server) Snapshot(users []string) (Snapshot, error) {
	shot := Snapshot{}
	for _, user := range users {
		if err := s.user(user, shot); err != nil {
			return nil, fmt.Errorf("user %s: %w", user, err)
		}
	}
	return shot, nil
}

func (s Server) user(user string, shot Snapshot) error {
	c, err := s.OpenIMAP(user, time.Minute)
	if err != nil {
		return err
	}
	defer c.Close()
	names, err := c.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := c.Select(name); err != nil {
			return err
		}
		var box Box
		if box.Mailbox, err = c.Examine(name); err != nil {
			return err
		}
		if box.Mailbox.Messages > 0 {
			if box.Messages, err = c.Fetch("1:*", true); err != nil {
				return err
			}
		}
		for i := range box.Messages {
			m := &box.Messages[i]
			box.Sums = append(box.Sums, sha256.Sum256(m.Body))
			box.Received = append(box.Received, sha256.Sum256(Delivered(m.Body)))
			m.Body = nil
		}
		shot[user+"/"+name] = box
	}
	return c.Logout()
}

// Count is the number of messages in all mailboxes.
func (s Snapshot) Count() (n int) {
	for _, box := range s {
		n += len(box.Messages)
	}
	return n
}

// Missing lists acknowledged deliveries that no mailbox of their user holds.
// Each message counts once: two deliveries of the same bytes need two.
func (s Snapshot) Missing(acks []Ack) []string {
	type key struct {
		user string
		sum  Sum
	}
	there := map[key]int{}
	for name, box := range s {
		user, _, _ := strings.Cut(name, "/")
		for _, sum := range box.Received {
			there[key{user, sum}]++
		}
	}
	var missing []string
	for _, a := range acks {
		if there[key{a.User, a.Sum}]--; there[key{a.User, a.Sum}] < 0 {
			missing = append(missing, fmt.Sprintf("%s: %s", a.User, a.Name))
		}
	}
	return missing
}

// Diff lists what differs from an earlier snapshot. Mailboxes that grow names
// (users or user/mailbox) may hold later messages too, and a higher MODSEQ;
// everything else must be the same.
func (s Snapshot) Diff(earlier Snapshot, grow ...string) []string {
	var found []string
	for name, was := range earlier {
		is, ok := s[name]
		if !ok {
			found = append(found, name+": the mailbox is gone")
			continue
		}
		user, _, _ := strings.Cut(name, "/")
		found = append(found, diffBox(name, was, is, slices.Contains(grow, name) || slices.Contains(grow, user))...)
	}
	for name := range s {
		user, _, _ := strings.Cut(name, "/")
		if _, ok := earlier[name]; !ok && !slices.Contains(grow, user) {
			found = append(found, name+": the mailbox was not there")
		}
	}
	slices.Sort(found)
	return found
}

func diffBox(name string, was, is Box, grow bool) []string {
	var found []string
	say := func(format string, args ...any) { found = append(found, name+": "+fmt.Sprintf(format, args...)) }
	if was.UIDValidity != is.UIDValidity {
		say("UIDVALIDITY was %d, is %d", was.UIDValidity, is.UIDValidity)
	}
	if was.HighestModSeq > is.HighestModSeq || was.HighestModSeq != is.HighestModSeq && !grow {
		say("HIGHESTMODSEQ was %d, is %d", was.HighestModSeq, is.HighestModSeq)
	}
	if was.UIDNext > is.UIDNext || was.UIDNext != is.UIDNext && !grow {
		say("UIDNEXT was %d, is %d", was.UIDNext, is.UIDNext)
	}
	at := map[uint64]int{}
	for i, m := range is.Messages {
		at[m.UID] = i
	}
	for i, m := range was.Messages {
		j, ok := at[m.UID]
		if !ok {
			say("UID %d is gone", m.UID)
			continue
		}
		n := is.Messages[j]
		if was.Sums[i] != is.Sums[j] {
			say("UID %d: the bytes differ", m.UID)
		}
		if !slices.Equal(m.Flags, n.Flags) {
			say("UID %d: flags were %v, are %v", m.UID, m.Flags, n.Flags)
		}
		if m.InternalDate != n.InternalDate {
			say("UID %d: INTERNALDATE was %s, is %s", m.UID, m.InternalDate, n.InternalDate)
		}
		if m.ModSeq != n.ModSeq {
			say("UID %d: MODSEQ was %d, is %d", m.UID, m.ModSeq, n.ModSeq)
		}
	}
	if len(is.Messages) != len(was.Messages) && !grow {
		say("%d messages were there, %d are", len(was.Messages), len(is.Messages))
	}
	return found
}
