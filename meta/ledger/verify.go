package ledger

import (
	"fmt"
	"os"
	"path/filepath"
)

// Result is what Verify found.
type Result struct {
	Entries uint64 `json:"entries"` // that verified, from First on
	First   uint64 `json:"first"`   // number of the first entry that is there
	Head    Head   `json:"head"`    // the last one that verified

	// Broken is what is wrong with the first line that did not verify.
	Broken string `json:"broken,omitempty"`
	// File and Line are where that is; in a whole ledger those of the last line.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"` // from 1
}

// Verify proves the chain of the ledger in dir, from the first file that is
// there on, and that it goes through the heads that are known from elsewhere.
// The first broken line ends it: what follows proves nothing.
func Verify(dir string, known ...Head) (Result, error) {
	var r Result
	err := walk(dir, func(file string, line int, e Entry, err error) bool {
		switch {
		case err != nil:
		case r.Entries == 0 && e.Seq == 1 && e.Prev != (Hash{}):
			err = fmt.Errorf("%w: the first entry follows another one", errLine)
		case r.Entries == 0:
			r.First = e.Seq
			if first, _ := seqOf(file); first != e.Seq {
				err = fmt.Errorf("%w: it is entry %d, the file should begin with %d", errLine, e.Seq, first)
			}
		case e.Seq != r.Head.Seq+1:
			err = fmt.Errorf("%w: it is entry %d after entry %d", errLine, e.Seq, r.Head.Seq)
		case e.Prev != r.Head.Hash:
			err = fmt.Errorf("%w: it does not follow the one before: it says %s, that one has %s", errLine, e.Prev, r.Head.Hash)
		}
		for _, k := range known {
			if err == nil && k.Seq == e.Seq && k.Hash != e.Hash {
				err = fmt.Errorf("%w: entry %d has hash %s, it is known to have had %s", errLine, e.Seq, e.Hash, k.Hash)
			}
		}
		if err != nil {
			r.Broken, r.File, r.Line = err.Error(), file, line
			return false
		}
		r.Entries++
		r.Head, r.File, r.Line = Head{e.Seq, e.Hash}, file, line
		return true
	})
	for _, k := range known {
		if r.Broken == "" && k.Seq > r.Head.Seq {
			r.Broken = fmt.Sprintf("it ends with entry %d, and is known to have had entry %d (%s)", r.Head.Seq, k.Seq, k.Hash)
		}
	}
	return r, err
}

// Whole reports whether every line verified.
func (r Result) Whole() bool { return r.Broken == "" }

// Read calls f for every entry of the ledger in dir, oldest first, until it
// returns an error. Lines that cannot be read are skipped: Verify names them.
func Read(dir string, f func(Entry) error) error {
	var stop error
	err := walk(dir, func(_ string, _ int, e Entry, err error) bool {
		if err != nil {
			return true
		}
		stop = f(e)
		return stop == nil
	})
	if stop != nil {
		return stop
	}
	return err
}

// walk calls f for every line until it returns false. A line without its end, at
// the very end, is one that is just being written.
func walk(dir string, f func(file string, line int, e Entry, err error) bool) error {
	names, err := files(dir)
	if err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	for i, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return fmt.Errorf("read ledger: %w", err)
		}
		if i == len(names)-1 {
			b, _ = splitTorn(b)
		}
		for n, line := range lines(b) {
			e, err := decode(line)
			if !f(name, n+1, e, err) {
				return nil
			}
		}
	}
	return nil
}
