package fs

import (
	"fmt"
	"io"

	"slotfs/meta/op"
)

// parcel is the content of a volatile file, ready to be published by a Put:
// checksum computed and, if it is big, staged in chunks. It fits as long as the
// node's data lock is held.
type parcel struct {
	n     *node
	sum   op.Sum
	data  []byte
	stage uint64
}

// pack prepares n's content. n.data is held exclusively until the Put is
// appended or given up, so that nothing changes what was summed; mu is not
// held. A stage that is given up goes away with the epoch.
func (f *FS) pack(n *node) (*parcel, error) {
	if n.vol == nil {
		if err := f.detach(n); err != nil {
			return nil, err
		}
	}
	b := n.vol
	if err := f.space(b.size); err != nil {
		return nil, err
	}
	p := &parcel{n: n}
	var err error
	if b.size <= op.ChunkSize {
		if p.data, err = b.bytes(); err != nil {
			return nil, err
		}
		p.sum = op.SumOf(p.data)
		return p, f.admit(b.size, true)
	}
	if p.sum, err = op.SumReader(io.NewSectionReader(b, 0, b.size)); err != nil {
		return nil, fmt.Errorf("checksum of volatile file: %w", err)
	}
	buf := make([]byte, op.ChunkSize)
	for off := int64(0); off < b.size; {
		k, err := b.ReadAt(buf, off)
		if err != nil && err != io.EOF {
			return nil, err
		}
		if err := f.admit(int64(k), true); err != nil {
			return nil, err
		}
		err = f.once(func() error {
			e, err := f.append(&op.Chunk{Stage: p.stage, Off: off, Data: buf[:k]})
			if err == nil && p.stage == 0 {
				p.stage = e.Seq
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		off += int64(k)
	}
	return p, f.admit(0, false)
}

// put appends the Put that gives p's node its first logged name, and makes it a
// logged file; the caller adds the name. mu and the node's data lock are held.
func (f *FS) put(p *parcel, d *node, name string, victim op.ID, others ...*node) (*op.Entry, error) {
	n := p.n
	o := &op.Put{
		Parent: d.id, Name: name, Victim: victim,
		Attr:   op.Attr{Mode: n.mode, UID: n.uid, GID: n.gid, Mtime: n.mtime, Xattr: n.xattr},
		Sum:    p.sum,
		Sealed: f.class(d, name) == classMessage,
		Stage:  p.stage, Data: p.data,
	}
	e, err := f.append(o, append(others, n, d)...)
	if err != nil {
		return nil, err
	}
	n.id = op.ID(e.Seq)
	f.byID[n.id] = n
	for _, x := range n.names { // names in memory of what is logged now
		x.id = n.id
	}
	n.baseSeq, n.changed, n.sealed = e.Seq, e.Seq, o.Sealed
	if p.stage == 0 {
		n.base = f.spill.fixed(e.Op.(*op.Put).Data)
		n.vol.release()
	} else {
		n.base = n.vol
	}
	n.vol, n.pend = nil, nil
	if n.mtime == 0 {
		// In a Put 0 stands for the entry's time. Nobody but a test sets it.
		if _, err := f.append(&op.SetAttr{ID: n.id, Valid: op.SetMtime, Mtime: 0}, n); err != nil {
			f.log.Error("mtime 0 not kept", keyID, n.id, keyErr, err)
		}
	}
	return e, nil
}
