package node

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"slotfs/cmd/slotfs/admin"
	"slotfs/meta"
	"slotfs/meta/op"
)

// historyBatch is how much log is read at once, in bytes.
const historyBatch = 4 << 20

// history tells the committed entries from since on, oldest first, that
// concern user ("" for all).
func (s *Slot) history(ctx context.Context, since uint64, user string, emit func(*admin.LogLine) error) error {
	log := s.Meta.Log
	h := &historian{slot: s.Meta, names: map[op.ID]meta.Name{}}
	// All that the log holds is read, so that paths are those of the time.
	next := max(log.First(), 1)
	last := log.Committed.Get()
	for next <= last {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := log.Read(next, historyBatch)
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if len(entries) == 0 {
			return nil
		}
		for _, e := range entries {
			if e.Seq > last {
				return nil
			}
			next = e.Seq + 1
			l := h.line(e)
			if l == nil || e.Seq < since || !concerns(l, user) {
				continue
			}
			if err := emit(l); err != nil {
				return err
			}
		}
	}
	return nil
}

// concerns reports whether the line is about something below a directory
// called user, or below the path user.
func concerns(l *admin.LogLine, user string) bool {
	if user == "" {
		return true
	}
	for _, p := range []string{l.Path, l.To} {
		if strings.Contains("/"+p+"/", "/"+strings.Trim(user, "/")+"/") {
			return true
		}
	}
	return false
}

// historian follows names through the log.
type historian struct {
	slot  *meta.Slot
	names map[op.ID]meta.Name // as of the entry being told
	upTo  op.ID               // ids above this one are not the slot's; 0: all are
	known map[op.ID]string    // paths of directories, if all else fails; may be nil
}

// maxDepth ends the climb of a path: no file system goes so deep.
const maxDepth = 4096

// path is where id was, or "#id" if that cannot be known any more.
func (h *historian) path(id op.ID) string {
	var parts []string
	for at := id; at != op.Root; {
		n, ok := h.names[at]
		if !ok {
			in, err := h.slot.Inode(at)
			if err != nil || len(in.Names) == 0 || h.upTo > 0 && at > h.upTo {
				if path, ok := h.known[at]; ok {
					parts = append(parts, printablePath(path))
				} else {
					parts = append(parts, fmt.Sprintf("#%d", at))
				}
				break
			}
			n = in.Names[0]
		}
		parts = append(parts, printable(n.Name))
		at = n.Dir
		if len(parts) > maxDepth {
			break
		}
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return strings.Join(parts, "/")
}

// at is the path of a name in a directory.
func (h *historian) at(dir op.ID, name string) string {
	if p := h.path(dir); p != "" {
		return p + "/" + printable(name)
	}
	return printable(name)
}

// printable shows bytes that are not printable UTF-8 as \xHH: names are bytes,
// and what a mail server took from a client must not reach a terminal as it is.
func printable(name string) string {
	if utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 {
		return name
	}
	var b strings.Builder
	for i := 0; i < len(name); {
		r, n := utf8.DecodeRuneInString(name[i:])
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
			for _, c := range []byte(name[i : i+n]) {
				fmt.Fprintf(&b, "\\x%02x", c)
			}
		} else {
			b.WriteString(name[i : i+n])
		}
		i += n
	}
	return b.String()
}

// printablePath is printable for each part of a path.
func printablePath(path string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = printable(parts[i])
	}
	return strings.Join(parts, "/")
}

// made notes that id got a name.
func (h *historian) made(id, dir op.ID, name string) string {
	h.names[id] = meta.Name{Dir: dir, Name: name}
	return h.at(dir, name)
}

// line tells e, or returns nil for what is of no interest to people.
func (h *historian) line(e *op.Entry) *admin.LogLine {
	l := &admin.LogLine{Seq: e.Seq, Epoch: e.Epoch, Time: time.Unix(0, e.Time)}
	switch o := e.Op.(type) {
	case *op.EpochBegin:
		l.Primary = o.Primary.String()
		l.Op, l.Text = "epoch", fmt.Sprintf("epoch %d, primary %.8s, %d in sync: %s", o.Epoch, o.Primary, len(o.Members), o.Reason)
	case *op.Mkdir:
		l.Op, l.ID, l.Path, l.UID = "mkdir", op.ID(e.Seq), h.made(op.ID(e.Seq), o.Parent, o.Name), &o.Attr.UID
	case *op.Create:
		l.Op, l.ID, l.Path, l.UID, l.To = "create", op.ID(e.Seq), h.made(op.ID(e.Seq), o.Parent, o.Name), &o.Attr.UID, o.Target
	case *op.Put:
		l.Op, l.ID, l.Path, l.UID, l.Size = "publish", op.ID(e.Seq), h.made(op.ID(e.Seq), o.Parent, o.Name), &o.Attr.UID, o.Sum.Size
		if o.Sealed {
			l.Op = "deliver"
		}
	case *op.Write:
		l.Op, l.ID, l.Path, l.Size = "write", o.ID, h.path(o.ID), int64(len(o.Data))
		l.Text = fmt.Sprintf("at offset %d", o.Off)
	case *op.Truncate:
		l.Op, l.ID, l.Path, l.Text = "truncate", o.ID, h.path(o.ID), fmt.Sprintf("to %d bytes", o.Size)
	case *op.Fallocate:
		l.Op, l.ID, l.Path, l.Text = "allocate", o.ID, h.path(o.ID), fmt.Sprintf("%d bytes at offset %d", o.Len, o.Off)
	case *op.SetAttr:
		l.Op, l.ID, l.Path, l.Text = "attr", o.ID, h.path(o.ID), attrText(o)
	case *op.SetXattr:
		l.Op, l.ID, l.Path, l.Text = "xattr", o.ID, h.path(o.ID), o.Name
	case *op.Link:
		from := h.path(o.ID)
		l.Op, l.ID, l.Path, l.To = "link", o.ID, from, h.at(o.Parent, o.Name)
	case *op.Rename:
		h.rename(l, o)
	case *op.Unlink:
		l.Op, l.ID, l.Path = "remove", o.ID, h.at(o.Parent, o.Name)
	default:
		return nil // pieces of a Put, checksums
	}
	return l
}

func (h *historian) rename(l *admin.LogLine, o *op.Rename) {
	l.ID, l.Path, l.To = o.ID, h.at(o.OldParent, o.OldName), h.at(o.NewParent, o.NewName)
	l.Op = "rename"
	oldBase, _, flagged := strings.Cut(o.OldName, ":2,")
	newBase, _, flags := strings.Cut(o.NewName, ":2,")
	switch {
	case o.Exchange:
		l.Op = "exchange"
		h.made(o.Victim, o.OldParent, o.OldName)
	case oldBase == newBase && (flagged || flags):
		l.Op = "flags" // Maildir keeps them in the name
	}
	h.made(o.ID, o.NewParent, o.NewName)
}

func attrText(o *op.SetAttr) string {
	var t []string
	if o.Valid&op.SetMode != 0 {
		t = append(t, fmt.Sprintf("mode %04o", o.Mode))
	}
	if o.Valid&op.SetUID != 0 {
		t = append(t, fmt.Sprintf("uid %d", o.UID))
	}
	if o.Valid&op.SetGID != 0 {
		t = append(t, fmt.Sprintf("gid %d", o.GID))
	}
	if o.Valid&op.SetMtime != 0 {
		t = append(t, "mtime "+time.Unix(0, o.Mtime).UTC().Format("2006-01-02 15:04:05"))
	}
	return strings.Join(t, ", ")
}
