package repl

import (
	"fmt"
	"time"
)

// RestoreRecord is the record that this slot's durable state stands for: the
// last epoch that it knows, as that began. It is for a register that has lost
// the record. The error is a refusal: a slot that is not fit would make others
// forget what they acknowledged. A caution says why another slot may stand for a
// later record; with one, the operator has to make sure that none does.
func (r *Member) RestoreRecord() (rec Record, caution string, err error) {
	r.refresh()
	st := r.State()
	r.mu.Lock()
	last := r.hist.last()
	resync := r.notes.Becoming != nil
	later := uint64(0)
	for _, p := range r.notes.Preparations {
		later = max(later, p.Epoch)
	}
	r.mu.Unlock()
	var why string
	switch {
	case last.Pos.Epoch == 0 || st.StoreID.IsZero():
		why = "it is empty, or has never known an epoch"
	case st.Faulted != "":
		why = "it is faulted: " + st.Faulted
	case st.Diverged != "":
		why = "it has diverged: " + st.Diverged
	case st.Resync != nil || resync:
		why = "it is in the middle of a resync"
	case r.Local:
		why = "its durability is \"local\", so it may lack acknowledged mail"
	case !last.has(r.ID):
		why = fmt.Sprintf("it is not in the in-sync set of epoch %d, the last that it knows, so it may lack acknowledged mail", last.Pos.Epoch)
	case st.Durable < last.Pos.Seq:
		why = "the beginning of its last epoch is not on its disk yet"
	}
	if why != "" {
		return Record{}, "", &refusal{fmt.Sprintf("the slot of %s on %s cannot stand for the record: %s", r.Store, r.Node, why)}
	}
	rec = Record{Version: RecordVersion, Store: st.StoreID, Epoch: last.Pos.Epoch, Primary: last.Primary, InSync: last.Members, Nonce: last.Nonce,
		Reason: "restored from the slot on " + r.Node, Time: time.Now().UTC()}
	if rec.Nonce == (Nonce{}) {
		rec.Nonce = newNonce() // an epoch that began before there was a register
	}
	if later > rec.Epoch {
		caution = fmt.Sprintf("this slot had noted that it may join epoch %d, which may have begun without its having heard of it", later)
	}
	return rec, caution, nil
}
