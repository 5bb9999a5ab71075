package main

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/baton-cluster/baton/test/jepsen-lite/check"
	"github.com/baton-cluster/baton/test/jepsen-lite/control"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// What a run may leave in a process once all clients have gone. A leak of one
// goroutine, or of some kilobytes, for each session or connection is more.
const (
	goroutinesMore = 60
	clientsMore    = 4 // for each node: the administrator has connections to all
	// heapMore is what the cache of log entries takes, and as much again.
	heapMore       = 96 << 20
	heapPerSession = 32 << 10
	// growthLimit is how long they have to go down: connections whose client
	// vanished are idle for that long.
	growthLimit = 90 * time.Second
)

// Size is how large processes are: of the nodes, the largest.
type size struct {
	Goroutines int    `json:"goroutines"`
	HeapBytes  uint64 `json:"heap_bytes"`
}

// growth is before and after the load, without clients.
type growth struct {
	Before size `json:"before"`
	After  size `json:"after"`
	// ClientsBefore and ClientsAfter are goroutines of this process that are in the
	// client library, or in QUIC.
	ClientsBefore int `json:"clients_goroutines_before"`
	ClientsAfter  int `json:"clients_goroutines_after"`
}

// clientGoroutines counts them. (The proxies have many more, for a while.)
func clientGoroutines() (n int) {
	buf := make([]byte, 16<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for stack := range bytes.SplitSeq(buf, []byte("\n\n")) {
		if bytes.Contains(stack, []byte("baton/rpcnet.")) || bytes.Contains(stack, []byte("quic-go")) {
			n++
		}
	}
	return n
}

// sizes asks all nodes, which must be up.
func (c *cluster) sizes(ctx context.Context) (all []control.Process, largest size, err error) {
	for _, ctl := range c.control {
		p, err := ctl.Process(ctx)
		if err != nil {
			return nil, size{}, err
		}
		all = append(all, p)
		largest.Goroutines = max(largest.Goroutines, p.Goroutines)
		largest.HeapBytes = max(largest.HeapBytes, p.HeapBytes)
	}
	return all, largest, nil
}

// grown closes all clients and waits until nodes, and this process, are about as
// large as they were before.
func (t *torture) grown(ctx context.Context) {
	for _, c := range t.load.clients {
		c.Close()
	}
	ctx, cancel := context.WithTimeout(ctx, growthLimit)
	defer cancel()
	g := &t.size
	sessions := uint64(len(t.load.finished) + t.load.tally.Lives)
	err := proc.Poll(ctx, time.Second, func() error {
		all, largest, err := t.cluster.sizes(ctx)
		if err != nil {
			return err
		}
		g.After, g.ClientsAfter = largest, clientGoroutines()
		for i, p := range all {
			if limit := g.Before.Goroutines + goroutinesMore; p.Goroutines > limit {
				return fmt.Errorf("%s has %d goroutines, at most %d were expected", mesh.Node(i), p.Goroutines, limit)
			}
			if limit := g.Before.HeapBytes + heapMore + heapPerSession*sessions; p.HeapBytes > limit {
				return fmt.Errorf("%s has %d MiB on its heap, at most %d were expected", mesh.Node(i), p.HeapBytes>>20, limit>>20)
			}
		}
		if limit := g.ClientsBefore + clientsMore*t.nodes; g.ClientsAfter > limit {
			return fmt.Errorf("the clients have %d goroutines, at most %d were expected", g.ClientsAfter, limit)
		}
		return nil
	})
	if err != nil {
		t.complain(check.Violation{Check: "growth", Detail: fmt.Sprintf("%v after all clients had gone: %v", growthLimit, err)})
		t.keepStacks()
	}
}

// keepStacks leaves the nodes' goroutines beside their logs.
func (t *torture) keepStacks() {
	ctx, cancel := context.WithTimeout(context.Background(), adminLimit)
	defer cancel()
	for i, ctl := range t.cluster.control {
		if text, err := ctl.Goroutines(ctx); err == nil {
			_ = writeFile(t.cluster.logPath(i)+".goroutines", []byte(text))
		}
	}
}
