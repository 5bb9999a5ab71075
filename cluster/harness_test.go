package cluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/baton-cluster/baton/fsm"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// testTime bounds a whole test: it only ends one that hangs.
const testTime = 90 * time.Second

func TestMain(m *testing.M) {
	if dir := os.Getenv("BATON_TEST_LOCK_DIR"); dir != "" {
		os.Exit(lockElsewhere(dir))
	}
	goleak.VerifyTestMain(m)
}

var testPKI = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "baton-cluster-pki")
	if err != nil {
		return "", err
	}
	if err := pki.Init(dir); err != nil {
		return "", err
	}
	return dir, pki.Issue(dir, "node", []string{"127.0.0.1"})
})

func testIdentity(t testing.TB) *pki.Identity {
	t.Helper()
	dir, err := testPKI()
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir, "node")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// testNode is one node of a test's cluster, on real loopback sockets.
type testNode struct {
	t    testing.TB
	name string
	dir  string
	addr string
	id   Identity

	lock  *DirLock
	mgmt  *rpcnet.Mgmt
	peers *rpcnet.Peers
	c     *Cluster
	serve sync.WaitGroup
	fatal chan error
	clock seam.Clock // passed to Config

	edit func(*Config)
}

func newTestNode(t testing.TB, name string) *testNode {
	n := &testNode{t: t, name: name, dir: filepath.Join(t.TempDir(), name), fatal: make(chan error, 1)}
	n.listen("127.0.0.1:0")
	return n
}

