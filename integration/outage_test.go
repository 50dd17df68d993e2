package integration_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// outages collects how long the store took no mail, by fault: from the moment
// of the fault to the first acknowledgement of a delivery that was begun after
// it. A fault that interrupts nothing gives the time of one delivery.
type outages map[string][]time.Duration

func (o outages) add(name string, d time.Duration) { o[name] = append(o[name], d) }

// String is a table: one line for each fault.
func (o outages) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-48s %6s %8s %8s %8s %8s\n", "fault", "rounds", "min", "median", "p99", "max")
	for _, name := range slices.Sorted(maps.Keys(o)) {
		list := slices.Sorted(slices.Values(o[name]))
		at := func(p float64) string {
			return list[min(len(list)-1, int(p*float64(len(list))))].Round(time.Millisecond).String()
		}
		fmt.Fprintf(&b, "%-48s %6d %8s %8s %8s %8s\n", name, len(list), at(0), at(0.5), at(0.99), at(1))
	}
	return b.String()
}
