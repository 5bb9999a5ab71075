// Package mesh puts user-space proxies on every path between the processes
// under test, so that each direction of each pair of hosts can be cut, delayed
// or made lossy without root.
//
// A run owns one /24 of loopback. Host k of it has a real address, from which
// it listens and dials, and every node has a second, public address, which it
// advertises and on which its proxy listens:
//
//	node k    real 127.a.b.k      public 127.a.b.(100+k)
//	client k  real 127.a.b.(200+k)
//
// All peers are told the same public address of a node; the proxy there tells
// who sends by the source's IP, and that names the link.
//
// Packets between nodes (gossip, relays) are rewritten from real to public
// address: what S sends to T's public address leaves from S's public address
// towards T, so answers to the packet's source and to the address advertised in
// a message both go back through a proxy. Any other source (clients; sockets
// of a node on an ephemeral port) gets a socket per flow, like behind a NAT.
//
// Streams are piped. A blocked direction holds bytes and the end of the stream;
// Sever resets the connections of a pair. A source that is no host of the mesh
// (an administrator on 127.0.0.1) is never held up.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Sizes and limits.
const (
	NodesMax   = 50 // the address plan has room for so many
	ClientsMax = 50
	packetMax  = 64 << 10
	flowsMax   = 8192            // of one node's proxy; past it the stalest goes
	flowIdle   = 2 * time.Minute // longer than a QUIC connection's idle timeout
)

// Config of a Mesh.
type Config struct {
	Seed    uint64 // of loss, duplication and jitter
	Nodes   int
	Clients int
	// Net, where set, is whose addresses hosts have instead of loopback ones that are
	// drawn; Hosts and Own tell them. Then blocked directions are Drop's to block, all
	// of them at each call, by source and destination of packets.
	Net  *[3]byte
	Drop func(pairs [][2]netip.Addr) error
}

// Hosts are the addresses of nodes and clients in net, by name.
func Hosts(net [3]byte, nodes, clients int) map[string]netip.Addr {
	out := map[string]netip.Addr{}
	for i := range nodes {
		out[Node(i)] = addrOf(net, realNode+i)
	}
	for i := range clients {
		out[Client(i)] = addrOf(net, realClient+i)
	}
	return out
}

// Own are the proxies' addresses in net, and one more that is in nobody's use.
func Own(net [3]byte, nodes int) (proxies []netip.Addr, spare netip.Addr) {
	for i := range nodes {
		proxies = append(proxies, addrOf(net, publicNode+i))
	}
	return append(proxies, addrOf(net, flowsFrom)), addrOf(net, flowsFrom-1)
}

func addrOf(net [3]byte, last int) netip.Addr {
	return netip.AddrFrom4([4]byte{net[0], net[1], net[2], byte(last)})
}

// The last bytes of addresses.
const (
	realNode   = 1
	publicNode = 101
	realClient = 201
	flowsFrom  = 254
)

// Mesh is the set of proxies. Its methods may be called from any goroutine.
type Mesh struct {
	cfg    Config
	net    [3]byte // 127.a.b, or Config.Net
	user   int     // port of every node's user plane
	mgmt   int
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	links map[[2]string]*link
	pipes map[*pipe]struct{}
	// blocked by Config.Drop, and what that failed with first.
	blocked map[[2]string]bool
	dropErr error

	nodes []*nodeProxy
}

// New binds all proxies. Close releases them.
func New(cfg Config) (*Mesh, error) {
	if cfg.Nodes < 1 || cfg.Nodes > NodesMax || cfg.Clients < 0 || cfg.Clients > ClientsMax {
		return nil, fmt.Errorf("mesh: nodes must be 1 to %d and clients 0 to %d", NodesMax, ClientsMax)
	}
	// Addresses and ports are drawn anew until all are free: other runs, and
	// other programs listening on all addresses, may hold some.
	var last error
	for range 20 {
		m := &Mesh{
			cfg:     cfg,
			net:     [3]byte{127, byte(64 + rand.IntN(128)), byte(rand.IntN(256))},
			links:   map[[2]string]*link{},
			pipes:   map[*pipe]struct{}{},
			blocked: map[[2]string]bool{},
		}
		if cfg.Net != nil {
			m.net = *cfg.Net
		}
		m.user = 10000 + 2*rand.IntN(9000) // below the ephemeral range
		m.mgmt = m.user + 1
		m.ctx, m.cancel = context.WithCancel(context.Background())
		if last = m.bind(); last == nil {
			return m, nil
		}
		m.Close()
	}
	return nil, fmt.Errorf("mesh: no free loopback addresses: %w", last)
}

func (m *Mesh) bind() error {
	for i := range m.cfg.Nodes {
		if m.cfg.Net == nil {
			if err := m.probe(i); err != nil {
				return err
			}
		}
		p, err := newNodeProxy(m, i)
		if err != nil {
			return err
		}
		m.nodes = append(m.nodes, p)
	}
	for _, p := range m.nodes {
		p.run()
	}
	return nil
}

// probe reports whether node i's real ports are free now.
func (m *Mesh) probe(i int) error {
	for _, addr := range []string{m.RealUser(i), m.RealMgmt(i)} {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return err
		}
		c.Close()
	}
	l, err := net.Listen("tcp4", m.RealMgmt(i))
	if err != nil {
		return err
	}
	return l.Close()
}

