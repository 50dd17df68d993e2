package fs_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// stalled makes the log wait for a replica that does not answer. It answers
// everything up to now with the returned function.
func (w *world) stalled() (answer func()) {
	w.t.Helper()
	peer := op.SlotID{1}
	l := w.slot.Log
	w.applied()
	epoch := l.Last().Epoch + 1
	l.Lead(epoch, []op.SlotID{peer})
	if _, err := l.Append(&op.EpochBegin{Epoch: epoch, Primary: w.slot.ID, Members: []op.SlotID{w.slot.ID, peer}}); err != nil {
		w.t.Fatal(err)
	}
	answer = func() { l.Ack(peer, l.Last().Seq, l.Last().Seq) }
	answer()
	return answer
}

// blocked runs do and makes sure that it waits.
func blocked(t *testing.T, do func() error) chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		t.Errorf("did not wait for the replica: %v", err)
		done <- err
	case <-time.After(100 * time.Millisecond):
	}
	return done
}

func TestDemotionEndsWaits(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/f", "x")
	f, err := os.OpenFile(w.path("u/f"), os.O_RDWR, 0)
	w.must(err)
	defer f.Close()
	w.write("u/tmp/m", "x")
	answer := w.stalled()
	write := blocked(t, func() error { _, err := f.Write([]byte("y")); return err })
	answer()
	w.must(<-write)
	w.must(f.Sync())

	deliver := blocked(t, func() error { return os.Rename(w.path("u/tmp/m"), w.path("u/new/m")) })
	w.slot.Log.Follow()
	if err := <-deliver; !errors.Is(err, unix.EROFS) {
		t.Errorf("delivery while being demoted: %v, want EROFS", err)
	}
	if _, err := f.Write([]byte("y")); !errors.Is(err, unix.EROFS) {
		t.Errorf("write after demotion: %v, want EROFS", err)
	}
}

func TestUnmountEndsWaits(t *testing.T) {
	w := newWorld(t)
	w.maildir("u")
	w.write("u/tmp/m", "x")
	w.stalled()
	w.quiet = true // the answer finds nobody any more
	deliver := blocked(t, func() error { return os.Rename(w.path("u/tmp/m"), w.path("u/new/m")) })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := w.fs.Unmount(ctx); err == nil {
		t.Error("graceful unmount with a call under way")
	}
	w.fs = nil
	if err := <-deliver; err == nil {
		t.Error("delivery that nobody has was acknowledged")
	}
}

// TestSignalDoesNotEndWaits: what is logged is not answered with EINTR.
func TestSignalDoesNotEndWaits(t *testing.T) {
	w := newWorld(t)
	perl, err := exec.LookPath("perl")
	if err != nil {
		t.Skip("no perl")
	}
	w.write("f", "x")
	answer := w.stalled()
	// The handler is installed without SA_RESTART.
	const code = `use POSIX; sigaction(SIGALRM, POSIX::SigAction->new(sub { $n++ })) or die;
		open(F, "+<", $ARGV[0]) or die; setitimer_like(); 
		sub setitimer_like { alarm 1 }
		$r = syswrite(F, "y"); print defined $r ? "wrote $r" : "error $!", " after ", $n + 0, " signals";`
	cmd := exec.Command(perl, "-e", code, w.path("f"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan string, 1)
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			out = append(out, err.Error()...)
		}
		done <- string(out)
	}()
	select {
	case got := <-done:
		t.Fatalf("write ended without the replica: %s", got)
	case <-time.After(1500 * time.Millisecond): // the alarm has gone off
	}
	answer()
	if got := <-done; got != "wrote 1 after 1 signals" {
		t.Errorf("write with an alarm: %s", got)
	}
}
