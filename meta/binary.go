package meta

import (
	"encoding/binary"
	"fmt"

	"slotfs/meta/op"
)

// MarshalBinary makes n fit to be sent: the id, then the record of the index.
// (Names are bytes, which JSON would change.)
func (n *Inode) MarshalBinary() ([]byte, error) {
	b := binary.BigEndian.AppendUint64(nil, uint64(n.ID))
	return append(b, encodeInode(n)...), nil
}

// UnmarshalBinary reads what MarshalBinary made; it keeps nothing of b.
func (n *Inode) UnmarshalBinary(b []byte) error {
	if len(b) < 8 {
		return fmt.Errorf("inode of %d bytes: %w", len(b), errRecord)
	}
	in, err := decodeInode(op.ID(binary.BigEndian.Uint64(b)), b[8:])
	if err != nil {
		return err
	}
	*n = *in
	return nil
}

// MarshalBinary makes c fit to be sent: the record of the index, then the name.
func (c Child) MarshalBinary() ([]byte, error) { return append(encodeChild(c), c.Name...), nil }

// UnmarshalBinary reads what MarshalBinary made; it keeps nothing of b.
func (c *Child) UnmarshalBinary(b []byte) error {
	if len(b) < 13 {
		return fmt.Errorf("directory entry of %d bytes: %w", len(b), errRecord)
	}
	child, err := decodeChild(string(b[12:]), b[:12])
	if err != nil {
		return err
	}
	*c = child
	return nil
}
