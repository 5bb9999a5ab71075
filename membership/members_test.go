package membership

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const alpn = "baton-gossip/1"

// testProfile detects fast and forgets the dead fast, so that a partition
// outlives memberlist's memory.
var testProfile = Profile{
	ProbeEvery: 100 * time.Millisecond, ProbeTimeout: 50 * time.Millisecond, SuspectRounds: 3,
	GossipEvery: 20 * time.Millisecond, PushPullEvery: time.Second, StreamTimeout: 2 * time.Second,
	RejoinEvery: 200 * time.Millisecond, KeepDead: 200 * time.Millisecond,
}

// goleak's patience: memberlist's own goroutines end within a probe or two
// after Shutdown, which does not wait for them.
func verifyNoLeaks(t *testing.T) {
	t.Helper()
	var err error
	for range 20 {
		if err = goleak.Find(goleak.IgnoreAnyFunction("testing.(*T).Run")); err == nil {
			return
		}
	}
	t.Error(err)
}

// testNet is a network in which links can be cut, each direction alone.
type testNet struct {
	seam.OSNetwork
	mu  sync.Mutex
	cut map[[2]string]bool // from, to
}

func (n *testNet) set(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut == nil {
		n.cut = map[[2]string]bool{}
	}
	n.cut[[2]string{from, to}] = cut
}

func (n *testNet) isolate(one string, others ...string) {
	for _, o := range others {
		n.set(one, o, true)
		n.set(o, one, true)
	}
}

func (n *testNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

func (n *testNet) isCut(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[[2]string{from, to}]
}

// testPacket drops what its node sends over a cut link, and fails at it: a
// network may do either.
type testPacket struct {
	net.PacketConn
	net  *testNet
	self string
}

func (p *testPacket) WriteTo(b []byte, to net.Addr) (int, error) {
	if p.net.isCut(p.self, to.String()) {
		return 0, errors.New("the link is cut")
	}
	return p.PacketConn.WriteTo(b, to)
}

// testCluster makes nodes on loopback with real TLS.
type testCluster struct {
	t   *testing.T
	net *testNet
	dir string
	key []byte
}

var testPKI = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "baton-pki")
	if err == nil {
		err = errors.Join(pki.Init(dir), pki.Issue(dir, "n1", nil))
	}
	if err != nil {
		panic(err)
	}
	return dir
})

func newTestCluster(t *testing.T) *testCluster {
	return &testCluster{t: t, net: &testNet{}, dir: testPKI(), key: bytes.Repeat([]byte{7}, KeyBytes)}
}

// testNode is one node with its listener.
type testNode struct {
	*Members
	t       *testing.T
	addr    string
	ln      net.Listener
	wg      sync.WaitGroup
	changes chan struct{}
	cluster atomic.Value // string
	once    sync.Once
}

// bind finds a port that is free for TCP and UDP.
func bind(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if p, err := net.ListenPacket("udp", ln.Addr().String()); err == nil {
			return ln, p
		}
		ln.Close()
	}
	t.Fatal("no port is free for both TCP and UDP")
	return nil, nil
}

func (c *testCluster) start(id string, edit func(*Config)) *testNode {
	c.t.Helper()
	n, err := c.tryStart(id, edit)
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

func (c *testCluster) tryStart(id string, edit func(*Config)) (*testNode, error) {
	c.t.Helper()
	ident, err := pki.Load(c.dir, "n1")
	if err != nil {
		c.t.Fatal(err)
	}
	raw, packet := bind(c.t)
	n := &testNode{t: c.t, addr: raw.Addr().String(), changes: make(chan struct{}, 1)}
	n.ln = tls.NewListener(raw, ident.PeerServer(alpn))
	n.cluster.Store("")
	cfg := Config{
		ID: id, Name: "name-" + id, Packet: &testPacket{packet, c.net, n.addr}, Advertise: n.addr, Key: c.key,
		ClusterID: func() []byte { return []byte(n.cluster.Load().(string)) },
		Profile:   testProfile,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			if c.net.isCut(n.addr, addr) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("the link is cut")}
			}
			raw, err := c.net.Dial(ctx, addr)
			if err != nil {
				return nil, err
			}
			t := tls.Client(raw, ident.PeerClient(alpn))
			if err := t.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			return t, nil
		},
		OnChange: func() {
			select {
			case n.changes <- struct{}{}:
			default:
			}
		},
	}
	if edit != nil {
		edit(&cfg)
	}
	if n.Members, err = New(cfg); err != nil {
		n.ln.Close()
		return nil, err
	}
	n.wg.Go(func() {
		for {
			conn, err := n.ln.Accept()
			if err != nil {
				return
			}
			n.Handle(conn)
		}
	})
	c.t.Cleanup(n.stop)
	return n, nil
}

