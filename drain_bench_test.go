package baton_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

// drained is how many sessions BenchmarkDrain moves; BATON_DRAINED says otherwise.
func drained(b *testing.B) (sessions, conns int) {
	sessions = 1000
	if v := os.Getenv("BATON_DRAINED"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			b.Fatal(err)
		}
		sessions = n
	}
	return sessions, max(1, sessions/50)
}

// BenchmarkDrain drains a node of attached sessions, fifty a connection, with
// nodes and clients in this process: what a profile shows is all of it.
func BenchmarkDrain(b *testing.B) {
	sessions, conns := drained(b)
	c := startCluster(b, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	clients := make([]*baton.Client, conns)
	var g errgroup.Group
	g.SetLimit(64)
	for i := range clients {
		clients[i] = c.client()
	}
	for i := range sessions {
		g.Go(func() error {
			_, err := clients[i%conns].Open(ctx, baton.OpenOptions{ID: fmt.Sprintf("s%05d", i), TTL: time.Hour, Node: "n2"})
			return err
		})
	}
	must(b, g.Wait())
	a := c.admin()
	b.ResetTimer()
	var before, after syscall.Rusage
	_ = syscall.Getrusage(0, &before)
	node, moved := 1, 0
	for range b.N {
		r, err := a.Drain(ctx, c.name(node), baton.DrainOptions{}, nil)
		must(b, err)
		if r.Lost+r.Duplicated+r.Failed > 0 {
			b.Fatalf("%+v", r)
		}
		moved += r.Moved
		must(b, a.Undrain(ctx, c.name(node)))
		node = (node + 1) % 3
	}
	_ = syscall.Getrusage(0, &after)
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	b.ReportMetric(float64(cpu.Microseconds())/float64(moved), "cpu-us/session")
	b.ReportMetric(float64(moved)/b.Elapsed().Seconds(), "sessions/s")
}
