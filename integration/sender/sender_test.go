package sender_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"slotfs/integration/history"
	"slotfs/integration/sender"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMaildir: one node is not mounted, another dies in the middle, a third
// hangs now and then; what the record says is what the directories hold.
func TestMaildir(t *testing.T) {
	mounts := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	for _, m := range mounts[1:] {
		must(t, os.Mkdir(filepath.Join(m, ".slotfs"), 0o755))
	}
	var r history.Recorder
	dead := sender.Maildir("dead", mounts[1], "u")
	var dies atomic.Bool
	inner := dead.Deliver
	dead.Deliver = func(key string, data []byte) error {
		if dies.Load() {
			return errors.New("not there")
		}
		return inner(key, data)
	}
	slow := sender.Maildir("slow", mounts[2], "u")
	hang := make(chan struct{})
	deliver, n := slow.Deliver, atomic.Int32{}
	slow.Deliver = func(key string, data []byte) error {
		if n.Add(1) == 3 {
			<-hang
		}
		return deliver(key, data)
	}
	s := sender.New("s", 1, &r, sender.Maildir("bare", mounts[0], "u"), dead, slow)
	s.Patience = 50 * time.Millisecond
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { s.Run(stop); close(done) }()
	wait(t, func() bool { return r.Acks() > 20 })
	dies.Store(true)
	fault := time.Now()
	wait(t, func() bool { _, ok := r.FirstAfter(fault); return ok && r.Acks() > 40 })
	close(stop)
	<-done
	if err := s.Wait(100 * time.Millisecond); err == nil {
		t.Error("a delivery that hangs is not reported")
	}
	close(hang)
	must(t, s.Wait(10*time.Second))
	if s.Longest() < 100*time.Millisecond {
		t.Error("the longest delivery was a short one")
	}
	made := r.Take()
	late := 0
	for i, m := range mounts {
		held, err := sender.Held(m)
		must(t, err)
		of := map[string]history.Sum{}
		for _, h := range held {
			of[h.Key] = h.Sum
		}
		for _, d := range made {
			if d.Node != []string{"bare", "dead", "slow"}[i] || !d.Acked {
				continue
			}
			if of[d.Key] != d.Sum {
				t.Errorf("%s of %s is not there as delivered", d.Key, d.Node)
			}
			delete(of, d.Key)
			if d.End.Sub(d.Start) > 100*time.Millisecond {
				late++
			}
		}
		if len(of) > 0 {
			t.Errorf("mount %d holds %d messages that the record lacks", i, len(of))
		}
	}
	if late != 1 {
		t.Errorf("%d deliveries were late, want the one that hung", late)
	}
}

func wait(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited too long")
		}
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, "u", "cur"), 0o755))
	text := append([]byte("Return-Path: <>\r\nReceived: x\r\n\tfor y\r\n"), sender.Text("7.s.host", 300, 1)...)
	must(t, os.WriteFile(filepath.Join(dir, "u", "cur", "123.M4P5.host,S=1:2,FS"), text, 0o600))
	names, err := sender.Names(dir)
	must(t, err)
	if len(names) != 1 || names["7.s.host"] != "123.M4P5.host,S=1" {
		t.Errorf("%v", names)
	}
}
