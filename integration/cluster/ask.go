package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// get asks the admin socket. What is polled is asked for here, and not by the
// command line, because starting a process for each look, with the race
// detector in it, would load the machine more than the nodes do.
func (n *Node) get(path string) ([]byte, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.socket)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: n.cluster.timeout}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://slotfs" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 400 {
		err = fmt.Errorf("GET %s of %s: %s: %s", path, n.Name, resp.Status, body)
	}
	return body, err
}

func (n *Node) getJSON(v any, path string) error {
	body, err := n.get(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("GET %s of %s: %w: %.200s", path, n.Name, err, body)
	}
	return nil
}

// Metrics are the lines of the metrics, without comments.
func (n *Node) Metrics() (map[string]float64, error) {
	body, err := n.get("/metrics")
	if err != nil {
		return nil, err
	}
	found := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(body))
	for lines.Scan() {
		i := strings.LastIndexByte(lines.Text(), ' ')
		if i < 0 || strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		v, err := strconv.ParseFloat(lines.Text()[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metric %q: %w", lines.Text(), err)
		}
		found[lines.Text()[:i]] = v
	}
	return found, lines.Err()
}

// Log is all that the processes of this node have logged.
func (n *Node) Log() (string, error) {
	text, err := os.ReadFile(n.log)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}

// parting is what nodes say of each other when all are told to end: each sees
// the others go before itself.
var parting = []string{"one copy left", "follow the primary on", "connect to the primary on", "node does not answer"}

// Problems are the lines of the log that report a warning, an error, a panic
// or a data race, except those that contain one of the expected texts.
func (n *Node) Problems(expected ...string) ([]string, error) {
	text, err := n.Log()
	if err != nil {
		return nil, err
	}
	var found []string
	at := int64(0)
scan:
	for line := range strings.Lines(text) {
		at += int64(len(line))
		line = strings.TrimSpace(line)
		bad := strings.Contains(line, "DATA RACE") || strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") ||
			strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR")
		if !bad {
			continue
		}
		for _, e := range expected {
			if strings.Contains(line, e) {
				continue scan
			}
		}
		for _, e := range parting {
			if n.ending > 0 && at > n.ending && strings.Contains(line, e) {
				continue scan
			}
		}
		found = append(found, line)
	}
	return found, nil
}
