package repl

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
)

var rewrite = flag.Bool("rewrite", false, "write what the scenarios did into their files")

// TestScenarios runs testdata/*.txt: a line "> command" is followed by the
// effects that it must have, one per line. Comments and empty lines stay. See
// play.do for the commands.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := newPlay(t).run(string(b))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(b) {
				t.Errorf("%s\n%s\n(go test -run Scenarios -rewrite writes this)", file, difference(string(b), got))
			}
		})
	}
}

// difference shows where two texts part.
func difference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range g {
		if i >= len(w) || w[i] != g[i] {
			end := min(i+12, len(g))
			return fmt.Sprintf("from line %d:\n%s\nwant:\n%s", i+1, strings.Join(g[i:end], "\n"), strings.Join(w[min(i, len(w)):min(end, len(w))], "\n"))
		}
	}
	return "it is shorter"
}

// play is one scenario under way.
type play struct {
	t     *testing.T
	m     *machine
	now   time.Time
	v     view
	hists map[string]history
	nodes []string
	acks  map[op.SlotID]acks

	rec     Record // what the register holds
	streams bool   // the primary is heard
}

func newPlay(t *testing.T) *play {
	return &play{t: t, now: time.Unix(1000, 0), hists: map[string]history{}, acks: map[op.SlotID]acks{}}
}

func (p *play) run(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "> "):
			fmt.Fprintln(&out, line)
			p.do(&out, strings.Fields(line[2:]))
		case line == "" || strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
		}
	}
	return out.String()
}

func slotOf(name string) (s op.SlotID) { copy(s[:], name); return s }

func nameOf(s op.SlotID) string { return strings.TrimRight(string(s[:]), "\x00") }

// words are a command's arguments: flags and key=value.
type words map[string]string

func (w words) num(key string, otherwise uint64) uint64 {
	if n, err := strconv.ParseUint(w[key], 10, 64); err == nil {
		return n
	}
	return otherwise
}

func (w words) has(key string) bool { _, ok := w[key]; return ok }

func (w words) err() error {
	if w.has("error") {
		return errors.New("it failed")
	}
	return nil
}

// do carries out one command.
//
//	self NAME [stop] [register [local]]   begin, as this slot
//	history NAME E@SEQ[/CHAIN]:PRIMARY:MEMBERS …
//	view hist=NAME last=SEQ [demoted=E] [sealed=E] [fresh] [yield] [resync] [drained] [restored] [faulted] [bereft] [emptied] [adopted] [asleep=DURATION] [heard=NAME] [before]
//	peers NAME…                   gossip; a leading - : suspected
//	answer|poke NAME hist=NAME last=SEQ [leading] [fresh] [intent=N] [drained] [resyncing] [unready=WHY]
//	noanswer NAME [refused]
//	join NAME [local]; leave NAME; acks NAME=SEQ…; prepared NAME E; begun
//	tick DURATION [TIMES]         time passes; those in acks are heard
//	promote [down] [force] [from=NODE]; demote; rejoin [giveup]; switch [NAME]; handover NAME [error]
//	tail NAME|ready|mounted|unmounted|drained [error]
//	ended NAME [joined] [stale] [unreachable [nobody]] [refused] [diverged] [again]
//
// With a register, see registerCommand, too.
func (p *play) do(out *strings.Builder, args []string) {
	w := words{}
	for _, a := range args[1:] {
		k, v, _ := strings.Cut(a, "=")
		w[k] = v
	}
	name := ""
	if len(args) > 1 {
		name = args[1]
	}
	slot := slotOf(name)
	switch args[0] {
	case "self":
		p.m = newMachine(slot, time.Second, w.has("stop"), nameOf, p.now)
		clear(p.acks)
		if w.has("register") {
			p.registered(w.has("local"))
		}
	case "history":
		p.history(name, args[2:])
	case "view":
		p.view(w)
	case "peers":
		p.nodes = args[1:]
		p.step(out, p.peers())
	case "answer", "poke":
		h := p.hists[w["hist"]]
		p.step(out, evAnswer{slot: slot, node: name, poke: args[0] == "poke", answer: answer{
			hasStore: !w.has("fresh"), leading: w.has("leading"), intent: intent(w.num("intent", 0)), hist: h, last: p.pos(h, w.num("last", 0)),
			Condition: Condition{Drained: w.has("drained"), Resyncing: w.has("resyncing"), Unready: w["unready"],
				Sealed: w.num("sealed", 0), Unfit: w["unfit"], Auto: w.num("auto", 0)}}})
	case "noanswer":
		p.step(out, evNoAnswer{slot, w.has("refused")})
	case "join":
		p.acks[slot] = acks{}
		p.step(out, evJoin{slot: slot, node: name, local: w.has("local")})
	case "leave":
		delete(p.acks, slot)
		p.step(out, evLeave{slot: slot, why: "connection reset"})
	case "acks":
		for k := range w {
			n := w.num(k, 0)
			p.acks[slotOf(k)] = acks{received: n, durable: n, applied: n}
		}
		p.step(out, p.heard())
	case "silent":
		delete(p.acks, slot)
	case "prepared":
		e, _ := strconv.ParseUint(args[2], 10, 64)
		p.step(out, evPrepared{slot: slot, epoch: e})
	case "begun":
		p.v.hist = append(slices.Clone(p.v.hist), epochStart{Pos: op.Pos{Epoch: p.m.epoch, Seq: p.v.last.Seq + 1, Chain: p.m.epoch}, Primary: p.m.self, Members: p.m.members})
		p.v.last = op.Pos{Epoch: p.m.epoch, Seq: p.v.last.Seq + 1, Chain: p.m.epoch}
		p.v.durable = p.v.last.Seq
		p.v.hasStore = true
		if p.m.changes {
			p.step(out, evBegun{p.m.epoch})
		}
	case "tick":
		d, err := time.ParseDuration(name)
		if err != nil {
			p.t.Fatal(err)
		}
		times := 1
		if len(args) > 2 {
			times, _ = strconv.Atoi(args[2])
		}
		for range times {
			p.now = p.now.Add(d)
			if p.streams {
				p.v.heardAt = p.now
			}
			p.step(out, p.heard())
		}
	default:
		p.command(out, args, w)
	}
}

