package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"

	"slotfs/integration/cluster"
)

// scrubResult is what reading everything costs: scrub beside a cold cat of the
// same tree, what a delivery load feels of a scrub, and what verifying adds to a
// read. All numbers are medians over the rounds.
type scrubResult struct {
	Messages int   `json:"messages"`
	Bytes    int64 `json:"bytes"`

	CatMB     float64 `json:"cat_mb_s"`
	ScrubMB   float64 `json:"scrub_mb_s"`
	ScrubMsgs float64 `json:"scrub_messages_s"`
	Ratio     float64 `json:"scrub_ratio"` // of the cat's speed; goal ≥ 0.8

	Deliver     float64 `json:"deliver_s"`       // deliveries a second without a scrub
	DeliverWith float64 `json:"deliver_scrub_s"` // while scrubs run one after the other
	Slowdown    float64 `json:"slowdown"`        // share lost; goal ≤ 0.1

	ReadMB float64 `json:"read_mb_s"`    // cold reads through the mount, verified
	HashMB float64 `json:"hash_mb_s"`    // verifying alone
	Verify float64 `json:"verify_share"` // share of the reads' time that verifying takes; goal < 0.05
}

const (
	scrubFiles = 4000
	scrubSize  = 24 << 10
	scrubLoad  = 3 * time.Second
)

// scrubs measures a pair, or a single slot if there is no pair.
func (b *bench) scrubs(ctx context.Context) (*scrubResult, error) {
	var t *target
	for _, x := range b.targets {
		if x.nodes != nil && (t == nil || x.name == pair) {
			t = x
		}
	}
	if t == nil {
		return nil, errors.New("scrub: there is no target with a store")
	}
	n := t.nodes.Nodes[0]
	box := filepath.Join(n.Mount, "scrubbed")
	m := &maildir{dir: box, writers: 4, each: scrubFiles / 4, body: make([]byte, scrubSize)}
	for i := range m.body {
		m.body[i] = "abcdefgh\n"[i%9]
	}
	if err := m.create(); err != nil {
		return nil, err
	}
	if err := failure(m.run("deliver")); err != nil {
		return nil, err
	}
	if _, err := t.nodes.WaitEqual(); err != nil {
		return nil, err
	}
	r := &scrubResult{Messages: scrubFiles, Bytes: scrubFiles * scrubSize}
	var cats, scrubs, msgs, ratios, without, with, slow, reads []float64
	for range b.rounds {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		quiet(t.pids(), 15*time.Second)
		cat, err := coldCat(n.Tree(), filepath.Join(n.Data, "oplog"))
		if err != nil {
			return nil, err
		}
		p, err := scrubOnce(n, t.nodes.Store)
		if err != nil {
			return nil, err
		}
		speed := mega(p.Bytes+p.LogBytes, p.Took)
		cats, scrubs, ratios = append(cats, cat), append(scrubs, speed), append(ratios, speed/cat)
		msgs = append(msgs, float64(p.Messages)/p.Took.Seconds())
		read, err := coldCat(box)
		if err != nil {
			return nil, err
		}
		reads = append(reads, read)
		a, err := deliveries(n, b.body(), nil, t.nodes.Store)
		if err != nil {
			return nil, err
		}
		running := new(atomic.Bool)
		running.Store(true)
		c, err := deliveries(n, b.body(), running, t.nodes.Store)
		if err != nil {
			return nil, err
		}
		without, with, slow = append(without, a), append(with, c), append(slow, 1-c/a)
	}
	r.CatMB, r.ScrubMB, r.ScrubMsgs, r.Ratio = median(cats), median(scrubs), median(msgs), median(ratios)
	r.Deliver, r.DeliverWith, r.Slowdown = median(without), median(with), median(slow)
	r.ReadMB, r.HashMB = median(reads), hashSpeed(m.body)
	r.Verify = r.ReadMB / r.HashMB
	return r, os.RemoveAll(box)
}

func failure(s *sample) error {
	if s.errs == 0 {
		return nil
	}
	return errors.New(s.first)
}

func (b *bench) body() []byte { return make([]byte, b.size) }

func mega(bytes int64, took time.Duration) float64 { return float64(bytes) / 1e6 / took.Seconds() }

