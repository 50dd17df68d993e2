package repl

import (
	"bytes"
	"context"
	"fmt"

	"slotfs/meta"
	"slotfs/meta/op"
)

// differ goes down where digests differ.
type differ struct {
	entries func(op.ID) ([]meta.AuditEntry, error) // of a directory, of this slot
	path    func(op.ID) (string, error)
	ask     func(compareRequest) (*compareReply, error) // the other one
	most    uint64                                      // entries that it can have in a directory
	here    string                                      // whose slots these are
	there   string
	out     *Comparison
}

func (d *differ) add(id op.ID, path, text string) {
	if len(d.out.Differences) >= compareMax {
		d.out.Omitted++
		return
	}
	d.out.Differences = append(d.out.Differences, Difference{id, path, text})
}

func (d *differ) contradictions(node string, a *meta.Audit) {
	for _, dir := range a.Contradicted {
		path, _ := d.path(dir)
		d.add(dir, path, fmt.Sprintf("the index of %s contradicts itself: what it says this directory's entries come to is not what they come to", node))
	}
	if a.Digest != a.Recorded && len(a.Contradicted) == 0 {
		d.add(0, "", fmt.Sprintf("the index of %s contradicts itself: it says its digest is %s, its records come to %s", node, a.Recorded, a.Digest))
	}
}

// dir compares the entries of one directory.
func (d *differ) dir(ctx context.Context, id op.ID, path string, ours, theirs op.Digest) error {
	if ours == theirs || d.out.Omitted > 0 {
		return ctx.Err()
	}
	own, err := d.entries(id)
	if err != nil {
		return err
	}
	other, err := d.others(id)
	if err != nil {
		return err
	}
	for len(own) > 0 || len(other) > 0 {
		order := 0
		switch {
		case len(own) == 0:
			order = 1
		case len(other) == 0:
			order = -1
		default:
			order = bytes.Compare(own[0].Name, other[0].Name)
		}
		switch {
		case order < 0:
			d.add(own[0].ID, join(path, own[0].Name), "only on "+d.here)
			own = own[1:]
		case order > 0:
			d.add(other[0].ID, join(path, other[0].Name), "only on "+d.there)
			other = other[1:]
		default:
			a, b := own[0], other[0]
			own, other = own[1:], other[1:]
			at := join(path, a.Name)
			switch {
			case a.ID != b.ID:
				d.add(a.ID, at, fmt.Sprintf("id %d on %s, id %d on %s", a.ID, d.here, b.ID, d.there))
				continue
			case a.Sum != b.Sum:
				d.add(a.ID, at, "attributes or checksum differ")
			}
			if a.Dir && b.Dir {
				if err := d.dir(ctx, a.ID, at, a.Below, b.Below); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// others asks for all entries of a directory.
func (d *differ) others(id op.ID) (all []meta.AuditEntry, err error) {
	for more := true; more; {
		a, err := d.ask(compareRequest{Dir: id, From: len(all)})
		if err != nil {
			return nil, err
		}
		all, more = append(all, a.Entries...), a.More && len(a.Entries) > 0
		// Each is an object of its own, but for hard links, which mail has few of.
		if more && uint64(len(all)) > 2*d.most+comparePage {
			return nil, fmt.Errorf("%w: more entries of directory %d than %s has objects", ErrWire, id, d.there)
		}
	}
	return all, nil
}

func join(path string, name []byte) string {
	if path == "" {
		return string(name)
	}
	return path + "/" + string(name)
}
