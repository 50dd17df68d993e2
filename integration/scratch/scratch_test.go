package scratch_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/integration/scratch"
)

// ownerEnv makes the test binary play the owner that dies.
const ownerEnv = "SCRATCH_TEST_OWNER"

func TestMain(m *testing.M) {
	scratch.Guard()
	if path := os.Getenv(ownerEnv); path != "" {
		owner(path)
	}
	os.Exit(m.Run())
}

// owner fills a scratch directory with what is hard to remove, says so, and
// waits to be killed.
func owner(path string) {
	d, err := scratch.Use(path)
	must(err)
	mnt := filepath.Join(path, "mnt")
	must(os.Mkdir(mnt, 0o755))
	must(exec.Command("chattr", "+i", mnt).Run())
	must(unix.Mount("none", mnt, "tmpfs", 0, ""))
	must(os.Mkdir(filepath.Join(path, "image"), 0o755))
	img := filepath.Join(path, "image", "img")
	must(os.WriteFile(img, make([]byte, 1<<20), 0o644))
	must(exec.Command("losetup", "--find", img).Run())
	// A leader that dies and leaves a member of its group behind.
	cmd := exec.Command("sh", "-c", "sleep 1000 & exec sleep 1000")
	must(d.Start(cmd))
	fmt.Println(cmd.Process.Pid)
	time.Sleep(time.Hour) // until killed
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func TestNothingOutlivesAKilledOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount")
	}
	path, err := os.MkdirTemp("", "slotfs-scratch-")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ownerEnv+"="+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	fmt.Sscan(line, &pid)
	cmd.Process.Kill()
	cmd.Wait()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still there", path)
		}
	}
	// What nobody has waited for yet is a zombie: it has no command line.
	if line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); len(line) > 0 {
		t.Errorf("process %d lives on: %q", pid, line)
	}
}

func TestLeft(t *testing.T) {
	d, err := scratch.New("", "slotfs-scratch-")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := d.Start(cmd); err != nil {
		t.Fatal(err)
	}
	found, err := d.Left()
	if err != nil || len(found) != 1 {
		t.Errorf("Left = %q, %v; want the one process", found, err)
	}
	if err := d.Kill(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if found, err := d.Left(); err != nil || len(found) != 0 {
		t.Errorf("Left = %q, %v after Kill", found, err)
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(d.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", d.Path, err)
	}
}
