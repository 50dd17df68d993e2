// Command demo shows the main job of slotfs on one machine, in plain words:
// one store on two nodes, mounted under a stock Dovecot, every message on
// both, and a witness that votes; the primary is killed while mail comes in,
// and the replica takes over by itself and goes on with all of it. Then the
// store is handed over in good order.
//
//	demo         the whole of it; exit code 1 if anything differs
//	demo -keep   stop before the kill, leave everything running, describe it in .demo/demo.json
//	demo -stop   end what -keep left
//
// It works in a new directory below the system's temporary directory, because
// the mail server's user must be able to reach it, which is seldom true of a
// home directory. Nothing of it is left: see the package scratch.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"slotfs/integration/cluster"
	"slotfs/integration/dovecot"
	"slotfs/integration/mailbox"
	"slotfs/integration/scratch"
)

func main() {
	scratch.Guard()
	keep := flag.Bool("keep", false, "stop before the kill and leave everything running")
	stop := flag.Bool("stop", false, "end what -keep left running")
	flag.Parse()
	var err error
	if *stop {
		err = end(true)
	} else {
		err = run(*keep)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "\nFAILED: %v\n", err)
		os.Exit(1)
	}
}

// demo is what the steps share.
type demo struct {
	scratch *scratch.Dir
	cluster *cluster.Cluster
	servers []*dovecot.Service // of the nodes, started and stopped by their hooks
	mail    mailbox.Server     // of the present primary
	acks    []mailbox.Ack
	before  mailbox.Snapshot
	start   time.Time
}

func run(keep bool) error {
	if os.Getuid() != 0 {
		return errors.New("mounting and running a server under another user needs root")
	}
	if err := end(false); err != nil {
		return err
	}
	d := &demo{start: time.Now()}
	var err error
	if d.scratch, err = scratch.New("", "slotfs-demo-"); err != nil {
		return err
	}
	steps := []func() error{d.nodes, d.dovecot, d.deliver, d.change, d.compare}
	if keep {
		steps = append(steps, d.leave)
	} else {
		steps = append(steps, d.kill, d.verify, d.rejoin, d.handOver, d.clean)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			d.explain()
			return errors.Join(err, d.scratch.Remove())
		}
	}
	return nil
}

// step says what is about to happen.
func (d *demo) step(format string, args ...any) {
	fmt.Printf("\n[%4.1f s] "+format+"\n", append([]any{time.Since(d.start).Seconds()}, args...)...)
}

// say says what was seen.
func say(format string, args ...any) { fmt.Printf("         "+format+"\n", args...) }

// explain shows the end of the logs after a failure.
func (d *demo) explain() {
	if d.cluster == nil {
		return
	}
	for _, n := range d.cluster.All() {
		text, err := n.Log()
		if err != nil {
			continue
		}
		lines := strings.SplitAfter(text, "\n")
		fmt.Fprintf(os.Stderr, "\nthe end of the log of %s:\n%s", n.Name, strings.Join(lines[max(0, len(lines)-15):], ""))
	}
	for _, s := range d.servers {
		if text, err := s.Log(); err == nil && text != "" {
			lines := strings.SplitAfter(text, "\n")
			fmt.Fprintf(os.Stderr, "\nthe end of a Dovecot's log:\n%s", strings.Join(lines[max(0, len(lines)-15):], ""))
		}
	}
}

func (d *demo) clean() error {
	d.step("Cleaning up.")
	if err := d.cluster.Stop(); err != nil { // on_demote ends the Dovecot
		return err
	}
	found, err := d.scratch.Left()
	if err != nil {
		return err
	}
	if len(found) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(found, ", "))
	}
	if err := d.scratch.Remove(); err != nil {
		return err
	}
	fmt.Printf("\nAll as it should be, in %.0f seconds. Nothing is left behind.\n", time.Since(d.start).Seconds())
	return nil
}

// version is what the binary calls itself.
func version(bin string) string {
	out, err := exec.Command(bin, "--version").Output()
	if err != nil {
		return bin
	}
	return strings.TrimSpace(string(out))
}
