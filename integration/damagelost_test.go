package integration_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"slotfs/integration/cluster"
)

// batches delivers 10 messages before a checkpoint and 10 after it, one batch of the
// log each.
func (w *slotWorld) batches(name string) {
	w.t.Helper()
	for i := range 20 {
		if i == 10 {
			w.code([]int{0}, "verify", w.Store) // makes a checkpoint
		}
		one := letters(fmt.Sprint(name, "-", i, "-"), 1)
		must(w.t, deliver(w.Nodes[0].Mount, "ann", one))
		maps.Copy(w.want, one)
	}
	_, err := w.WaitEqual()
	must(w.t, err)
}

func (w *slotWorld) kill() {
	w.t.Helper()
	for _, n := range w.Nodes {
		must(w.t, n.Kill())
		must(w.t, n.Clear())
	}
}

// logsAtStart: nobody needs the header of a segment; entries before the
// checkpoint are history; those at the end of the log were never written, as far as
// the log can tell, and the other slot has them.
func (w *slotWorld) logsAtStart(side string) {
	w.t.Helper()
	for _, kind := range []string{logHead, logMiddle, logLast} {
		c := combo{kind, side, byStart}
		if excused(c) != "" {
			continue
		}
		name := kind + "-" + side
		k := w.mark()
		w.batches(name)
		w.kill()
		last := name + "-19-0"
		for node, which := range hits(side) {
			data := w.Nodes[node].Data
			p := logPlace{segments(w.t, data)[0], 20 + int64(which)}
			switch kind {
			case logMiddle:
				p = placeOf(w.t, data, fmt.Sprint(name, "-", 3+3*which, "-0"))
			case logLast:
				p = placeOf(w.t, data, last)
			}
			flip(w.t, p.path, p.at)
		}
		w.m.ran(c)
		must(w.t, w.Start())
		must(w.t, w.Nodes[0].WaitMounted())
		must(w.t, w.WaitInSync())
		if kind == logLast && side == onSame {
			w.servedOrKept(last)
		}
		w.well()
		w.code([]int{0, 1}, "scrub", w.Store, "--both")
		for node := range hits(side) {
			want := map[string]string{logHead: "repaired", logMiddle: "kept"}[kind]
			if want != "" && w.since(k, node, "log", want) == 0 {
				w.t.Errorf("%v: the ledger of %s has nothing of the log that is %s", c, w.Nodes[node].Name, want)
			}
		}
	}
}

// servedOrKept: a message of which both logs have lost the entry is served, or it
// is in quarantine.
func (w *slotWorld) servedOrKept(name string) {
	w.t.Helper()
	got, err := os.ReadFile(filepath.Join(w.Nodes[0].Mount, "ann", "cur", name+":2,"))
	if err == nil && bytes.Equal(got, w.want[name]) {
		return
	}
	if !errors.Is(err, fs.ErrNotExist) {
		w.t.Errorf("%s: %d bytes, %v", name, len(got), err)
	}
	for _, n := range w.Nodes {
		kept := false
		must(w.t, filepath.WalkDir(filepath.Join(n.Data, "quarantine"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				b, e := os.ReadFile(path)
				kept, err = kept || bytes.Equal(b, w.want[name]), e
			}
			return err
		}))
		if !kept {
			w.t.Errorf("%s: neither served nor in the quarantine of %s", name, n.Name)
		}
	}
	delete(w.want, name)
}

// trees: a slot whose tree is gone serves nothing, and takes nothing that is
// missing for removed, until another one has refilled it. Two of them serve
// nothing at all, until the disks are back.
func (w *slotWorld) trees() {
	for _, side := range []string{onPrimary, onReplica, onSame} {
		w.treeWhileRunning(side)
		w.treeAtStart(side)
	}
	w.proven()
}

