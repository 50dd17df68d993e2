package register_test

import (
	"context"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"

	"slotfs/repl/register"
)

// TestProcess: a member that dies is started again, and its node knows why it
// died; it ends in good order when the node does.
func TestProcess(t *testing.T) {
	// A shell plays the member: it reads its config, and dies the first time.
	died := t.TempDir() + "/died"
	script := fmt.Sprintf(`read config
case $config in *'"name":"n1"'*) ;; *) exit 9;; esac
echo '{"phase":"running"}'
[ -e %[1]s ] || { touch %[1]s; printf 'panic: ' >&2; echo 'a bad sector' >&2; exit 2; }
read order
[ "$order" = stop ] && touch %[1]s.well`, died)
	p := register.NewProcess(register.MemberConfig{Name: "n1"}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	p.Command = func() *exec.Cmd { return exec.Command("/bin/sh", "-c", script) }
	var told []register.ProcessState
	changed := make(chan register.ProcessState, 100)
	p.Changed = func() { changed <- p.State() }
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	for s := range changed {
		told = append(told, s)
		if s.Phase == register.Running && s.Restarts == 1 {
			break
		}
	}
	cancel()
	<-done
	var why string
	for _, s := range told {
		if s.Phase == register.Stopped {
			why = s.Text
		}
	}
	if !strings.Contains(why, "panic: a bad sector") {
		t.Errorf("the node was told %q; all: %+v", why, told)
	}
	if err := exec.Command("test", "-e", died+".well").Run(); err != nil {
		t.Error("the process was not told to stop")
	}
}
