package meta

import (
	"fmt"
	"slices"
	"strings"
)

// Class says how a regular file is kept.
type Class uint8

// The classes.
const (
	Control  Class = iota // content may change; every change is an entry
	Message               // published whole by one entry, write-once
	Volatile              // in memory only: never logged, gone at the next start
)

func (c Class) String() string {
	switch c {
	case Message:
		return "message"
	case Volatile:
		return "volatile"
	default:
		return "control"
	}
}

// DirKind is what a directory is to a layout.
type DirKind uint8

// The kinds of directories.
const (
	Plain DirKind = iota
	MaildirTmp
	MaildirNew
	MaildirCur
)

// Layout is a table from names to classes. The class of a file follows its
// current names; directories never change their kind by being renamed alone.
type Layout struct {
	Name string
	dirs []dirRule
	file []fileRule // the first that fits counts; none: Control
}

// dirRule: a directory of this name is of this kind if all of beside are
// directories next to it.
type dirRule struct {
	name   string
	kind   DirKind
	beside []string
}

// fileRule: a file is of this class if it is in a directory of one of these
// kinds (nil: any) and its name fits one of patterns (nil: any), in which * is
// any string.
type fileRule struct {
	in       []DirKind
	patterns []string
	class    Class
}

// LayoutMaildir is the name of the layout of Dovecot's Maildir.
const LayoutMaildir = "maildir"

// maildir: https://doc.dovecot.org/2.4.0/core/config/mailbox_formats/maildir.html
//
// A message in tmp/ becomes one by its rename or link into new/ or cur/.
// dovecot.index.cache, search indexes and the like can be made again from the
// messages, and are not worth a log entry.
var maildir = Layout{
	Name: LayoutMaildir,
	dirs: []dirRule{
		{"tmp", MaildirTmp, []string{"cur", "new"}},
		{"new", MaildirNew, []string{"cur", "tmp"}},
		{"cur", MaildirCur, []string{"new", "tmp"}},
	},
	file: []fileRule{
		{in: []DirKind{MaildirTmp}, class: Volatile},
		{class: Volatile, patterns: []string{
			"*.lock",              // dotlocks, and dovecot-uidlist.lock on its way to dovecot-uidlist
			"*.temp.*", ".temp.*", // Dovecot's files on their way to their names
			"dovecot.index.cache",   // cached headers
			"dovecot*.tmp",          // dovecot-uidlist.tmp, dovecot.index.tmp: also on their way
			"dovecot.index.search*", // search indexes
			"dovecot-fts*",
			"fts-flatcurve*",
			"xapian-indexes*",
			"lucene-index*",
		}},
		{in: []DirKind{MaildirNew, MaildirCur}, class: Control, patterns: []string{"dovecot*", "maildir*", "subscriptions"}},
		{in: []DirKind{MaildirNew, MaildirCur}, class: Message},
	},
}

// LayoutByName finds a layout.
func LayoutByName(name string) (*Layout, error) {
	if name == LayoutMaildir {
		l := maildir
		return &l, nil
	}
	return nil, fmt.Errorf("unknown layout %q: there is %q", name, LayoutMaildir)
}

// DirKind says what a directory is, by its name and by what is beside it.
func (l *Layout) DirKind(name string, siblings func(name string) bool) DirKind {
	for _, r := range l.dirs {
		if r.name != name {
			continue
		}
		if !slices.ContainsFunc(r.beside, func(s string) bool { return !siblings(s) }) {
			return r.kind
		}
	}
	return Plain
}

// Class says how a regular file is kept that is called name in a directory of
// kind dir.
func (l *Layout) Class(dir DirKind, name string) Class {
	for _, r := range l.file {
		if r.in != nil && !slices.Contains(r.in, dir) {
			continue
		}
		if r.patterns == nil || slices.ContainsFunc(r.patterns, func(p string) bool { return match(p, name) }) {
			return r.class
		}
	}
	return Control
}

// match reports whether name fits pattern, in which * is any string. Other than
// in path.Match, no byte of a name is special.
func match(pattern, name string) bool {
	first, rest, more := strings.Cut(pattern, "*")
	if !more {
		return name == pattern
	}
	if !strings.HasPrefix(name, first) {
		return false
	}
	name = name[len(first):]
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(name, part)
		}
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name, rest = name[i+len(part):], after
	}
}