func testLog() *slog.Logger {
	if os.Getenv("BATON_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (n *testNode) listen(addr string) {
	n.t.Helper()
	id := testIdentity(n.t)
	mgmt, err := rpcnet.ListenMgmt(rpcnet.MgmtConfig{
		Network: seam.OSNetwork{}, Clock: seam.OSClock{}, Addr: addr, TLS: id.PeerServer(rpcnet.ALPNRaft, rpcnet.ALPNPeer),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.mgmt, n.addr = mgmt, mgmt.Addr().String()
}

func dialRaft(id *pki.Identity) func(ctx context.Context, addr string) (net.Conn, error) {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		raw, err := seam.OSNetwork{}.Dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		c := tls.Client(raw, id.PeerClient(rpcnet.ALPNRaft))
		if err := c.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		return c, nil
	}
}

// open starts the node; its error is the caller's to judge.
func (n *testNode) open(expect int, join ...string) error {
	n.t.Helper()
	if n.mgmt == nil {
		n.listen(n.addr)
	}
	lock, err := LockDir(n.dir)
	if err != nil {
		n.t.Fatal(err)
	}
	n.lock = lock
	if n.id, err = n.lock.Identity(n.name); err != nil {
		n.t.Fatal(err)
	}
	id := testIdentity(n.t)
	services := rpcnet.NewServices()
	var c atomic.Pointer[Cluster] // Open already makes calls
	n.peers = rpcnet.NewPeers(rpcnet.PeerConfig{
		Self: n.id.ID, Services: services, TLS: id.PeerClient(rpcnet.ALPNPeer), ALPN: rpcnet.ALPNPeer,
		ClusterID: func() []byte {
			if c := c.Load(); c != nil {
				return c.ClusterID()
			}
			return nil
		},
	})
	cfg := Config{
		ID: n.id.ID, Name: n.name, Dir: n.dir, Advertise: n.addr, Expect: expect, Join: join, Voter: true,
		Profile: ProfileLocal, Mgmt: n.mgmt, Peers: n.peers, Services: services, RaftDial: dialRaft(id),
		Log: testLog(), OnFatal: func(err error) { n.fatal <- err },
	}
	cfg.Timings.Pilot, cfg.Timings.VoterPace = 10*time.Millisecond, 20*time.Millisecond
	if n.edit != nil {
		n.edit(&cfg)
	}
	opened, err := Open(n.t.Context(), cfg)
	if err != nil {
		n.stopNetwork()
		_ = n.lock.Close()
		return err
	}
	c.Store(opened)
	n.c = opened
	n.mgmt.Handle(rpcnet.ALPNPeer, n.peers.Serve)
	mgmt := n.mgmt
	n.serve.Go(func() { _ = mgmt.Serve() })
	return nil
}

func (n *testNode) mustOpen(expect int, join ...string) {
	n.t.Helper()
	if err := n.open(expect, join...); err != nil {
		n.t.Fatalf("open %s: %v", n.name, err)
	}
}

func (n *testNode) stopNetwork() {
	n.peers.Close()
	_ = n.mgmt.Close()
	n.serve.Wait()
	n.mgmt = nil
}

// close stops the node in order. It may be called more than once.
func (n *testNode) close() {
	n.t.Helper()
	if n.c == nil {
		if n.mgmt != nil {
			_ = n.mgmt.Close()
			n.mgmt = nil
		}
		return
	}
	if err := n.c.Close(); err != nil {
		n.t.Errorf("close %s: %v", n.name, err)
	}
	n.stopNetwork()
	_ = n.lock.Close()
	n.c = nil
}

// kill takes the node off the network first, in the middle of what it does.
func (n *testNode) kill() {
	_ = n.c.trans.Close()
	n.stopNetwork()
	_ = n.c.Close()
	_ = n.lock.Close()
	n.c = nil
}

// steady gives a leader a lease that outlasts this process's pauses, for tests in
// which every step needs the same one. The first election takes as long.
func steady(c *Config) {
	c.Timings.Heartbeat, c.Timings.Election, c.Timings.Lease = 2*time.Second, 2*time.Second, 2*time.Second
}

// hastyClock waits a tenth as long from when it is told to.
type hastyClock struct {
	seam.OSClock
	hasty atomic.Bool
}

func (c *hastyClock) AfterFunc(d time.Duration, f func()) seam.Timer {
	if c.hasty.Load() {
		d /= 10
	}
	return c.OSClock.AfterFunc(d, f)
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTime)
	t.Cleanup(cancel)
	return ctx
}

// eventually polls until fn holds. It asserts no time; it only gives up.
func eventually(t testing.TB, what string, fn func() bool) {
	t.Helper()
	ctx := testCtx(t)
	for !fn() {
		if seam.Sleep(ctx, seam.OSClock{}, 5*time.Millisecond) != nil {
			t.Fatalf("never: %s", what)
		}
	}
}

// newCluster starts n nodes that form one cluster.
func newCluster(t testing.TB, n int, edit func(*Config)) []*testNode {
	t.Helper()
	nodes := make([]*testNode, n)
	var addrs []string
	for i := range nodes {
		nodes[i] = newTestNode(t, fmt.Sprintf("n%d", i+1))
		nodes[i].edit = edit
		addrs = append(addrs, nodes[i].addr)
	}
	for _, node := range nodes {
		node.mustOpen(n, addrs...)
	}
	t.Cleanup(func() { closeAll(nodes) })
	waitReady(t, nodes...)
	return nodes
}

func closeAll(nodes []*testNode) {
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(n.close)
	}
	wg.Wait()
}

func waitReady(t testing.TB, nodes ...*testNode) {
	t.Helper()
	ctx := testCtx(t)
	for _, n := range nodes {
		if err := n.c.WaitReady(ctx); err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
	}
}

// leaderOf returns the leader, once there is one, and the others.
func leaderOf(t testing.TB, nodes []*testNode) (leader *testNode, others []*testNode) {
	t.Helper()
	eventually(t, "one leader", func() bool {
		leader, others = nil, nil
		for _, n := range nodes {
			if n.c != nil && n.c.IsLeader() {
				leader = n
			} else if n.c != nil {
				others = append(others, n)
			}
		}
		return leader != nil
	})
	return leader, others
}

