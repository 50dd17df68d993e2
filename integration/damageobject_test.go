package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/integration/cluster"
	"slotfs/integration/powerloss"
)

// harm is one kind of damage to a message.
type harm struct {
	name string
	do   func(w *damageWorld, node int, msg string)
	// content: the bytes are gone or wrong, so that two bad copies are beyond
	// repair. The others are attributes and names, which index and ids bring back.
	content bool
	unread  bool // the bytes that a reader asks for are right
	both    bool // it hits the message's neighbour, too
	stray   bool // it adds a file, which is kept in quarantine
}

// behind changes a file beneath slotfs, and keeps its times.
func behind(t *testing.T, path string, f func([]byte) []byte) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, f(b), info.Mode().Perm()))
	must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
}

// mark is the attribute that a file carries.
const mark = "trusted.slotfs"

var harms = []harm{
	{name: "flip", content: true, do: func(w *damageWorld, n int, m string) {
		behind(w.t, w.file(n, m), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	}},
	{name: "zeroed", content: true, do: func(w *damageWorld, n int, m string) {
		behind(w.t, w.file(n, m), func(b []byte) []byte { clear(b[4096:8192]); return b })
	}},
	{name: "truncated", content: true, do: func(w *damageWorld, n int, m string) {
		behind(w.t, w.file(n, m), func(b []byte) []byte { return b[:len(b)-100] })
	}},
	{name: "extended", content: true, unread: true, do: func(w *damageWorld, n int, m string) {
		behind(w.t, w.file(n, m), func(b []byte) []byte { return append(b, "more"...) })
	}},
	{name: "swapped", content: true, both: true, do: func(w *damageWorld, n int, m string) {
		other, err := os.ReadFile(w.file(n, m+"~"))
		must(w.t, err)
		behind(w.t, w.file(n, m), func(b []byte) []byte {
			behind(w.t, w.file(n, m+"~"), func([]byte) []byte { return bytes.Clone(b) })
			return other
		})
	}},
	{name: "missing", content: true, do: func(w *damageWorld, n int, m string) { must(w.t, os.Remove(w.file(n, m))) }},
	{name: "unreadable", content: true, do: func(w *damageWorld, n int, m string) { must(w.t, w.disks[n].Spoil(w.file(n, m))) }},
	{name: "emptied", content: true, both: true, do: func(w *damageWorld, n int, m string) { empty(w.t, filepath.Dir(w.file(n, m))) }},
	{name: "names", do: func(w *damageWorld, n int, m string) {
		must(w.t, unix.Renameat2(unix.AT_FDCWD, w.file(n, m), unix.AT_FDCWD, w.file(n, m+"~"), unix.RENAME_EXCHANGE))
	}},
	{name: "stray", stray: true, do: func(w *damageWorld, n int, m string) {
		must(w.t, os.WriteFile(w.file(n, m+".stray"), []byte("who am I"), 0o600))
	}},
	{name: "mode", do: func(w *damageWorld, n int, m string) { must(w.t, os.Chmod(w.file(n, m), 0o4777)) }},
	{name: "owner", do: func(w *damageWorld, n int, m string) { must(w.t, os.Chown(w.file(n, m), 4711, 4712)) }},
	{name: "mtime", do: func(w *damageWorld, n int, m string) {
		must(w.t, os.Chtimes(w.file(n, m), time.Time{}, time.Unix(86400, 0)))
	}},
	{name: "xattr-gone", do: func(w *damageWorld, n int, m string) { must(w.t, unix.Removexattr(w.file(n, m), mark)) }},
	{name: "xattr-wrong", do: func(w *damageWorld, n int, m string) {
		b := make([]byte, 100)
		k, err := unix.Getxattr(w.file(n, m), mark, b)
		must(w.t, err)
		b[20] ^= 0xff // of the checksum
		must(w.t, unix.Setxattr(w.file(n, m), mark, b[:k], 0))
	}},
}

// cell is one combination, and the messages that it is about.
type cell struct {
	harm
	side, way string
}

func (c cell) combo() combo { return combo{c.name, c.side, c.way} }

// beyond is whether nothing is left to repair it from.
func (c cell) beyond() bool { return c.content && !c.unread && c.side == onSame }

// lost are the messages that are beyond repair.
func lost(cells []cell) (list []string) {
	for _, c := range cells {
		if c.beyond() {
			list = append(list, c.msg())
			if c.both {
				list = append(list, c.msg()+"~")
			}
		}
	}
	return list
}

func (c cell) msg() string { return strings.Join([]string{c.name, c.side, c.way}, "-") }

// hits lists what is damaged where: node, message.
func (c cell) hits() (list []hit) {
	m := c.msg()
	switch c.side {
	case onPrimary:
		return []hit{{0, m}}
	case onReplica:
		return []hit{{1, m}}
	case onDifferent:
		return []hit{{0, m}, {1, m + "-b"}}
	}
	return []hit{{0, m}, {1, m}}
}

type hit struct {
	node int
	msg  string
}

type damageWorld struct {
	*fixture
	m     *matrix
	disks []*powerloss.Disk
	want  map[string][]byte
}

// boxOf is where a message is: each kind of damage has one to itself, so that
// putting one directory right does not put the others right.
func boxOf(msg string) string {
	if strings.HasPrefix(msg, "emptied-") {
		return strings.TrimSuffix(msg, "~") // that of this cell, and side, alone
	}
	for _, side := range []string{onPrimary, onReplica, onDifferent, onSame} {
		if kind, _, ok := strings.Cut(msg, "-"+side+"-"); ok {
			return kind
		}
	}
	return "none"
}

func (w *damageWorld) file(node int, msg string) string {
	return filepath.Join(w.Nodes[node].Tree(), boxOf(msg), "cur", msg+":2,")
}

func newDamageWorld(t *testing.T, m *matrix) *damageWorld {
	d := newScratch(t)
	w := &damageWorld{m: m, want: map[string][]byte{}}
	for i := range 2 {
		w.disks = append(w.disks, newDisk(t, filepath.Join(d.Path, fmt.Sprint("disk", i+1))))
	}
	w.fixture = newClusterIn(t, d, 2, cluster.Options{Data: func(i int) string { return filepath.Join(w.disks[i].Path(), "data") }})
	w.expect(provoked...)
	w.expect("damaged", "is not in the tree", "quarantined", "should be", "it does not carry its id", "carries id", "no entry", "kept as",
		"missing in the tree", "without content", "content is not on this slot", "put where the index has it", "put there, or made again", "checksum")
	must(t, w.StartPair())
	return w
}

// cells lists what is looked for in one way.
func cells(way string) (list []cell) {
	for _, h := range harms {
		for _, side := range []string{onPrimary, onReplica, onDifferent, onSame} {
			if c := (cell{h, side, way}); excused(c.combo()) == "" {
				list = append(list, c)
			}
		}
	}
	return list
}

// apart divides cells into those that can be repaired and those that cannot.
func apart(all []cell) (well, beyond []cell) {
	for _, c := range all {
		if c.beyond() {
			beyond = append(beyond, c)
		} else {
			well = append(well, c)
		}
	}
	return well, beyond
}

// deliver delivers the messages of cells, and waits until both nodes have them
// on disk.
func (w *damageWorld) deliver(cells []cell) {
	w.t.Helper()
	all := map[string]map[string][]byte{}
	for _, c := range cells {
		for _, h := range c.hits() {
			for _, m := range []string{h.msg, h.msg + "~"} {
				if all[boxOf(m)] == nil {
					all[boxOf(m)] = map[string][]byte{}
				}
				all[boxOf(m)][m] = fmt.Appendf(nil, "Message-ID: <%s@example.org>\n\n%s", m, strings.Repeat(m+" ", 20_000/len(m)))
			}
		}
	}
	for box, messages := range all {
		must(w.t, deliver(w.Nodes[0].Mount, box, messages))
		for m, data := range messages {
			w.want[m] = data
		}
	}
	_, err := w.WaitEqual()
	must(w.t, err)
	unix.Sync()
}

func (w *damageWorld) damage(cells []cell) {
	w.t.Helper()
	for _, c := range cells {
		for _, h := range c.hits() {
			c.do(w, h.node, h.msg)
		}
		w.m.ran(c.combo())
	}
	unix.Sync()
	must(w.t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// read reads a message of the mount: the right bytes, or EIO, never anything
// else.
func (w *damageWorld) read(msg string) error {
	w.t.Helper()
	got, err := os.ReadFile(filepath.Join(w.Nodes[0].Mount, boxOf(msg), "cur", msg+":2,"))
	if err == nil && !bytes.Equal(got, w.want[msg]) {
		w.t.Errorf("%s: WRONG BYTES were served: %d for %d", msg, len(got), len(w.want[msg]))
	}
	if err != nil && !errors.Is(err, syscall.EIO) {
		w.t.Errorf("%s: %v, want EIO if anything", msg, err)
	}
	return err
}

// readAll reads everything; only what is in lost may fail.
func (w *damageWorld) readAll(lost ...string) {
	w.t.Helper()
	for m := range w.want {
		if err := w.read(m); (err != nil) != slices.Contains(lost, m) {
			w.t.Errorf("%s: %v", m, err)
		}
	}
}

// code runs slotfs on the first node and returns its exit code.
func (w *damageWorld) code(args ...string) (int, string) {
	w.t.Helper()
	out, err := w.Nodes[0].Run(args...)
	var failed *cluster.ExitError
	if errors.As(err, &failed) {
		return failed.Code, out + failed.Output
	}
	must(w.t, err)
	return 0, out
}

func (w *damageWorld) wantCode(want int, args ...string) string {
	w.t.Helper()
	code, out := w.code(args...)
	if code != want {
		bad := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool { return strings.Contains(l, `"progress"`) || strings.Contains(l, `"repaired"}`) })
		w.t.Errorf("slotfs %s: exit code %d, want %d:\n%.6000s", strings.Join(args, " "), code, want, strings.Join(bad, "\n"))
	}
	return out
}

// found runs a scrub of both sides and returns the paths it names, by node.
func (w *damageWorld) found(want int) map[string][]string {
	w.t.Helper()
	found := map[string][]string{}
	for dec := json.NewDecoder(strings.NewReader(w.wantCode(want, "scrub", w.Store, "--both", "--json"))); dec.More(); {
		var line struct {
			Node    string
			Finding *struct{ Path, Kind, Outcome string }
		}
		if dec.Decode(&line) != nil {
			break
		}
		if line.Finding != nil {
			found[line.Node] = append(found[line.Node], filepath.Base(line.Finding.Path))
		}
	}
	return found
}

// recorded demands an entry of a node's ledger for each message, with outcome.
func (w *damageWorld) recorded(node int, outcome string, msgs ...string) {
	w.t.Helper()
	entries := map[string][]ledgerEntry{}
	for _, e := range w.ledger(w.Nodes[node]) {
		entries[filepath.Base(e.Path)] = append(entries[filepath.Base(e.Path)], e)
	}
	for _, m := range msgs {
		list := slices.Concat(entries[m+":2,"], entries[m+"~:2,"])
		if !slices.ContainsFunc(list, func(e ledgerEntry) bool { return e.Outcome == outcome }) {
			w.t.Errorf("ledger of %s: %s is not recorded as %s: %+v", w.Nodes[node].Name, m, outcome, list)
		}
	}
	if _, err := w.Nodes[node].Run("ledger", w.Store, "--verify"); err != nil {
		w.t.Errorf("ledger of %s: %v", w.Nodes[node].Name, err)
	}
}

type ledgerEntry struct {
	Kind, Path, Source, Outcome, Text string
	MessageID                         string `json:"message_id"`
	Expected, Found                   map[string]string
}

// proven demands that all is well again on both sides, to the last byte.
func (w *damageWorld) proven() {
	w.t.Helper()
	w.wantCode(0, "scrub", w.Store, "--both")
	w.wantCode(0, "verify", w.Store, "--content")
	w.readAll()
	w.equal()
}
