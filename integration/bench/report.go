package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table gathers the samples of one load.
type table struct {
	load    string // "file system calls, 4 writers"
	phases  []string
	targets []string // the first is what the others are compared with
	samples map[cell][]*sample
}

type cell struct{ phase, target string }

func newTable(load string, phases []string, targets []*target) *table {
	t := &table{load: load, phases: phases, samples: map[cell][]*sample{}}
	for _, x := range targets {
		t.targets = append(t.targets, x.name)
	}
	return t
}

func (t *table) add(phase, target string, s *sample) {
	c := cell{phase, target}
	t.samples[c] = append(t.samples[c], s)
}

// row is what the report says of one phase on one target. Rates, latencies and
// costs are medians over the rounds; Ratio is the median of the ratios that
// the rounds have by themselves, which a machine whose speed drifts leaves
// alone.
type row struct {
	Load   string    `json:"load"`
	Phase  string    `json:"phase"`
	Target string    `json:"target"`
	Rate   float64   `json:"ops_per_s"`
	Ratio  float64   `json:"ratio"`
	Ratios []float64 `json:"ratio_rounds"`
	P50    float64   `json:"p50_ms"`
	P99    float64   `json:"p99_ms"`
	CPU    float64   `json:"cpu_ms_per_op"`
	Nodes  []float64 `json:"cpu_ms_per_op_nodes,omitempty"` // the part of each node
	Switch float64   `json:"switches_per_op"`
	Drain  float64   `json:"drain_s"`
	Ops    int       `json:"ops"`
	Errors int       `json:"errors"`
	Error  string    `json:"error,omitempty"`
}

func (t *table) rows() []row {
	var rows []row
	for _, phase := range t.phases {
		base := t.samples[cell{phase, t.targets[0]}]
		for _, target := range t.targets {
			samples := t.samples[cell{phase, target}]
			if len(samples) == 0 {
				continue
			}
			r := row{Load: t.load, Phase: phase, Target: target}
			var rate, p50, p99, cpu, sw, drain []float64
			var nodes [][]float64
			for i, s := range samples {
				rate = append(rate, s.rate())
				if i < len(base) && base[i].rate() > 0 {
					r.Ratios = append(r.Ratios, round(s.rate()/base[i].rate()))
				}
				p50 = append(p50, quantile(s.lat, 0.50))
				p99 = append(p99, quantile(s.lat, 0.99))
				drain = append(drain, s.drain.Seconds())
				if s.ops > 0 {
					cpu = append(cpu, perOp(s.cpu, s.ops))
					sw = append(sw, float64(s.switches)/float64(s.ops))
					nodes = slices.Grow(nodes, len(s.nodes))[:len(s.nodes)]
					for k, c := range s.nodes {
						nodes[k] = append(nodes[k], perOp(c, s.ops))
					}
				}
				r.Ops += s.ops
				r.Errors += s.errs
				if r.Error == "" {
					r.Error = s.first
				}
			}
			r.Rate, r.Ratio = round(median(rate)), round(median(r.Ratios))
			r.P50, r.P99, r.CPU, r.Drain = round(median(p50)), round(median(p99)), round(median(cpu)), round(median(drain))
			r.Switch = round(median(sw))
			for _, c := range nodes {
				r.Nodes = append(r.Nodes, round(median(c)))
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// perOp is CPU time in milliseconds per operation.
func perOp(t time.Duration, ops int) float64 {
	return float64(t) / float64(time.Millisecond) / float64(ops)
}

// round keeps three digits after the point, and JSON free of NaN.
func round(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return math.Round(v*1000) / 1000
}

func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s; ratio to %s\n\n", t.load, t.targets[0])
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "phase\ttarget\top/s\tratio\tof each round\tp50 ms\tp99 ms\tCPU ms/op\tof it slotfs\tswitches/op\tdrain s\terrors\t")
	var failures []string
	for _, r := range t.rows() {
		ratios := strings.Trim(fmt.Sprintf("%.2f", r.Ratios), "[]")
		fmt.Fprintf(tw, "%s\t%s\t%.0f\t%.3f\t%s\t%.3f\t%.3f\t%.3f\t%s\t%.1f\t%.1f\t%d\t\n",
			r.Phase, r.Target, r.Rate, r.Ratio, ratios, r.P50, r.P99, r.CPU, strings.Trim(fmt.Sprintf("%.2f", r.Nodes), "[]"), r.Switch, r.Drain, r.Errors)
		if r.Errors > 0 {
			failures = append(failures, fmt.Sprintf("%s, %s: %s", r.Phase, r.Target, r.Error))
		}
	}
	tw.Flush()
	for _, f := range failures {
		fmt.Fprintln(w, f)
	}
}

// report is the JSON form of a whole run.
type report struct {
	Time     time.Time      `json:"time"`
	Machine  string         `json:"machine"` // kernel, processors, file system below
	Rows     []row          `json:"rows"`
	Requests []requestCount `json:"fuse_requests"`
	Scrub    *scrubResult   `json:"scrub,omitempty"`
}

// save writes the report to a file, or as one line to standard output.
func (r *report) save(file string) (err error) {
	out := os.Stdout
	if file != "" {
		if out, err = os.Create(file); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, out.Close()) }()
	} else {
		fmt.Println()
	}
	return json.NewEncoder(out).Encode(r)
}

// failed says whether any operation failed: the loads verify what they read, so
// that is a fault of slotfs or of the benchmark, never a matter of speed.
func (r *report) failed() error {
	n := 0
	for _, row := range r.Rows {
		n += row.Errors
	}
	if n > 0 {
		return fmt.Errorf("%d operations failed", n)
	}
	return nil
}
