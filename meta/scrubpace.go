package meta

import (
	"context"
	"sync"
	"time"
)

// pacer keeps scrub out of the way of users and below a rate.
//
// While users did something in the last moment (not: since the last look, or a
// scrub that slows them down would take them for idle), it makes scrub rest for a
// multiple of the time that it just worked; the multiple doubles as long as
// they go on, and halves when they don't. So a scrub on an idle slot goes at full
// speed, and on a busy one it takes a small share and still gets on.
type pacer struct {
	rate  int64         // bytes a second; 0: no limit
	most  float64       // largest multiple
	users func() uint64 // counts what users do
	now   func() time.Time
	sleep func(context.Context, time.Duration) error

	mu       sync.Mutex
	seen     uint64    // of users
	active   time.Time // when users last did something
	multiple float64   // of the time worked, to rest
	next     time.Time // when the rate lets more bytes through
}

const (
	usersGone  = 100 * time.Millisecond // without a sign of users they count as gone
	restMost   = 50.0                   // of a busy slot the workers together take about one part in 17
	restLimit  = 500 * time.Millisecond // a rest is not longer
	rateBurst  = 100 * time.Millisecond // what was not used for so long may be made up for
	lookSpaced = time.Millisecond       // work shorter than that is not worth a rest
)

func newPacer(rate int64, users func() uint64) *pacer {
	return &pacer{rate: rate, most: restMost, users: users, now: time.Now, sleep: sleep, seen: users()}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rest is called after work that took so long and read so many bytes.
func (p *pacer) rest(ctx context.Context, worked time.Duration, bytes int64) error {
	if d := p.due(worked, bytes); d >= lookSpaced {
		return p.sleep(ctx, d)
	}
	return ctx.Err()
}

// atOnce is how many files to read at once: beside users one, or they would wait for
// all of them.
func (p *pacer) atOnce() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.multiple > 0 {
		return 1
	}
	return readsMost
}

func (p *pacer) due(worked time.Duration, bytes int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if u := p.users(); u != p.seen {
		p.seen, p.active = u, now
	}
	if now.Sub(p.active) < usersGone {
		p.multiple = min(max(1, p.multiple*2), p.most)
	} else if p.multiple /= 2; p.multiple < 0.5 {
		p.multiple = 0
	}
	d := min(time.Duration(float64(worked)*p.multiple), restLimit)
	if p.rate <= 0 {
		return d
	}
	if p.next.Before(now.Add(-rateBurst)) {
		p.next = now.Add(-rateBurst)
	}
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.rate) * float64(time.Second)))
	return max(d, p.next.Sub(now))
}
