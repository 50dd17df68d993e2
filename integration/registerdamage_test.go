package integration_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"slotfs/integration/cluster"
)

// TestRegisterGarbage: a record that is garbage stops changes of role and
// nothing else, is told, and is written anew from a slot.
func TestRegisterGarbage(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	c := f.etcd(n1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := c.Get(ctx, "/slotfs/", clientv3.WithPrefix())
	must(t, err)
	if len(r.Kvs) != 1 {
		t.Fatalf("%d keys", len(r.Kvs))
	}
	key, good := string(r.Kvs[0].Key), string(r.Kvs[0].Value)
	f.fails(n1, 8, []string{"register", "restore", f.Store, "--yes"}, "nothing to restore")
	_, err = c.Put(ctx, key, `{"version":1,"primary":"nobody"}`)
	must(t, err)
	for _, n := range f.Nodes {
		f.tells(n, "register record "+key+" cannot be used")
	}
	f.deliver(n1, "ann")
	_, err = c.Put(ctx, key, strings.Replace(good, `{"version":1`, `{"version":9`, 1))
	must(t, err)
	f.tells(n2, "it was written by a newer one")
	f.run(n1, "register", "restore", f.Store, "--yes")
	must(t, n1.WaitRegister("with a record", func(r *cluster.Register) bool {
		return r.Records[f.Store].Error == "" && r.Records[f.Store].Primary == "n1"
	}))
	f.survives(n1, n2)
}

// TestRegisterDamaged: a member whose files are damaged or whose disk is full
// does not run, says so, and takes no mail with it.
func TestRegisterDamaged(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	f.expect("panic: ")
	must(t, n2.Kill())
	must(t, n2.Clear())
	logs, err := filepath.Glob(filepath.Join(n2.RegisterDir(), "member", "wal", "*.wal"))
	must(t, err)
	for _, l := range logs {
		must(t, os.WriteFile(l, []byte(strings.Repeat("garbage", 1000)), 0o600))
	}
	must(t, n2.Start())
	must(t, f.WaitInSync())
	must(t, f.Wait("n2 to tell", func() error {
		s, err := n2.Status()
		if err == nil && !strings.Contains(strings.Join(s.Warnings, "\n"), "this node's register member stopped") {
			err = fmt.Errorf("warnings are %q", s.Warnings)
		}
		return err
	}))
	// It changes roles all the same: the other two are a majority.
	f.run(n1, "switch", f.Store, "--to", "n2")
	must(t, n2.WaitMounted())
	f.deliver(n2, "ann")
	f.run(n1, "register", "remove", "n2")
	must(t, os.RemoveAll(n2.RegisterDir()))
	f.run(n1, "register", "add", "n2", n2.RegisterAddr())
	f.members(n1, "n1", "n2", "w")
	must(t, f.WaitInSync())
}

// TestRegisterDiskFull: a member whose disk is full does not run, says why, and
// goes on by itself when there is room. Mail does not notice.
func TestRegisterDiskFull(t *testing.T) {
	t.Parallel()
	f := witnessed(t)
	n1, n2 := f.Nodes[0], f.Nodes[1]
	f.members(n1, "n1", "n2", "w")
	f.expect("no space", "panic: ", "walpb", "zap")
	must(t, n2.Kill())
	must(t, n2.Clear())
	// Its files on a disk that has room for them, and for no more.
	dir, aside := n2.RegisterDir(), n2.RegisterDir()+".aside"
	must(t, os.Rename(dir, aside))
	spare, err := filepath.Glob(filepath.Join(aside, "member", "wal", "*.tmp"))
	must(t, err)
	for _, s := range spare {
		must(t, os.Remove(s))
	}
	must(t, os.Mkdir(dir, 0o700))
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=80m"))
	f.atEnd = append(f.atEnd, func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if out, err := exec.Command("cp", "-a", filepath.Join(aside, "member"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, n2.Start())
	must(t, f.WaitInSync())
	must(t, f.Wait("n2 to tell", func() error {
		s, err := n2.Status()
		if err == nil && !strings.Contains(strings.Join(s.Warnings, "\n"), "free in "+dir+"; it needs 72 MiB for its log") {
			err = fmt.Errorf("warnings are %q", s.Warnings)
		}
		return err
	}))
	f.deliver(n1, "ann")
	f.run(n1, "switch", f.Store, "--to", "n2")
	must(t, n2.WaitMounted())
	f.deliver(n2, "bob")
	// To the last byte, and changes on top.
	filler, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	for err == nil {
		_, err = filler.Write(make([]byte, 64<<10))
	}
	filler.Close()
	f.run(n2, "switch", f.Store, "--to", "n1")
	must(t, n1.WaitMounted())
	f.deliver(n1, "cid")
	must(t, os.Remove(filler.Name()))
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=300m"))
	f.members(n1, "n1", "n2", "w")
}
