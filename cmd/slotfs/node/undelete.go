package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/cmd/slotfs/admin"
	"slotfs/cmd/slotfs/exit"
	"slotfs/fs"
	"slotfs/meta"
	"slotfs/meta/op"
)

// undeleteAtOnce is how many messages are brought back side by side: they share
// the flushes of the log.
const undeleteAtOnce = 8

// undelete brings back messages that were removed at r.Since or later.
func (n *Node) undelete(ctx context.Context, r *admin.UndeleteRequest) (*admin.Undeleted, error) {
	s, err := n.slot(r.Store)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	f := s.fs
	s.mu.Unlock()
	if f == nil && !r.DryRun {
		return nil, exit.With(exit.Refused, fmt.Errorf("refused: messages of store %s are brought back by its primary, which is not on this node; --dry-run works here, too", r.Store))
	}
	all, err := s.Meta.Deletions(r.Since.UnixNano())
	if err != nil {
		return nil, err
	}
	out := &admin.Undeleted{Store: r.Store, Node: n.Config.Node, DryRun: r.DryRun}
	for _, d := range all {
		if ofUser(d, r.User) {
			out.Items = append(out.Items, &admin.UndeletedItem{ID: d.Inode.ID, Path: d.Path, User: d.User, Removed: time.Unix(0, d.Time).UTC(), Size: d.Inode.Size})
		}
	}
	if !r.DryRun {
		u := &undeleter{s: s, fs: f}
		err = u.all(ctx, out.Items)
	}
	for _, i := range out.Items {
		out.Count(i)
	}
	return out, err
}

// ofUser reports whether d was of user: a path, local@domain, or a name; "" is
// everybody.
func ofUser(d *meta.Deletion, user string) bool {
	user = strings.Trim(user, "/")
	if local, domain, ok := strings.Cut(user, "@"); ok && (d.User == domain+"/"+local || strings.HasPrefix(d.Path, domain+"/"+local+"/")) {
		return true
	}
	return user == "" || d.User == user || path.Base(d.User) == user || strings.HasPrefix(d.Path, user+"/")
}

// undeleter brings messages back, one directory after the other being made.
type undeleter struct {
	s  *Slot
	fs *fs.FS

	mu sync.Mutex // one missing mailbox is made at a time
}

func (u *undeleter) all(ctx context.Context, items []*admin.UndeletedItem) error {
	work := make(chan *admin.UndeletedItem)
	var wg sync.WaitGroup
	for range undeleteAtOnce {
		wg.Go(func() {
			for i := range work {
				if err := u.one(ctx, i); err != nil {
					i.Error = err.Error()
				}
			}
		})
	}
	var err error
	for _, i := range items {
		if err = ctx.Err(); err != nil {
			break
		}
		work <- i
	}
	close(work)
	wg.Wait()
	return err
}

// one brings one message back. It gets a new id; the Put that does so carries the
// old one, so that no slot offers it again.
func (u *undeleter) one(ctx context.Context, i *admin.UndeletedItem) error {
	d, err := u.s.Meta.Deletion(i.ID)
	if err != nil {
		return err // another undelete was faster
	}
	content := make([]byte, d.Inode.Size)
	if _, err := u.s.Meta.ReadAt(ctx, i.ID, content, 0); err != nil {
		return fmt.Errorf("its bytes: %w", err)
	}
	dir, at, err := u.mailbox(d)
	if err != nil {
		return fmt.Errorf("its mailbox: %w", err)
	}
	attr := op.Attr{Mode: d.Inode.Mode, UID: d.Inode.UID, GID: d.Inode.GID, Mtime: d.Inode.Mtime, Xattr: maps.Clone(d.Inode.Xattr)}
	if attr.Xattr == nil {
		attr.Xattr = map[string][]byte{}
	}
	attr.Xattr[meta.UndeletedXattr] = []byte(strconv.FormatUint(uint64(i.ID), 10))
	name := notDeleted(path.Base(d.Path))
	for try := 0; ; try++ {
		id, err := u.fs.Deliver(ctx, dir, name, attr, content)
		if errors.Is(err, syscall.EEXIST) && try < 10 {
			name = u.unique(name, i.ID)
			continue
		}
		if err != nil {
			return err
		}
		i.NewID, i.To = id, path.Join(at, name)
		return nil
	}
}

