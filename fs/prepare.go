package fs

import (
	"fmt"
	"log/slog"
	"path/filepath"
)

// Prepare readies a mount point when a node starts, long before anything may be
// mounted there: it removes the mount that a killed process left, refuses a
// directory that is in use or not empty, and with protect makes it unwritable.
func Prepare(dir string, protected bool, log *slog.Logger) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", dir, err)
	}
	if err := clearMountPoint(dir, log); err != nil {
		return err
	}
	if protected {
		protect(dir, log)
	}
	return nil
}
