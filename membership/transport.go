package membership

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// packetBytesMax holds any UDP packet.
	packetBytesMax = 64 << 10
	// streamsMax bounds streams open at once, both ways.
	streamsMax = 512
	// readPause is the wait after a failed read of the socket.
	readPause = 10 * time.Millisecond
)

// transport is memberlist's network: our UDP socket, and streams over the
// management port's TLS.
type transport struct {
	packet net.PacketConn
	ip     net.IP
	port   int
	dialFn func(ctx context.Context, addr string) (net.Conn, error)
	addrOf func(id string) string // a member's stated address
	clock  seam.Clock
	log    *slog.Logger
	ctx    context.Context // ends at stop
	cancel context.CancelFunc

	packets chan *memberlist.Packet
	streams chan net.Conn
	wg      sync.WaitGroup // of the reader

	mu      sync.Mutex
	open    map[*trackedConn]struct{}
	stopped bool
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// start reads packets until stop.
func (t *transport) start() {
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		t.read()
	}()
}

func (t *transport) read() {
	buf := make([]byte, packetBytesMax)
	for {
		n, from, err := t.packet.ReadFrom(buf)
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			t.log.Warn("cannot read gossip's socket", "err", err)
			if seam.Sleep(t.ctx, t.clock, readPause) != nil {
				return
			}
			continue
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

// abort ends all streams and lets no new one open.
func (t *transport) abort() {
	t.cancel()
	t.mu.Lock()
	t.stopped = true
	open := make([]*trackedConn, 0, len(t.open))
	for c := range t.open {
		open = append(open, c)
	}
	t.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// Shutdown is memberlist's, and may be called repeatedly.
func (t *transport) Shutdown() error {
	t.abort()
	err := t.packet.Close()
	t.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// FinalAdvertiseAddr is what Config.Advertise resolved to.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return t.ip, t.port, nil }

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet. One that cannot be sent counts as lost on the
// way: memberlist would take other errors than the system's own for a fault of
// its own, and suspect nobody.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err == nil {
		_, err = t.packet.WriteTo(b, net.UDPAddrFromAddrPort(to))
	}
	if err != nil {
		t.log.Debug("a gossip packet was not sent", "to", a.Addr, "err", err)
	}
	return time.Now(), nil
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream. A member that states a host name is dialled
// by it, since that may have moved to another IP address.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	addr := a.Addr
	if stated := t.addrOf(a.Name); stated != "" {
		if _, err := netip.ParseAddrPort(stated); err != nil {
			addr = stated
		}
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	c, err := t.dialFn(ctx, addr)
	if err != nil {
		return nil, err
	}
	return t.track(c)
}

// accept hands a stream that came in to memberlist, which then owns it.
func (t *transport) accept(c net.Conn) {
	tracked, err := t.track(c)
	if err != nil {
		return
	}
	select {
	case t.streams <- tracked:
	case <-t.ctx.Done():
		_ = tracked.Close()
	}
}

// track notes a stream until it is closed; on an error it is closed already.
func (t *transport) track(c net.Conn) (net.Conn, error) {
	tracked := &trackedConn{Conn: c, t: t}
	t.mu.Lock()
	stopped, full := t.stopped, len(t.open) >= streamsMax
	if !stopped && !full {
		t.open[tracked] = struct{}{}
	}
	t.mu.Unlock()
	switch {
	case stopped:
		_ = c.Close()
		return nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "gossip has stopped")
	case full:
		_ = c.Close()
		return nil, wire.Errorf(wire.Code_TOO_MANY, "%d gossip streams are open already", streamsMax)
	}
	return tracked, nil
}

// trackedConn is a stream that ends with the transport.
type trackedConn struct {
	net.Conn
	t *transport
}

func (c *trackedConn) Close() error {
	c.t.mu.Lock()
	delete(c.t.open, c)
	c.t.mu.Unlock()
	return c.Conn.Close()
}
