package meta

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"slotfs/meta/op"
)

// The steps of a rescue, each with a stop after it: the branch is kept, file by
// file; the tail is cut off (package oplog stops at each system call of that);
// messages are delivered; the branch is dropped.

// copyDir copies a data directory, as it is, attributes included.
func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

// lostSlot makes a slot whose branch is not applied; or is, and the log has lost
// the beginning of it. It has crashed.
func lostSlot(t *testing.T, w *world, fork uint64, trim bool) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "lost")
	if !trim {
		s := newSlot(t, dir, w.log.entries[:fork])
		if err := s.Log.AppendEntries(w.log.entries[fork:]); err != nil {
			t.Fatal(err)
		}
		s.Log.Flush(w.log.last())
		if err := s.Log.Durable.Wait(t.Context(), w.log.last()); err != nil {
			t.Fatal(err)
		}
		crashSlot(t, s)
		return dir
	}
	s := newSlot(t, dir, w.log.entries)
	restore := s.pauseApplier()
	err := s.checkpoint()
	restore()
	if err := errors.Join(err, s.Log.Trim(fork+8)); err != nil {
		t.Fatal(err)
	}
	crashSlot(t, s)
	return dir
}

// keptFiles are the files of a kept branch, in the order in which they are made.
func keptFiles(t *testing.T, dir, name string) (files []string) {
	t.Helper()
	for _, pattern := range []string{".log", ".content/*", ".mail", ".json"} {
		found, err := filepath.Glob(filepath.Join(dir, dirRescue, name+pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			rel, err := filepath.Rel(dir, f)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, rel)
		}
	}
	return files
}

// allOffered checks that a branch offers every message with its content.
func allOffered(t *testing.T, s *Slot, name string, want map[uint64][]byte) {
	t.Helper()
	n := 0
	err := s.OfferBranch(t.Context(), name, func(*Lost) bool { return true }, func(l *Lost, content []byte, damaged error) error {
		if damaged != nil || !bytes.Equal(content, want[l.Seq]) {
			t.Errorf("seq %d: %d bytes, %v", l.Seq, len(content), damaged)
		}
		n++
		return nil
	})
	if err != nil || n != len(want) {
		t.Errorf("%d of %d messages: %v", n, len(want), err)
	}
}

