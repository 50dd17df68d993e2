package meta

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"slotfs/meta/ledger"
	"slotfs/meta/op"
)

// The mass-change brake. A message that loses its last name (unlinked, or
// replaced by another file) stays in trash/ for BrakeOptions.Window in any case.
// If within one window implausibly much went, the brake engages: all that went
// within it, and goes while that goes on, is kept for BrakeOptions.Keep, and
// people are told. Nothing is refused: it is no brake on users, but on the
// freeing of their mail.
//
// Implausible is one of:
//
//   - many users: T messages of the store, T being the larger of Share of what
//     the store held at the beginning of the window, and Min. What one user has
//     removed counts for T/3 at most: so one user alone, or two, never engage it,
//     however large the folder that they emptied.
//   - all of one user: at least 90 % of the user's messages, from two mailboxes or
//     more, and at least Min. Emptying one folder, the largest too, is what users
//     do; emptying all of them is what a script does.
//
// Whose a message is, is a guess from its path (UserOf).
//
// Times are those of the entries, so every slot of the store decides the same by
// itself. What is engaged is in brake.json; the window is found again in the
// records of deletions (deleted.go).

// BrakeOptions configure it. The zero value means the defaults.
type BrakeOptions struct {
	Share  float64       // of a store's messages; 0 means 0.2, less than 0 never engages
	Window time.Duration // 0 means 10 minutes
	Keep   time.Duration // 0 means 7 days
	Min    int           // messages; 0 means 200
}

func (o BrakeOptions) withDefaults() BrakeOptions {
	if o.Share == 0 {
		o.Share = 0.2
	}
	if o.Window == 0 {
		o.Window = 10 * time.Minute
	}
	if o.Keep == 0 {
		o.Keep = 7 * 24 * time.Hour
	}
	if o.Min == 0 {
		o.Min = 200
	}
	return o
}

const (
	fileBrake = "brake.json"
	// brakeSave is how stale the end of an engagement on disk may be, and how much
	// longer it therefore counts.
	brakeSave = 10 * time.Second
	// capUsers is how many users it takes at least.
	capUsers = 3
	// mostOfUser is what counts as all of a user's messages.
	mostOfUser = 0.9
)

