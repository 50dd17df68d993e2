package node

import (
	"encoding/json"
	"net/http"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/meta/ledger"
)

// getLedger answers with the slot's ledger, an entry per line; with verify=1
// with what verifying it found.
func (n *Node) getLedger(w http.ResponseWriter, r *http.Request) {
	s, err := n.slot(r.FormValue("store"))
	if err != nil {
		problem(w, err)
		return
	}
	dir := s.Meta.Ledger.Dir()
	if r.FormValue("verify") != "" {
		known := []ledger.Head{s.Meta.Ledger.Head()} // what this process wrote last
		if h := r.FormValue("head"); h != "" {
			k, err := ledger.ParseHead(h)
			if err != nil {
				problem(w, exit.With(exit.Usage, err))
				return
			}
			known = append(known, k)
		}
		v, err := ledger.Verify(dir, known...)
		answer(w, &admin.LedgerVerified{Node: n.Config.Node, Store: s.Conf.Store, Dir: dir, Result: v}, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	enc := json.NewEncoder(w)
	sent := false
	err = ledger.Read(dir, func(e ledger.Entry) error {
		sent = true
		return enc.Encode(&e)
	})
	n.endStream(w, r, sent, err)
}

// endStream ends an answer of many lines: an error before the first one is
// told, one in the middle breaks the connection, so that the client notices.
func (n *Node) endStream(w http.ResponseWriter, r *http.Request, sent bool, err error) {
	switch {
	case err == nil || r.Context().Err() != nil:
	case sent:
		n.Log.Warn("answer cut short", "err", err)
		panic(http.ErrAbortHandler)
	default:
		problem(w, err)
	}
}
