package repl

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"slotfs/meta"
)

// registered is scenario's "self NAME register": failover after 3 s, a pause of
// 30 s, nonces counted.
func (p *play) registered(local bool) {
	n := byte(100)
	p.m.local = local
	p.m.reg = &registry{failover: 3 * time.Second, pause: 30 * time.Second, nonce: func() Nonce { n++; return Nonce{n} }}
	p.v.reach = Reach{Heard: p.now}
	p.streams = false
	p.v.prepared, p.v.heardAt = nil, time.Time{}
}

// registerCommand is command for what concerns the register.
//
//	record E PRIMARY MEMBERS [nonce=N] [store=N]   what the register holds; "record" alone: nothing
//	got [error|garbage]       the last Get is answered with it
//	swapped [lost|error]      the last Swap
//	sealed [error]
//	noted NAME… [error]       slots note the epoch to come; this one remembers
//	streams|silence           the stream from the primary brings signs of life, or does not
//	reach|away                the register answers, or does not
//	wentback NAME LAST HAD    a member came with less than it had
func (p *play) registerCommand(out *strings.Builder, args []string, w words) {
	g := p.m.reg
	switch args[0] {
	case "record":
		p.record(args[1:], w)
	case "got":
		e := evRecord{id: g.gets, rec: p.rec, found: p.rec.Epoch > 0}
		if w.has("error") {
			e.err = errors.New("no majority answers")
		} else if w.has("garbage") {
			e.err = fmt.Errorf("%w: not JSON", ErrRecord)
		}
		p.step(out, e)
	case "hint":
		p.step(out, evHint{})
	case "swapped":
		p.swapped(out, w)
	case "sealed":
		if p.m.op == nil {
			fmt.Fprintln(out, "nothing is being sealed")
			return
		}
		p.v.sealed = max(p.v.sealed, p.m.op.expect)
		p.step(out, evSealed{p.m.op.expect, w.err()})
	case "noted":
		p.noted(out, args[1:], w)
	case "streams", "silence":
		p.streams = args[0] == "streams"
		if p.streams {
			p.v.heardAt = p.now
		}
	case "reach":
		p.v.reach = Reach{Heard: p.now}
	case "away":
		p.v.reach = Reach{Heard: p.now, Since: p.now, Error: "no majority answers"}
	case "wentback":
		last, _ := strconv.ParseUint(args[2], 10, 64)
		had, _ := strconv.ParseUint(args[3], 10, 64)
		p.step(out, evWentBack{slotOf(args[1]), args[1], last, had})
	default:
		p.t.Fatalf("unknown command %q", args[0])
	}
}

func (p *play) record(args []string, w words) {
	p.rec = Record{}
	if len(args) == 0 {
		return
	}
	p.rec = Record{Version: RecordVersion, Store: meta.StoreID{byte(w.num("store", 1))}, Primary: slotOf(args[1]), Nonce: Nonce{byte(w.num("nonce", 1))}}
	p.rec.Epoch, _ = strconv.ParseUint(args[0], 10, 64)
	for s := range strings.SplitSeq(args[2], ",") {
		p.rec.InSync = append(p.rec.InSync, slotOf(s))
	}
}

func (p *play) swapped(out *strings.Builder, w words) {
	s := p.m.pending()
	if s == nil {
		fmt.Fprintln(out, "no Swap is under way")
		return
	}
	e := evSwapped{id: s.id}
	switch {
	case w.has("error"):
		e.err = errors.New("no majority answers")
	case w.has("lost"):
		e.now = p.rec
	default:
		p.rec = s.next
		e.now, e.won = s.next, true
	}
	p.step(out, e)
}

func (p *play) noted(out *strings.Builder, names []string, w words) {
	r := (*preparing)(nil)
	if p.m.op != nil {
		r = p.m.op.prepare
	}
	if c := p.m.change; c != nil {
		r = c.prepare
	}
	if r == nil {
		fmt.Fprintln(out, "no epoch is being prepared")
		return
	}
	for _, n := range names {
		if n == "error" {
			continue
		}
		if slotOf(n) == p.m.self && !w.has("error") {
			p.v.prepared = append(p.v.prepared[:len(p.v.prepared):len(p.v.prepared)], preparation{r.epoch, r.nonce})
		}
		p.step(out, evPrepared{slot: slotOf(n), epoch: r.epoch, nonce: r.nonce, err: w.err()})
	}
}
