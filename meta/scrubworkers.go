package meta

import (
	"context"
	"errors"
	"sync/atomic"

	"slotfs/meta/op"
)

// scrubWorkers is how many work at a time: one looks files up, or hashes, while the
// disk reads for another.
const scrubWorkers = 3

// readers read for the workers, one each.
type readers [scrubWorkers]*mediumReader

func newReaders() (r readers) {
	for i := range r {
		r[i] = newMediumReader()
	}
	return r
}

func (r *readers) close() {
	for _, m := range r {
		m.reads.close()
	}
}

// sideBySide calls some for all ids, several workers at a time, at low priority; most
// is how many ids may be handed over at once. The workers take the next ones by
// themselves: handing them to a goroutine that is bound to its thread would cost a
// change of threads each time.
func (r *readers) sideBySide(ctx context.Context, ids []op.ID, most func() int, some func(context.Context, []op.ID, *mediumReader) error) error {
	var next atomic.Int64
	errs := make(chan error, len(r))
	bctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, m := range r {
		go func() {
			stepBack()
			for {
				n := int64(most())
				to := next.Add(n)
				if to-n >= int64(len(ids)) {
					errs <- nil
					return
				}
				if err := some(bctx, ids[to-n:min(to, int64(len(ids)))], m); err != nil {
					cancel()
					errs <- err
					return
				}
			}
		}()
	}
	var first error
	for range r {
		if err := <-errs; err != nil && (first == nil || errors.Is(first, context.Canceled)) {
			first = err
		}
	}
	return errors.Join(first, ctx.Err())
}
