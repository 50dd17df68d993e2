package gossip

import (
	"bytes"
	"context"
	"log/slog"
)

// logWriter takes memberlist's log lines into ours. Its warnings about single
// packets and probes are details to an operator, who sees nodes come and go
// from us.
type logWriter struct {
	log     *slog.Logger
	closing func() bool // what fails then is of no interest
}

// Write implements io.Writer for one line, "date time [LEVEL] memberlist: …".
func (w *logWriter) Write(line []byte) (int, error) {
	n := len(line)
	level := slog.LevelDebug
	if i := bytes.IndexByte(line, '['); i >= 0 {
		if j := bytes.IndexByte(line[i:], ']'); j > 0 {
			switch string(line[i+1 : i+j]) {
			case "ERR", "ERROR", "WARN":
				if !w.closing() {
					level = slog.LevelInfo
				}
			}
			line = line[i+j+1:]
		}
	}
	line = bytes.TrimPrefix(bytes.TrimSpace(line), []byte("memberlist: "))
	w.log.Log(context.Background(), level, string(line), "from", "memberlist")
	return n, nil
}
