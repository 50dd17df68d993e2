package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/schollz/progressbar/v3"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta"
)

const (
	followEvery = 500 * time.Millisecond
	// followAway is how long a node may be away, to be started again, before
	// following its adoption ends.
	followAway = time.Minute
)

// followAdoption shows how the node reads the messages of an adopted store, until
// all have a checksum, or all but those that cannot be read. why is returned if the
// store was not adopted.
func (a *app) followAdoption(ctx context.Context, store string, asJSON bool, why error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	show := &followShow{w: a.err}
	defer show.end()
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var answered time.Time
	for {
		st, err := adoptionOf(ctx, c, store)
		switch {
		case err != nil && answered.IsZero():
			return fmt.Errorf("%s belongs to a store already; to have its messages read, start the node: %w", store, err)
		case err != nil && time.Since(answered) > followAway:
			return err
		case err != nil: // it is being started again
		case st == nil:
			return exit.With(exit.Data, why)
		default:
			answered = time.Now()
			show.progress(st)
			if st.Unverified <= uint64(st.BadCount) {
				show.end()
				return a.adoptionEnd(store, st, asJSON)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: the node goes on by itself; run it again to see how far it is", ctx.Err())
		}
	}
}

// adoptionOf asks the node; nil if the store was not adopted.
func adoptionOf(ctx context.Context, c *admin.Client, store string) (*meta.AdoptionStatus, error) {
	var s admin.Status
	if err := c.Get(ctx, "/v1/status", nil, &s); err != nil {
		return nil, err
	}
	for _, sl := range s.Slots {
		if sl.Store == store {
			return sl.Adoption, nil
		}
	}
	return nil, exit.With(exit.Usage, fmt.Errorf("%s has no slot of store %q", s.Node, store))
}

// adoptionEnd prints what came of it.
func (a *app) adoptionEnd(store string, st *meta.AdoptionStatus, asJSON bool) error {
	if asJSON {
		if err := a.printJSON(st); err != nil {
			return err
		}
	} else {
		for _, b := range st.Bad {
			fmt.Fprintf(a.out, "cannot be read: %q: %s\n", b.Path, b.Error)
		}
		text := "all messages of the adopted store have been read and have a checksum"
		if st.BadCount > 0 {
			text = fmt.Sprintf("%d adopted messages cannot be read; all others have a checksum", st.BadCount)
		}
		fmt.Fprintf(a.out, "%s: %s (%d messages, %s)\n", store, text, st.Messages, size(st.Bytes))
	}
	if st.BadCount > 0 {
		return &silentError{exit.Differences}
	}
	return nil
}

// followShow shows how far it is.
type followShow struct {
	w     io.Writer
	bar   *progressbar.ProgressBar // nil: plain lines
	total uint64                   // bytes to read when it began; 0: not known yet
	last  time.Time
}

func (s *followShow) progress(st *meta.AdoptionStatus) {
	if s.total == 0 {
		s.total = max(st.UnverifiedBytes, 1)
		if s.bar = newBar(s.w, "adopt", true); s.bar != nil {
			s.bar.ChangeMax64(int64(s.total))
		}
	}
	if s.bar != nil {
		s.bar.Describe(fmt.Sprintf("adopt, %d of %d messages unverified, %d cannot be read", st.Unverified, st.Messages, st.BadCount))
		_ = s.bar.Set64(int64(s.total - min(st.UnverifiedBytes, s.total))) // it only draws
		return
	}
	if time.Since(s.last) >= sayEvery {
		s.last = time.Now()
		fmt.Fprintln(s.w, adoptionText(st))
	}
}

func (s *followShow) end() {
	if s.bar != nil {
		_ = s.bar.Clear()
	}
}

// adoptionText says in words how far the reading of adopted messages is.
func adoptionText(st *meta.AdoptionStatus) string {
	text := fmt.Sprintf("adopted; unverified: %d of %d messages, %s of %s", st.Unverified, st.Messages, size(st.UnverifiedBytes), size(st.Bytes))
	if st.BadCount > 0 {
		text += fmt.Sprintf(", %d of them CANNOT BE READ", st.BadCount)
	}
	return text
}
