package baton_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// testCluster is three nodes in this process, on loopback, with real disks.
type testCluster struct {
	t     testing.TB
	pki   string
	dir   string
	mgmt  []string
	user  []string
	nodes []*baton.Node
	mux   func() *baton.Mux
	// network is what a node is on, if not the operating system's.
	network func(i int) seam.Network
	edit    func(i int, cfg *baton.Config) // may be nil
}

// testTime bounds a whole test. It is a hang's limit, not a claim about speed.
const testTime = 2 * time.Minute

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	t.Cleanup(cancel)
	return ctx
}

func startCluster(t testing.TB, mux func() *baton.Mux) *testCluster {
	t.Helper()
	return startClusterOn(t, mux, func(int) seam.Network { return nil })
}

func startClusterOn(t testing.TB, mux func() *baton.Mux, network func(i int) seam.Network) *testCluster {
	t.Helper()
	return (&testCluster{t: t, mux: mux, network: network}).start()
}

// startClusterWith edits each node's configuration, now and whenever it is opened
// again.
func startClusterWith(t testing.TB, edit func(i int, cfg *baton.Config)) *testCluster {
	t.Helper()
	return (&testCluster{t: t, network: func(int) seam.Network { return nil }, edit: edit}).start()
}

func (c *testCluster) start() *testCluster {
	t := c.t
	t.Helper()
	if c.mux == nil {
		c.mux = baton.KV
	}
	c.dir, c.nodes = t.TempDir(), make([]*baton.Node, 3)
	c.pki = filepath.Join(c.dir, "pki")
	must(t, baton.PKIInit(c.pki))
	for i := range c.nodes {
		must(t, baton.PKIIssue(c.pki, c.name(i), []string{"127.0.0.1"}))
		c.mgmt = append(c.mgmt, freeAddr(t))
		c.user = append(c.user, freeAddr(t))
	}
	errs := make(chan error, len(c.nodes))
	for i := range c.nodes {
		go func() { errs <- c.open(i) }()
	}
	for range c.nodes {
		must(t, <-errs)
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			if n != nil {
				_ = n.Close()
			}
		}
	})
	return c
}

func (c *testCluster) name(i int) string { return fmt.Sprintf("n%d", i+1) }

func (c *testCluster) open(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), testTime)
	defer cancel()
	var log *slog.Logger
	if os.Getenv("BATON_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	cfg := baton.Config{
		Name: c.name(i), Data: filepath.Join(c.dir, c.name(i)), PKI: c.pki,
		UserAddr: c.user[i], MgmtAddr: c.mgmt[i], Join: c.mgmt, Expect: 3, Profile: "local", Mux: c.mux(), Log: log,
		Network: c.network(i),
	}
	if c.edit != nil {
		c.edit(i, &cfg)
	}
	n, err := baton.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("opening %s: %w", c.name(i), err)
	}
	c.nodes[i] = n
	return nil
}

func (c *testCluster) client(addrs ...string) *baton.Client {
	c.t.Helper()
	if len(addrs) == 0 {
		addrs = c.user
	}
	cl, err := baton.Dial(testContext(c.t), baton.ClientConfig{Addrs: addrs, PKI: c.pki})
	must(c.t, err)
	c.t.Cleanup(func() { _ = cl.Close() })
	return cl
}

func (c *testCluster) admin() *baton.Admin {
	c.t.Helper()
	a, err := baton.DialAdmin(testContext(c.t), baton.AdminConfig{Addrs: c.mgmt, PKI: c.pki})
	must(c.t, err)
	c.t.Cleanup(func() { _ = a.Close() })
	return a
}

var givenAddrs sync.Map

// freeAddr finds a loopback port that is free for TCP and UDP, below those that
// the kernel hands out by itself: another test's client must not take it before
// the node does. None is given twice.
func freeAddr(t testing.TB) string {
	t.Helper()
	const low, high, tries = 10_000, 32_000, 100
	for range tries {
		addr := fmt.Sprintf("127.0.0.1:%d", low+rand.IntN(high-low))
		if _, given := givenAddrs.LoadOrStore(addr, true); given {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		p, err := net.ListenPacket("udp", addr)
		_ = l.Close()
		if err == nil {
			_ = p.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestSessionMovesAndKeepsItsState(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	s, err := c.client(c.user[0]).Open(ctx, baton.OpenOptions{ID: "alice"})
	must(t, err)
	for i := 1; i <= 10; i++ {
		sum, _, err := s.Incr(ctx, "n", 1)
		must(t, err)
		if sum != int64(i) {
			t.Fatalf("sum %d after %d increments", sum, i)
		}
	}
	target := "n2"
	if s.Owner().Name == target {
		target = "n3"
	}
	c.moveTo(ctx, c.admin(), "alice", target)
	sum, r, err := s.Incr(ctx, "n", 1)
	must(t, err)
	if sum != 11 || r.Node != target {
		t.Fatalf("after the move: %d on %s", sum, r.Node)
	}
	v, err := s.Get(ctx, "n")
	must(t, err)
	if string(v.Value) != "11" || v.Owner != target {
		t.Fatalf("read %q from %s", v.Value, v.Owner)
	}
	verdict := c.verify(ctx)
	if !verdict.OK || verdict.Checked == 0 {
		t.Fatalf("verify: %+v", verdict)
	}
}
