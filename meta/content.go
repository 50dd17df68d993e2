package meta

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// readAhead is how many bytes of log are read at a time.
const readAhead = 8 << 20

// contents is reconcile's fourth phase: it makes the bytes of touched files right.
func (r *reconciler) contents() error {
	rewrite, err := r.judge()
	if err != nil {
		return err
	}
	if err := r.replay(rewrite); err != nil {
		return err
	}
	return r.lastResort(rewrite)
}

// judge decides which files are to be written anew: those just made, and sealed
// ones that do not verify.
func (r *reconciler) judge() (map[op.ID]bool, error) {
	rewrite := map[op.ID]bool{}
	for _, id := range r.made {
		rewrite[id] = true
	}
	for id := range r.t.objects {
		in, err := r.inode(id)
		if err != nil {
			return nil, err
		}
		n := r.done[id]
		if in == nil || n == nil || !in.IsRegular() || rewrite[id] {
			continue
		}
		if !in.Sealed {
			// Made by the run: whatever a crash left in it is worth nothing.
			rewrite[id] = uint64(id) > r.t.from && r.t.content[id]
			continue
		}
		bad, err := r.verify(n, in)
		if err != nil {
			return nil, err
		}
		rewrite[id], r.good[id] = bad != nil, bad == nil
	}
	return rewrite, nil
}

// verify compares n's bytes with the index; the first error is what is wrong
// with them. A file that is short of its checksum is wrong, too.
func (r *reconciler) verify(n *node, in *Inode) (bad, err error) {
	if in.Sum == nil {
		return nil, nil
	}
	bad, err = verifyFile(n.path(), *in.Sum)
	if errors.Is(err, unix.EIO) {
		return fmt.Errorf("read: %w", err), nil // a disk that cannot read it
	}
	return bad, err
}

// verifyFile compares the bytes of path with want; bad is what is wrong with
// them.
func verifyFile(path string, want op.Sum) (bad, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return verifyOpen(f, want)
}

// verifyOpen is verifyFile of an open file, from its beginning.
func verifyOpen(f *os.File, want op.Sum) (bad, err error) {
	var have op.Sum
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.Size() != want.Size {
		return fmt.Errorf("%d bytes, should be %d", st.Size(), want.Size), nil
	}
	if want.Size <= op.BlockSize { // most messages: no buffer of a whole block
		b := make([]byte, want.Size)
		if _, err := io.ReadFull(f, b); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		have = op.BlockSumOf(b)
	} else if have, err = op.BlockSumReader(f); err != nil {
		return nil, err
	}
	if !want.Equal(have) {
		return fmt.Errorf("checksum %016x of %d bytes, should be %016x", have.XXH(), have.Size, want.XXH()), nil
	}
	return nil, nil
}

// replay goes through the run in order and repeats what it did to the bytes of
// files. Files to be rewritten start empty at the entry that made them; the
// others may be in any state in between.
func (r *reconciler) replay(rewrite map[op.ID]bool) error {
	if r.log == nil || len(r.t.content)+len(r.t.stages)+len(rewrite) == 0 {
		return nil
	}
	return eachEntry(r.log, r.t.from+1, r.t.to, func(e *op.Entry) error {
		if err := r.replayEntry(e, rewrite); err != nil {
			return fmt.Errorf("content of entry %d: %w", e.Seq, err)
		}
		return nil
	})
}

func (r *reconciler) replayEntry(e *op.Entry, rewrite map[op.ID]bool) error {
	self := op.ID(e.Seq)
	switch o := e.Op.(type) {
	case *op.Create:
		if n := r.done[self]; n != nil && n.isRegular() && rewrite[self] {
			delete(rewrite, self)
			r.good[self] = true
			return r.write(n, e.Op, true)
		}
	case *op.Put:
		n := r.done[self]
		if n == nil || !rewrite[self] {
			return nil
		}
		delete(rewrite, self)
		r.good[self] = true
		if o.Stage == 0 {
			return r.write(n, &op.Write{Data: o.Data}, true)
		}
		return r.fromStage(n, o, e.Seq)
	case *op.Chunk:
		return r.replayChunk(o, e.Seq)
	case *op.Write:
		return r.rewriteControl(o.ID, o)
	case *op.Truncate:
		return r.rewriteControl(o.ID, o)
	case *op.Fallocate:
		return r.rewriteControl(o.ID, o)
	}
	return nil
}

// rewriteControl repeats one change of a control file that is still there.
func (r *reconciler) rewriteControl(id op.ID, o op.Op) error {
	n := r.done[id]
	if n == nil || r.missing[id] {
		return nil
	}
	return r.write(n, o, false)
}