// coldCat reads all files below directories one after the other, with nothing of
// them in memory, in MB/s.
func coldCat(dirs ...string) (float64, error) {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return 0, err
	}
	begun := time.Now()
	var bytes int64
	for _, dir := range dirs {
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			n, err := io.Copy(io.Discard, f)
			bytes += n
			return err
		}); err != nil {
			return 0, err
		}
	}
	return mega(bytes, time.Since(begun)), nil
}

// scrubDone is the last line of a scrub's JSON.
type scrubDone struct {
	Bytes    int64
	LogBytes int64 `json:"log_bytes"`
	Messages uint64
	Took     time.Duration
	Done     bool
}

// scrubOnce scrubs a node's slot, with nothing of it in memory.
func scrubOnce(n *cluster.Node, store string) (p scrubDone, err error) {
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return p, err
	}
	out, err := n.Run("scrub", store, "--json")
	if err != nil {
		return p, err
	}
	return lastProgress(out)
}

func lastProgress(out string) (p scrubDone, err error) {
	for dec := json.NewDecoder(strings.NewReader(out)); dec.More(); {
		var line struct{ Progress *scrubDone }
		if err := dec.Decode(&line); err != nil {
			return p, err
		}
		if line.Progress != nil {
			p = *line.Progress
		}
	}
	if !p.Done {
		return p, errors.New("the scrub did not end")
	}
	return p, nil
}

// deliveries is how many messages one writer delivers in a second; with scrubs
// running beside it if running is not nil.
func deliveries(n *cluster.Node, body []byte, running *atomic.Bool, store string) (float64, error) {
	m := &maildir{dir: filepath.Join(n.Mount, "loaded"), writers: 4, each: 50, body: body}
	done := make(chan error, 1)
	if running != nil {
		go func() {
			var err error
			for running.Load() && err == nil {
				_, err = scrubOnceWarm(n, store)
			}
			done <- err
		}()
	} else {
		done <- nil
	}
	begun, count := time.Now(), 0
	var err error
	for time.Since(begun) < scrubLoad && err == nil {
		if err = m.create(); err == nil {
			err = failure(m.run("deliver"))
		}
		count += m.writers * m.each
		if err == nil {
			err = m.remove()
		}
	}
	took := time.Since(begun)
	if running != nil {
		running.Store(false)
	}
	return float64(count) / took.Seconds(), errors.Join(err, <-done)
}

// scrubOnceWarm leaves the caches alone: the deliveries need theirs.
func scrubOnceWarm(n *cluster.Node, store string) (string, error) {
	out, err := n.Run("scrub", store, "--json")
	var e *cluster.ExitError
	if errors.As(err, &e) && e.Code == 1 {
		err = nil
	}
	return out, err
}

// hashSpeed is how fast one processor verifies messages, in MB/s.
func hashSpeed(body []byte) float64 {
	begun, bytes, sum := time.Now(), int64(0), uint64(0)
	for time.Since(begun) < 300*time.Millisecond {
		for range 100 {
			sum += xxhash.Sum64(body)
			bytes += int64(len(body))
		}
	}
	took := time.Since(begun)
	if sum == 0 { // keeps the compiler from leaving it out
		bytes++
	}
	return mega(bytes, took)
}

func (r *scrubResult) print(w io.Writer) {
	fmt.Fprintf(w, "\nscrub: %d messages, %.0f MB\n", r.Messages, float64(r.Bytes)/1e6)
	fmt.Fprintf(w, "  cold cat of tree and log %8.1f MB/s\n", r.CatMB)
	fmt.Fprintf(w, "  scrub                    %8.1f MB/s, %.0f messages/s: %.2f × (goal ≥ 0.8)\n", r.ScrubMB, r.ScrubMsgs, r.Ratio)
	fmt.Fprintf(w, "  deliveries               %8.1f /s, during scrubs %.1f /s: %.1f %% fewer (goal ≤ 10 %%)\n", r.Deliver, r.DeliverWith, 100*r.Slowdown)
	fmt.Fprintf(w, "  cold read of the mount   %8.1f MB/s; verifying alone %.0f MB/s: %.1f %% of the time (goal < 5 %%)\n", r.ReadMB, r.HashMB, 100*r.Verify)
}
