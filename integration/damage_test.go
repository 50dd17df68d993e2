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

// The damage matrix: every kind of damage, on every side, found in every way.
// Cells of one way are damaged together and looked at together, so that the
// whole takes a few minutes on two nodes with real disks (powerloss.Disk, which
// can lose sectors).

// Sides of a cell.
const (
	onPrimary   = "primary"
	onReplica   = "replica"
	onDifferent = "different" // on both, two messages
	onSame      = "same"      // on both, the same message
)

// Ways to find damage.
const (
	byRead    = "read"    // of the mount
	byScrub   = "scrub"   // slotfs scrub --both
	byCompare = "compare" // slotfs verify --content
	byStart   = "start"   // both nodes were killed, and start
)

// harm is one kind of damage to a message.
type harm struct {
	name string
	do   func(w *damageWorld, node int, msg string)
	// content: the bytes are gone or wrong, so that two bad copies are beyond
	// repair. The others are attributes and names, which index and ids bring back.
	content bool
	unread  bool // the bytes that a reader asks for are right
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
	{name: "swapped", content: true, do: func(w *damageWorld, n int, m string) {
		other, err := os.ReadFile(w.file(n, m+"~"))
		must(w.t, err)
		behind(w.t, w.file(n, m), func(b []byte) []byte {
			behind(w.t, w.file(n, m+"~"), func([]byte) []byte { return bytes.Clone(b) })
			return other
		})
	}},
	{name: "missing", content: true, do: func(w *damageWorld, n int, m string) { must(w.t, os.Remove(w.file(n, m))) }},
	{name: "unreadable", content: true, do: func(w *damageWorld, n int, m string) { must(w.t, w.disks[n].Spoil(w.file(n, m))) }},
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

// ofWholeSlots are the damages that are not of one message; each is proved by
// tests of its own, in all ways in which it can be found.
var ofWholeSlots = map[string]func(*testing.T){
	"directory emptied, replica": TestReplicaLosesTree,
	"directory emptied, primary": TestPrimaryLosesTree,
}

// excused says why a cell cannot be; empty if it can.
func excused(h harm, side, way string) string {
	switch {
	case way == byRead && side == onReplica:
		return "reads are answered by the primary: damage of the replica alone is never read"
	case way == byRead && h.stray:
		return "what no entry of the log made has no name in the mount: nobody can read it"
	case way == byCompare && side == onSame && h.content && !h.unread:
		return "the same as by scrub: it is the same reading of the disks, and there is nothing to repair from"
	}
	return ""
}

// cell is one combination, and the messages that it is about.
type cell struct {
	harm
	side, way string
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
	disks []*powerloss.Disk
	want  map[string][]byte
}

// boxOf is where a message is: each kind of damage has one to itself, so that
// putting one directory right does not put the others right.
func boxOf(msg string) string {
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

func newDamageWorld(t *testing.T) *damageWorld {
	d := newScratch(t)
	w := &damageWorld{want: map[string][]byte{}}
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

// cells lists what is looked for in one way, and reports what is excused.
func (w *damageWorld) cells(way string, sides ...string) (list []cell) {
	for _, h := range harms {
		for _, side := range sides {
			if why := excused(h, side, way); why != "" {
				w.t.Logf("%s on %s, found by %s: %s", h.name, side, way, why)
				continue
			}
			list = append(list, cell{h, side, way})
		}
	}
	return list
}

// deliver delivers the messages of cells, and waits until both nodes have them
// on disk.
func (w *damageWorld) deliver(cells []cell) {
	w.t.Helper()
	all := map[string]map[string][]byte{}
	for _, c := range cells {
		if all[c.name] == nil {
			all[c.name] = map[string][]byte{}
		}
		for _, h := range c.hits() {
			for _, m := range []string{h.msg, h.msg + "~"} {
				all[c.name][m] = fmt.Appendf(nil, "Message-ID: <%s@example.org>\n\n%s", m, strings.Repeat(m+" ", 20_000/len(m)))
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
	out, err := w.Nodes[node].Run("ledger", w.Store, "--json")
	must(w.t, err)
	entries := map[string][]ledgerEntry{}
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var e ledgerEntry
		must(w.t, dec.Decode(&e))
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

// TestDamageMatrix is the matrix, but for what wants the nodes killed.
func TestDamageMatrix(t *testing.T) {
	t.Parallel()
	w := newDamageWorld(t)
	t.Run("read", func(t *testing.T) { w.t = t; w.byRead() })
	t.Run("scrub", func(t *testing.T) { w.t = t; w.byScrub() })
	t.Run("compare", func(t *testing.T) { w.t = t; w.byCompare() })
	t.Run("start", func(t *testing.T) { w.t = t; w.byStart() })
	w.t = t
	for what, f := range ofWholeSlots {
		if f == nil {
			t.Errorf("%s is proved nowhere", what)
		}
	}
}

// byRead: a reader gets the right bytes, from the replica if need be, and what
// was damaged is repaired on the way. Attributes are answered from the index,
// so a reader sees nothing of their damage, and a later scrub repairs it.
func (w *damageWorld) byRead() {
	cells := w.cells(byRead, onPrimary, onReplica, onDifferent, onSame)
	w.deliver(cells)
	w.damage(cells)
	var lost []string
	for _, c := range cells {
		if c.content && !c.unread && c.side == onSame {
			lost = append(lost, c.msg())
			if c.name == "swapped" {
				lost = append(lost, c.msg()+"~")
			}
		}
	}
	before := map[string][]byte{}
	for _, m := range lost {
		for n := range w.Nodes {
			before[w.file(n, m)], _ = os.ReadFile(w.file(n, m))
		}
	}
	w.readAll(lost...)
	for _, c := range cells {
		if c.unread {
			// Nothing beyond a message's size is ever served: scrub's matter.
		} else if c.content && c.side != onSame {
			w.recorded(0, "repaired", c.msg())
			if b, err := os.ReadFile(w.file(0, c.msg())); err != nil || !bytes.Equal(b, w.want[c.msg()]) {
				w.t.Errorf("%s is not repaired in the tree: %d bytes, %v", c.msg(), len(b), err)
			}
		} else if c.content {
			w.recorded(0, "unrepaired", c.msg())
		}
		w.sameAttributes(c.msg())
	}
	for name, b := range before {
		if now, _ := os.ReadFile(name); !bytes.Equal(now, b) {
			w.t.Errorf("%s: a bad copy was changed although there is no good one", name)
		}
	}
	for _, c := range cells {
		if c.unread && c.side == onSame {
			lost = append(lost, c.msg())
		}
	}
	w.restore(lost)
	w.found(1)
	w.proven()
}

// sameAttributes demands that the mount shows what was delivered.
func (w *damageWorld) sameAttributes(msg string) {
	w.t.Helper()
	var st unix.Stat_t
	must(w.t, unix.Stat(filepath.Join(w.Nodes[0].Mount, boxOf(msg), "cur", msg+":2,"), &st))
	if st.Mode&0o7777 != 0o600 || st.Uid != 0 || st.Gid != 0 || time.Unix(st.Mtim.Unix()).Year() < 2000 {
		w.t.Errorf("%s: the mount shows mode %o, owner %d:%d, mtime %v", msg, st.Mode, st.Uid, st.Gid, time.Unix(st.Mtim.Unix()))
	}
}

// restore puts good copies of lost messages onto the replica, as an operator
// does from a backup.
func (w *damageWorld) restore(lost []string) {
	w.t.Helper()
	for _, d := range w.disks {
		d.Unspoil()
	}
	for _, m := range lost {
		name := w.file(1, m)
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		must(w.t, err)
		_, err = f.Write(w.want[m])
		must(w.t, errors.Join(err, f.Sync(), f.Close()))
	}
	must(w.t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// byScrub: all is found on both sides, repaired from the other one, and said so
// by the exit code; two bad copies are left alone.
func (w *damageWorld) byScrub() {
	cells := w.cells(byScrub, onPrimary, onReplica, onDifferent)
	for _, c := range w.cells(byScrub, onSame) {
		if !c.content || c.unread { // the good bytes are still there
			cells = append(cells, c)
		}
	}
	w.deliver(cells)
	w.damage(cells)
	found := w.found(1)
	for _, c := range cells {
		for _, h := range c.hits() {
			name := w.Nodes[h.node].Name
			want := []string{h.msg + ":2,", h.msg + "~:2,", h.msg + ".stray:2,"}
			if !slices.ContainsFunc(want, func(f string) bool { return slices.Contains(found[name], f) }) {
				w.t.Errorf("%s on %s was not found", h.msg, name)
			}
			switch {
			case c.stray:
				w.recorded(h.node, "kept", h.msg+".stray")
			default:
				w.recorded(h.node, "repaired", h.msg)
			}
		}
	}
	w.proven()

	var same []cell
	var lost []string
	for _, c := range w.cells(byScrub, onSame) {
		if c.content && !c.unread {
			same = append(same, c)
			lost = append(lost, c.msg())
			if c.name == "swapped" {
				lost = append(lost, c.msg()+"~")
			}
		}
	}
	w.deliver(same)
	w.damage(same)
	w.found(2)
	w.recorded(0, "unrepaired", lost...)
	w.recorded(1, "unrepaired", lost...)
	w.readAll(lost...)
	w.restore(lost)
	w.found(1)
	w.proven()
}

// byCompare: comparing what the disks hold finds it all and changes nothing.
func (w *damageWorld) byCompare() {
	cells := w.cells(byCompare, onPrimary, onReplica, onDifferent, onSame)
	w.deliver(cells)
	w.damage(cells)
	w.wantCode(0, "verify", w.Store) // the indexes are equal
	out := w.wantCode(9, "verify", w.Store, "--content")
	for _, c := range cells {
		for _, h := range c.hits() {
			if !strings.Contains(out, h.msg) {
				w.t.Errorf("%s is not named", h.msg)
			}
		}
	}
	w.found(1)
	w.proven()
}

// byStart: what was delivered since the last checkpoint is verified when a node
// starts after a crash, and written again from the log; so even two bad copies
// are repaired. Older mail is not read at a start: it is scrub's.
func (w *damageWorld) byStart() {
	cells := w.cells(byStart, onPrimary, onReplica, onDifferent, onSame)
	w.deliver(cells)
	for _, n := range w.Nodes {
		must(w.t, n.Kill())
		must(w.t, n.Clear())
	}
	w.damage(cells)
	for _, n := range w.Nodes {
		must(w.t, n.Start())
	}
	must(w.t, w.Nodes[0].WaitMounted())
	must(w.t, w.WaitInSync())
	for _, d := range w.disks {
		d.Unspoil()
	}
	w.readAll()
	if code, out := w.code("scrub", w.Store, "--both"); code > 1 {
		w.t.Errorf("scrub: exit code %d\n%s", code, out)
	}
	w.proven()
}
