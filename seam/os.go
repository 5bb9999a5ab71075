package seam

import (
	"context"
	"net"
	"time"
)

// OSNetwork is the operating system's network.
type OSNetwork struct {
	// LocalIP, if set, is the address that TCP connections are dialled from.
	LocalIP net.IP
}

// udpBufferBytes is asked for on packet sockets. The kernel may grant less; see
// net.core.rmem_max.
const udpBufferBytes = 4 << 20

func (OSNetwork) ListenPacket(addr string) (net.PacketConn, error) {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	if u, ok := c.(*net.UDPConn); ok {
		_ = u.SetReadBuffer(udpBufferBytes)
		_ = u.SetWriteBuffer(udpBufferBytes)
	}
	return c, nil
}

func (OSNetwork) Listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }

func (n OSNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	if n.LocalIP != nil {
		d.LocalAddr = &net.TCPAddr{IP: n.LocalIP}
	}
	return d.DialContext(ctx, "tcp", addr)
}

// OSClock is the operating system's monotonic clock. Its zero value is ready.
type OSClock struct{}

var processStart = time.Now()

func (OSClock) Now() time.Duration { return time.Since(processStart) }
func (OSClock) Wall() time.Time    { return time.Now() }

// Boot implements BootClock.
func (c OSClock) Boot() time.Duration { return bootTime() }

func (OSClock) AfterFunc(d time.Duration, f func()) Timer {
	return time.AfterFunc(d, f)
}

// Deadline is d from now as sockets and contexts take it. They go by the
// runtime's clock, whatever Clock the process is given: a Clock's Wall may be a
// day off and must decide nothing.
func Deadline(d time.Duration) time.Time { return time.Now().Add(d) }

// Sleep waits for d on clock, or until ctx ends, whose error it then returns.
func Sleep(ctx context.Context, clock Clock, d time.Duration) error {
	done := make(chan struct{})
	t := clock.AfterFunc(d, func() { close(done) })
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
