// Package treediff compares two directories that must be the same: names,
// types, bytes, modes, owners, modification times, link counts and extended
// attributes.
//
// Directories are compared as everything else is, their modification times
// included: slotfs takes those from the log entry too. Left out are
// attributes whose names begin with "trusted.slotfs" (a tree has them, a
// mount hides them), and what Ignore says.
package treediff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Entry is what is known of one name.
type Entry struct {
	Mode, UID, GID, Rdev uint32
	Nlink                uint64
	Size, Mtime          int64 // bytes; ns since 1970. Size 0 for directories
	Target               string
	Xattr                map[string]string
}

// Options of a comparison.
type Options struct {
	// Ignore reports a path, relative to the root, that is left out.
	Ignore func(path string, dir bool) bool
	// NoDirTimes leaves the times of directories out: what is not in both
	// (files in tmp/, locks) has changed them in one.
	NoDirTimes bool
}

// Tree reads the names of a directory and what is known of each.
func Tree(root string, o Options) (map[string]Entry, error) {
	tree := map[string]Entry{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		if rel != "." && o.Ignore != nil && o.Ignore(rel, d.IsDir()) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		e, err := read(name, o)
		tree[rel] = e
		return err
	})
	return tree, err
}

func read(name string, o Options) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return Entry{}, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink), Size: st.Size, Mtime: st.Mtim.Nano(), Rdev: uint32(st.Rdev)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(name)
		return e, err
	case unix.S_IFDIR:
		// The link count of a directory is 2 + its directories on ext4, 1 on
		// others; its size is its file system's affair.
		e.Size, e.Nlink = 0, 0
		if o.NoDirTimes {
			e.Mtime = 0
		}
	}
	e.Xattr, err = xattrs(name)
	return e, err
}

func xattrs(name string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, buf)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "listxattr", Path: name, Err: err}
	}
	var found map[string]string
	for _, key := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(key, "trusted.slotfs") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return nil, &fs.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		if found == nil {
			found = map[string]string{}
		}
		found[key] = string(value[:n])
	}
	return found, nil
}

// Result of a comparison.
type Result struct {
	Files, Dirs int
	Bytes       int64
	Diff        []string // sorted by path; empty if the trees are the same
}

// Compare compares directory b with directory a.
func Compare(a, b string, o Options) (Result, error) {
	var r Result
	left, err := Tree(a, o)
	if err != nil {
		return r, err
	}
	right, err := Tree(b, o)
	if err != nil {
		return r, err
	}
	for name, x := range left {
		y, ok := right[name]
		if !ok {
			r.Diff = append(r.Diff, name+": only in "+a)
			continue
		}
		if d := x.diff(y); d != "" {
			r.Diff = append(r.Diff, name+": "+d)
			continue
		}
		switch x.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			r.Dirs++
		case unix.S_IFREG:
			r.Files++
			r.Bytes += x.Size
			same, err := sameBytes(filepath.Join(a, name), filepath.Join(b, name))
			if err != nil {
				return r, err
			}
			if !same {
				r.Diff = append(r.Diff, name+": bytes differ")
			}
		}
	}
	for name := range right {
		if _, ok := left[name]; !ok {
			r.Diff = append(r.Diff, name+": only in "+b)
		}
	}
	slices.Sort(r.Diff)
	return r, nil
}

func (e Entry) diff(f Entry) string {
	var found []string
	for _, v := range []struct {
		what string
		a, b any
	}{
		{"mode", fmt.Sprintf("%o", e.Mode), fmt.Sprintf("%o", f.Mode)}, {"uid", e.UID, f.UID}, {"gid", e.GID, f.GID},
		{"links", e.Nlink, f.Nlink}, {"size", e.Size, f.Size}, {"mtime", e.Mtime, f.Mtime},
		{"device", e.Rdev, f.Rdev}, {"target", e.Target, f.Target}, {"xattrs", fmt.Sprint(e.Xattr), fmt.Sprint(f.Xattr)},
	} {
		if v.a != v.b {
			found = append(found, fmt.Sprintf("%s %v and %v", v.what, v.a, v.b))
		}
	}
	return strings.Join(found, ", ")
}

func sameBytes(a, b string) (bool, error) {
	f, err := os.Open(a)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return false, err
	}
	defer g.Close()
	p, q := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(f, p)
		m, err2 := io.ReadFull(g, q)
		if !bytes.Equal(p[:n], q[:m]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return true, nil
		}
		if err := errors.Join(err, err2); err != nil {
			return false, err
		}
	}
}
