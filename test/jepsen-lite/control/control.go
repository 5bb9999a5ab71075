// Package control is how the nemesis turns faults of disk and clock on and off
// in a node program of ours (test/jepsen-lite/node): by a socket in the file
// system, which the product knows nothing of.
package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Rates of clocks: any two, the clients' of rate 1 included, differ by less than
// a fifth, which is what leases allow for.
const (
	RateMin = 0.92
	RateMax = 1.09
)

// Faults are those in force in one node. The zero value is none.
type Faults struct {
	// Full: writes to the disk find no room. A write to the log's file may be cut.
	Full bool `json:"full,omitempty"`
	// SyncFails: a sync fails, and what it should have kept is gone, as with a
	// kernel that drops the pages that it could not write.
	SyncFails bool `json:"sync_fails,omitempty"`
	// Stalled: writes to the disk do not end.
	Stalled bool `json:"stalled,omitempty"`
	// Rate of the node's clock, RateMin to RateMax; 0 is 1.
	Rate float64 `json:"rate,omitempty"`
	// Wall is what the wall clock is wrong by.
	Wall time.Duration `json:"wall,omitempty"`
	// Asleep: timers and their clock stand still, while the boot clock goes on.
	Asleep bool `json:"asleep,omitempty"`
}

// Check reports what is out of range.
func (f Faults) Check() error {
	if f.Rate != 0 && (f.Rate < RateMin || f.Rate > RateMax) {
		return fmt.Errorf("rate %v: want %v to %v, or 0", f.Rate, RateMin, RateMax)
	}
	return nil
}

// Process is how a node's process is now.
type Process struct {
	// Serves: the node has joined its cluster. Troubles are what keeps it from doing
	// its part.
	Serves   bool     `json:"serves"`
	Troubles []string `json:"troubles"`
	// Goroutines and HeapBytes are after a collection.
	Goroutines int    `json:"goroutines"`
	HeapBytes  uint64 `json:"heap_bytes"`
	// Lost counts writes that were not synced when a sync failed.
	Lost uint64 `json:"lost"`
}

// Paths of the socket's HTTP server.
const (
	PathFaults     = "/faults"     // PUT Faults: from now on these
	PathProcess    = "/process"    // GET → Process
	PathGoroutines = "/goroutines" // GET → stacks, as text
)

// Client talks to one node's socket.
type Client struct{ http *http.Client }

// NewClient makes a client of the socket at path. It connects anew for each
// request, as nodes come and go.
func NewClient(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Set puts faults in force in place of those that are.
func (c *Client) Set(ctx context.Context, f Faults) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPut, PathFaults, body)
	return err
}

// Process asks how large the node is.
func (c *Client) Process(ctx context.Context) (p Process, err error) {
	body, err := c.do(ctx, http.MethodGet, PathProcess, nil)
	if err == nil {
		err = json.Unmarshal(body, &p)
	}
	return p, err
}

// Goroutines returns the stacks of all goroutines, alike ones counted.
func (c *Client) Goroutines(ctx context.Context) (string, error) {
	body, err := c.do(ctx, http.MethodGet, PathGoroutines, nil)
	return string(body), err
}

// answerMax bounds what is read of an answer.
const answerMax = 4 << 20

func (c *Client) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	out, err := io.ReadAll(io.LimitReader(resp.Body, answerMax))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s", method, path, bytes.TrimSpace(out))
	}
	return out, err
}