// notDeleted takes the flag T (\Deleted) out of a Maildir name: it is what had the
// message removed, and would again. https://cr.yp.to/proto/maildir.html
func notDeleted(name string) string {
	base, flags, ok := strings.Cut(name, ":2,")
	if !ok {
		return name
	}
	return base + ":2," + strings.ReplaceAll(flags, "T", "")
}

// unique makes a name that no other message has, with the flags of name.
func (u *undeleter) unique(name string, old op.ID) string {
	now := time.Now()
	_, flags, _ := strings.Cut(name, ":2,")
	fresh := fmt.Sprintf("%d.M%dU%d.%s", now.Unix(), now.Nanosecond()/1000, old, u.s.node.Config.Node)
	if strings.Contains(name, ":2,") {
		fresh += ":2," + flags
	}
	return fresh
}

// mailbox finds the directory that d was in, by id, else by path; if it is gone it
// is made again.
func (u *undeleter) mailbox(d *meta.Deletion) (id op.ID, at string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	id = d.Inode.Names[0].Dir
	if in, err := u.s.Meta.Inode(id); err == nil && in.IsDir() {
		at, err = u.s.Meta.Path(id)
		return id, at, err
	} else if err != nil && !errors.Is(err, meta.ErrNotExist) {
		return 0, "", err
	}
	at = path.Dir(d.Path)
	if id, err = u.s.Meta.Lookup(at); errors.Is(err, meta.ErrNotExist) {
		id, err = u.makeMailbox(at, d.Inode) // which need not be applied at once
	}
	return id, at, err
}

// makeMailbox makes a directory through the mount, as the mail server would, and
// what is above it; a Maildir with its three directories. No symlink is followed:
// users can make them.
func (u *undeleter) makeMailbox(at string, like *meta.Inode) (op.ID, error) {
	root, err := unix.Open(u.s.Conf.Mount, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", u.s.Conf.Mount, err)
	}
	defer unix.Close(root)
	parts := strings.Split(at, "/")
	for i := range parts {
		if err := u.makeDir(root, strings.Join(parts[:i], "/"), parts[i], like); err != nil {
			return 0, err
		}
	}
	last := parts[len(parts)-1]
	if last == "cur" || last == "new" {
		for _, name := range []string{"cur", "new", "tmp"} {
			if err := u.makeDir(root, path.Dir(at), name, like); err != nil {
				return 0, err
			}
		}
	}
	fd, err := openBeneath(root, at)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return op.ID(st.Ino), nil // the mount shows ids
}

// makeDir makes one directory, if it is not there, for the owner of like.
func (u *undeleter) makeDir(root int, above, name string, like *meta.Inode) error {
	dir, err := openBeneath(root, cmp.Or(above, "."))
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = unix.Mkdirat(dir, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		err = unix.Fchownat(dir, name, int(like.UID), int(like.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", path.Join(above, name), err)
	}
	return nil
}

// openBeneath opens a directory below root, past no symlink.
func openBeneath(root int, at string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(root, at, &how)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", at, err)
	}
	return fd, nil
}

// brakeOptions is what the brake needs of a slot's configuration.
func (s *Slot) brakeOptions() meta.BrakeOptions {
	o := meta.BrakeOptions{Share: s.Conf.BrakeShare, Window: s.Conf.BrakeWindow, Keep: s.Conf.BrakeKeep, Min: s.Conf.BrakeMin}
	if o.Share == 0 {
		o.Share = -1
	}
	return o
}
