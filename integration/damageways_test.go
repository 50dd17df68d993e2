package integration_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// byRead: a reader gets the right bytes, from the replica if need be, and what
// was damaged is repaired on the way. Attributes are answered from the index,
// so a reader sees nothing of their damage, and a later scrub repairs it.
func (w *damageWorld) byRead() {
	cells := cells(byRead)
	w.deliver(cells)
	w.damage(cells)
	lost := lost(cells)
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
	cells, beyond := apart(cells(byScrub))
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

	w.deliver(beyond)
	w.damage(beyond)
	w.unrepaired(lost(beyond))
}

// unrepaired demands that a scrub reports lost messages and leaves them alone,
// until somebody has restored them.
func (w *damageWorld) unrepaired(lost []string) {
	w.t.Helper()
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
	cells, beyond := apart(cells(byCompare))
	w.compare(cells)
	w.found(1)
	w.proven()

	w.compare(beyond)
	w.unrepaired(lost(beyond))
}

func (w *damageWorld) compare(cells []cell) {
	w.t.Helper()
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
}

// byStart: what was delivered since the last checkpoint is verified when a node
// starts after a crash, and written again from the log; so even two bad copies
// are repaired. Older mail is not read at a start: it is scrub's.
func (w *damageWorld) byStart() {
	cells := cells(byStart)
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
