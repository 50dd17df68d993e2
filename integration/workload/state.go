package workload

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// file is what the model knows of one name. Directories have no content.
type file struct {
	dir   bool
	sum   [sha256.Size]byte
	size  int64
	mode  fs.FileMode
	mtime int64 // ns since 1970; 0: not known, whatever it is will do
	links uint64
}

// state is a directory: path → file.
type state map[string]file

// volatile reports names that no crash need keep.
func volatile(path string) bool {
	return strings.HasPrefix(path, "tmp/") || strings.HasSuffix(path, ".lock")
}

// read reads the state of a directory.
func read(root string) (state, error) {
	s := state{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil || rel == "." || volatile(rel) {
			return err
		}
		if d.IsDir() {
			s[rel] = file{dir: true}
			return nil
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		info, err := os.Lstat(name)
		if err != nil {
			return err
		}
		s[rel] = file{sum: sha256.Sum256(data), size: info.Size(), mode: info.Mode(), mtime: info.ModTime().UnixNano(),
			links: uint64(info.Sys().(*syscall.Stat_t).Nlink)}
		return nil
	})
	return s, err
}

// diff lists what is not as the model says.
func (s state) diff(is state) []string {
	var found []string
	for name, want := range s {
		got, ok := is[name]
		switch {
		case !ok:
			found = append(found, name+" is missing")
		case want.dir != got.dir:
			found = append(found, name+" has another type")
		case want.dir:
		case want.sum != got.sum:
			found = append(found, fmt.Sprintf("%s: other bytes (%d, want %d)", name, got.size, want.size))
		case want.mode != got.mode:
			found = append(found, fmt.Sprintf("%s: mode %v, want %v", name, got.mode, want.mode))
		case want.mtime != 0 && want.mtime != got.mtime:
			found = append(found, fmt.Sprintf("%s: mtime %d, want %d", name, got.mtime, want.mtime))
		case want.links != got.links:
			found = append(found, fmt.Sprintf("%s: %d links, want %d", name, got.links, want.links))
		}
	}
	for name := range is {
		if _, ok := s[name]; !ok {
			found = append(found, name+" should not be there")
		}
	}
	slices.Sort(found)
	return found
}

// step is one change that happens entirely or not at all.
type step struct {
	name       string // for people
	model      func(state)
	start, end time.Time // of the call; end is zero if it was never answered
}

// Survivors says who lived on, which decides what may be lost.
type Survivors int

// See the package comment.
const (
	Durable Survivors = iota
	Received
	Answered
)

// LostError says that a directory holds the state after no allowed prefix.
type LostError struct {
	Root            string
	Least, Most     int      // steps of the shortest and longest prefix that were allowed
	AtLeast, AtMost []string // how it differs from them
	Steps           []string
}

func (e *LostError) Error() string {
	return fmt.Sprintf("%s holds no allowed state (prefixes of %d to %d steps since the last check)\ndiffers from the shortest: %s\ndiffers from the longest: %s\nsteps: %s",
		e.Root, e.Least, e.Most, strings.Join(head(e.AtLeast), "; "), strings.Join(head(e.AtMost), "; "), strings.Join(e.Steps, "; "))
}

func head(lines []string) []string {
	if len(lines) > 12 {
		return append(slices.Clone(lines[:12]), fmt.Sprintf("and %d more", len(lines)-12))
	}
	return lines
}

// Outcome is what a crash left of one writer's steps.
type Outcome struct {
	Steps, Lost int
	lostEnd     time.Time // when the first of the lost steps was answered; zero: none was
	keptStart   time.Time // when the last of the steps that certainly survived was begun
}

// Ordered checks that what survived is a prefix of the common history of
// several writers: no step may be lost that was answered before a surviving
// one was begun, whoever made them.
func Ordered(outcomes []Outcome) error {
	var lost, kept time.Time
	for _, o := range outcomes {
		if !o.lostEnd.IsZero() && (lost.IsZero() || o.lostEnd.Before(lost)) {
			lost = o.lostEnd
		}
		if o.keptStart.After(kept) {
			kept = o.keptStart
		}
	}
	if !lost.IsZero() && lost.Before(kept) {
		return fmt.Errorf("a step that was answered %v before a surviving one began is lost", kept.Sub(lost))
	}
	return nil
}

// Verify compares the directory with the model after a crash that the given
// members survived, and adopts what it finds if that is allowed.
func (w *Writer) Verify(root string, who Survivors) (Outcome, error) {
	is, err := read(filepath.Join(root, w.name))
	if errors.Is(err, fs.ErrNotExist) && !w.made {
		w.settle(state{})
		return Outcome{}, nil
	}
	if err != nil {
		return Outcome{}, err
	}
	least := w.mark[who]
	s, seen := maps.Clone(w.base), state(nil)
	fewest, most := -1, -1
	var first []string
	for k := 0; k <= len(w.steps); k++ {
		if k > 0 {
			w.steps[k-1].model(s)
		}
		if k < least {
			continue
		}
		diff := s.diff(is)
		if len(diff) == 0 {
			if most, seen = k, maps.Clone(s); fewest < 0 {
				fewest = k
			}
		}
		if k == least {
			first = diff
		}
	}
	if most < 0 {
		e := &LostError{Root: filepath.Join(root, w.name), Least: least, Most: len(w.steps), AtLeast: first, AtMost: s.diff(is)}
		for _, step := range w.steps[least:] {
			e.Steps = append(e.Steps, step.name)
		}
		return Outcome{}, e
	}
	o := Outcome{Steps: len(w.steps), Lost: len(w.steps) - most}
	if most < len(w.steps) {
		o.lostEnd = w.steps[most].end
	}
	if fewest > 0 {
		o.keptStart = w.steps[fewest-1].start
	}
	w.settle(seen)
	return o, nil
}

// settle starts a new model from a state.
func (w *Writer) settle(s state) {
	w.base, w.steps, w.mark = s, nil, [3]int{}
}
