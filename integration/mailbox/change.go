package mailbox

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"time"
)

// Changed counts what Change did.
type Changed struct{ Flagged, Keywords, Copied, Moved, Expunged int }

// Add sums up.
func (c *Changed) Add(d Changed) {
	c.Flagged += d.Flagged
	c.Keywords += d.Keywords
	c.Copied += d.Copied
	c.Moved += d.Moved
	c.Expunged += d.Expunged
}

func (c Changed) String() string {
	return fmt.Sprintf("%d flag changes, %d keyword changes, %d copied, %d moved, %d expunged",
		c.Flagged, c.Keywords, c.Copied, c.Moved, c.Expunged)
}

// Change does to a user's INBOX what people do: flags and keywords set and
// taken, messages copied and moved to Archive, some expunged. It returns the
// sums of what was expunged, as they were delivered.
func (s Server) Change(user string, rng *rand.Rand) (done Changed, gone []Ack, err error) {
	c, err := s.OpenIMAP(user, time.Minute)
	if err != nil {
		return done, nil, err
	}
	defer c.Close()
	if _, err := c.Status("Archive"); err != nil {
		if err := c.Create("Archive"); err != nil {
			return done, nil, err
		}
	}
	if _, err := c.Select("INBOX"); err != nil {
		return done, nil, err
	}
	messages, err := c.Fetch("1:*", true)
	if err != nil {
		return done, nil, err
	}
	for i, m := range messages {
		uid := fmt.Sprint(m.UID)
		switch i % 6 {
		case 0:
			done.Flagged++
			err = c.Store(uid, "+FLAGS", `\Seen`, []string{`\Answered`, `\Flagged`, `\Draft`}[rng.IntN(3)])
		case 1:
			done.Keywords++
			err = c.Store(uid, "+FLAGS", []string{"$Forwarded", "project", "NonJunk", "$Label1"}[rng.IntN(4)], "common")
		case 2:
			done.Copied++
			err = c.Copy(uid, "Archive")
		case 3:
			done.Moved++
			err = c.Move(uid, "Archive")
		case 4:
			done.Expunged++
			gone = append(gone, Ack{User: user, Sum: sha256.Sum256(Delivered(m.Body))})
			err = c.Store(uid, "+FLAGS", `\Deleted`)
		default:
			done.Flagged += 2
			if err = c.Store(uid, "FLAGS", `\Seen`); err == nil {
				err = c.Store(uid, "-FLAGS", `\Seen`)
			}
		}
		if err != nil {
			return done, gone, fmt.Errorf("message %d: %w", m.UID, err)
		}
	}
	if err := c.Expunge(); err != nil {
		return done, gone, err
	}
	return done, gone, c.Logout()
}

// Without returns acks less those that are gone, each once.
func Without(acks, gone []Ack) []Ack {
	type key struct {
		user string
		sum  Sum
	}
	count := map[key]int{}
	for _, g := range gone {
		count[key{g.User, g.Sum}]++
	}
	var rest []Ack
	for _, a := range acks {
		if k := (key{a.User, a.Sum}); count[k] > 0 {
			count[k]--
			continue
		}
		rest = append(rest, a)
	}
	return rest
}
