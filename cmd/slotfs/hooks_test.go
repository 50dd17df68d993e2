package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
)

// hook writes a script and names it in the config.
func (s *server) hook(t *testing.T, name, script string) {
	t.Helper()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	s.edit(t, "#hook_timeout", fmt.Sprintf("%s = [%q, \"arg\"]\n#hook_timeout", name, file))
}

func (s *server) outcome(t *testing.T, name string) admin.HookOutcome {
	t.Helper()
	for _, o := range s.status(t).Slots[0].Hooks {
		if o.Hook == name {
			return o
		}
	}
	return admin.HookOutcome{}
}

// TestHookTrouble: a hook that hangs is killed in time, with all that it has
// started; one that fails is reported; neither changes a role or holds up the
// other.
func TestHookTrouble(t *testing.T) {
	needFUSE(t)
	n := initNode(t, "n1")
	child := filepath.Join(n.dir, "child")
	n.hook(t, "on_promote", "echo it hangs >&2\nsleep 1000 &\necho $! >"+child+"\nwait\n")
	n.hook(t, "on_demote", "echo it fails\nexit 7\n")
	n.edit(t, `#hook_timeout = "30s"`, `hook_timeout = "1s"`)
	n.start(t)
	n.run(t, "promote", "mail1").want(t, exit.OK)
	eventually(t, "on_promote killed", func() bool { return n.outcome(t, "on_promote").Error != "" })
	if o := n.outcome(t, "on_promote"); !strings.Contains(o.Error, "hook_timeout") || o.Epoch != 1 {
		t.Errorf("the hook that hangs: %+v", o)
	}
	pid, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of what the hook started", func() bool {
		line, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/cmdline")
		return len(line) == 0
	})
	deliver(t, filepath.Join(n.dir, "mnt"), "alice", "one") // it is primary all the same
	n.run(t, "demote", "mail1").want(t, exit.OK)
	if o := n.outcome(t, "on_demote"); !strings.Contains(o.Error, "exit status 7") {
		t.Errorf("the hook that fails: %+v", o)
	}
	for _, line := range []string{`line="it hangs"`, `line="it fails"`, "hook failed"} {
		if !strings.Contains(n.log(), line) {
			t.Errorf("the log lacks %q", line)
		}
	}
	// Demoted while on_promote hangs: it is ended for on_demote.
	n.run(t, "promote", "mail1").want(t, exit.OK)
	start := time.Now()
	n.run(t, "demote", "mail1").want(t, exit.OK)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("demote took %v", took)
	}
}

// TestOnDegraded: it runs on the primary when the last other copy is lost, and
// when there are two again; with the epoch, and not while on_promote runs.
func TestOnDegraded(t *testing.T) {
	needFUSE(t)
	a := initNode(t, "n1")
	b := initNode(t, "n2", "--join", a.gossip, "--cluster", a.dir)
	ran := filepath.Join(a.dir, "ran")
	say := func(what string) string {
		return "echo \"" + what + " $1 $SLOTFS_HOOK $SLOTFS_STORE $SLOTFS_STATE $SLOTFS_COPIES $SLOTFS_IN_SYNC $SLOTFS_NODE $SLOTFS_ROLE\" >>" + ran + "\n"
	}
	a.hook(t, "on_promote", say("begin")+"sleep 1\n"+say("end"))
	a.hook(t, "on_degraded", say("now"))
	told := func(state string, epoch uint64) {
		t.Helper()
		eventually(t, state, func() bool {
			text, _ := os.ReadFile(ran)
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			o := a.outcome(t, "on_degraded")
			return strings.Contains(lines[len(lines)-1], state) && !o.Ended.IsZero() && o.Epoch >= epoch
		})
	}
	b.start(t)
	a.start(t)
	eventually(t, "both known", func() bool { return len(a.status(t).Nodes) == 2 })
	a.run(t, "promote", "mail1").want(t, exit.OK)
	inSync := func() bool { return len(a.status(t).Slots[0].Repl.Members) == 2 }
	eventually(t, "both in sync", inSync)
	eventually(t, "on_promote", func() bool { return !a.outcome(t, "on_promote").Ended.IsZero() })
	epoch := a.status(t).Slots[0].Repl.Epoch
	b.cmd.Process.Kill()
	<-b.done
	told("now arg on_degraded mail1 degraded 1 n1 n1 primary", epoch+1)
	b.start(t)
	eventually(t, "both in sync", inSync)
	told("now arg on_degraded mail1 whole 2 n1 n2 n1 primary", epoch+2)
	text, err := os.ReadFile(ran)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(text), "begin arg on_promote mail1    n1 primary\nend arg on_promote") {
		t.Errorf("hooks ran at the same time:\n%s", text)
	}
}
