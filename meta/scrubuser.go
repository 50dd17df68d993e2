package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"slotfs/meta/op"
)

// runUser goes through everything below the directories that are called
// opt.User, or are at that path.
func (p *pass) runUser(ctx context.Context) error {
	dirs, err := p.s.dirsCalled(p.opt.User)
	if err != nil {
		return err
	}
	p.p.TotalObjects, p.p.TotalBytes = 0, 0
	for _, dir := range dirs {
		_, files, bytes, err := p.s.DirDigest(dir)
		if err != nil {
			return err
		}
		p.p.TotalObjects += files
		p.p.TotalBytes += int64(bytes)
	}
	for todo := slices.Clone(dirs); len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		ids := []op.ID{dir}
		children, err := p.s.ix.children(dir)
		if err != nil {
			return err
		}
		for _, c := range children {
			if c.Type == typeDir {
				todo = append(todo, c.ID)
			} else {
				ids = append(ids, c.ID)
			}
		}
		slices.Sort(ids)
		if err := p.batch(ctx, slices.Compact(ids)); err != nil {
			return err
		}
	}
	return nil
}

// ErrNoUser: there is no directory of that name.
var ErrNoUser = errors.New("no directory of that name")

// dirsCalled finds the directories at the path user, or of that name, anywhere.
func (s *Slot) dirsCalled(user string) ([]op.ID, error) {
	if id, err := s.Lookup(user); err == nil {
		if n, err := s.ix.inode(id); err == nil && n.IsDir() {
			return []op.ID{id}, nil
		}
	}
	var found []op.ID
	for todo := []op.ID{op.Root}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		subdirs, err := s.ix.subdirs(dir)
		if err != nil {
			return nil, err
		}
		for _, id := range subdirs {
			n, err := s.ix.inode(id)
			if err == nil && len(n.Names) == 1 && n.Names[0].Name == user {
				found = append(found, id)
			} else {
				todo = append(todo, id)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%q: %w", user, errors.Join(ErrNoUser, ErrNotExist))
	}
	return found, nil
}
