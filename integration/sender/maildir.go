package sender

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"slotfs/integration/history"
)

// Maildir delivers into the Maildir dir of a node's mount: write to tmp/, sync,
// rename to new/. Some messages are then flagged, as a client would.
func Maildir(node, mount, dir string) Target {
	root := filepath.Join(mount, dir)
	return Target{Node: node, Deliver: func(key string, data []byte) error {
		tmp := filepath.Join(root, "tmp", key)
		err := write(tmp, data)
		if errors.Is(err, fs.ErrNotExist) {
			if err = makeMaildir(mount, root); err == nil {
				err = write(tmp, data)
			}
		}
		if err != nil {
			return err // in tmp/ it is nothing yet
		}
		to := filepath.Join(root, "new", key)
		if err := os.Rename(tmp, to); err != nil {
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		}
		if len(data)%4 == 0 {
			// Its outcome is nobody's concern: under either name, but once.
			_ = os.Rename(to, filepath.Join(root, "cur", key+":2,S"))
		}
		return nil
	}}
}

// makeMaildir makes a Maildir where the store is mounted.
func makeMaildir(mount, root string) error {
	if _, err := os.Stat(filepath.Join(mount, ".slotfs")); err != nil {
		return err
	}
	for _, dir := range []string{"tmp", "new", "cur"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func write(name string, data []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Held reads all Maildirs below a directory. The key of a message is its name
// without flags.
func Held(root string) ([]history.Held, error) {
	return held(root, func(base string, _ []byte) string { return base })
}

// Names maps the keys in the headers of messages to the names of their files,
// without flags, where the server chose those.
func Names(root string) (map[string]string, error) {
	names := map[string]string{}
	_, err := held(root, func(name string, data []byte) string {
		names[Key(data)] = name
		return name
	})
	return names, err
}

func held(root string, key func(base string, data []byte) string) ([]history.Held, error) {
	var list []history.Held
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == root {
			return nil // nobody has delivered anything
		}
		if err != nil {
			return err
		}
		dir := filepath.Base(filepath.Dir(name))
		if d.IsDir() || dir != "new" && dir != "cur" {
			return nil
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		base, _, _ := strings.Cut(filepath.Base(name), ":2,")
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		list = append(list, history.Held{Key: key(base, data), Sum: sha256.Sum256(data), Path: rel})
		return nil
	})
	return list, err
}

// Key finds the key in a message's header; empty if there is none.
func Key(data []byte) string {
	head, _, _ := bytes.Cut(bytes.ReplaceAll(data[:min(len(data), 4<<10)], []byte("\r\n"), []byte("\n")), []byte("\n\n"))
	for line := range strings.Lines(string(head)) {
		if name, value, ok := strings.Cut(line, ": "); ok && name == KeyField {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