// TestKeepBranchStops: a stop after each file of a branch, and in the middle of
// each. Keeping it again gives the whole branch, and only then the tail is cut.
func TestKeepBranchStops(t *testing.T) {
	for _, trim := range []bool{false, true} {
		w, fork, want := branchWorld(t)
		base := lostSlot(t, w, fork, trim)
		info := BranchInfo{Fork: fork, Acked: w.log.last(), From: "n2", Epochs: []BranchEpoch{{Epoch: 2, From: fork + 1}}}
		kept := copyDir(t, base)
		s := openSlot(t, kept, Options{})
		b, err := s.KeepBranch(t.Context(), info)
		if err != nil {
			t.Fatal(err)
		}
		crashSlot(t, s)
		files := keptFiles(t, kept, b.Name)
		if len(files) < 3 || trim && len(files) < 4 {
			t.Fatalf("files: %q", files)
		}
		for i := range len(files) + 1 {
			dir := copyDir(t, base)
			for j, file := range files[:min(i+1, len(files))] {
				text, err := os.ReadFile(filepath.Join(kept, file))
				if err != nil {
					t.Fatal(err)
				}
				to := filepath.Join(dir, file)
				if j == i && filepath.Dir(file) != dirRescue {
					continue // a link: it is there or not
				} else if j == i {
					text, to = text[:len(text)/2], to+map[string]string{".log": ".tmp", ".mail": ".new", ".json": ".new"}[filepath.Ext(to)]
				}
				if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, text, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			s := openSlot(t, dir, Options{})
			again, err := s.KeepBranch(t.Context(), info)
			if err != nil || again.Name != b.Name || again.Messages != b.Messages || again.Offered != b.Offered || again.Changes != b.Changes {
				t.Fatalf("stopped after %d of %q: %+v, %v; want %+v", i, files, again, err, b)
			}
			if !trim {
				if n, err := s.Log.Cut(fork, ""); err != nil || uint64(n) != w.log.last()-fork {
					t.Errorf("cut %d: %v", n, err)
				}
			}
			crashSlot(t, s)
			s = openSlot(t, dir, Options{})
			if list, err := s.Branches(); err != nil || len(list) != 1 {
				t.Errorf("stopped after %d of %q: %d branches, %v", i, files, len(list), err)
			}
			allOffered(t, s, b.Name, want)
			crashSlot(t, s)
		}
	}
}

// rescuing is a slot with a lost branch and a primary, with all that survives
// their stops.
type rescuing struct {
	t          *testing.T
	lost, main *Slot
	lostDir    string
	mainDir    string
	history    *world // of the primary
	cur        op.ID
	branch     string
}

// Stops of a delivery, after what they are called.
const (
	stopOffered   = iota // nothing has happened
	stopAppended         // on the primary: durable in its log, and not applied
	stopTorn             // on the primary: applied, its list of what was delivered torn
	stopDelivered        // the answer is lost
	stopAnswered         // on the slot with the branch: before it has noted the decision
	stopNoting           // on the slot with the branch: the note is torn
	stopNever
)

var errStop = errors.New("stopped")

// publish is what a primary does with a message, see Deliver in cmd/slotfs/node.
func (r *rescuing) publish(l *Lost, content []byte, stop int) (Decision, error) {
	if id, ok := r.main.Rescued(l.Origin()); ok {
		return Decision{Seq: l.Seq, Outcome: Delivered, ID: id}, nil
	}
	attr := l.RescueAttr()
	attr.Mode = typeRegular | 0o600
	id := r.history.add(&op.Put{Parent: r.cur, Name: fmt.Sprintf("rescued-%d-%d", l.Seq, r.history.log.last()), Attr: attr,
		Sum: op.SumOf(content), Sealed: true, Data: content})
	if stop == stopAppended {
		if err := r.main.Log.AppendEntries(r.history.log.entries[id-1:]); err != nil {
			r.t.Fatal(err)
		}
		r.main.Log.Flush(uint64(id))
		if err := r.main.Log.Durable.Wait(r.t.Context(), uint64(id)); err != nil {
			r.t.Fatal(err)
		}
	} else {
		follow(r.t, r.main, r.history.log.entries)
	}
	if stop == stopAppended || stop == stopTorn {
		crashSlot(r.t, r.main)
		list := filepath.Join(r.mainDir, dirRescue, fileDelivered)
		if st, err := os.Stat(list); err == nil && stop == stopTorn {
			if err := os.Truncate(list, st.Size()-5); err != nil {
				r.t.Fatal(err)
			}
		}
		r.main = openSlot(r.t, r.mainDir, Options{})
		follow(r.t, r.main, r.history.log.entries)
		return Decision{}, errStop
	}
	return Decision{Seq: l.Seq, Outcome: Delivered, ID: id}, nil
}

// attempt offers what is not decided, and stops at the first message, at a step
// of its delivery. It returns how many messages were still to be delivered.
func (r *rescuing) attempt(stop int) (left int) {
	t := r.t
	t.Helper()
	done, err := r.lost.Decisions(r.branch)
	if err != nil {
		t.Fatal(err)
	}
	wanted := func(l *Lost) bool { return l.Offer && !done[l.Seq].Final() }
	err = r.lost.OfferBranch(t.Context(), r.branch, wanted, func(l *Lost, content []byte, damaged error) error {
		left++
		if damaged != nil {
			t.Errorf("seq %d: %v", l.Seq, damaged)
		}
		if stop == stopOffered {
			return errStop
		}
		d, err := r.publish(l, content, stop)
		if err != nil || stop == stopDelivered || stop == stopAnswered {
			return errors.Join(err, errStop)
		}
		if err := r.lost.Decide(r.branch, d); err != nil || stop == stopNever {
			return err
		}
		name := r.lost.branchFile(r.branch, ".done")
		st, err := os.Stat(name)
		if err == nil {
			err = os.Truncate(name, st.Size()-5)
		}
		return errors.Join(err, errStop)
	})
	if err != nil && !errors.Is(err, errStop) {
		t.Fatalf("stop %d: %v", stop, err)
	}
	if stop == stopAnswered || stop == stopNoting {
		crashSlot(t, r.lost)
		r.lost = openSlot(t, r.lostDir, Options{})
	}
	return left
}

// TestRescueStops: a stop at each step of the delivery of each message, one kind
// after the other and all of them for one message. Every message comes once.
func TestRescueStops(t *testing.T) {
	w, fork, want := branchWorld(t)
	r := &rescuing{t: t, lostDir: lostSlot(t, w, fork, false), mainDir: filepath.Join(t.TempDir(), "main"), history: newWorld(t, 1)}
	r.lost = openSlot(t, r.lostDir, Options{})
	acked := fork + 13 // after those that fit into an entry
	b, err := r.lost.KeepBranch(t.Context(), BranchInfo{Fork: fork, Acked: acked, From: "n2", Epochs: []BranchEpoch{{Epoch: 2, From: fork + 1}}})
	if err != nil {
		t.Fatal(err)
	}
	r.branch = b.Name
	for _, e := range w.log.entries[1:fork] {
		r.history.add(e.Op)
	}
	c, err := r.history.ix.child(2, "cur")
	if err != nil {
		t.Fatal(err)
	}
	r.cur = c.ID
	r.history.add(&op.EpochBegin{Epoch: 3, Reason: "the other one"})
	r.main = newSlot(t, r.mainDir, r.history.log.entries)

	for stop := range stopNever { // the first message meets all
		r.attempt(stop)
	}
	for stop, left := stopOffered, 1; left > 0; stop = (stop + 1) % stopNever {
		if left = r.attempt(stop); left > 0 && stop != stopOffered {
			// One message more, to the end: the next stop is for another.
			left = r.one()
		}
	}
	if n := r.attempt(stopNever); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	once := map[uint64]int{}
	for _, e := range r.history.log.entries[fork+1:] {
		p := e.Op.(*op.Put)
		o, err := parseOrigin(string(p.Attr.Xattr[RescuedXattr]))
		if err != nil || !bytes.Equal(p.Data, want[o.Seq]) {
			t.Errorf("entry %d: %v: %d bytes, %v", e.Seq, o, len(p.Data), err)
		}
		once[o.Seq]++
	}
	for seq := range want {
		if n := once[seq]; (n == 1) != (seq <= acked) || n > 1 {
			t.Errorf("the message of seq %d was delivered %d times", seq, n)
		}
	}
	if n := r.main.RescuedCount(); n != len(once) || len(once) != 12 {
		t.Errorf("the primary knows of %d deliveries of %d", n, len(once))
	}
	checkClean(t, r.main)
	r.drop()
}

// one delivers the next message to the end.
func (r *rescuing) one() (left int) {
	r.t.Helper()
	done, err := r.lost.Decisions(r.branch)
	if err != nil {
		r.t.Fatal(err)
	}
	err = r.lost.OfferBranch(r.t.Context(), r.branch, func(l *Lost) bool { return l.Offer && !done[l.Seq].Final() }, func(l *Lost, content []byte, _ error) error {
		if left++; left > 1 {
			return nil
		}
		d, err := r.publish(l, content, stopNever)
		return errors.Join(err, r.lost.Decide(r.branch, d))
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return left - 1
}

// drop stops after each file that goes: nothing is offered again, and dropping
// it can be repeated.
func (r *rescuing) drop() {
	t := r.t
	t.Helper()
	crashSlot(t, r.lost)
	for _, suffix := range []string{"", ".content", ".mail", ".mail.new", ".done", ".log", ".json"} {
		if suffix != "" {
			if err := os.RemoveAll(r.lost.branchFile(r.branch, suffix)); err != nil {
				t.Fatal(err)
			}
		}
		if suffix == ".json" {
			break
		}
		dir := copyDir(t, r.lostDir)
		s := openSlot(t, dir, Options{})
		offered := 0
		done, err := s.Decisions(r.branch)
		if err != nil {
			t.Fatal(err)
		}
		err = s.BranchMails(r.branch, func(l *Lost) error {
			if l.Offer && !done[l.Seq].Final() {
				offered++
			}
			return nil
		})
		if err != nil || offered > 0 {
			t.Errorf("stopped after %s: %d messages are offered again, %v", suffix, offered, err)
		}
		if err := s.DropBranch(r.branch); err != nil {
			t.Errorf("stopped after %s: %v", suffix, err)
		}
		names, err := os.ReadDir(filepath.Join(dir, dirRescue))
		if err != nil || slices.ContainsFunc(names, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), r.branch) }) {
			t.Errorf("after drop: %v, %v", names, err)
		}
		crashSlot(t, s)
	}
}
