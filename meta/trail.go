package meta

import (
	"slotfs/meta/op"
)

// trail is what a run of entries may have changed in the tree. It is
// computed from the operations alone: they name every directory and object
// that they change.
type trail struct {
	dirs    map[op.ID]bool   // directories whose names changed
	objects map[op.ID]bool   // objects whose attributes, names or content changed: what is not in the index any more was removed by the run
	content map[op.ID]bool   // control files whose bytes changed
	made    map[Name]op.ID   // the last object made by the run that was given this name
	stages  map[uint64]bool  // stages that got a chunk and wait for their Put at `to`
	unstage map[op.ID]uint64 // Puts after `to`, and the stages that they used up
	lost    map[op.ID]bool   // lost a name after `to`
	newer   map[op.ID]uint64 // content changed after `to`: it may be ahead of the index
	from    uint64           // the run begins after this entry
	epoch   *op.EpochBegin   // of the last entry added up to the state to be reached
	to      uint64           // the state to be reached; entries after it may be in the tree or not
}

func newTrail(from, to uint64) *trail {
	return &trail{
		dirs: map[op.ID]bool{}, objects: map[op.ID]bool{},
		content: map[op.ID]bool{}, made: map[Name]op.ID{}, stages: map[uint64]bool{}, unstage: map[op.ID]uint64{},
		lost: map[op.ID]bool{}, newer: map[op.ID]uint64{}, from: from, to: to,
	}
}

// add notes what e changes.
func (t *trail) add(e *op.Entry) {
	self := op.ID(e.Seq)
	switch o := e.Op.(type) {
	case *op.EpochBegin:
		if e.Seq == 1 {
			t.dirs[op.Root], t.objects[op.Root] = true, true
		}
		if e.Seq <= t.to {
			if abandons(t.epoch, o) {
				clear(t.stages)
			}
			t.epoch = o
		}
	case *op.Mkdir:
		t.name(self, o.Parent, o.Name)
		t.dirs[self] = true
	case *op.Create:
		t.name(self, o.Parent, o.Name)
		t.change(e, self)
	case *op.Put:
		t.name(self, o.Parent, o.Name)
		t.victim(e, o.Victim)
		if !o.Sealed {
			t.change(e, self)
		}
		switch {
		case o.Stage == 0:
		case e.Seq <= t.to:
			delete(t.stages, o.Stage)
		default:
			t.unstage[self] = o.Stage
		}
	case *op.Chunk:
		if e.Seq <= t.to {
			t.stages[stageOf(o, e.Seq)] = true
		}
	case *op.Write:
		t.change(e, o.ID)
	case *op.Truncate:
		t.change(e, o.ID)
	case *op.Fallocate:
		t.change(e, o.ID)
	case *op.SetAttr:
		t.objects[o.ID] = true
	case *op.SetXattr:
		t.objects[o.ID] = true
	case *op.Seal:
		t.objects[o.ID] = true
	case *op.Link:
		t.name(o.ID, o.Parent, o.Name)
		t.victim(e, o.Victim)
	case *op.Rename:
		t.name(o.ID, o.NewParent, o.NewName)
		t.dirs[o.OldParent] = true
		if o.Exchange {
			t.name(o.Victim, o.OldParent, o.OldName)
		} else {
			t.victim(e, o.Victim)
		}
	case *op.Unlink:
		t.dirs[o.Parent] = true
		t.victim(e, o.ID)
	}
}

// name notes that id was given a name.
func (t *trail) name(id, dir op.ID, name string) {
	t.dirs[dir], t.objects[id] = true, true
	if uint64(id) > t.from {
		t.made[Name{Dir: dir, Name: name}] = id
	}
}

// victim notes that id, 0 for none, lost a name.
func (t *trail) victim(e *op.Entry, id op.ID) {
	if id == 0 {
		return
	}
	t.objects[id] = true
	if e.Seq > t.to {
		t.lost[id] = true
	}
}

// change notes that the bytes of id changed.
func (t *trail) change(e *op.Entry, id op.ID) {
	t.objects[id], t.content[id] = true, true
	if e.Seq > t.to {
		t.newer[id] = e.Seq
	}
}

// stageOf names the stage that the chunk of entry seq belongs to.
func stageOf(o *op.Chunk, seq uint64) uint64 {
	if o.Stage == 0 {
		return seq
	}
	return o.Stage
}
