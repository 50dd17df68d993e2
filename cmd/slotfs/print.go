package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/gossip"
	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
)

// printStatus shows s for people: nodes, slots by store, then what is wrong.
func printStatus(w io.Writer, s *admin.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "NODE\tSTATE\tSINCE\tGOSSIP\tREPLICATION\tVERSION\n")
	for _, n := range s.Nodes {
		name := n.Name
		if n.Self {
			name += " *"
		}
		if n.Witness {
			name += " (witness)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", name, nodeState(&n), age(s.Time, n.Since), n.Gossip, dash(n.Repl), dash(n.Software))
	}
	fmt.Fprintln(t)
	fmt.Fprintf(t, "STORE\tNODE\tROLE\tEPOCH\tPOS\tLAG\tIN SYNC\tMOUNTED ON\tMESSAGES\tSIZE\n")
	var notes []string
	for _, r := range slotRows(s) {
		sl := &r.slot
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%d\t%s\n", sl.Store, r.node, role(&r), sl.Epoch, op.Pos(sl.Pos), lag(sl), yes(sl.InSync),
			mount(sl), sl.Messages, size(sl.Bytes))
		for _, n := range []struct{ what, text string }{{"", sl.Doing}, {"FAULT: ", sl.Fault}, {"last error: ", sl.Error}} {
			if n.text != "" {
				notes = append(notes, fmt.Sprintf("%s on %s: %s%s", sl.Store, r.node, n.what, n.text))
			}
		}
		if sl.Findings > 0 {
			notes = append(notes, fmt.Sprintf("%s on %s: %d findings since start", sl.Store, r.node, sl.Findings))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	printRegisterLine(w, s)
	for _, sl := range s.Slots {
		fmt.Fprintf(w, "\n%s: %s\n", sl.Store, scrubText(&sl.Scrub, s.Time))
		if a := sl.Adoption; a != nil && a.Unverified > 0 {
			fmt.Fprintf(w, "%s: %s\n", sl.Store, adoptionText(a))
		}
	}
	notes = append(notes, findings(s)...)
	for _, p := range s.Problems {
		notes = append(notes, p.Text)
	}
	notes = append(notes, alone(s)...)
	notes = append(notes, roles(s)...)
	notes = append(notes, brakes(s)...)
	notes = append(notes, s.Warnings...)
	if len(notes) > 0 {
		fmt.Fprintln(w)
	}
	for _, n := range notes {
		fmt.Fprintf(w, "! %s\n", n)
	}
	return nil
}

// brakes tells of bursts of removals whose messages are kept.
func brakes(s *admin.Status) []string {
	var out []string
	for _, sl := range s.Slots {
		for _, e := range sl.Brake.Engaged {
			whose := fmt.Sprintf("%d of %d messages", e.Lost, e.Of)
			if e.User != "" {
				whose += " of " + e.User
			}
			out = append(out, fmt.Sprintf("%s: a burst of removals at %s (%s and more): %d messages are kept; slotfs undelete %s --since %s",
				sl.Store, e.Engaged.Format(time.RFC3339), whose, sl.Brake.Kept, sl.Store, e.From.Format(time.RFC3339)))
		}
	}
	return out
}

// shownFindings is how many findings of a slot are printed; JSON has more.
const shownFindings = 5

// findings tells the latest ones of the slots of the node that was asked.
func findings(s *admin.Status) []string {
	var out []string
	for _, sl := range s.Slots {
		list := slices.DeleteFunc(slices.Clone(sl.Findings), func(e meta.Event) bool { return e.Kind == meta.EventRecovery })
		for _, e := range list[max(0, len(list)-shownFindings):] {
			text := fmt.Sprintf("%s at %s: %s", sl.Store, e.Time.Format("2006-01-02 15:04:05"), e.Text)
			if e.Path != "" {
				text += fmt.Sprintf(" (%q)", e.Path)
			}
			out = append(out, text)
		}
	}
	return out
}

// row is one slot of one node.
type row struct {
	node  string
	alive bool
	slot  gossip.Slot
}

func slotRows(s *admin.Status) []row {
	var rows []row
	for _, n := range s.Nodes {
		for _, sl := range n.Slots {
			rows = append(rows, row{n.Name, n.Alive, sl})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.slot.Store, b.slot.Store) })
	return rows
}

// alone says which stores have one copy only, or no primary.
func alone(s *admin.Status) []string {
	var out []string
	served := map[string]bool{}
	for _, r := range slotRows(s) {
		served[r.slot.Store] = served[r.slot.Store] || r.alive && r.slot.Role == string(repl.Primary)
	}
	for _, store := range slices.Sorted(maps.Keys(served)) {
		if !served[store] {
			out = append(out, store+": no primary: the store is mounted nowhere")
		}
	}
	for _, r := range slotRows(s) {
		if r.alive && r.slot.Role == string(repl.Primary) && len(r.slot.Members) == 1 {
			out = append(out, fmt.Sprintf("%s: one copy left: the primary on %s is alone in the in-sync set", r.slot.Store, r.node))
		}
	}
	return out
}

func nodeState(n *gossip.Member) string {
	switch {
	case n.Alive:
		return "up"
	case n.Left:
		return "stopped"
	default:
		return "no answer"
	}
}

func role(r *row) string {
	if r.slot.Drained {
		return shownRole(r) + ", drained"
	}
	return shownRole(r)
}

func shownRole(r *row) string {
	if !r.alive {
		return "(" + r.slot.Role + ")"
	}
	return r.slot.Role
}

func lag(s *gossip.Slot) string {
	if s.Role == string(repl.Primary) {
		return "-"
	}
	if s.LagEntries == 0 {
		return "0"
	}
	return fmt.Sprintf("%d entries, %s, %.1f s", s.LagEntries, size(uint64(max(s.LagBytes, 0))), s.LagSeconds)
}

func mount(s *gossip.Slot) string {
	if s.Mounted {
		return s.Mount
	}
	return "-"
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func age(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	d := now.Sub(then)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}

func size(n uint64) string {
	f := float64(n)
	for _, u := range []string{"B", "KiB", "MiB", "GiB"} {
		if f < 1024 {
			if u == "B" {
				return fmt.Sprintf("%d B", n)
			}
			return fmt.Sprintf("%.1f %s", f, u)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.1f TiB", f)
}

func printDigest(w io.Writer, d *admin.Digest) {
	where := d.Store
	if d.Path != "" {
		where += "/" + d.Path
	}
	fmt.Fprintf(w, "%s  %s on %s at seq %d: %d files, %s\n", d.Digest, where, d.Node, d.Seq, d.Files, size(d.Bytes))
	for _, p := range d.Peers {
		verdict := "at another seq, so not comparable"
		switch {
		case p.Seq == d.Seq && p.Digest == d.Digest.String():
			verdict = "equal"
		case p.Seq == d.Seq:
			verdict = "DIFFERENT"
		}
		fmt.Fprintf(w, "%s  %s on %s at seq %d: %s\n", p.Digest, d.Store, p.Node, p.Seq, verdict)
	}
}