// treeWhileRunning looks in all ways at a tree that was emptied: the first who
// looks makes no difference to the others.
func (w *slotWorld) treeWhileRunning(side string) {
	w.t.Helper()
	k := w.mark()
	back := w.takeTrees(side)
	for _, way := range []string{byRead, byScrub, byCompare} {
		c := combo{treeEmptied, side, way}
		if excused(c) != "" {
			continue
		}
		w.m.ran(c)
		switch way {
		case byRead:
			for name, data := range w.want {
				got, err := os.ReadFile(filepath.Join(w.Nodes[0].Mount, "ann", "cur", name+":2,"))
				if err == nil && !bytes.Equal(got, data) {
					w.t.Errorf("%s: WRONG BYTES were served: %d for %d", name, len(got), len(data))
				}
			}
		case byScrub:
			// Refused, or, of a replica that was refilled already, clean.
			if out := w.code([]int{0, 1, 3}, "scrub", w.Store, "--both"); strings.Contains(out, "NOT repaired") {
				w.t.Errorf("%v: %s", c, out)
			}
		case byCompare:
			w.code([]int{0, 1, 3, 5, 8, 9}, "verify", w.Store, "--content")
		}
	}
	w.comeBack(side, k, back)
}

func (w *slotWorld) treeAtStart(side string) {
	w.t.Helper()
	k := w.mark()
	w.kill() // both stay in the in-sync set
	back := w.takeTrees(side)
	w.m.ran(combo{treeEmptied, side, byStart})
	must(w.t, w.Start())
	w.comeBack(side, k, back)
}

// takeTrees moves what is in the trees of a side elsewhere, as if another disk
// were mounted there; the functions put it back.
func (w *slotWorld) takeTrees(side string) (back []func()) {
	w.t.Helper()
	// The primary's first: a replica that finds out before it would be refilled from there.
	for _, node := range slices.Sorted(maps.Keys(hits(side))) {
		tree, aside := w.Nodes[node].Tree(), w.Nodes[node].Data+".aside"
		move := func(from, to string) {
			entries, err := os.ReadDir(from)
			must(w.t, err)
			for _, e := range entries {
				must(w.t, os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())))
			}
		}
		must(w.t, os.Mkdir(aside, 0o700))
		at, err := os.Stat(tree)
		must(w.t, err)
		move(tree, aside)
		back = append(back, func() {
			if side == onSame {
				move(aside, tree)
				must(w.t, os.Chtimes(tree, time.Time{}, at.ModTime()))
			}
			must(w.t, os.RemoveAll(aside))
		})
	}
	return back
}

// comeBack waits until slots without their tree serve nothing, and has them
// refilled: a replica by itself, a primary after somebody else was promoted, both
// when the disks are mounted again.
func (w *slotWorld) comeBack(side string, k [2]int, back []func()) {
	w.t.Helper()
	n1, n2 := w.Nodes[0], w.Nodes[1]
	switch side {
	case onReplica:
		w.waitText(n2, "resynced to")
	case onPrimary:
		w.unfit(n1)
		if err := n1.Promote(); err == nil {
			w.t.Error("promoted without its tree")
		}
		must(w.t, w.Wait("n2 to be promoted", func() error { return n2.Promote() }))
		must(w.t, n2.WaitMounted())
		w.well()
		must(w.t, n2.Demote())
		must(w.t, w.Wait("n1 to be promoted", func() error { return n1.Promote() }))
		must(w.t, n1.WaitMounted())
	case onSame:
		w.unfit(n1)
		w.unfit(n2)
		must(w.t, w.Stop())
	}
	for node := range hits(side) {
		if n := w.since(k, node, "lost", "noted"); n == 0 {
			w.t.Errorf("%s: the ledger of %s does not say that the tree was lost", side, w.Nodes[node].Name)
		}
	}
	for _, f := range back {
		f()
	}
	if side == onSame {
		must(w.t, w.Start())
		must(w.t, n1.WaitMounted())
	}
	w.well()
}

// unfit waits until a node says that its slot waits to be refilled.
func (w *slotWorld) unfit(n *cluster.Node) {
	w.t.Helper()
	must(w.t, w.Wait("the mount of "+n.Name+" to end", func() error {
		s, err := n.Slot()
		if err == nil && s.Mounted {
			err = fmt.Errorf("%s is still mounted", n.Mount)
		}
		return err
	}))
	w.waitText(n, "waiting for another slot to refill this one")
}
