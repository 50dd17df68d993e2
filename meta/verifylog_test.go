package meta

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"slotfs/meta/op"
)

// A damaged log of a running slot is mended with what another slot has; without
// one the damage is reported once, the slot goes on, and starts again.
func TestLogIsMended(t *testing.T) {
	for name, seq := range map[string]uint64{"head": 3, "middle": 200, "last": 0} {
		for _, alone := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " alone"}[alone], func(t *testing.T) {
				logIsMended(t, seq, alone)
			})
		}
	}
}

func logIsMended(t *testing.T, seq uint64, alone bool) {
	src, dir, entries := pairForRefill(t, 41)
	if seq == 0 {
		seq = uint64(len(entries))
	}
	if err := newSlot(t, dir, nil).Close(); err != nil {
		t.Fatal(err)
	}
	mended := 0
	o := Options{OnMended: func() { mended++ }}
	if !alone {
		o.FetchLog = func(_ context.Context, from, to uint64) ([]*op.Entry, string, error) {
			list, err := src.Log.Read(from, 1000)
			for i, e := range list {
				if e.Seq > to {
					list = list[:i]
					break
				}
			}
			return list, "n1", err
		}
	}
	dst := openSlot(t, dir, o)
	follow(t, dst, entries)
	if err := dst.Close(); err != nil { // so that memory has none of it
		t.Fatal(err)
	}
	dst = openSlot(t, dir, o)
	dst.Start()
	garbleLog(t, filepath.Join(dir, dirLog), seq)
	for range 2 {
		found, err := dst.VerifyLog(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		if alone && (len(found) != 1 || !errors.Is(found[0].Unmended, errNobody)) || !alone && len(found) > 0 && found[0].Unmended != nil {
			t.Fatalf("found %v", found)
		}
	}
	damaged, repaired := dst.Events.Counts()[EventDamaged], dst.Events.Counts()[EventRepaired]
	if alone && (damaged != 1 || mended != 0) || !alone && (damaged != 0 || repaired != 1 || mended != 1) {
		t.Errorf("events %+v, mended %d", dst.Events.List(), mended)
	}
	if err := dst.Close(); err != nil {
		t.Fatal(err)
	}
	dst = openSlot(t, dir, o)
	dst.Start()
	sameSlots(t, dst, src)
	if first := dst.Log.First(); alone != (first > 1) {
		t.Errorf("the log begins at %d", first)
	}
	for _, e := range dst.Events.List() {
		if !alone && !strings.Contains(e.Text, "replayed") {
			t.Errorf("after a start: %+v", e)
		}
	}
}
