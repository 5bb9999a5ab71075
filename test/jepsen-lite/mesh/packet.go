package mesh

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// nodeProxy is all that listens on one node's public address.
type nodeProxy struct {
	m      *Mesh
	i      int
	name   string
	user   *packetProxy
	mgmt   *packetProxy
	stream net.Listener
}

func newNodeProxy(m *Mesh, i int) (*nodeProxy, error) {
	n := &nodeProxy{m: m, i: i, name: Node(i)}
	var err error
	if n.user, err = newPacketProxy(n, m.user); err != nil {
		return nil, err
	}
	if n.mgmt, err = newPacketProxy(n, m.mgmt); err != nil {
		n.close()
		return nil, err
	}
	n.stream, err = net.Listen("tcp4", m.publicAddr(i, m.mgmt).String())
	if err != nil {
		n.close()
		return nil, err
	}
	return n, nil
}

func (n *nodeProxy) run() {
	n.m.wg.Add(3)
	go n.user.run()
	go n.mgmt.run()
	go n.accept()
}

func (n *nodeProxy) close() {
	for _, p := range []*packetProxy{n.user, n.mgmt} {
		if p != nil {
			p.close()
		}
	}
	if n.stream != nil {
		n.stream.Close()
	}
}

// packetProxy is one UDP port of one node's public address.
type packetProxy struct {
	node *nodeProxy
	port int
	conn *net.UDPConn
	real netip.AddrPort // where the node itself listens

	mu     sync.Mutex
	flows  map[netip.AddrPort]*flow
	closed bool
}

// flow stands in for one foreign source towards the node.
type flow struct {
	conn *net.UDPConn
	last time.Time // guarded by packetProxy.mu
}

func newPacketProxy(n *nodeProxy, port int) (*packetProxy, error) {
	conn, err := listenUDP(n.m.publicAddr(n.i, port))
	if err != nil {
		return nil, err
	}
	return &packetProxy{
		node: n, port: port, conn: conn,
		real:  n.m.realAddr(n.i, port),
		flows: map[netip.AddrPort]*flow{},
	}, nil
}

func listenUDP(a netip.AddrPort) (*net.UDPConn, error) {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(a))
	if err != nil {
		return nil, err
	}
	// As much as the kernel grants: drops here would be faults nobody asked for.
	_ = c.SetReadBuffer(4 << 20)
	_ = c.SetWriteBuffer(4 << 20)
	return c, nil
}

func (p *packetProxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.conn.Close()
	for _, f := range p.flows {
		f.conn.Close()
	}
}

// run takes packets that came for the node.
func (p *packetProxy) run() {
	defer p.node.m.wg.Done()
	m := p.node.m
	buf := make([]byte, packetMax)
	var fate []time.Duration
	for {
		n, src, err := p.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if isClosed(err) {
				return
			}
			continue // an ICMP error of an earlier write, as when a node is down
		}
		src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		out := p.sender(src)
		if out == nil {
			continue
		}
		fate = m.link(m.who(src.Addr()), p.node.name).packet(n, fate)
		deliver(out, buf[:n], p.real, fate)
	}
}

// sender returns the socket whose address stands for src towards the node.
func (p *packetProxy) sender(src netip.AddrPort) *net.UDPConn {
	for _, peer := range p.node.m.nodes {
		if peer.user.real == src {
			return peer.user.conn
		}
		if peer.mgmt.real == src {
			return peer.mgmt.conn
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	if f := p.flows[src]; f != nil {
		f.last = time.Now()
		return f.conn
	}
	p.sweepLocked()
	// Flows leave from an address of their own in the mesh's range, so that
	// nothing takes them for a host.
	conn, err := listenUDP(netip.AddrPortFrom(p.node.m.ip(flowsFrom), 0))
	if err != nil {
		return nil
	}
	p.flows[src] = &flow{conn: conn, last: time.Now()}
	p.node.m.wg.Add(1)
	go p.back(conn, src)
	return conn
}

// sweepLocked drops idle flows once there are many, and the stalest at the limit.
func (p *packetProxy) sweepLocked() {
	if len(p.flows) < flowsMax/2 {
		return
	}
	var oldest netip.AddrPort
	var at time.Time
	for src, f := range p.flows {
		if time.Since(f.last) > flowIdle {
			f.conn.Close()
			delete(p.flows, src)
			continue
		}
		if at.IsZero() || f.last.Before(at) {
			oldest, at = src, f.last
		}
	}
	if len(p.flows) >= flowsMax {
		p.flows[oldest].conn.Close()
		delete(p.flows, oldest)
	}
}

// back takes the node's answers to a flow.
func (p *packetProxy) back(conn *net.UDPConn, src netip.AddrPort) {
	m := p.node.m
	defer m.wg.Done()
	l := m.link(p.node.name, m.who(src.Addr()))
	buf := make([]byte, packetMax)
	var fate []time.Duration
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if isClosed(err) {
				return
			}
			continue
		}
		if from.Addr().Unmap() != p.real.Addr() {
			continue
		}
		fate = l.packet(n, fate)
		deliver(p.conn, buf[:n], src, fate)
	}
}

// deliver sends a packet's copies, each after its delay. A send that fails is a
// packet lost; a timer that fires after Close meets a closed socket.
func deliver(conn *net.UDPConn, b []byte, to netip.AddrPort, fate []time.Duration) {
	for _, d := range fate {
		if d <= 0 {
			_, _ = conn.WriteToUDPAddrPort(b, to)
			continue
		}
		c := append([]byte(nil), b...)
		time.AfterFunc(d, func() { _, _ = conn.WriteToUDPAddrPort(c, to) })
	}
}
