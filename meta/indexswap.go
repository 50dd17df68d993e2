package meta

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// verify reads all of badger's tables and compares their checksums. It has to
// be done again and again: badger's own lookups take a block that they cannot
// read for one that does not have the key, and answer from an older one, or
// that there is nothing.
func (x *index) verify() error {
	if err := x.there(); err != nil {
		return err
	}
	x.mu.RLock()
	db := x.db
	x.mu.RUnlock()
	return verifyTables(db)
}

// verifyTables is badger's VerifyChecksum, which panics on its way to the error
// if a block cannot be read at all.
func verifyTables(db *badger.DB) (err error) {
	defer func() { unreadable(recover(), &err) }()
	if err := db.VerifyChecksum(); err != nil {
		return &IndexError{err}
	}
	return nil
}

// there reports whether badger's files were removed under it.
func (x *index) there() error {
	x.mu.RLock()
	dir := x.dir
	x.mu.RUnlock()
	if _, err := os.Lstat(filepath.Join(dir, badger.ManifestFilename)); errors.Is(err, os.ErrNotExist) {
		return &IndexError{fmt.Errorf("%s was removed", dir)}
	}
	return nil
}

// verifyIfDue is verify if the last time is longer ago than least, and than
// share times what it took.
func (x *index) verifyIfDue(least time.Duration, share time.Duration) error {
	x.verifying.Lock()
	defer x.verifying.Unlock()
	begun := time.Now()
	if begun.Sub(x.verified) < max(least, share*x.took) {
		return nil
	}
	if err := x.verify(); err != nil {
		return err // whoever asks next is told, too
	}
	x.verified, x.took = time.Now(), time.Since(begun)
	return nil
}

// sure verifies the index, if that was not just done. It is asked before anything
// is said because the index lacks something; before anything is done because of
// that, verify.
func (x *index) sure() error { return x.verifyIfDue(missMin, missShare) }

// swap makes x what made is, whose changes are all written. Whoever is reading
// from what was there goes on with that.
func (x *index) swap(made *index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.now.txn.Discard()
	x.mute.Store(true)
	x.retired = append(x.retired, x.db)
	x.dir, x.db, x.mute, x.now = made.dir, made.db, made.mute, made.now
	x.active, x.frozen = newDelta(), nil
	x.state, x.base, x.ring = made.state, made.base, made.ring
	clear(x.clean)
	x.gen++
	x.swaps.Add(1)
}

// goneClose is how long a badger may take to close whose files were removed: it
// tries to write them for ever.
const goneClose = 2 * time.Second

// closeDB closes a badger, whatever has become of its files.
func closeDB(db *badger.DB) error {
	if _, err := os.Lstat(filepath.Join(db.Opts().Dir, badger.ManifestFilename)); err == nil {
		return db.Close()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		db.Close()
	}()
	t := time.NewTimer(goneClose)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	return nil
}
