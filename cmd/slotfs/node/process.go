package node

import (
	"log/slog"

	"golang.org/x/sys/unix"
)

// wantFiles is how many descriptors a node may need: open mail files on the
// mount, directory handles, segments, connections.
const wantFiles = 1 << 20

// prepareProcess sets what the defaults of the operating system get wrong for
// a file server: few descriptors, and a umask of its own.
func prepareProcess(log *slog.Logger) {
	unix.Umask(0)
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		log.Warn("read the limit of open files", "err", err)
		return
	}
	if lim.Cur >= wantFiles {
		return
	}
	// Root may raise the hard limit too; else take what there is.
	want := unix.Rlimit{Cur: wantFiles, Max: max(lim.Max, wantFiles)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return
	}
	want = unix.Rlimit{Cur: lim.Max, Max: lim.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want); err != nil || lim.Max < 1<<14 {
		log.Warn("the limit of open files is low; set LimitNOFILE=1048576 in the service", "limit", lim.Max, "err", err)
	}
}

// withUmask runs f with another umask. The umask belongs to the process: only
// for the start, before anything else makes files.
func withUmask(mask int, f func() error) error {
	old := unix.Umask(mask)
	defer unix.Umask(old)
	return f()
}

// monotonic is CLOCK_MONOTONIC in microseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}

func fileSystemSize(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Blocks) * st.Frsize, nil
}

// free is the space that is left for us on dir's file system, in bytes.
func free(dir string) (bytes, inodes uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, err
	}
	return st.Bavail * uint64(st.Frsize), st.Ffree, nil
}
