package node

import (
	"log/slog"
	"slices"
	"sync"
	"time"

	"slotfs/cmd/slotfs/pki"
	"slotfs/gossip"
)

// strangers remembers peers whose certificate was refused. The side that
// connects checks first and hangs up, so each side learns the reason only from
// its own connections; replication logs just that a peer cannot be reached.
type strangers struct {
	log *slog.Logger

	mu   sync.Mutex
	seen map[string]*gossip.Report // by text
}

const (
	strangerQuiet = time.Minute // between log lines about the same one
	maxStrangers  = 256
)

func (s *strangers) refused(e *pki.PeerError) {
	now := time.Now()
	s.mu.Lock()
	r := s.seen[e.Error()]
	loud := r == nil || now.Sub(r.Last) > strangerQuiet
	if r == nil && len(s.seen) < maxStrangers {
		r = &gossip.Report{Text: e.Error(), First: now}
		s.seen[r.Text] = r
	}
	if r != nil {
		r.Last = now
		r.Count++
	}
	s.mu.Unlock()
	if loud {
		s.log.Error("replication refused", "err", e)
	}
}

// list tells those of the last ten minutes, oldest first.
func (s *strangers) list() []gossip.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []gossip.Report
	for text, r := range s.seen {
		if time.Since(r.Last) > errorKept {
			delete(s.seen, text)
			continue
		}
		out = append(out, *r)
	}
	slices.SortFunc(out, func(a, b gossip.Report) int { return a.First.Compare(b.First) })
	return out
}
