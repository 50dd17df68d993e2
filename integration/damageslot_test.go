package integration_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"slotfs/integration/cluster"
)

// slotWorld is a pair whose indexes, logs and trees are damaged, one after the
// other. The first node is the primary at the beginning of every cell.
type slotWorld struct {
	*fixture
	m    *matrix
	want map[string][]byte // messages of ann
}

func newSlotWorld(t *testing.T, m *matrix) *slotWorld {
	w := &slotWorld{fixture: newCluster(t, 2, cluster.Options{}), m: m, want: map[string][]byte{}}
	w.expect(provoked...)
	w.expect("index", "log damaged", "log was damaged", "put a damaged segment", "the log is kept as", "is lost", "refilled", "missing", "mended", "segment header",
		"not in the tree", "damaged content", "kept as", "cut")
	must(t, w.StartPair())
	w.deliver("a", 40)
	w.restart(nil)
	// In a segment of the log between others each: where one ends differs from node
	// to node by an entry or two.
	for _, name := range []string{"mid", "gap", "z"} {
		w.deliver(name, 20)
		w.restart(nil)
	}
	return w
}

func (w *slotWorld) deliver(name string, n int) {
	w.t.Helper()
	all := letters(name, n)
	must(w.t, deliver(w.Nodes[0].Mount, "ann", all))
	maps.Copy(w.want, all)
	_, err := w.WaitEqual()
	must(w.t, err)
}

// restart stops both nodes and starts them again; their indexes are in badger's
// tables then, and nothing of their logs is in memory.
func (w *slotWorld) restart(between func()) {
	w.t.Helper()
	must(w.t, w.Stop())
	if between != nil {
		between()
	}
	must(w.t, w.Start())
	must(w.t, w.Nodes[0].WaitMounted())
	must(w.t, w.WaitInSync())
}

// hits is what a side means here: by node, which of two things is damaged.
func hits(side string) map[int]int {
	return map[string]map[int]int{onPrimary: {0: 0}, onReplica: {1: 0}, onDifferent: {0: 0, 1: 1}, onSame: {0: 0, 1: 0}}[side]
}

// code runs slotfs on the first node, and demands one of some exit codes.
func (w *slotWorld) code(want []int, args ...string) string {
	w.t.Helper()
	out, err := w.Nodes[0].Run(args...)
	code := 0
	if err != nil {
		code = exitCode(err)
	}
	if !slices.Contains(want, code) {
		w.t.Errorf("slotfs %s: exit code %d, want one of %d: %.3000s, %v", strings.Join(args, " "), code, want, out, err)
	}
	return out
}

// mark is how long each node's ledger is; since returns what came after.
func (w *slotWorld) mark() (k [2]int) {
	w.t.Helper()
	for i, n := range w.Nodes {
		k[i] = len(w.ledger(n))
	}
	return k
}

func (w *slotWorld) since(k [2]int, node int, kind, outcome string) (n int) {
	w.t.Helper()
	for _, e := range w.ledger(w.Nodes[node])[k[node]:] {
		if e.Kind == kind && e.Outcome == outcome {
			n++
		}
	}
	return n
}

// well demands that everything is served, and the nodes hold the same.
func (w *slotWorld) well() {
	w.t.Helper()
	must(w.t, w.WaitInSync())
	readAll(w.t, w.primaryNode().Mount, "ann", w.want)
	_, err := w.WaitEqual()
	must(w.t, err)
}

// proven is well, to the last byte.
func (w *slotWorld) proven() {
	w.t.Helper()
	w.well()
	w.code([]int{0}, "scrub", w.Store, "--both")
	w.code([]int{0}, "verify", w.Store, "--content")
	w.equal()
}

func (w *slotWorld) primaryNode() *cluster.Node {
	for _, n := range w.Nodes {
		if s, err := n.Slot(); err == nil && s.Mounted {
			return n
		}
	}
	w.t.Fatal("there is no primary")
	return nil
}

// ledger is what the ledger of a node says, that can be read whether it runs or
// not.
func (f *fixture) ledger(n *cluster.Node) (list []ledgerEntry) {
	f.t.Helper()
	args := []string{"ledger", f.Store, "--json"}
	if !n.Running() {
		args = append(args, "--dir", n.Data)
	}
	out, err := n.Run(args...)
	must(f.t, err)
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var e ledgerEntry
		must(f.t, dec.Decode(&e))
		list = append(list, e)
	}
	return list
}

// index: an index that is damaged or removed is made anew by the slot itself,
// whoever comes upon it first, while mail is served as it was delivered.
func (w *slotWorld) index() {
	for _, c := range combos() {
		if (c.kind == indexFlipped || c.kind == indexRemoved) && excused(c) == "" {
			w.indexCell(c)
		}
	}
	w.proven()
}

