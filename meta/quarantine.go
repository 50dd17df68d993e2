package meta

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"slotfs/meta/op"
)

// QuarantineRecord says what is kept in quarantine/ and why. It lies beside
// what it describes, with ".json" added to the name.
type QuarantineRecord struct {
	Time   time.Time `json:"time"`
	From   string    `json:"from"` // path in the data directory
	ID     op.ID     `json:"id,omitempty"`
	Reason string    `json:"reason"`
	Size   int64     `json:"size"`
	Want   *op.Sum   `json:"want,omitempty"` // what the content should have been
	Have   *op.Sum   `json:"have,omitempty"` // what it is
}

// setAside moves path, relative to the data directory, into quarantine/ with a
// record, and returns what it is called there.
func setAside(data, path string, rec QuarantineRecord) (string, error) {
	return setAsideAs(data, filepath.Join(data, path), path, rec)
}

// setAsideAs moves from, which is shown as path, into quarantine/ with a record,
// and returns what it is called there. Time, From, Size and Have are filled in.
func setAsideAs(data, from, path string, rec QuarantineRecord) (string, error) {
	st, err := os.Lstat(from)
	if err != nil {
		return "", err
	}
	rec.Time, rec.From, rec.Size = time.Now().UTC(), path, st.Size()
	if st.Mode().IsRegular() && rec.Have == nil {
		rec.Have = sumOfFile(from)
	}
	dir := filepath.Join(data, dirQuarantine)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return "", err
	}
	base := filepath.Base(path)
	if len(base) > 160 {
		base = base[:160]
	}
	stem := rec.Time.Format("20060102T150405.000000") + "-" + strings.TrimLeft(base, ".")
	for i := 0; ; i++ {
		name := stem
		if i > 0 {
			name = fmt.Sprintf("%s-%d", stem, i)
		}
		to := filepath.Join(dir, name)
		// The record first: a kept thing without a record would be a riddle.
		f, err := os.OpenFile(to+".json", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		_, err = f.Write(append(text, '\n'))
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return "", err
		}
		err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if err != nil {
			return "", &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return filepath.Join(dirQuarantine, name), nil
	}
}

// sumOfFile is for records: nil if it cannot be read.
func sumOfFile(path string) *op.Sum {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	sum, err := op.SumReader(f)
	if err != nil {
		return nil
	}
	return &sum
}