// command is do for what an operator or an effect's end brings.
func (p *play) command(out *strings.Builder, args []string, w words) {
	verb, name := args[0], ""
	if len(args) > 1 {
		name = args[1]
	}
	slot := slotOf(name)
	switch verb {
	case "promote":
		p.step(out, evPromote{1, PromoteOptions{OldPrimaryIsDown: w.has("down"), Force: w.has("force"), handover: w["from"]}})
	case "demote":
		p.step(out, evDemote{id: 1, reason: "demoted by operator"})
	case "switch":
		p.step(out, evSwitch{1, slot})
	case "handover":
		p.step(out, evHandover{slot, w.err()})
	case "rejoin":
		p.step(out, evRejoin{1, w.has("giveup")})
	case "tail":
		p.step(out, evTail{slot, w.err()})
	case "ready":
		epoch := uint64(0)
		if p.m.op != nil {
			epoch = p.m.op.epoch
		}
		p.step(out, evReady{epoch, w.err()})
	case "mounted":
		p.step(out, evMounted{w.err()})
	case "unmounted":
		p.step(out, evUnmounted{w.err()})
	case "drained":
		p.step(out, evDrained{w.err()})
	case "ended":
		e := evFollowEnded{slot: slot, session: p.m.session, joined: w.has("joined"), stale: w.has("stale"),
			unreachable: w.has("unreachable"), refused: w.has("refused"), nobody: w.has("nobody"), again: w.has("again")}
		if w.has("diverged") {
			e.diverged = "two histories"
		}
		p.step(out, e)
	default:
		p.registerCommand(out, args, w)
	}
}

func (p *play) step(out *strings.Builder, e event) {
	role, doing := p.m.role, p.m.doing
	for _, f := range p.m.step(p.now, p.v, e) {
		fmt.Fprintln(out, f.text(nameOf))
	}
	if p.m.role == role && p.m.doing != doing && p.m.doing != "" {
		fmt.Fprintln(out, "doing:", p.m.doing)
	}
}

func (p *play) heard() evAcks {
	m := map[op.SlotID]acks{}
	for s, a := range p.acks {
		a.heard = p.now
		m[s] = a
	}
	return evAcks{m}
}

func (p *play) peers() evPeers {
	var e evPeers
	for _, n := range p.nodes {
		name := strings.TrimPrefix(n, "-")
		s := PeerSlot{Node: name, Addr: name, Slot: slotOf(name), Alive: name == n}
		s.Store[0] = 1
		e.slots = append(e.slots, s)
	}
	return e
}

func (p *play) history(name string, epochs []string) {
	for _, text := range epochs {
		f := strings.Split(text, ":")
		at, members := f[0], f[2]
		e, at, _ := strings.Cut(at, "@")
		seq, chain, ok := strings.Cut(at, "/")
		var s epochStart
		s.Pos.Epoch, _ = strconv.ParseUint(e, 10, 64)
		s.Pos.Seq, _ = strconv.ParseUint(seq, 10, 64)
		s.Pos.Chain = s.Pos.Epoch
		if ok {
			s.Pos.Chain, _ = strconv.ParseUint(chain, 10, 64)
		}
		s.Primary = slotOf(f[1])
		for m := range strings.SplitSeq(members, ",") {
			s.Members = append(s.Members, slotOf(m))
		}
		p.hists[name] = append(p.hists[name], s)
	}
}

func (p *play) pos(h history, last uint64) op.Pos {
	return op.Pos{Epoch: h.last().Pos.Epoch, Seq: last, Chain: h.last().Pos.Chain}
}

func (p *play) view(w words) {
	h := p.hists[w["hist"]]
	last, was := w.num("last", p.v.last.Seq), p.v
	p.v = view{last: p.pos(h, last), hist: h, durable: last, committed: last, applied: last, hasStore: !w.has("fresh"),
		demoted: w.num("demoted", 0), sealed: w.num("sealed", 0), yield: w.has("yield"), resync: w.has("resync"), drained: w.has("drained"), restored: w.has("restored")}
	if d, err := time.ParseDuration(w["asleep"]); err == nil {
		p.v.asleep = d
	}
	p.v.heardAt, p.v.reach, p.v.adopted = was.heardAt, was.reach, w.has("adopted")
	if p.v.hasStore || p.v.adopted {
		p.v.store = meta.StoreID{1}
	}
	if !w.has("emptied") {
		p.v.prepared = was.prepared
	}
	if w.has("faulted") {
		p.v.faulted = "log write failed"
	}
	if w.has("bereft") {
		p.v.bereft, p.v.resync = "the tree is lost", true
	}
	if w.has("heard") {
		p.v.heard, p.v.heardFrom = p.now, w["heard"]
		if w.has("before") {
			p.v.heard = p.now.Add(-time.Hour)
		}
	}
}
