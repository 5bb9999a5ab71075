package baton_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// sends counts what the sockets of a cluster and its clients are given to send:
// each is a system call, and mostly a wake-up at the far end.
type sends struct {
	seam.Network
	udp, tcp *atomic.Int64
}

type countedUDP struct {
	*net.UDPConn
	n *atomic.Int64
}

func (c countedUDP) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (int, int, error) {
	c.n.Add(1)
	return c.UDPConn.WriteMsgUDP(b, oob, to)
}

type countedTCP struct {
	net.Conn
	n *atomic.Int64
}

func (c countedTCP) Write(b []byte) (int, error) {
	c.n.Add(1)
	return c.Conn.Write(b)
}

func (s sends) ListenPacket(addr string) (net.PacketConn, error) {
	c, err := s.Network.ListenPacket(addr)
	if u, ok := c.(*net.UDPConn); ok {
		return countedUDP{u, s.udp}, err
	}
	return c, err
}

func (s sends) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := s.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return countedTCP{c, s.tcp}, nil
}

func (s sends) Listen(addr string) (net.Listener, error) {
	l, err := s.Network.Listen(addr)
	return countedListener{l, s.tcp}, err
}

type countedListener struct {
	net.Listener
	n *atomic.Int64
}

func (l countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedTCP{c, l.n}, nil
}

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
	var nodesUDP, clientsUDP, tcp atomic.Int64
	c := startClusterWith(b, func(_ int, cfg *baton.Config) {
		cfg.Network = sends{seam.OSNetwork{}, &nodesUDP, &tcp}
		cfg.Profile = "wan" // an election on a busy machine would count as part of the moves
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	clients := make([]*baton.Client, conns)
	var g errgroup.Group
	g.SetLimit(64)
	for i := range clients {
		cl, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user, PKI: c.pki, Network: sends{seam.OSNetwork{}, &clientsUDP, &tcp}})
		must(b, err)
		b.Cleanup(func() { _ = cl.Close() })
		clients[i] = cl
	}
	for i := range sessions {
		g.Go(func() error {
			_, err := clients[i%conns].Open(ctx, baton.OpenOptions{ID: fmt.Sprintf("s%05d", i), TTL: time.Hour, Node: "n2"})
			return err
		})
	}
	must(b, g.Wait())
	a := c.admin()
	entries := func() (n uint64) {
		st, err := a.Status(ctx)
		must(b, err)
		for _, node := range st.Nodes {
			n += node.Batch.Entries
		}
		return n
	}
	b.ResetTimer()
	counted := [4]int64{nodesUDP.Load(), clientsUDP.Load(), tcp.Load(), int64(entries())}
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
	per := func(name string, now int64, i int) {
		b.ReportMetric(float64(now-counted[i])/float64(moved), name+"/session")
	}
	per("node-udp", nodesUDP.Load(), 0)
	per("client-udp", clientsUDP.Load(), 1)
	per("tcp", tcp.Load(), 2)
	per("entries", int64(entries()), 3)
	b.ReportMetric(float64(cpu.Microseconds())/float64(moved), "cpu-us/session")
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(moved)/b.Elapsed().Seconds(), "sessions/s")
}