// stop is a crash, as far as the others can tell.
func (n *testNode) stop() {
	n.once.Do(func() {
		if err := n.Close(); err != nil {
			n.t.Error(err)
		}
		n.ln.Close()
		n.wg.Wait()
	})
}

// await waits until the node sees member id in this state, at addr if given.
func (n *testNode) await(id string, want State, addr string) {
	n.t.Helper()
	timeout := time.After(60 * time.Second)
	for {
		alive, known := n.Alive(id)
		for _, m := range n.List() {
			if m.ID != id || addr != "" && m.Addr != addr {
				continue
			}
			got := m.State
			if got == Suspect {
				got = Alive
			}
			if got == want && known && alive == (want == Alive) {
				return
			}
		}
		select {
		case <-n.changes:
		case <-timeout:
			n.t.Fatalf("%s never saw %s %s; it sees %v", n.cfg.ID, id, want, n.List())
		}
	}
}

func (c *testCluster) three() (a, b, d *testNode) {
	c.t.Helper()
	a, b, d = c.start("a", nil), c.start("b", nil), c.start("c", nil)
	// c knows only b, and so learns of a from it.
	if n, err := b.Join([]string{a.addr, b.addr}); n != 1 || err != nil {
		c.t.Fatalf("joined %d, %v; a node does not count itself", n, err)
	}
	if n, err := d.Join([]string{b.addr}); n != 1 || err != nil {
		c.t.Fatalf("joined %d, %v", n, err)
	}
	for _, n := range []*testNode{a, b, d} {
		for _, id := range []string{"a", "b", "c"} {
			n.await(id, Alive, "")
		}
	}
	return a, b, d
}

func TestThreeNodesFindEachOtherAndOneDies(t *testing.T) {
	defer verifyNoLeaks(t)
	c := newTestCluster(t)
	a, b, d := c.three()
	defer func() { a.stop(); b.stop(); d.stop() }()
	want := []Member{{ID: "a", Name: "name-a", Addr: a.addr}, {ID: "b", Name: "name-b", Addr: b.addr}, {ID: "c", Name: "name-c", Addr: d.addr}}
	for i, m := range a.List() {
		if w := want[i]; m.ID != w.ID || m.Name != w.Name || m.Addr != w.Addr || m.LastSeen.IsZero() {
			t.Errorf("%+v, want %+v", m, w)
		}
	}
	d.stop()
	a.await("c", Dead, "")
	b.await("c", Dead, "")
	if _, known := a.Alive("stranger"); known {
		t.Error("a stranger is known")
	}
}