func (w *slotWorld) indexCell(c combo) {
	w.t.Helper()
	k := w.mark()
	damage := func() {
		for node, which := range hits(c.side) {
			if c.kind == indexRemoved {
				removeIndex(w.t, w.Nodes[node].Data)
			} else {
				flipRecord(w.t, w.Nodes[node].Data, fmt.Sprintf("a%d:2,", 7+which))
			}
		}
		w.m.ran(c)
	}
	switch {
	case c.way == byStart:
		w.restart(damage)
	case c.kind == indexFlipped:
		w.restart(nil)
		damage()
	default:
		damage()
	}
	switch c.way {
	case byRead:
		readAll(w.t, w.Nodes[0].Mount, "ann", w.want)
	case byScrub:
		w.code([]int{0, 1}, "scrub", w.Store, "--both") // 0: a node has come upon it by itself already
	case byCompare:
		if out := w.code([]int{0}, "verify", w.Store); !strings.Contains(out, "EQUAL") {
			w.t.Errorf("%v: %s", c, out)
		}
	}
	for node, n := range w.Nodes {
		want := 0
		if _, hit := hits(c.side)[node]; hit {
			want = 1
			if c.way == byRead { // the replica's is not read: it looks by itself
				must(w.t, w.Wait(fmt.Sprintf("%v: %s to make its index anew", c, n.Name), func() error {
					if w.since(k, node, "index", "repaired") == 0 {
						return errors.New("it has not")
					}
					return nil
				}))
			}
		}
		if have := w.since(k, node, "index", "repaired"); have != want {
			w.t.Errorf("%v: %s has made its index anew %d times, want %d", c, n.Name, have, want)
		}
	}
	w.well()
}

// indexDirs are where a slot may have its index.
func indexDirs(t *testing.T, data string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(data, "index*"))
	must(t, err)
	return dirs
}

func removeIndex(t *testing.T, data string) {
	t.Helper()
	for _, dir := range indexDirs(t, data) {
		must(t, os.RemoveAll(dir))
	}
}

// flipRecord flips a byte of everything that badger's tables have of a name.
func flipRecord(t *testing.T, data, name string) {
	t.Helper()
	found := 0
	for _, dir := range indexDirs(t, data) {
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		must(t, err)
		for _, table := range tables {
			b, err := os.ReadFile(table)
			must(t, err)
			for at := bytes.Index(b, []byte(name)); at >= 0; {
				flip(t, table, int64(at))
				found++
				next := bytes.Index(b[at+1:], []byte(name))
				if next < 0 {
					break
				}
				at += 1 + next
			}
		}
	}
	if found == 0 {
		t.Fatalf("no table in %s has %s", data, name)
	}
}

// logPlace is a byte of the log.
type logPlace struct {
	path string
	at   int64
}

// segments are the files of a log, the oldest first.
func segments(t *testing.T, data string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(data, "oplog", "*.log"))
	must(t, err)
	slices.Sort(files)
	return files
}

// placeOf is in the middle of the entry that delivered a message.
func placeOf(t *testing.T, data, name string) logPlace {
	t.Helper()
	for _, path := range slices.Backward(segments(t, data)) { // an earlier copy does not count any more
		b, err := os.ReadFile(path)
		must(t, err)
		if at := bytes.LastIndex(b, []byte("<"+name+"@")); at >= 0 {
			return logPlace{path, int64(at)}
		}
	}
	t.Fatalf("the log of %s has nothing of %s", data, name)
	return logPlace{}
}

// logs: what cannot be read of a log is fetched from the other slot; what no slot
// can read is reported, and left as it is.
func (w *slotWorld) logs() {
	// In two segments: one that was mended is a few large batches, which are lost as
	// a whole.
	mid := [2]string{"mid5", "z5"}
	for _, side := range []string{onPrimary, onReplica, onDifferent, onSame} {
		for _, way := range []string{byScrub, byCompare} {
			w.logCell(side, way, mid)
		}
	}
	for _, side := range []string{onPrimary, onReplica, onDifferent, onSame} {
		w.logsAtStart(side)
	}
	w.proven()
}

// logCell damages a log at its head, in the middle and at its end at a time:
// these are different segments.
func (w *slotWorld) logCell(side, way string, mid [2]string) {
	w.t.Helper()
	last := fmt.Sprint("l", side, way)
	w.deliver(last, 1)
	k := w.mark()
	var stays []logPlace
	for node, which := range hits(side) {
		data := w.Nodes[node].Data
		places := map[string]logPlace{
			logHead:   {segments(w.t, data)[0], 20 + int64(which)},
			logMiddle: placeOf(w.t, data, mid[which]),
			logLast:   placeOf(w.t, data, last+"0"),
		}
		if places[logHead].path == places[logMiddle].path || places[logMiddle].path == places[logLast].path {
			w.t.Fatalf("%+v: want three segments", places)
		}
		if side == onSame {
			stays = append(stays, places[logMiddle])
		}
		for kind, p := range places {
			if c := (combo{kind, side, way}); excused(c) == "" {
				flip(w.t, p.path, p.at)
				w.m.ran(c)
			}
		}
	}
	if way == byCompare {
		out := w.code([]int{9}, "verify", w.Store, "--content")
		for node := range hits(side) {
			if n := strings.Count(out, w.Nodes[node].Name+": ./oplog/"); n < 2 {
				w.t.Errorf("%s on %s: %d places of the log are named:\n%s", side, w.Nodes[node].Name, n, out)
			}
		}
	}
	code, unrepaired := 1, 0
	if side == onSame {
		code, unrepaired = 2, 1
	}
	w.code([]int{code}, "scrub", w.Store, "--both")
	for node := range w.Nodes {
		repaired, lost := w.since(k, node, "log", "repaired"), w.since(k, node, "log", "unrepaired")
		if _, hit := hits(side)[node]; !hit && repaired+lost > 0 || hit && (repaired < 2 || lost != unrepaired) {
			w.t.Errorf("%s, found by %s: %s mended %d places of its log, and could not mend %d", side, way, w.Nodes[node].Name, repaired, lost)
		}
	}
	for _, p := range stays {
		flip(w.t, p.path, p.at) // what the operator has restored
	}
	// 1: one was mended from the other as soon as that was restored.
	w.code([]int{0, 1}, "scrub", w.Store, "--both")
	w.well()
}