// Engagement is one time that the brake engaged: what was removed between From
// and To is kept until Keep after its removal.
type Engagement struct {
	Engaged time.Time `json:"engaged"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	User    string    `json:"user,omitempty"` // of one user only
	Lost    int       `json:"lost"`           // messages in the window when it engaged
	Of      uint64    `json:"of"`             // messages that there had been
	Users   int       `json:"users"`
}

// brake counts.
type brake struct {
	opt  BrakeOptions
	file string

	mu      sync.Mutex
	window  []loss // oldest first
	users   map[string]*userLoss
	engaged []Engagement
	saved   time.Time // when engaged was written
}

// loss is one message.
type loss struct {
	time int64
	user string
	dir  op.ID
}

// userLoss is what one user has lost within the window.
type userLoss struct {
	n       int
	dirs    map[op.ID]int
	askedAt int // n at which the rest of the user's messages was counted last
}

func openBrake(data string, o BrakeOptions) (*brake, error) {
	b := &brake{opt: o.withDefaults(), file: filepath.Join(data, fileBrake), users: map[string]*userLoss{}}
	text, err := os.ReadFile(b.file)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &b.engaged)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", fileBrake, err)
	}
	return b, nil
}

// openBrake opens the brake, with what trash and the index say.
func (s *Slot) openBrake() (err error) {
	if s.brake, err = openBrake(s.dir, s.opt.Brake); err != nil {
		return err
	}
	s.trash.holds = func(f trashedFile, now time.Time) bool { return s.brake.holds(f.time, f.user, now) }
	if err := s.noteTrash(); err != nil {
		return err
	}
	all, err := s.ix.deletions()
	if err != nil {
		return err
	}
	s.brake.recall(all, s.ix.current().Time)
	return nil
}

// holds reports whether a message that was removed at t is not to be freed at now.
func (b *brake) holds(t int64, user string, now time.Time) bool {
	at := time.Unix(0, t)
	if now.Sub(at) < b.opt.Window {
		return true
	}
	if now.Sub(at) >= b.opt.Keep {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.engaged, func(e Engagement) bool {
		return !at.Before(e.From) && !at.After(e.To.Add(brakeSave)) && (e.User == "" || e.User == user)
	})
}

// lost takes one loss in and returns what engaged, if anything did just now. total
// is how many messages the store has left; left counts those of a user.
func (b *brake) lost(l loss, total uint64, left func(user string) uint64) *Engagement {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.push(l)
	if b.opt.Share < 0 {
		return nil
	}
	now := time.Unix(0, l.time).UTC()
	if e := b.present(l.user, now); e != nil {
		e.To = now
		return nil
	}
	threshold := max(b.opt.Min, int(b.opt.Share*float64(total+uint64(len(b.window)))))
	if len(b.window) >= threshold && len(b.users) >= capUsers && b.capped(threshold) >= threshold {
		return b.engage(Engagement{Lost: len(b.window), Of: total + uint64(len(b.window)), Users: len(b.users)}, now)
	}
	u := b.users[l.user]
	if u.n < b.opt.Min || len(u.dirs) < 2 || u.n < u.askedAt+u.askedAt/10 {
		return nil
	}
	u.askedAt = u.n
	all := left(l.user) + uint64(u.n)
	if float64(u.n) < mostOfUser*float64(all) {
		return nil
	}
	return b.engage(Engagement{User: l.user, Lost: u.n, Of: all, Users: 1}, now)
}

// push adds a loss to the window and takes out what is too old.
func (b *brake) push(l loss) {
	b.window = append(b.window, l)
	u := b.users[l.user]
	if u == nil {
		u = &userLoss{dirs: map[op.ID]int{}}
		b.users[l.user] = u
	}
	u.n++
	u.dirs[l.dir]++
	for b.window[0].time <= l.time-int64(b.opt.Window) {
		old := b.window[0]
		b.window = b.window[1:]
		u := b.users[old.user]
		u.n--
		if u.dirs[old.dir]--; u.dirs[old.dir] == 0 {
			delete(u.dirs, old.dir)
		}
		if u.n == 0 {
			delete(b.users, old.user)
		}
	}
}

// capped is the sum of what users lost, none for more than its share.
func (b *brake) capped(threshold int) (sum int) {
	for _, u := range b.users {
		sum += min(u.n, (threshold+capUsers-1)/capUsers)
	}
	return sum
}

// present finds the engagement that still goes on; nil if there is none.
func (b *brake) present(user string, now time.Time) *Engagement {
	for i := range b.engaged {
		e := &b.engaged[i]
		if (e.User == "" || e.User == user) && now.Sub(e.To) < b.opt.Window {
			return e
		}
	}
	return nil
}

func (b *brake) engage(e Engagement, now time.Time) *Engagement {
	e.Engaged, e.To = now, now
	e.From = time.Unix(0, b.window[0].time).UTC()
	b.engaged = slices.DeleteFunc(b.engaged, func(o Engagement) bool { return now.Sub(o.To) > b.opt.Keep })
	b.engaged = append(b.engaged, e)
	b.saved = time.Time{}
	return &e
}

// save writes down what is engaged, now and then, or at once.
func (b *brake) save(now time.Time, atOnce bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.engaged) == 0 || !atOnce && now.Sub(b.saved) < brakeSave {
		return nil
	}
	b.saved = now
	return writeRecord(b.file, b.engaged)
}

// list is what the brake keeps at present.
func (b *brake) list(now time.Time) []Engagement {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(b.engaged), func(e Engagement) bool { return now.Sub(e.To) > b.opt.Keep })
}

// BrakeStatus says what is kept after it was removed.
type BrakeStatus struct {
	Engaged []Engagement `json:"engaged,omitempty"` // while their messages are kept
	Kept    int          `json:"kept"`              // messages in trash that can be undeleted
	Bytes   int64        `json:"bytes"`
}

// Brake tells.
func (s *Slot) Brake() BrakeStatus {
	st := BrakeStatus{Engaged: s.brake.list(time.Now())}
	if s.trash != nil {
		st.Kept, st.Bytes = s.trash.recorded()
	}
	return st
}

// countLoss is what the applier does for a message that lost its last name.
func (s *Slot) countLoss(d *Deletion) {
	got := s.brake.lost(loss{d.Time, d.User, d.Inode.Names[0].Dir}, s.ix.current().Messages, s.messagesOf)
	if got == nil {
		return
	}
	what := fmt.Sprintf("%d of %d messages of %d users were removed", got.Lost, got.Of, got.Users)
	if got.User != "" {
		what = fmt.Sprintf("%d of the %d messages of %s were removed", got.Lost, got.Of, got.User)
	}
	s.finding(Event{Kind: EventBrake, Path: got.User, Text: fmt.Sprintf(
		"%s between %s and %s: their bytes are kept for %v; \"slotfs undelete %s --since %s\" brings them back",
		what, got.From.Format(time.RFC3339), got.To.Format(time.RFC3339), s.brake.opt.Keep, s.StoreName, got.From.Format(time.RFC3339))},
		ledger.Entry{Outcome: ledger.Kept})
	if err := s.brake.save(time.Now(), true); err != nil {
		s.log.Error("note that the brake is engaged", keyErr, err)
	}
}

// tidyTrash frees what need not be kept any more, and, if the disk is nearly
// full, what only undelete would need. Of the keeper.
func (s *Slot) tidyTrash() {
	err := s.brake.save(time.Now(), false)
	if err == nil {
		err = s.trash.free()
	}
	if err == nil && s.space.short() {
		var n int
		n, err = s.trash.makeRoom(func() bool { return !s.space.short() })
		if n > 0 {
			s.finding(Event{Kind: EventBrake, Text: fmt.Sprintf(
				"the disk is nearly full: %d messages that were kept for undelete were given up", n)}, ledger.Entry{Outcome: ledger.Noted})
		}
	}
	if err != nil {
		s.log.Error("tidy the trash", keyErr, err)
	}
}

// messagesOf counts what a user has, roughly: the entries of all cur/ and new/.
func (s *Slot) messagesOf(user string) (n uint64) {
	id, err := s.Lookup(user)
	if err != nil {
		return 0
	}
	for todo := []op.ID{id}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		in, err := s.ix.inode(dir)
		if err != nil || len(in.Names) == 0 {
			continue
		}
		if name := in.Names[0].Name; name == "cur" || name == "new" {
			n += in.Count
		}
		subdirs, err := s.ix.subdirs(dir)
		if err == nil {
			todo = append(todo, subdirs...)
		}
	}
	return n
}

// recall finds the window again after a start.
func (b *brake) recall(all []*Deletion, now int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b *Deletion) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, d := range all {
		if d.Time > now-int64(b.opt.Window) && len(d.Inode.Names) > 0 {
			b.push(loss{d.Time, d.User, d.Inode.Names[0].Dir})
		}
	}
}