func TestLeaveIsNotDeath(t *testing.T) {
	defer verifyNoLeaks(t)
	c := newTestCluster(t)
	a, b, d := c.three()
	defer func() { a.stop(); b.stop(); d.stop() }()
	for range 2 {
		if err := d.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.await("c", Left, "")
	b.await("c", Left, "")
	d.stop()
	if err := d.Leave(t.Context()); wire.CodeOf(err) != wire.Code_SHUTTING_DOWN {
		t.Fatalf("Leave after Close: %v", err)
	}
	// It comes back, elsewhere: ids stay with their node.
	again := c.start("c", nil)
	defer again.stop()
	if _, err := again.Join([]string{a.addr}); err != nil {
		t.Fatal(err)
	}
	a.await("c", Alive, again.addr)
	b.await("c", Alive, again.addr)
}

// A crashed node that comes back at another address is the same node, once the
// old address is found dead.
func TestRestartElsewhere(t *testing.T) {
	c := newTestCluster(t)
	a, b, d := c.three()
	d.stop()
	again := c.start("c", nil)
	for _, n := range []*testNode{a, b} {
		n.SetPeers(func() []string { return []string{a.addr, b.addr, again.addr} })
	}
	a.await("c", Alive, again.addr)
	b.await("c", Alive, again.addr)
	again.await("a", Alive, a.addr)
}

// After a partition that outlasts memberlist's memory, the rejoin loop brings
// the nodes together again.
func TestPartitionAndRejoin(t *testing.T) {
	defer verifyNoLeaks(t)
	c := newTestCluster(t)
	a, b, d := c.three()
	defer func() { a.stop(); b.stop(); d.stop() }()
	peers := func() []string { return []string{a.addr, b.addr, d.addr} }
	for _, n := range []*testNode{a, b, d} {
		n.SetPeers(peers)
	}
	c.net.isolate(d.addr, a.addr, b.addr)
	a.await("c", Dead, "")
	b.await("c", Dead, "")
	d.await("a", Dead, "")
	d.await("b", Dead, "")
	// Outlast memberlist's memory of its dead, so that only the loop can help.
	for !forgotten(a) || !forgotten(d) {
		time.Sleep(testProfile.ProbeEvery)
	}
	c.net.heal()
	a.await("c", Alive, "")
	b.await("c", Alive, "")
	d.await("a", Alive, "")
	d.await("b", Alive, "")
}

// forgotten reports whether memberlist has stopped gossiping to its dead, for
// which it has no event.
func forgotten(n *testNode) bool {
	n.table.mu.Lock()
	defer n.table.mu.Unlock()
	for _, e := range n.table.members {
		if e.state == Dead && n.cfg.Clock.Now()-e.seen < 4*testProfile.KeepDead {
			return false
		}
	}
	return true
}

// One link that is cut one way is no death: others vouch for the node.
func TestOneWayCutIsVouchedFor(t *testing.T) {
	c := newTestCluster(t)
	a, b, d := c.three()
	c.net.set(a.addr, d.addr, true)
	// Evidence that gossip went on for a while: news of another node's coming
	// reach everybody.
	late := c.start("late", nil)
	if _, err := late.Join([]string{b.addr}); err != nil {
		t.Fatal(err)
	}
	a.await("late", Alive, "")
	d.await("late", Alive, "")
	for !a.misses("c") {
		time.Sleep(testProfile.ProbeEvery)
	}
	a.await("c", Alive, "")
}

// misses reports whether the node's own probes of member id fail, for which there is no
// event.
func (n *testNode) misses(id string) bool {
	return slices.ContainsFunc(n.List(), func(m Member) bool { return m.ID == id && m.State != Alive })
}

func TestStrangersAreNotTakenIn(t *testing.T) {
	c := newTestCluster(t)
	a := c.start("a", nil)
	a.cluster.Store("cluster-1")

	otherKey := c.start("x", func(cfg *Config) { cfg.Key = bytes.Repeat([]byte{8}, KeyBytes) })
	if _, err := otherKey.Join([]string{a.addr}); wire.CodeOf(err) != wire.Code_UNAVAILABLE {
		t.Errorf("another key: %v", err)
	}
	otherCluster := c.start("y", func(cfg *Config) { cfg.ClusterID = func() []byte { return []byte("cluster-2") } })
	_, _ = otherCluster.Join([]string{a.addr}) // the exchange may work, the merge does not
	friend := c.start("z", nil)
	if _, err := friend.Join([]string{a.addr}); err != nil {
		t.Fatal(err)
	}
	a.await("z", Alive, "")
	for _, id := range []string{"x", "y"} {
		if _, known := a.Alive(id); known {
			t.Errorf("%s was taken in", id)
		}
	}
	if _, err := a.Join([]string{"nonsense"}); wire.CodeOf(err) != wire.Code_UNAVAILABLE {
		t.Errorf("%v", err)
	}
	if n, err := a.Join(nil); n != 0 || err != nil {
		t.Errorf("joining nobody: %d, %v", n, err)
	}
}

// The cluster's id is gossiped once it is known.
func TestClusterIDLearntLater(t *testing.T) {
	c := newTestCluster(t)
	a, b, _ := c.three()
	b.cluster.Store("cluster-1")
	timeout := time.After(60 * time.Second)
	for {
		a.table.mu.Lock()
		got := a.table.members["b"].cluster
		a.table.mu.Unlock()
		if got == "cluster-1" {
			return
		}
		select {
		case <-a.changes:
		case <-timeout:
			t.Fatalf("a still sees cluster %q", got)
		}
	}
}

func TestGarbageOnThePorts(t *testing.T) {
	c := newTestCluster(t)
	a, b, _ := c.three()
	u, err := net.Dial("udp", a.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for i := range 300 {
		if _, err := u.Write(bytes.Repeat([]byte{byte(i)}, i)); err != nil {
			t.Fatal(err)
		}
		_, _ = u.Write([]byte{244, byte(i)}) // a label that is cut short
	}
	near, far := net.Pipe()
	a.Handle(far)
	_, _ = near.Write([]byte{244, 3, 'x', 'y', 'z'})
	near.Close()
	// It still gossips.
	late := c.start("late", nil)
	if _, err := late.Join([]string{a.addr}); err != nil {
		t.Fatal(err)
	}
	b.await("late", Alive, "")
}

func TestConfigFaults(t *testing.T) {
	c := newTestCluster(t)
	for name, edit := range map[string]func(*Config){
		"no id":       func(c *Config) { c.ID = "" },
		"long id":     func(c *Config) { c.ID = string(make([]byte, idBytesMax+1)) },
		"long name":   func(c *Config) { c.Name = string(make([]byte, nameBytesMax+1)) },
		"no key":      func(c *Config) { c.Key = nil },
		"no dial":     func(c *Config) { c.Dial = nil },
		"no address":  func(c *Config) { c.Advertise = "" },
		"no port":     func(c *Config) { c.Advertise = "127.0.0.1:0" },
		"bad profile": func(c *Config) { c.Profile.ProbeTimeout = c.Profile.ProbeEvery },
		"long cluster": func(c *Config) {
			c.ClusterID = func() []byte { return make([]byte, clusterBytesMax+1) }
		},
	} {
		if n, err := c.tryStart("a", edit); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("%s: %v, %v", name, n, err)
		}
	}
	for _, name := range []string{"local", "lan", "wan"} {
		p, err := ProfileNamed(name)
		cfg := Config{ID: "a", Key: c.key, Dial: func(context.Context, string) (net.Conn, error) { return nil, nil }, Profile: p}
		if err != nil || cfg.fill() != nil {
			t.Errorf("profile %s: %v, %v", name, err, cfg.fill())
		}
	}
	if _, err := ProfileNamed("moon"); err == nil {
		t.Error("there is no profile moon")
	}
}

// Close may come twice, at once, with streams open and while dialling.
func TestCloseWhileBusy(t *testing.T) {
	defer verifyNoLeaks(t)
	c := newTestCluster(t)
	dialling := make(chan struct{}, 1)
	n := c.start("a", func(cfg *Config) {
		cfg.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			dialling <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
		cfg.Profile.StreamTimeout = time.Hour
	})
	near, far := net.Pipe()
	n.Handle(far)
	n.SetPeers(func() []string { return []string{"127.0.0.1:1"} })
	<-dialling
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(n.stop)
	}
	wg.Wait()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Read(make([]byte, 1)); err == nil {
		t.Error("a stream outlived Close")
	}
	_, late := net.Pipe()
	n.Handle(late) // must not block
}

func ExampleMember() {
	fmt.Println(Member{ID: "a", State: Dead}.State)
	// Output: dead
}
