package repl

import (
	"context"
	"fmt"
	"time"
)

// ack tells the primary what this slot has. Without force it is silent if
// nothing changed that anybody waits for.
func (f *following) ack(force bool) error {
	log := f.r.Log
	f.ackMu.Lock()
	defer f.ackMu.Unlock()
	applied := log.Applied.Get()
	f.backlog.applied(applied)
	received, durable := log.Appended.Get(), log.Durable.Get()
	if f.backlog.bytes > maxBacklog {
		received = max(f.told[0], f.backlog.low)
	}
	durable = min(durable, received)
	if !force && received == f.told[0] && durable == f.told[1] {
		return nil
	}
	f.told = [3]uint64{received, durable, applied}
	return f.l.numbers(frameAck, received, durable, applied)
}

// acknowledge sends what becomes durable, when the log has it, and a sign of life
// when nothing happens. It also watches for the primary's.
func (f *following) acknowledge(ctx context.Context) {
	log := f.r.Log
	log.OnFlush(func() {
		if f.ack(false) != nil || log.Durable.Err() != nil {
			f.l.close()
		}
	})
	defer log.OnFlush(nil)
	heart := time.NewTicker(f.beat)
	defer heart.Stop()
	if f.ack(true) != nil {
		return
	}
	beat := time.Now()
	for {
		if log.Durable.Err() != nil {
			// Nothing more becomes durable here.
			f.l.close()
			return
		}
		select {
		case <-heart.C:
			// If this process stood still, what the primary said is not read yet.
			stood := time.Since(beat) > f.silent
			beat = time.Now()
			if !stood && f.r.clock()-time.Duration(f.heard.Load()) > 2*f.silent {
				f.r.fail(fmt.Errorf("follow the primary on %s: %w", f.peer.Node, errSilent))
				f.l.close()
				return
			}
			if f.ack(true) != nil {
				f.l.close()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// throttle stops reading while far too much is unapplied, as long as applying
// goes on by itself.
func (f *following) throttle(ctx context.Context) error {
	log := f.r.Log
	for {
		changed := log.Applied.Changed()
		applied := log.Applied.Get()
		f.ackMu.Lock()
		f.backlog.applied(applied)
		much := f.backlog.bytes > stopBacklog
		f.ackMu.Unlock()
		if !much || applied >= log.Committed.Get() || log.Applied.Err() != nil {
			return nil
		}
		select {
		case <-changed:
			f.heard.Store(int64(f.r.clock()))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backlog counts the bytes received and not yet applied.
type backlog struct {
	low   uint64 // applied
	bytes int64
	runs  []run
}

type run struct {
	last  uint64
	bytes int64
}

func (b *backlog) reset(applied uint64) { *b = backlog{low: applied} }

func (b *backlog) add(last uint64, bytes int64) {
	b.bytes += bytes
	b.runs = append(b.runs, run{last, bytes})
}

func (b *backlog) applied(seq uint64) {
	b.low = max(b.low, seq)
	n := 0
	for n < len(b.runs) && b.runs[n].last <= seq {
		b.bytes -= b.runs[n].bytes
		n++
	}
	if n > 0 {
		b.runs = append(b.runs[:0], b.runs[n:]...)
	}
}
