package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseRate reads a rate such as "50MB/s", in bytes a second; "0" is no limit.
func ParseRate(v string) (int64, error) {
	n, ok := ParseSize(strings.TrimSuffix(v, "/s"))
	if !ok {
		return 0, fmt.Errorf("%q is not a rate such as 50MB/s", v)
	}
	return n, nil
}

// ParseLong reads a duration that may be in days: "7d", "36h", "0".
func ParseLong(v string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(v, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err != nil || n < 0 || n > 36500 {
			return 0, fmt.Errorf("%q is not a number of days", v)
		}
		return time.Duration(n * 24 * float64(time.Hour)), nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a duration", v)
	}
	return d, nil
}

// DurationText writes a duration in days where that is exact.
func DurationText(d time.Duration) string {
	if day := 24 * time.Hour; d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

// rate is ParseRate for a key.
func (b *builder) rate(key, v string) int64 {
	n, err := ParseRate(v)
	if err != nil || n != 0 && n < 100_000 {
		b.fail(key, "Write it as \"50MB/s\", at least 100kB/s, or \"0\" for no limit.", "%q is not a usable rate", v)
	}
	return n
}

// long is ParseLong for a key; 0 is allowed, and what is at least lo.
func (b *builder) long(key, v string, lo time.Duration) time.Duration {
	d, err := ParseLong(v)
	if err != nil || d != 0 && d < lo {
		b.fail(key, fmt.Sprintf("Write it as \"7d\" or \"36h\", at least %s, or \"0\" for none.", lo), "%q is not a usable time", v)
	}
	return d
}
