package meta

import (
	"encoding"
	"encoding/json"
)

// JSON carries the binary form of what has names: names may be any bytes, and
// JSON would change those that are not UTF-8.

// MarshalJSON gives JSON the binary form.
func (n *Inode) MarshalJSON() ([]byte, error) { return binaryToJSON(n) }

// UnmarshalJSON decodes what MarshalJSON made.
func (n *Inode) UnmarshalJSON(text []byte) error { return jsonToBinary(n, text) }

// MarshalJSON gives JSON the binary form.
func (c Child) MarshalJSON() ([]byte, error) { return binaryToJSON(c) }

// UnmarshalJSON decodes what MarshalJSON made.
func (c *Child) UnmarshalJSON(text []byte) error { return jsonToBinary(c, text) }

func binaryToJSON(m encoding.BinaryMarshaler) ([]byte, error) {
	b, err := m.MarshalBinary()
	if err != nil {
		return nil, err
	}
	return json.Marshal(b)
}

func jsonToBinary(u encoding.BinaryUnmarshaler, text []byte) error {
	var b []byte
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	return u.UnmarshalBinary(b)
}
