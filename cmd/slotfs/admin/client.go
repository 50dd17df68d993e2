package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"slotfs/cmd/slotfs/exit"
)

// Client talks to the admin socket of a node.
type Client struct {
	Socket string
	http   *http.Client
}

// NewClient makes a client; nothing is connected yet.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	// No timeout: a check of a large slot takes hours.
	return &Client{Socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Get decodes the answer to a GET into out.
func (c *Client) Get(ctx context.Context, path string, query url.Values, out any) error {
	body, err := c.Stream(ctx, path, query)
	if err != nil {
		return err
	}
	defer body.Close()
	return decode(body, out)
}

// Stream returns the body of the answer to a GET.
func (c *Client) Stream(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	u := url.URL{Scheme: "http", Host: "slotfs", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	return c.do(req)
}

// Post sends in as JSON and decodes the answer into out.
func (c *Client) Post(ctx context.Context, path string, in, out any) error {
	body, err := c.PostStream(ctx, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	return decode(body, out)
}

// PostText sends text and decodes the answer into out.
func (c *Client) PostText(ctx context.Context, path string, text io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://slotfs"+path, text)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	body, err := c.do(req)
	if err != nil {
		return err
	}
	defer body.Close()
	return decode(body, out)
}

// PostStream sends in as JSON and returns the body of the answer.
func (c *Client) PostStream(ctx context.Context, path string, in any) (io.ReadCloser, error) {
	b, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://slotfs"+path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	return c.do(req)
}

func decode(r io.Reader, out any) error {
	if err := json.NewDecoder(r).Decode(out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

func (c *Client) do(req *http.Request) (io.ReadCloser, error) {
	resp, err := c.http.Do(req)
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return nil, exit.With(exit.NotRunning, fmt.Errorf("slotfs is not running, or %s is not its admin socket: %w", c.Socket, dial.Err))
	}
	if err != nil && req.Context().Err() != nil {
		return nil, errors.New("interrupted; what was asked for may still be done")
	}
	if err != nil {
		return nil, exit.With(exit.NotRunning, fmt.Errorf("ask slotfs at %s: %w", c.Socket, err))
	}
	if resp.StatusCode < 400 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var p Problem
	if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || p.Error == "" {
		return nil, fmt.Errorf("slotfs at %s answered %s", c.Socket, resp.Status)
	}
	return nil, exit.With(p.Code, errors.New(p.Error))
}
