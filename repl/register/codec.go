package register

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"slotfs/meta"
	"slotfs/meta/op"
	"slotfs/repl"
)

// maxRecord bounds a record in bytes.
const maxRecord = 16 << 10

// recordJSON is a record as it stands in etcd.
type recordJSON struct {
	Version int               `json:"version"`
	Store   meta.StoreID      `json:"store"`
	Epoch   uint64            `json:"epoch"`
	Primary string            `json:"primary"`
	InSync  []string          `json:"in_sync"`
	Nonce   string            `json:"nonce"`
	Nodes   map[string]string `json:"nodes,omitempty"`
	Reason  string            `json:"reason,omitempty"`
	Time    time.Time         `json:"time"`
}

// RecordError says which record cannot be used, why, and what to do.
type RecordError struct {
	Key    string // in etcd
	Reason string
	Err    error // cause; may be nil
}

func (e *RecordError) Error() string {
	return fmt.Sprintf("register record %s cannot be used: %s. No role of its store changes until it is put right: "+
		"find out who wrote it, then make it anew with slotfs register restore", e.Key, e.Reason)
}

// Is makes it a repl.ErrRecord.
func (e *RecordError) Is(target error) bool { return target == repl.ErrRecord }

func (e *RecordError) Unwrap() error { return e.Err }

// Encode gives the bytes of a record, which must be valid.
func Encode(r *repl.Record) ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	j := recordJSON{Version: r.Version, Store: r.Store, Epoch: r.Epoch, Primary: r.Primary.String(), Nonce: r.Nonce.String(), Reason: r.Reason, Time: r.Time}
	for _, s := range r.InSync {
		j.InSync = append(j.InSync, s.String())
	}
	if len(r.Nodes) > 0 {
		j.Nodes = make(map[string]string, len(r.Nodes))
		for s, name := range r.Nodes {
			j.Nodes[s.String()] = name
		}
	}
	b, err := json.Marshal(&j)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	if len(b) > maxRecord {
		return nil, fmt.Errorf("encode record: it has %d bytes, more than %d", len(b), maxRecord)
	}
	return b, nil
}

// Decode reads what Encode wrote and refuses everything else; key is for the
// message. The error is a *RecordError.
func Decode(key string, b []byte) (repl.Record, error) {
	r, err := decode(b)
	if err != nil {
		return repl.Record{}, &RecordError{Key: key, Reason: err.Error(), Err: err}
	}
	return r, nil
}

func decode(b []byte) (r repl.Record, err error) {
	if len(b) > maxRecord {
		return r, fmt.Errorf("it has %d bytes, more than any record", len(b))
	}
	// A newer version may have other fields: its number must be what is told.
	var v struct{ Version int }
	if json.Unmarshal(b, &v) == nil && v.Version > repl.RecordVersion {
		return r, fmt.Errorf("it has version %d, and this slotfs knows versions up to %d: it was written by a newer one", v.Version, repl.RecordVersion)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	var j recordJSON
	if err := dec.Decode(&j); err != nil {
		return r, fmt.Errorf("it is not a record: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("something follows the record")
	}
	r = repl.Record{Version: j.Version, Store: j.Store, Epoch: j.Epoch, Reason: j.Reason, Time: j.Time}
	if r.Primary, err = op.ParseSlotID(j.Primary); err != nil {
		return r, fmt.Errorf("primary: %w", err)
	}
	for _, s := range j.InSync {
		id, err := op.ParseSlotID(s)
		if err != nil {
			return r, fmt.Errorf("in-sync set: %w", err)
		}
		r.InSync = append(r.InSync, id)
	}
	nonce, err := hex.DecodeString(j.Nonce)
	if err != nil || len(nonce) != len(r.Nonce) {
		return r, fmt.Errorf("nonce %q: want %d hexadecimal digits", j.Nonce, 2*len(r.Nonce))
	}
	copy(r.Nonce[:], nonce)
	for s, name := range j.Nodes {
		id, err := op.ParseSlotID(s)
		if err != nil {
			return r, fmt.Errorf("nodes: %w", err)
		}
		if r.Nodes == nil {
			r.Nodes = make(map[op.SlotID]string, len(j.Nodes))
		}
		r.Nodes[id] = name
	}
	if err := r.Check(); err != nil {
		return r, err
	}
	return r, nil
}
