package fs_test

import (
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// accepted are the parts of go-fuse's conformance suite that may be skipped or
// fail, with the reason. There is nothing here without one.
var accepted = map[string]string{
	"FcntlFlockLocksFile": "fails on ext4, too: it wants two F_SETLK of one process to conflict, which they never do (fcntl(2))",
	"XAttrLarge":          "skips: 8 KiB do not fit in ext4's block of extended attributes, and apply must not fail",
}

func TestPosix(t *testing.T) {
	w := newWorld(t)
	for name, f := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if reason, ok := accepted[name]; ok {
				t.Skip(reason)
			}
			dir := w.path(name)
			w.must(os.Mkdir(dir, 0o755))
			w.applied() // the applier's open files are not this test's
			f(t, dir)
		})
	}
}