// Close ends all proxies and waits for them. It may be called repeatedly.
func (m *Mesh) Close() {
	m.cancel()
	for _, p := range m.nodes {
		p.close()
	}
	m.mu.Lock()
	pipes := make([]*pipe, 0, len(m.pipes))
	for p := range m.pipes {
		pipes = append(pipes, p)
	}
	m.mu.Unlock()
	for _, p := range pipes {
		p.reset()
	}
	m.wg.Wait()
}

// --- addresses ----------------------------------------------------------------

func (m *Mesh) ip(last int) netip.Addr { return addrOf(m.net, last) }

// Node names node i (from 0): n1, n2, …
func Node(i int) string { return fmt.Sprintf("n%d", i+1) }

// Client names client host i (from 0): c1, c2, …
func Client(i int) string { return fmt.Sprintf("c%d", i+1) }

// Outside names every source that is no host of the mesh.
const Outside = "outside"

// RealUser and RealMgmt are where node i listens.
func (m *Mesh) RealUser(i int) string { return m.realAddr(i, m.user).String() }
func (m *Mesh) RealMgmt(i int) string { return m.realAddr(i, m.mgmt).String() }

// PublicUser and PublicMgmt are what node i advertises.
func (m *Mesh) PublicUser(i int) string { return m.publicAddr(i, m.user).String() }
func (m *Mesh) PublicMgmt(i int) string { return m.publicAddr(i, m.mgmt).String() }

// ClientIP is the address that client host i must send from.
func (m *Mesh) ClientIP(i int) string { return m.ip(realClient + i).String() }

func (m *Mesh) realAddr(i, port int) netip.AddrPort {
	return netip.AddrPortFrom(m.ip(realNode+i), uint16(port))
}

func (m *Mesh) publicAddr(i, port int) netip.AddrPort {
	return netip.AddrPortFrom(m.ip(publicNode+i), uint16(port))
}

// who names the host that an address belongs to.
func (m *Mesh) who(a netip.Addr) string {
	b := a.Unmap().As4()
	if [3]byte(b[:3]) != m.net {
		return Outside
	}
	switch k := int(b[3]); {
	case k >= realNode && k < realNode+m.cfg.Nodes:
		return Node(k - realNode)
	case k >= realClient && k < realClient+m.cfg.Clients:
		return Client(k - realClient)
	}
	return Outside
}

// --- policies -----------------------------------------------------------------

func (m *Mesh) link(from, to string) *link {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]string{from, to}
	l := m.links[k]
	if l == nil {
		l = newLink(m.cfg.Seed, from, to)
		m.links[k] = l
	}
	return l
}

// Set gives the direction from→to a policy. Names are those of Node and Client.
func (m *Mesh) Set(from, to string, p Policy) {
	if m.cfg.Drop != nil {
		m.drop(from, to, p.Blocked)
		p.Blocked = false
	}
	m.link(from, to).set(p)
}

// drop has the packets from→to dropped, or no more. They travel from the sender to
// the receiver's proxy and on, or, as answers do, through the sender's.
func (m *Mesh) drop(from, to string, blocked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := [2]string{from, to}
	if m.blocked[k] == blocked {
		return
	}
	if m.blocked[k] = blocked; !blocked {
		delete(m.blocked, k)
	}
	hosts := Hosts(m.net, m.cfg.Nodes, m.cfg.Clients)
	var pairs [][2]netip.Addr
	for k := range m.blocked {
		for i := range m.cfg.Nodes {
			if k[1] == Node(i) {
				pairs = append(pairs, [2]netip.Addr{hosts[k[0]], m.ip(publicNode + i)})
			}
			if k[0] == Node(i) {
				pairs = append(pairs, [2]netip.Addr{m.ip(publicNode + i), hosts[k[1]]})
			}
		}
	}
	if err := m.cfg.Drop(pairs); err != nil && m.dropErr == nil {
		m.dropErr = err
	}
}

// DropErr is what Config.Drop failed with first.
func (m *Mesh) DropErr() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dropErr
}

// Update changes the policy of from→to, keeping what fn leaves alone.
func (m *Mesh) Update(from, to string, fn func(*Policy)) {
	l := m.link(from, to)
	l.mu.Lock()
	defer l.mu.Unlock()
	fn(&l.policy)
	close(l.changed)
	l.changed = make(chan struct{})
}

// Policy returns the policy of from→to.
func (m *Mesh) Policy(from, to string) Policy { return m.link(from, to).get() }

// Heal makes every link perfect.
func (m *Mesh) Heal() {
	m.mu.Lock()
	links := make([][2]string, 0, len(m.links))
	for k := range m.links {
		links = append(links, k)
	}
	m.mu.Unlock()
	for _, k := range links {
		m.Set(k[0], k[1], Policy{})
	}
}

// Sever resets all streams between two hosts. New ones may be made unless the
// link is blocked too.
func (m *Mesh) Sever(a, b string) {
	m.mu.Lock()
	var hit []*pipe
	for p := range m.pipes {
		if p.from == a && p.to == b || p.from == b && p.to == a {
			hit = append(hit, p)
		}
	}
	m.mu.Unlock()
	for _, p := range hit {
		p.reset()
	}
}

// Stats returns the counts of from→to.
func (m *Mesh) Stats(from, to string) LinkStats {
	l := m.link(from, to)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// isClosed reports whether a socket's error means that the mesh closed it.
func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
