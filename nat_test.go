package baton_test

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
)

// nat stands between a client and the nodes, as a box at home does: what the
// client sends leaves from a UDP socket of the nat's own, which it may replace at
// any time, and then answers to the former one are lost. It may let the client
// reach some nodes only.
type nat struct {
	seam.OSNetwork
	mu     sync.Mutex
	conn   *natConn
	outer  net.PacketConn
	only   string          // the one address that can be reached, "": all
	seen   map[string]bool // addresses that were sent to
	rebind func(to string, first bool) (host string, now bool)
	moves  int // how often the outer socket was replaced
}

type natConn struct {
	nat  *nat
	in   chan natPacket
	done chan struct{}
	once sync.Once

	mu       sync.Mutex
	deadline chan struct{} // closed while a read deadline has passed
}

type natPacket struct {
	data []byte
	from net.Addr
}

func (n *nat) ListenPacket(string) (net.PacketConn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = map[string]bool{}
	n.conn = &natConn{nat: n, in: make(chan natPacket, 1024), done: make(chan struct{}), deadline: make(chan struct{})}
	return n.conn, n.openLocked("127.0.0.1")
}

// openLocked replaces the outer socket by one at host, with a port of its own.
func (n *nat) openLocked(host string) error {
	pc, err := net.ListenPacket("udp", net.JoinHostPort(host, "0"))
	if err != nil {
		return err
	}
	if n.outer != nil {
		_ = n.outer.Close()
		n.moves++
	}
	n.outer = pc
	go n.conn.pump(pc)
	return nil
}

// change makes the client's packets come from host, and from another port.
func (n *nat) change(host string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.openLocked(host)
}

func (n *nat) changes() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.moves
}

// onSend sets what decides, with each packet, whether the address changes now.
func (n *nat) onSend(f func(to string, first bool) (host string, now bool)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rebind = f
}

// pump takes answers in until the outer socket is closed.
func (c *natConn) pump(pc net.PacketConn) {
	for {
		buf := make([]byte, 2048)
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			return
		}
		select {
		case c.in <- natPacket{buf[:n], from}:
		default: // full: a packet is lost
		}
	}
}

func (c *natConn) WriteTo(p []byte, to net.Addr) (int, error) {
	n := c.nat
	n.mu.Lock()
	defer n.mu.Unlock()
	addr := to.String()
	if n.only != "" && n.only != addr {
		return len(p), nil
	}
	first := !n.seen[addr]
	n.seen[addr] = true
	m, err := n.outer.WriteTo(p, to)
	if n.rebind != nil {
		if host, now := n.rebind(addr, first); now {
			if err := n.openLocked(host); err != nil {
				return 0, err
			}
		}
	}
	return m, err
}

func (c *natConn) ReadFrom(p []byte) (int, net.Addr, error) {
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	select {
	case pk := <-c.in:
		return copy(p, pk.data), pk.from, nil
	case <-deadline:
		return 0, nil, os.ErrDeadlineExceeded
	case <-c.done:
		return 0, nil, net.ErrClosed
	}
}

func (c *natConn) Close() error {
	c.once.Do(func() {
		close(c.done)
		c.nat.mu.Lock()
		defer c.nat.mu.Unlock()
		_ = c.nat.outer.Close()
	})
	return nil
}

// SetReadDeadline knows two deadlines: past, and none.
func (c *natConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.deadline:
		if t.IsZero() {
			c.deadline = make(chan struct{})
		}
	default:
		if !t.IsZero() {
			close(c.deadline)
		}
	}
	return nil
}

func (c *natConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *natConn) SetWriteDeadline(time.Time) error { return nil }
func (c *natConn) LocalAddr() net.Addr {
	return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
}

// cable is a node's link to all others; once cut nothing passes, and nobody is
// told, as when a machine loses its power.
type cable struct {
	seam.OSNetwork
	mu    sync.Mutex
	isCut bool
	conns []net.Conn
	ears  []net.Listener
}

func (c *cable) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isCut = true
	for _, conn := range c.conns {
		_ = conn.Close()
	}
	for _, l := range c.ears {
		_ = l.Close()
	}
}

func (c *cable) dead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isCut
}

func (c *cable) keep(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.isCut {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	c.conns = append(c.conns, conn)
	return conn, nil
}

func (c *cable) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return c.keep(c.OSNetwork.Dial(ctx, addr))
}

func (c *cable) Listen(addr string) (net.Listener, error) {
	l, err := c.OSNetwork.Listen(addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ears = append(c.ears, l)
	return &cableListener{l, c}, nil
}

type cableListener struct {
	net.Listener
	cable *cable
}

func (l *cableListener) Accept() (net.Conn, error) { return l.cable.keep(l.Listener.Accept()) }

func (c *cable) ListenPacket(addr string) (net.PacketConn, error) {
	pc, err := c.OSNetwork.ListenPacket(addr)
	return &cablePacket{pc, c}, err
}

type cablePacket struct {
	net.PacketConn
	cable *cable
}

func (p *cablePacket) WriteTo(b []byte, to net.Addr) (int, error) {
	if p.cable.dead() {
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, to)
}

func (p *cablePacket) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := p.PacketConn.ReadFrom(b)
		if err != nil || !p.cable.dead() {
			return n, from, err
		}
	}
}
