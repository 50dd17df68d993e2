package meta

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"slotfs/meta/op"
)

// script makes histories by name: the ids are looked up.
type script struct{ *world }

func (s script) at(dir, name string) (op.ID, Name, op.ID) {
	s.t.Helper()
	d := op.Root
	if dir != "" {
		c, err := s.ix.child(op.Root, dir)
		if err != nil {
			s.t.Fatalf("%s: %v", dir, err)
		}
		d = c.ID
	}
	c, _ := s.ix.child(d, name)
	return d, Name{d, name}, c.ID
}

func (s script) mkdir(name string) {
	s.add(&op.Mkdir{Parent: op.Root, Name: name, Attr: op.Attr{Mode: typeDir | 0o755}})
}

func (s script) put(dir, name, text string) {
	d, _, victim := s.at(dir, name)
	data := []byte(text)
	s.add(&op.Put{Parent: d, Name: name, Attr: op.Attr{Mode: typeRegular | 0o600}, Sealed: true, Sum: op.SumOf(data), Victim: victim, Data: data})
}

func (s script) write(dir, name, text string) {
	d, _, id := s.at(dir, name)
	if id == 0 {
		id = s.add(&op.Create{Parent: d, Name: name, Attr: op.Attr{Mode: typeRegular | 0o600}})
	}
	s.add(&op.Write{ID: id, Data: []byte(text)})
}

func (s script) mv(dir, name, toDir, to string, exchange bool) {
	d, _, id := s.at(dir, name)
	td, _, victim := s.at(toDir, to)
	s.add(&op.Rename{ID: id, OldParent: d, OldName: name, NewParent: td, NewName: to, Victim: victim, Exchange: exchange})
}

func (s script) ln(dir, name, toDir, to string) {
	_, _, id := s.at(dir, name)
	td, _, victim := s.at(toDir, to)
	s.add(&op.Link{ID: id, Parent: td, Name: to, Victim: victim})
}

func (s script) rm(dir, name string) {
	d, _, id := s.at(dir, name)
	s.add(&op.Unlink{ID: id, Parent: d, Name: name})
}

// What broke designs that repeat operations by path.
var scenarios = map[string]func(s script){
	"rename chain": func(s script) {
		s.put("", "a", "one")
		s.mv("", "a", "", "b", false)
		s.put("", "a", "two")
		s.mv("", "b", "", "c", false)
		s.mv("", "a", "", "b", false)
		s.put("", "a", "three")
	},
	"swap by a third name": func(s script) {
		s.put("", "a", "one")
		s.put("", "b", "two")
		s.mv("", "a", "", "tmp", false)
		s.mv("", "b", "", "a", false)
		s.mv("", "tmp", "", "b", false)
	},
	"exchange": func(s script) {
		s.mkdir("d")
		s.put("d", "m", "in d")
		s.put("", "f", "file")
		s.mv("", "f", "", "d", true)
		s.write("f", "n", "in what was d")
		s.mv("", "d", "f", "m", true)
	},
	"file moved out of a directory that goes": func(s script) {
		s.mkdir("d")
		s.mkdir("e")
		s.put("d", "m", "message")
		s.mv("", "d", "", "x", false)
		s.mv("x", "m", "e", "m", false)
		s.rm("", "x")
		s.mkdir("d")
		s.put("d", "m", "another")
	},
	"directory into another, which is renamed": func(s script) {
		s.mkdir("a")
		s.mkdir("b")
		s.put("a", "1", "one")
		s.put("b", "2", "two")
		s.mv("", "a", "b", "a", false)
		s.mv("", "b", "", "a", false)
		s.mv("a", "a", "", "b", false)
		s.mv("", "a", "b", "in", false)
	},
	"same name, new object": func(s script) {
		for i := range 4 {
			s.write("", "f", fmt.Sprintf("version %d", i))
			s.rm("", "f")
			s.put("", "f", fmt.Sprintf("message %d", i))
			s.rm("", "f")
		}
		s.mkdir("f")
		s.put("f", "f", "in it")
	},
	"hard links": func(s script) {
		s.mkdir("d")
		s.put("", "a", "linked")
		s.ln("", "a", "d", "b")
		s.rm("", "a")
		s.ln("d", "b", "", "a")
		s.put("", "c", "other")
		s.mv("", "a", "", "c", false)
		s.put("d", "b", "replaced")
		s.ln("", "c", "d", "b")
	},
	"published control file": func(s script) {
		s.write("", "list", "uids")
		s.put("", "list.lock", "uids, and more")
		s.mv("", "list.lock", "", "list", false)
		s.write("", "log", "aaaa")
		s.write("", "log", "bb")
	},
	"maildir": func(s script) {
		s.mkdir("new")
		s.mkdir("cur")
		for i := range 4 {
			s.put("new", fmt.Sprint(i), fmt.Sprint("message ", i))
		}
		for i := range 4 {
			s.mv("new", fmt.Sprint(i), "cur", fmt.Sprint(i, ":2,"), false)
			s.write("", "dovecot-uidlist", fmt.Sprint("uids up to ", i))
		}
		s.mv("cur", "1:2,", "cur", "1:2,S", false)
		s.ln("cur", "2:2,", "cur", "copy")
		s.rm("cur", "2:2,")
	},
}

func TestRecoverScenarios(t *testing.T) {
	for name, f := range scenarios {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1)
			f(script{w})
			last := w.log.last()
			rnd := rand.New(rand.NewPCG(last, 3))
			for range max(4, *crashSeeds/5) {
				c := 1 + rnd.Uint64N(last)
				a := c + rnd.Uint64N(last-c+1)
				k := []uint64{c + rnd.Uint64N(a-c+1), a, last}[rnd.IntN(3)]
				stopAt(t, w, c, a, k)
				if t.Failed() {
					t.Fatalf("checkpoint %d, tree at %d, committed %d", c, a, k)
				}
			}
		})
	}
}

func stopAt(t *testing.T, w *world, c, a, k uint64) {
	x := &crash{w: w, c: c, a: a, k: k, data: filepath.Join(t.TempDir(), "data")}
	applied(t, x.data, w.log, c, a)
	x.tr = newTrail(c, k)
	for _, e := range w.log.entries[c:] {
		x.tr.add(e)
	}
	if k >= a {
		d := &damageWorld{t: t, rnd: rand.New(rand.NewPCG(c, a)), data: x.data, c: c, tr: x.tr, log: w.log}
		d.run()
	}
	if _, err := x.recover(t, nil); err != nil {
		t.Error(err)
		return
	}
	x.compare(t)
}
