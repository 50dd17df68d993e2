package meta

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"slotfs/meta/op"
	"slotfs/meta/oplog"
)

// checkLog is I6.
func (s *Slot) checkLog(ctx context.Context, r *Report) error {
	first, last := s.Log.First(), s.Log.Last()
	prev, err := s.Log.PosAt(first - 1)
	if err != nil {
		r.add(InvLog, 0, "", "position of entry %d: %v", first-1, err)
		return nil
	}
	pos := s.ix.checkpointed().Pos
	for from := first; from <= last.Seq; {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := s.Log.Read(from, readAhead)
		var trimmed *oplog.TrimmedError
		if errors.As(err, &trimmed) { // by a checkpoint, just now
			if from = s.Log.First(); from > last.Seq {
				return nil
			}
			if prev, err = s.Log.PosAt(from - 1); err != nil {
				return err
			}
			continue
		}
		if err != nil || len(entries) == 0 {
			r.add(InvLog, 0, "", "entry %d cannot be read: %v", from, err)
			return nil
		}
		for _, e := range entries {
			if e.Seq != prev.Seq+1 || e.Before != prev.Chain || e.Epoch < prev.Epoch {
				r.add(InvLog, 0, "", "entry %v does not follow %v", e.Pos(), prev)
				return nil
			}
			if prev = e.Pos(); prev.Seq == pos.Seq && prev != pos {
				r.add(InvLog, 0, "", "the index is at %v, the log has %v there", pos, prev)
			}
		}
		from = prev.Seq + 1
	}
	if pos.Seq > last.Seq {
		r.add(InvLog, 0, "", "the index is at entry %d, the log ends at %d", pos.Seq, last.Seq)
	}
	return nil
}

// checkAside is I7.
func (s *Slot) checkAside(ctx context.Context, r *Report) error {
	defer s.pauseApplier()()
	trashed, err := readNames(s.dir, dirTrash)
	if err != nil {
		return err
	}
	s.checkTrash(r, trashed)
	staged, err := readNames(s.dir, dirStage)
	if err != nil {
		return err
	}
	for _, name := range staged {
		path := "./" + dirStage + "/" + name
		seq, err := strconv.ParseUint(name, 10, 64)
		switch {
		case err != nil:
			r.add(InvAside, 0, path, "is left over")
		case seq > s.ix.current().Pos.Seq:
			r.add(InvAside, 0, path, "is a stage of entry %d, which was not applied", seq)
		}
	}
	kept, err := readNames(s.dir, dirQuarantine)
	if err != nil {
		return err
	}
	for _, name := range kept {
		if !strings.HasSuffix(name, ".json") && !slices.Contains(kept, name+".json") {
			r.add(InvAside, 0, "./"+dirQuarantine+"/"+name, "has no record")
		}
	}
	return ctx.Err()
}

// checkTrash is I7 for names that were in the trash. They may be freed meanwhile:
// when a checkpoint has passed, or to make room.
func (s *Slot) checkTrash(r *Report, names []string) {
	for _, name := range names {
		path := "./" + dirTrash + "/" + name
		id, err := strconv.ParseUint(name, 10, 64)
		if err != nil {
			r.add(InvAside, 0, path, "is not named by an id")
			continue
		}
		m, err := readMark(filepath.Join(s.dir, dirTrash, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && m.ID != op.ID(id) {
			r.add(InvAside, op.ID(id), path, "has id %d (%v)", m.ID, err)
		}
	}
}

// checkContent is I4, with the applier running.
func (s *Slot) checkContent(ctx context.Context, r *Report, repair bool) error {
	var files []op.ID
	ahead := s.ahead()
	err := s.ix.eachInode(func(n *Inode) error {
		if n.Sum != nil && (n.Sealed || !ahead) {
			files = append(files, n.ID)
		}
		return ctx.Err()
	})
	if err != nil {
		return err
	}
	for _, id := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		for try := 0; try < 10; try++ {
			n, err := s.ix.inode(id)
			if errors.Is(err, ErrNotExist) || err == nil && n.Sum == nil {
				break // removed or changed meanwhile
			}
			if err != nil {
				return err
			}
			bad, err := s.verifyNow(n)
			if errors.Is(err, errChanged) {
				continue
			}
			r.Verified++
			if bad == nil {
				bad = err
			}
			if bad != nil {
				path, _ := s.ix.path(id)
				text := bad.Error()
				if repair {
					text += s.tryRepair(ctx, n, bad)
				}
				r.add(InvContent, id, path, "%s", text)
			}
			break
		}
	}
	return nil
}

func (s *Slot) tryRepair(ctx context.Context, n *Inode, bad error) string {
	if err := s.repair(ctx, n.ID, n.Changed, bad); err != nil {
		return "; not repaired: " + err.Error()
	}
	return "; repaired"
}

// verifyNow verifies the content of n; errChanged if it is another by now.
func (s *Slot) verifyNow(n *Inode) (bad, err error) {
	fd, err := s.openSame(n)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close()
	if bad, err = verifyOpen(f, *n.Sum); bad == nil || n.Sealed {
		return bad, err
	}
	if now, e := s.ix.inode(n.ID); e != nil || now.Changed != n.Changed || now.Sum == nil {
		return nil, errChanged
	}
	return bad, err
}