// write changes the bytes of n as o says; fresh empties it first.
func (r *reconciler) write(n *node, o op.Op, fresh bool) error {
	if err := r.step("write", n.path()); err != nil {
		return err
	}
	f, err := os.OpenFile(n.path(), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	if fresh {
		r.report.Rewritten++
		err = f.Truncate(0)
	}
	if err == nil {
		err = changeBytes(f, o)
	}
	return errors.Join(err, f.Close())
}

// changeBytes does to f what o did to the bytes of a file.
func changeBytes(f *os.File, o op.Op) error {
	var err error
	switch o := o.(type) {
	case *op.Write:
		_, err = f.WriteAt(o.Data, o.Off)
	case *op.Truncate:
		err = f.Truncate(o.Size)
	case *op.Fallocate:
		err = fallocate(int(f.Fd()), o)
	}
	return err
}

// replayChunk puts a chunk into its stage again; a stage that is no longer
// waiting for its Put is removed by the applier's next EpochBegin.
func (r *reconciler) replayChunk(o *op.Chunk, seq uint64) error {
	stage := stageOf(o, seq)
	if !r.t.stages[stage] {
		return nil
	}
	path := (&node{parent: r.stage, name: strconv.FormatUint(stage, 10)}).path()
	if err := r.step("write", path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(o.Data, o.Off)
	return errors.Join(err, f.Close())
}

// fromStage writes the content of a Put whose chunks are in the log.
func (r *reconciler) fromStage(n *node, o *op.Put, seq uint64) error {
	if err := r.write(n, nil, true); err != nil {
		return err
	}
	f, err := os.OpenFile(n.path(), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(writeChunks(r.log, o, seq, f), f.Close())
}

// lastResort deals with files whose content the run does not hold: the log may
// reach further back. What remains is lost on this slot; a read fetches it
// from the peer.
func (r *reconciler) lastResort(rewrite map[op.ID]bool) error {
	for id, due := range rewrite {
		if !due {
			continue
		}
		in, err := r.view.inode(id)
		if err != nil {
			return err
		}
		n := r.done[id]
		ok, err := r.fromLog(n, in)
		if err != nil {
			return err
		}
		if ok {
			r.good[id] = true
			continue
		}
		r.missing[id] = true
		r.report.Missing++
		if r.t.lost[id] || r.t.newer[id] != 0 {
			continue // entries to come change or remove it
		}
		path, _ := pathOf(id, r.view.inode)
		r.note(EventMissing, id, path, "content is not on this slot and not in its log; to be fetched from a peer")
	}
	return r.damaged()
}

// damaged reports control files whose content is sealed and differs.
func (r *reconciler) damaged() error {
	if r.ahead || r.vanished != nil {
		return nil // what a resync fetched may be ahead of the index
	}
	for id := range r.t.objects {
		in, err := r.inode(id)
		n := r.done[id]
		if err != nil {
			return err
		}
		if in == nil || n == nil || in.Sealed || !in.IsRegular() || in.Sum == nil || r.missing[id] || r.t.newer[id] != 0 {
			continue
		}
		bad, err := r.verify(n, in)
		if err != nil {
			return err
		}
		if bad != nil {
			path, _ := pathOf(id, r.view.inode)
			r.note(EventDamaged, id, path, "differs from its seal: "+bad.Error())
		}
	}
	return nil
}

// fromLog writes n from what the log holds of it before the run; false if that
// is not all.
func (r *reconciler) fromLog(n *node, in *Inode) (bool, error) {
	if r.log == nil || uint64(in.ID) < r.log.First() {
		return in.Size == 0, nil
	}
	if err := r.step("write", n.path()); err != nil {
		return false, err
	}
	f, err := os.OpenFile(n.path(), os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	err = putContent(r.log, in.ID, f)
	if err == nil && !in.Sealed {
		err = eachEntry(r.log, uint64(in.ID)+1, r.t.to, func(e *op.Entry) error {
			if changedBy(e.Op) != in.ID {
				return nil
			}
			return changeBytes(f, e.Op)
		})
	}
	if err = errors.Join(err, f.Close()); err != nil {
		if errors.Is(err, ErrNotInLog) {
			err = nil
		}
		return false, err
	}
	r.report.Rewritten++
	bad, err := r.verify(n, in)
	return bad == nil, err
}

// ErrNotInLog: the log does not reach back to the content asked for.
var ErrNotInLog = errors.New("not in the log")

// putContent writes the content that the entry of id published to f: nothing,
// for a Create.
func putContent(log logReader, id op.ID, f *os.File) error {
	if uint64(id) < log.First() {
		return fmt.Errorf("entry %d: %w", id, ErrNotInLog)
	}
	entries, err := log.Read(uint64(id), 1)
	if err != nil {
		return err
	}
	if len(entries) == 0 {
		return fmt.Errorf("entry %d: %w", id, ErrNotInLog)
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	switch o := entries[0].Op.(type) {
	case *op.Create:
		return nil
	case *op.Put:
		if o.Stage != 0 {
			return writeChunks(log, o, uint64(id), f)
		}
		_, err = f.WriteAt(o.Data, 0)
		return err
	}
	return fmt.Errorf("entry %d: %w", id, ErrNotInLog)
}

// writeChunks writes the chunks of the Put o, entry seq.
func writeChunks(log logReader, o *op.Put, seq uint64, f io.WriterAt) error {
	if o.Stage < log.First() {
		return fmt.Errorf("chunks from entry %d: %w", o.Stage, ErrNotInLog)
	}
	return eachEntry(log, o.Stage, seq-1, func(e *op.Entry) error {
		c, ok := e.Op.(*op.Chunk)
		if !ok || c.Stage != o.Stage && !(c.Stage == 0 && e.Seq == o.Stage) {
			return nil
		}
		_, err := f.WriteAt(c.Data, c.Off)
		return err
	})
}

// eachEntry calls f for the entries from…to.
func eachEntry(log logReader, from, to uint64, f func(*op.Entry) error) error {
	for from <= to {
		entries, err := log.Read(from, readAhead)
		if err != nil {
			return fmt.Errorf("read log from %d: %w", from, err)
		}
		if len(entries) == 0 {
			return fmt.Errorf("log ends before entry %d", from)
		}
		for _, e := range entries {
			if e.Seq > to {
				return nil
			}
			if err := f(e); err != nil {
				return err
			}
			from = e.Seq + 1
		}
	}
	return nil
}
