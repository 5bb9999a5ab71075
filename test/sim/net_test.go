package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
)

const (
	// queuePackets is what a socket holds before it drops, as a kernel's does.
	queuePackets = 1024
	// latency is one way, without faults; jitter comes on top.
	latency = 200 * time.Microsecond
	jitter  = 100 * time.Microsecond
	// ephemeral is where ports are handed out from.
	ephemeral = 40000
)

// network is what lies between hosts. Packets and streams obey the link between
// two hosts, each way by itself. It lives in one synctest bubble.
type network struct {
	mu      sync.Mutex
	rng     *rand.Rand
	packets map[string]*packetConn
	listens map[string]*listener
	streams map[*stream]struct{}
	muxers  map[string]*muxer // by address
	links   map[[2]string]*link
	down    map[string]bool
	port    int
	sent    uint64
}

// link is one direction between two hosts. The zero value is a good one.
type link struct {
	cut       bool
	delay     time.Duration // on top of latency
	jitter    time.Duration
	loss, dup float64 // packets only: streams repeat what is lost by themselves
}

func newNetwork(seed uint64) *network {
	return &network{
		rng: rand.New(rand.NewPCG(seed, 2)), packets: map[string]*packetConn{}, listens: map[string]*listener{},
		streams: map[*stream]struct{}{}, muxers: map[string]*muxer{}, links: map[[2]string]*link{}, down: map[string]bool{}, port: ephemeral,
	}
}

// shape changes the link from one host to another.
func (n *network) shape(from, to string, change func(*link)) {
	n.mu.Lock()
	l := n.links[[2]string{from, to}]
	if l == nil {
		l = &link{}
		n.links[[2]string{from, to}] = l
	}
	change(l)
	n.mu.Unlock()
	n.flush()
}

// heal makes all links good and lets flow what was held up.
func (n *network) heal() {
	n.mu.Lock()
	n.links = map[[2]string]*link{}
	n.mu.Unlock()
	n.flush()
}

// crash takes a host off the network for good as far as its present sockets are
// concerned. told: the peers of its streams get a reset, as from a kernel that
// outlives the process; otherwise they hear nothing, as after a power cut.
func (n *network) crash(host string, told bool) {
	n.mu.Lock()
	var severed []*stream
	deaf := map[string]bool{}
	for s := range n.streams {
		deaf[s.host] = n.cutLocked(host, s.host)
	}
	n.down[host] = true
	for addr, m := range n.muxers {
		if m.h.ip == host {
			m.gone.Store(true)
			delete(n.muxers, addr)
		}
	}
	for s := range n.streams {
		if s.host == host || s.remote == host {
			severed = append(severed, s)
		}
	}
	n.mu.Unlock()
	for _, s := range severed {
		s.sever()
		if told && s.remote == host && !deaf[s.host] {
			s.reset()
		}
	}
}

// boot lets a host's new sockets onto the network.
func (n *network) boot(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.down, host)
}

func (n *network) cutLocked(from, to string) bool {
	if n.down[from] || n.down[to] {
		return true
	}
	l := n.links[[2]string{from, to}]
	return l != nil && l.cut
}

func (n *network) isCut(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cutLocked(from, to)
}

// transit draws what becomes of one packet: its delays, one for each copy.
func (n *network) transit(from, to string) (copies []time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sent++
	if n.cutLocked(from, to) {
		return nil
	}
	l := n.links[[2]string{from, to}]
	if l != nil && n.rng.Float64() < l.loss {
		return nil
	}
	copies = append(copies, n.delayLocked(l))
	if l != nil && n.rng.Float64() < l.dup {
		copies = append(copies, n.delayLocked(l))
	}
	return copies
}

func (n *network) delayLocked(l *link) time.Duration {
	d := latency + time.Duration(n.rng.Int64N(int64(jitter)))
	if l != nil {
		d += l.delay
		if l.jitter > 0 {
			d += time.Duration(n.rng.Int64N(int64(l.jitter)))
		}
	}
	return d
}

func (n *network) flush() {
	n.mu.Lock()
	all := make([]*stream, 0, len(n.streams))
	for s := range n.streams {
		all = append(all, s)
	}
	n.mu.Unlock()
	for _, s := range all {
		s.arrive()
	}
}

// host is one machine's view of the network: a seam.Network.
type host struct {
	n  *network
	ip string
}

var _ seam.Network = host{}

func (n *network) host(ip string) host { return host{n, ip} }

func (h host) bind(addr string) (net.IP, int, error) {
	name, p, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, 0, err
	}
	if name != h.ip {
		return nil, 0, fmt.Errorf("%s is not an address of %s", addr, h.ip)
	}
	port, err := strconv.Atoi(p)
	if port == 0 {
		h.n.port++
		port = h.n.port
	}
	return net.ParseIP(h.ip), port, err
}

func (h host) ListenPacket(addr string) (net.PacketConn, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if addr == ":0" || addr == "" || addr == "0.0.0.0:0" {
		addr = h.ip + ":0"
	}
	ip, port, err := h.bind(addr)
	if err != nil {
		return nil, err
	}
	p := &packetConn{h: h, addr: &net.UDPAddr{IP: ip, Port: port}, queue: make(chan packet, queuePackets), closed: make(chan struct{})}
	if h.n.packets[p.addr.String()] != nil {
		return nil, fmt.Errorf("%s is in use", addr)
	}
	h.n.packets[p.addr.String()] = p
	return p, nil
}

func (h host) Listen(addr string) (net.Listener, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	ip, port, err := h.bind(addr)
	if err != nil {
		return nil, err
	}
	l := &listener{h: h, addr: &net.TCPAddr{IP: ip, Port: port}, conns: make(chan *stream, queuePackets), closed: make(chan struct{})}
	if h.n.listens[l.addr.String()] != nil {
		return nil, fmt.Errorf("%s is in use", addr)
	}
	h.n.listens[l.addr.String()] = l
	return l, nil
}

// synRetry is how often a connection that is not answered is asked for again.
const synRetry = 500 * time.Millisecond

// Dial is refused where nobody listens, and hears nothing across a cut.
func (h host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	for {
		wait := synRetry
		there, back := h.n.transitStream(h.ip, to), h.n.transitStream(to, h.ip)
		if there >= 0 && back >= 0 {
			wait = there + back
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
		if there >= 0 && back >= 0 && !h.n.isCut(h.ip, to) && !h.n.isCut(to, h.ip) {
			return h.connect(addr, to)
		}
	}
}

// transitStream is the delay of a segment, -1 across a cut.
func (n *network) transitStream(from, to string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cutLocked(from, to) {
		return -1
	}
	return n.delayLocked(n.links[[2]string{from, to}])
}

func (h host) connect(addr, to string) (net.Conn, error) {
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	l := h.n.listens[addr]
	if l == nil {
		return nil, refused(addr)
	}
	h.n.port++
	local := &net.TCPAddr{IP: net.ParseIP(h.ip), Port: h.n.port}
	near := newStream(h.n, h.ip, to, local, l.addr)
	far := newStream(h.n, to, h.ip, l.addr, local)
	near.peer, far.peer = far, near
	select {
	case l.conns <- far:
	default:
		return nil, refused(addr)
	}
	h.n.streams[near], h.n.streams[far] = struct{}{}, struct{}{}
	return near, nil
}
