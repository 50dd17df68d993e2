package meta

import (
	"errors"
	"fmt"
	"strings"

	"slotfs/meta/op"
)

// AmbiguousError says that several directories may be meant.
type AmbiguousError struct {
	User  string
	Paths []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%q may be %s: give the path", e.User, strings.Join(e.Paths, " or "))
}

// userDepth is how deep below the root directories of users are looked for.
const userDepth = 4

// FindUser finds the directory of a user: user is its path from the root, or
// local@domain for domain/local, or the name of the only such directory not far
// below the root.
func (s *Slot) FindUser(user string) (op.ID, string, error) {
	user = strings.Trim(user, "/")
	if user == "" {
		return 0, "", fmt.Errorf("no user is named: %w", ErrNotExist)
	}
	candidates := []string{user}
	if local, domain, ok := strings.Cut(user, "@"); ok {
		candidates = append(candidates, domain+"/"+local)
	}
	for _, path := range candidates {
		id, err := s.Lookup(path)
		if err == nil {
			if n, err := s.Inode(id); err != nil || n.IsDir() {
				return id, path, err
			}
		} else if !errors.Is(err, ErrNotExist) {
			return 0, "", err
		}
	}
	if strings.Contains(user, "/") {
		return 0, "", fmt.Errorf("directory %q: %w", user, ErrNotExist)
	}
	return s.searchUser(user)
}

// searchUser looks through the directories near the root.
func (s *Slot) searchUser(user string) (id op.ID, path string, err error) {
	var found []string
	level := []op.ID{op.Root}
	for range userDepth {
		var below []op.ID
		for _, dir := range level {
			c, err := s.ix.child(dir, user)
			if err == nil && c.Type == typeDir {
				at, err := s.Path(c.ID)
				if err != nil {
					return 0, "", err
				}
				id, path = c.ID, at
				found = append(found, at)
			} else if err != nil && !errors.Is(err, ErrNotExist) {
				return 0, "", err
			}
			subdirs, err := s.ix.subdirs(dir)
			if err != nil {
				return 0, "", err
			}
			below = append(below, subdirs...)
		}
		if len(found) > 0 {
			break // the nearest ones count
		}
		level = below
	}
	switch len(found) {
	case 0:
		return 0, "", fmt.Errorf("a directory of user %q: %w", user, ErrNotExist)
	case 1:
		return id, path, nil
	}
	return 0, "", &AmbiguousError{user, found}
}
