package integration_test

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/mailbox"
	"slotfs/integration/mailgen"
)

// rotMessages is how many messages rot while nobody has asked for more, and in a
// soak.
const (
	rotMessages     = 400
	rotMessagesSoak = 50_000
	rotRounds       = 6
)

// TestRot lets disks rot under a Dovecot: round by round a random part of the
// messages (in a soak 1 % of 50,000 over all rounds) is damaged on one side, then on
// the other, while mail is delivered and read. Nothing wrong may ever be served,
// and at the end everything is repaired.
func TestRot(t *testing.T) {
	t.Parallel()
	s := seed(t)
	count, part := rotMessages, 10
	if os.Getenv("SLOTFS_SOAK_ROUNDS") != "" {
		count, part = rotMessagesSoak, 100
	}
	f := newCluster(t, 2, cluster.Options{})
	f.expect(provoked...)
	f.expect("damaged", "should be", "missing", "not in the tree", "is not this object")
	must(t, f.StartPair())
	n1 := f.Nodes[0]
	_, mail := f.mail(n1, "d1")
	var users []string
	for i := range 20 {
		users = append(users, fmt.Sprint("u", i))
	}
	g := mailgen.New(s)
	g.Median = 4 << 10
	messages := make([]mailgen.Message, count)
	for i := range messages {
		messages[i] = g.Next()
	}
	r := &rot{fixture: f, mail: mail, acks: map[string][]mailbox.Ack{}, rng: newRand(s)}
	r.deliver(users, messages)
	f.equal()

	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { r.keepReading(users, end, newRand(s+1)) })
	wg.Go(func() { r.keepDelivering(users, end, s+2) })
	damaged := 0
	for round := range rotRounds {
		damaged += r.damage(f.Nodes[round%2], max(1, count/part/rotRounds))
		// Both copies of a message would be bad if the other side rotted before
		// this one was repaired; that is no one's promise.
		if _, err := n1.Run("scrub", f.Store, "--both"); exitCode(err) > 1 {
			t.Errorf("round %d: %v", round, err)
		}
	}
	close(end)
	wg.Wait()
	if damaged < count/part/2 {
		t.Errorf("only %d messages were damaged", damaged)
	}
	t.Logf("%d damages among %d messages", damaged, count)
	if _, err := n1.Run("scrub", f.Store, "--both"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if out, err := n1.Run("verify", f.Store, "--content"); err != nil {
		t.Errorf("verify: %s, %v", out, err)
	}
	r.readUsers(users)
	f.equal()
}

// rot is such a campaign.
type rot struct {
	*fixture
	mail mailbox.Server
	rng  *rand.Rand

	mu   sync.Mutex
	acks map[string][]mailbox.Ack // by user
}

func (r *rot) deliver(users []string, messages []mailgen.Message) {
	acks, err := r.mail.Deliver(users, messages, 4, nil)
	if err != nil {
		r.t.Errorf("deliver: %v", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range acks {
		r.acks[a.User] = append(r.acks[a.User], a)
	}
}

// readUsers reads all mail of users and compares it with what was acknowledged
// before.
func (r *rot) readUsers(users []string) {
	var acks []mailbox.Ack
	r.mu.Lock()
	for _, u := range users {
		acks = append(acks, r.acks[u]...)
	}
	r.mu.Unlock()
	shot, err := r.mail.Snapshot(users)
	if err != nil {
		r.t.Errorf("read mail: %v", err)
		return
	}
	for i, m := range shot.Missing(acks) {
		if i == 5 {
			break
		}
		r.t.Errorf("not served as it was delivered: %s", m)
	}
}

func (r *rot) keepReading(users []string, end <-chan struct{}, rng *rand.Rand) {
	for {
		select {
		case <-end:
			return
		default:
			r.readUsers([]string{users[rng.IntN(len(users))]})
		}
	}
}

func (r *rot) keepDelivering(users []string, end <-chan struct{}, seed uint64) {
	g := mailgen.New(seed)
	g.Median = 4 << 10
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-end:
			tick.Stop()
			return
		case <-tick.C:
			r.deliver(users, []mailgen.Message{g.Next()})
		}
	}
}

// damage spoils some messages beneath a node, each in a random way, and returns
// how many.
func (r *rot) damage(n *cluster.Node, want int) (done int) {
	r.t.Helper()
	var files []string
	must(r.t, filepath.WalkDir(n.Tree(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && isMessage(path) {
			files = append(files, path)
		}
		return nil // mail comes and goes
	}))
	r.rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, name := range files[:min(want, len(files))] {
		if err := spoil(name, r.rng); err == nil {
			done++
		} // else it was renamed meanwhile
	}
	must(r.t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	return done
}

func isMessage(path string) bool {
	dir := filepath.Base(filepath.Dir(path))
	return (dir == "cur" || dir == "new") && !strings.HasPrefix(filepath.Base(path), ".")
}

// spoil damages a file, and keeps its time.
func spoil(name string, rng *rand.Rand) error {
	info, err := os.Stat(name)
	if err != nil || info.Size() == 0 {
		return fmt.Errorf("spoil %s: %w", name, err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at := rng.Int64N(info.Size())
	switch rng.IntN(6) {
	case 0:
		return os.Remove(name)
	case 1:
		return f.Chmod(0o777)
	case 2:
		err = f.Truncate(at)
	case 3:
		_, err = f.WriteAt(make([]byte, min(4096, info.Size()-at)), at)
	default:
		b := make([]byte, 1)
		if _, err = f.ReadAt(b, at); err == nil {
			b[0] ^= 1 << rng.IntN(8)
			_, err = f.WriteAt(b, at)
		}
	}
	if err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, info.ModTime())
}