// sameState waits until all nodes have applied the same and checks that it is
// the same.
func sameState(t testing.TB, nodes []*testNode) {
	t.Helper()
	ctx := testCtx(t)
	var index, hash uint64
	for i, n := range nodes {
		if i == 0 {
			if err := n.c.Barrier(ctx); err != nil {
				t.Fatal(err)
			}
			hash, index, _ = n.c.FSM().HashAt(0)
		}
		if err := n.c.waitApplied(ctx, index); err != nil {
			t.Fatal(err)
		}
		h, at, ok := n.c.FSM().HashAt(index)
		if !ok || at != index || h != hash {
			t.Errorf("%s: state %x at %d (%v), want %x at %d", n.name, h, at, ok, hash, index)
		}
	}
}

// testWorker is a registered worker with sessions that count.
type testWorker struct {
	owner *wire.Owner
}

func register(t testing.TB, n *testNode, id string) *testWorker {
	t.Helper()
	res, err := n.c.ProposeWait(testCtx(t), &wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: id, Name: id, Nonce: []byte("0123456789abcdef"), Endpoint: &wire.Endpoint{Host: "127.0.0.1", UserPort: 1, MgmtPort: 2},
	}}})
	if err != nil || res[0].GetCode() != wire.Code_OK {
		t.Fatalf("register: %v %v", res, err)
	}
	return &testWorker{owner: &wire.Owner{Worker: id, Incarnation: res[0].GetEpoch()}}
}

var testClient = []byte("client-instance!")

// session opens a session and attaches to it.
func (w *testWorker) session(t testing.TB, n *testNode, id string) (epoch uint64) {
	t.Helper()
	ctx := testCtx(t)
	res, err := n.c.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
		Session: id, Nonce: []byte("nonce-" + id + "-0123456789")[:16], SecretHash: make([]byte, 32), TtlUs: uint64(time.Hour.Microseconds()),
		Owner: w.owner, DeadlineUs: n.c.LogTimeUS() + uint64(time.Hour.Microseconds()),
	}}})
	if err != nil || res[0].GetCode() != wire.Code_OK {
		t.Fatalf("open %s: %v %v", id, res, err)
	}
	epoch = res[0].GetEpoch()
	res, err = n.c.ProposeWait(ctx, &wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
		Session: id, Epoch: epoch, Owner: w.owner, Number: 1, Client: testClient, Fresh: true,
	}}})
	if err != nil || res[0].GetCode() != wire.Code_OK {
		t.Fatalf("attach %s: %v %v", id, res, err)
	}
	return epoch
}

// write is the command that makes the session's counter seq, as its request seq.
func (w *testWorker) write(id string, epoch, seq uint64) *wire.Command {
	value := fmt.Append(nil, seq)
	cmd := &wire.Write{
		Session: id, Epoch: epoch, Owner: w.owner, Client: testClient, Seq: seq, Prev: seq - 1, Ack: seq,
		Changes: []*wire.Change{{Key: "count", Value: value}},
		Reply:   &wire.Reply{Seq: seq, Payload: value},
	}
	cmd.Digest = wire.Digest(cmd)
	return &wire.Command{Kind: &wire.Command_Write{Write: cmd}}
}

func rowOf(n *testNode, id string) (row *wire.SessionRow) {
	n.c.FSM().View(func(s *store.Store) { row = s.Row(id) })
	return row
}

func tick() *wire.Command {
	return &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}}
}

// configurationWith returns the voters of the entry at index, if that is a
// configuration with the server in it; nil if not.
func (l *guardedLog) configurationWith(t testing.TB, index uint64, id string) []string {
	t.Helper()
	var e raft.Log
	if err := l.GetLog(index, &e); err != nil || e.Type != raft.LogConfiguration {
		return nil
	}
	c := raft.DecodeConfiguration(e.Data)
	for _, s := range c.Servers {
		if string(s.ID) == id {
			return append([]string{}, fsm.VotersOf(c)...)
		}
	}
	return nil
}
